"""Lowered graphs against the interpreter and NumPy, on every executor at every grain."""

import contextlib

import mirror
import numpy as np
import pytest
import strategies
from dask import array as da
from distributed import get_client
from hypothesis import given, settings
from hypothesis import strategies as st

import flowgrad as fg

GRAINS = ("node", "sample", "shard", "round")
SHARDS = (None, 1, 2, 3, 50)
# Random graphs have idle variables; that they are pointed out is tested with the bad input.
pytestmark = pytest.mark.filterwarnings("ignore:.* does not depend on")
plans = st.tuples(st.sampled_from(GRAINS), st.sampled_from(SHARDS))


def interpreted(made, result, variable):
    """Return the interpreter's Jacobians ``(N, result.dim, variable.dim)``."""
    rows = []
    for i in range(made.samples):
        made.set_sample(i)
        rows.append(variable.backward(result))
    return np.stack(rows)


def agree(made, engine):
    """Compare values, gradients and Jacobians of the engine with the interpreter and with NumPy."""
    variables = list(made.variables)
    targets = [made.result, made.loss]
    values = engine.forward(targets, made.feeds)
    for target, value in zip(targets, values):
        assert value.shape == (made.samples, target.dim)
        expected = np.broadcast_to(mirror.evaluate(target, made.variables), value.shape)
        np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10)
    per_sample = {v: interpreted(made, made.loss, v) for v in variables}
    gradients = engine.gradient(made.loss, made.feeds, wrt=variables)
    jacobians = engine.jacobian(made.result, variables, made.feeds)
    assert set(gradients) == set(jacobians) == set(variables)
    for v in variables:
        mean = per_sample[v].sum(axis=0)[0] / made.samples
        if v in made.feeds:
            # Each sample has its own value, so the mean's derivative by all of them adds up.
            assert gradients[v].shape == (v.dim,)
        np.testing.assert_allclose(gradients[v], mean, rtol=1e-9, atol=1e-9, err_msg=str(v))
        np.testing.assert_allclose(
            jacobians[v], interpreted(made, made.result, v), rtol=1e-9, atol=1e-9, err_msg=str(v)
        )
        numeric = np.broadcast_to(mirror.jacobian(made.result, v, made.variables), jacobians[v].shape)
        strategies.close(jacobians[v], numeric)


@settings(max_examples=150)
@given(made=strategies.graphs(), plan=plans)
def test_random_graphs(made, plan):
    grain, shards = plan
    agree(made, fg.Engine("sync", grain=grain, shards=shards))


@settings(max_examples=8)
@given(made=strategies.graphs(), plan=plans)
def test_random_graphs_on_every_executor(executor, made, plan):
    grain, shards = plan
    agree(made, fg.Engine(executor, grain=grain, shards=shards))


@given(made=strategies.graphs(samples=3), plan=plans)
def test_single_precision_is_close(made, plan):
    grain, shards = plan
    feeds = {v: a.astype(np.float32) if a.dtype.kind == "f" else a for v, a in made.feeds.items()}
    engine = fg.Engine("sync", grain=grain, shards=shards)
    value = engine.forward(made.result, feeds)
    assert value.dtype == np.float32
    expected = np.broadcast_to(mirror.evaluate(made.result, made.variables), value.shape)
    np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-3)
    for array in engine.gradient(made.loss, feeds).values():
        assert array.dtype == np.float32
    for array in engine.jacobian(made.result, list(made.variables), feeds).values():
        assert array.dtype == np.float32


@given(made=strategies.graphs(samples=4), plan=plans)
def test_gradient_of_few_variables_is_that_of_all(made, plan):
    """Variables that are not asked for become constants; that must not change the others."""
    grain, shards = plan
    engine = fg.Engine("sync", grain=grain, shards=shards)
    together = engine.gradient(made.loss, made.feeds, wrt=list(made.variables))
    for v in made.variables:
        (alone,) = engine.gradient(made.loss, made.feeds, wrt=[v]).values()
        np.testing.assert_allclose(alone, together[v], rtol=1e-12, atol=1e-12)


# -- one small graph --


class Small:
    """A layer of four units, 3 inputs, 2 classes, 10 samples."""

    def __init__(self, n=10):
        rng = np.random.default_rng(0)
        with fg.Graph(seed=0) as self.graph:
            self.x = fg.Variable(3, trainable=False, name="x")
            self.label = fg.Variable(2, trainable=False, name="label")
            self.hidden = fg.Tanh(self.units(self.x, 4, rng))
            self.logits = self.units(self.hidden, 2, rng)
            self.loss = fg.CrossEntropyWithSoftMax(self.logits, self.label)
        self.images = rng.normal(size=(n, 3))
        self.labels = rng.integers(0, 2, n)
        self.feeds = {self.x: self.images, self.label: np.eye(2)[self.labels]}

    @staticmethod
    def units(x, k, rng):
        return fg.Vectorize(
            *[fg.Add(fg.Dot(fg.Variable(x.dim, rng.normal(size=x.dim)), x), fg.Variable(1, [0.1])) for _ in range(k)]
        )

    @property
    def parameters(self):
        return [n for n in self.graph.nodes if isinstance(n, fg.Variable) and n.trainable]

    def expected(self, node):
        values = {n: n.value[None] for n in self.parameters} | self.feeds
        return mirror.evaluate(node, values)


@pytest.fixture
def small():
    return Small()


@pytest.fixture(params=GRAINS)
def grain(request):
    return request.param


def test_forward_of_one_node_and_of_a_list(small, executor, grain):
    engine = fg.Engine(executor, grain=grain)
    one = engine.forward(small.loss, small.feeds)
    assert one.shape == (10, 1)
    both = engine.forward([small.loss, small.hidden], small.feeds)
    assert isinstance(both, (list, tuple))
    np.testing.assert_allclose(one, small.expected(small.loss), rtol=1e-12)
    np.testing.assert_allclose(both[0], one, rtol=1e-12)
    np.testing.assert_allclose(both[1], small.expected(small.hidden), rtol=1e-12)
    (alone,) = engine.forward([small.hidden], small.feeds)
    np.testing.assert_allclose(alone, both[1], rtol=1e-12)


def test_the_same_target_twice_and_a_variable_as_target(small, grain):
    engine = fg.Engine("sync", grain=grain)
    w = small.parameters[0]
    a, b, x, value = engine.forward([small.loss, small.loss, small.x, w], small.feeds)
    assert a.tobytes() == b.tobytes()
    np.testing.assert_array_equal(x, small.images)
    np.testing.assert_array_equal(value, np.tile(w.value, (10, 1)))
    jacobian = engine.jacobian(small.x, small.x, small.feeds)
    np.testing.assert_array_equal(jacobian, np.tile(np.eye(3), (10, 1, 1)))


def test_without_feeds_the_values_now_set_are_used(small, executor, grain):
    small.x.set_value(small.images[4])
    small.label.set_value(small.feeds[small.label][4])
    engine = fg.Engine(executor, grain=grain)
    value = engine.forward(small.loss)
    assert value.shape == (1, 1)
    np.testing.assert_allclose(value[0], small.loss.forward(), rtol=1e-12)
    w = small.parameters[0]
    np.testing.assert_allclose(engine.gradient(small.loss)[w], w.backward(small.loss)[0], rtol=1e-12)
    np.testing.assert_allclose(engine.jacobian(small.logits, w), [w.backward(small.logits)], rtol=1e-12)


def test_new_values_are_seen(small, executor, grain):
    """The same engine again: nothing stale comes back."""
    engine = fg.Engine(executor, grain=grain)
    for _ in range(3):
        np.testing.assert_allclose(engine.forward(small.loss, small.feeds), small.expected(small.loss), rtol=1e-12)
        small.parameters[0].set_value(small.parameters[0].value + 1.0)
        small.feeds[small.x] = small.feeds[small.x] * 0.5


def test_wrt(small, executor):
    engine = fg.Engine(executor)
    w, b, *_ = small.parameters
    every = engine.gradient(small.loss, small.feeds)
    assert list(every) == small.parameters
    some = engine.gradient(small.loss, small.feeds, wrt=[b, w])
    assert list(some) == [b, w]
    for v in (b, w):
        np.testing.assert_allclose(some[v], every[v], rtol=1e-12)
    assert list(engine.gradient(small.loss, small.feeds, wrt=w)) == [w]
    one = engine.jacobian(small.logits, w, small.feeds)
    assert one.shape == (10, 2, 3)
    assert list(engine.jacobian(small.logits, [w], small.feeds)) == [w]
    np.testing.assert_allclose(engine.jacobian(small.logits, [b, w], small.feeds)[w], one, rtol=1e-12)
    by_input = engine.jacobian(small.logits, small.x, small.feeds)
    small.x.set_value(small.images[7])
    np.testing.assert_allclose(by_input[7], small.x.backward(small.logits), rtol=1e-12)


def test_a_variable_that_is_fed_is_not_differentiated_unless_asked_for(small):
    w = small.parameters[0]
    feeds = {**small.feeds, w: np.tile(w.value, (10, 1))}
    engine = fg.Engine("sync")
    assert w not in engine.gradient(small.loss, feeds)
    np.testing.assert_allclose(engine.forward(small.loss, feeds), small.expected(small.loss), rtol=1e-12)


@pytest.mark.parametrize(
    ("of_feeds", "asked", "expected"),
    [
        (("float32", "float32"), None, "float32"),
        (("float64", "float64"), None, "float64"),
        (("float32", "float64"), None, "float64"),
        (("float32", "int64"), None, "float32"),
        (("uint8", "int64"), None, "float64"),
        (("float64", "float64"), "float32", "float32"),
        (("uint8", "int8"), "float32", "float32"),
    ],
)
def test_dtype_follows_the_feeds(small, executor, of_feeds, asked, expected):
    feeds = {
        small.x: small.images.astype(of_feeds[0]),
        small.label: small.labels.astype(of_feeds[1])
        if "int" in of_feeds[1]
        else np.eye(2, dtype=of_feeds[1])[small.labels],
    }
    engine = fg.Engine(executor, dtype=asked)
    assert engine.forward(small.loss, feeds).dtype == expected
    assert {a.dtype for a in engine.gradient(small.loss, feeds).values()} == {np.dtype(expected)}
    assert engine.jacobian(small.logits, small.x, feeds).dtype == expected


@pytest.mark.parametrize("dtype", ["int64", "uint8", "int32"])
def test_class_indices_are_one_hot_labels(small, dtype):
    engine = fg.Engine("sync")
    indices = {**small.feeds, small.label: small.labels.astype(dtype)}
    np.testing.assert_array_equal(engine.forward(small.loss, indices), engine.forward(small.loss, small.feeds))


def test_lists_and_columns_are_feeds(small):
    engine = fg.Engine("sync")
    feeds = {small.x: small.images.tolist(), small.label: small.labels.tolist()}
    np.testing.assert_array_equal(engine.forward(small.loss, feeds), engine.forward(small.loss, small.feeds))
    with fg.Graph():
        s = fg.Variable(1, trainable=False)
        y = s * s
    assert engine.forward(y, {s: np.array([1.0, 2.0, 3.0])}).tolist() == [[1.0], [4.0], [9.0]]


@pytest.mark.parametrize("chunks", [(10, 3), (4, 3), ((1, 7, 2), (2, 1))])
def test_dask_arrays_are_feeds(small, executor, chunks):
    feeds = {
        small.x: da.from_array(small.images, chunks=chunks),
        small.label: da.from_array(small.labels, chunks=chunks[0]),
    }
    engine = fg.Engine(executor, shards=2)
    np.testing.assert_array_equal(engine.forward(small.loss, feeds), engine.forward(small.loss, small.feeds))
    by_dask, by_numpy = engine.gradient(small.loss, feeds), engine.gradient(small.loss, small.feeds)
    for v in small.parameters:
        np.testing.assert_array_equal(by_dask[v], by_numpy[v])


@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: np.frombuffer(b"?" + a.tobytes(), offset=1).reshape(a.shape),
        lambda a: a.astype(">f8"),
        lambda a: np.broadcast_to(a, a.shape),
    ],
    ids=["Fortran", "strided", "misaligned", "big-endian", "read-only"],
)
def test_the_memory_layout_of_a_feed_does_not_matter(small, executor, layout):
    engine = fg.Engine(executor, shards=3)
    feeds = {**small.feeds, small.x: layout(small.images)}
    w = small.parameters[0]
    assert engine.forward(small.loss, feeds).tobytes() == engine.forward(small.loss, small.feeds).tobytes()
    one, other = (engine.gradient(small.loss, f)[w] for f in (feeds, small.feeds))
    assert one.tobytes() == other.tobytes()


def test_feeds_are_not_changed_and_results_are_the_callers(small, executor, grain):
    engine = fg.Engine(executor, grain=grain)
    before = {v: a.copy() for v, a in small.feeds.items()}
    targets = [small.x, small.loss]
    for array in (*engine.forward(targets, small.feeds), *engine.gradient(small.loss, small.feeds).values()):
        array += 1.0
    for array in engine.jacobian(small.logits, [small.x, *small.parameters], small.feeds).values():
        array += 1.0
    for v, array in before.items():
        np.testing.assert_array_equal(small.feeds[v], array)
    for value, target in zip(engine.forward(targets, small.feeds), targets):
        np.testing.assert_allclose(value, small.expected(target), rtol=1e-12)


def test_a_term_without_samples_counts_once_per_sample(small, executor, grain):
    """Weight decay beside the loss of each sample: its gradient is not divided by the number of samples."""
    w = small.parameters[0]
    with small.graph:
        loss = small.loss + fg.Dot(w, w)
    engine = fg.Engine(executor, grain=grain, shards=3)
    plain, decayed = engine.gradient(small.loss, small.feeds), engine.gradient(loss, small.feeds)
    np.testing.assert_allclose(decayed[w], plain[w] + 2 * w.value, rtol=1e-12)


def test_a_loss_that_no_feed_reaches(small, executor, grain):
    w = small.parameters[0]
    with small.graph:
        loss = fg.Dot(w, w)
    engine = fg.Engine(executor, grain=grain, shards=3)
    np.testing.assert_allclose(engine.gradient(loss, small.feeds, wrt=[w])[w], 2 * w.value, rtol=1e-12)
    np.testing.assert_allclose(engine.forward(loss, small.feeds), np.full((10, 1), w.value @ w.value), rtol=1e-12)


@pytest.mark.distributed
def test_the_current_client_is_used(small, client):
    assert "threads" in repr(fg.Engine())
    with client.as_current():
        engine = fg.Engine()
    assert "distributed" in repr(engine)
    expected = fg.Engine("sync").forward(small.loss, small.feeds)
    np.testing.assert_array_equal(engine.forward(small.loss, small.feeds), expected)


@pytest.mark.distributed
@pytest.mark.parametrize("where", [lambda client: client.cluster, lambda client: client.scheduler.address])
def test_a_cluster_or_an_address_is_used_and_becomes_nobody_elses_default(small, client, where):
    engine = fg.Engine(where(client))
    expected = fg.Engine("sync").forward(small.loss, small.feeds)
    np.testing.assert_array_equal(engine.forward(small.loss, small.feeds), expected)
    own = engine.executor.client
    assert fg.Engine(where(client)).executor.client is own
    own.close()
    again = fg.Engine(where(client))
    assert again.executor.client is not own
    np.testing.assert_array_equal(again.forward(small.loss, small.feeds), expected)
    try:
        assert "threads" in repr(fg.Engine())
    finally:
        with contextlib.suppress(ValueError):
            get_client().close()

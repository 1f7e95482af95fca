"""Per-sample gradients as factors against the explicit ones of HIPS autograd, and what follows from them."""

import gc
import os
import subprocess
import sys
from functools import partial
from unittest import mock

import numpy as np
import pytest
import strategies
from conftest import ROOT
from dask import array as da
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Shared, explicit, same

import flowgrad as fg
from flowgrad.jacobians import Factors, OuterShare, factors, projection
from flowgrad.scheduler.derivatives import lower as request
from flowgrad.scheduler.derivatives import work
from flowgrad.scheduler.derivatives.per_sample import PerSampleGradients
from flowgrad.scheduler.executors import LocalExecutor, Lost

pytestmark = pytest.mark.filterwarnings("ignore:.* does not depend on")
kernels = st.sampled_from(("numpy", "numba"))
plans = st.tuples(st.sampled_from(("node", "shard")), st.sampled_from((None, 2)), kernels)


@settings(max_examples=100)
@given(made=strategies.graphs(), plan=plans, data=st.data())
def test_random_graphs(made, plan, data):
    grain, shards, kernel = plan
    nodes = made.graph.nodes[: made.loss.index + 1]
    wrt = data.draw(st.lists(st.sampled_from([*made.parameters, *nodes]), min_size=1, max_size=4, unique=True))
    agree(
        fg.Engine("sync", grain=grain, shards=shards, kernel=kernel).per_sample_gradients(made.loss, made.feeds, wrt),
        explicit(made, wrt),
    )


@settings(max_examples=100)
@given(made=st.integers(2, 7).flatmap(lambda n: strategies.graphs(samples=n)), cached=st.booleans())
def test_samples_dealt_out_to_threads(made, cached):
    with mock.patch.object(request, "SPREAD_FLOPS", 0.0), mock.patch.object(work, "THREADED", 0):
        engine = fg.Engine("threads", cache_bytes=1 << 20 if cached else 0)
        found = engine.per_sample_gradients(made.loss, made.feeds, made.parameters)
        agree(found, explicit(made, made.parameters))


def test_threads_write_the_same_array():
    rng = np.random.default_rng(0)
    part = [Factors([OuterShare(rng.normal(size=(1, 7, 3)), rng.normal(size=(7, 4)))], 1, 7, 12, float)]
    part.append(Factors([], 1, 7, 2, float))
    places = [(0, 2, 11), (1, 0, 2)]
    with mock.patch.object(work, "THREADED", 0):
        arrays = [work.array_of(part, places, threads).tobytes() for threads in (1, 2, 3, 9)]
    assert len(set(arrays)) == 1


def agree(found, g):
    same(found.array(), g)
    start = 0
    for node in found.wrt:
        same(found.array(node), g[:, start : start + node.dim])
        start += node.dim
    # A norm is the root of a sum of squares that may cancel: compare squares.
    same(found.norms() ** 2, (g * g).sum(axis=1))
    same(found.gram(), g @ g.T)
    same(found.dot(found), g @ g.T)
    laid(found, found.mean(), g.mean(axis=0))
    norms = np.linalg.norm(g, axis=1)
    limit = float(np.median(norms)) + 1e-3
    clipped = (g * np.minimum(1, limit / np.maximum(norms, 1e-300))[:, None]).sum(axis=0)
    laid(found, found.clipped_sum(limit), clipped)
    drawn = [
        np.concatenate([projection(k, b, min(4096, v.dim - a), 3, 7) for b, a in enumerate(range(0, v.dim, 4096))])
        for k, v in enumerate(found.wrt)
    ]
    same(found.project(3, seed=7), g @ np.concatenate(drawn))
    laid(found, found._squares(), (g * g).mean(axis=0))


def laid(found, by_node, expected):
    assert list(by_node) == list(found.wrt)
    same(np.concatenate(list(by_node.values())), expected)


# -- factors by themselves --


@st.composite
def shares(draw):
    """Shares at places that coincide, overlap and lie apart; some with entries in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    samples, rows = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    found = []
    for _ in range(draw(st.integers(0, 4))):
        k, n = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        delta = rng.normal(size=(rows, draw(st.sampled_from([1, samples])), k))
        row = rng.normal(size=(draw(st.sampled_from([1, samples])), n)) if draw(st.booleans()) else None
        size = k * n if row is not None else k
        entries = rng.integers(0, 12, size) if draw(st.booleans()) and draw(st.booleans()) else None
        found.append(OuterShare(delta, row, draw(st.integers(0, 12 - size)), entries))
    return Factors(found, rows, samples, 12, float)


def dense(factors):
    """Return the derivative ``(V, N, size)`` entry by entry."""
    out = np.zeros((factors.rows, factors.samples, factors.size))
    for s in factors.shares:
        for v in range(factors.rows):
            for n in range(factors.samples):
                delta = s.delta[v, n % s.delta.shape[1]]
                row = np.ones(1) if s.row is None else s.row[n % len(s.row)]
                for j, value in enumerate(np.outer(delta, row).ravel()):
                    out[v, n, s.start + j if s.entries is None else s.entries[j]] += value
    return out


@settings(max_examples=300)
@given(factors=shares(), lo=st.integers(0, 11), width=st.integers(1, 12), weights=st.booleans())
def test_factors_are_what_they_stand_for(factors, lo, width, weights):
    g = dense(factors)
    hi = min(12, lo + width)
    same(factors.block(lo, hi), g[:, :, lo:hi])
    same(factors.squared_norms(), (g**2).sum(axis=(0, 2)))
    w = np.arange(1.0, factors.samples + 1) if weights else None
    same(factors.sum(w), np.einsum("vnp,n->vp", g, np.ones(factors.samples) if w is None else w))
    same(factors.square_sum(), (g**2).sum(axis=(0, 1)))
    same(factors.dot(), g[0] @ g[0].T)


@settings(max_examples=200)
@given(a=shares(), b=shares())
def test_scalar_products_of_two_sets(a, b):
    same(a.dot(b), dense(a)[0] @ dense(b)[0].T)


def test_many_samples_are_multiplied_in_tiles():
    rng = np.random.default_rng(0)
    d, x = rng.normal(size=(1, 700, 3)), rng.normal(size=(700, 5))
    factors = Factors([OuterShare(d, x, 0), OuterShare(d, None, 15)], 1, 700, 18, float)
    g = factors.block(0, 18)[0]
    same(factors.dot(), g @ g.T)
    assert (factors.dot() == factors.dot().T).all()
    other = Factors([OuterShare(d[:, :300], x[:300], 0), OuterShare(d[:, :300], None, 15)], 1, 300, 18, float)
    same(factors.dot(other), g @ g[:300].T)


# -- shared weights --


@pytest.mark.parametrize("units", [1, 3, 6])
@pytest.mark.parametrize("grain", ["node", "shard"])
def test_shared_weights_count_their_cross_terms(units, grain):
    made = Shared(units)
    found = fg.Engine("sync", grain=grain).per_sample_gradients(made.loss, made.feeds)
    agree(found, explicit(made, found.wrt))


# -- every executor, futures, dask arrays --


def test_on_every_executor_and_lazily(executor):
    made = Shared(3)
    engine = fg.Engine(executor, shards=3)
    found = engine.per_sample_gradients(made.loss, made.feeds)
    g = explicit(made, found.wrt)
    agree(found, g)
    for name, expected in {"norms": np.linalg.norm(g, axis=1), "gram": g @ g.T, "array": g}.items():
        lazy = getattr(found, name)(compute=False)
        assert isinstance(lazy, da.Array)
        assert len(lazy.chunks[0]) == 3
        same(engine.executor.compute(lazy), expected)
    assert all(isinstance(a, da.Array) for a in found.mean(compute=False).values())


@pytest.mark.parametrize("chunks", [pytest.param(2, marks=pytest.mark.slow), 4, 9])
def test_dask_feeds_are_read_chunk_by_chunk(executor, chunks):
    made = Shared(2)
    lazy = {v: da.from_array(a, chunks=(chunks, 3)) for v, a in made.feeds.items()}
    lazy[made.label] = da.from_array(made.feeds[made.label].argmax(axis=1), chunks=3)
    lazy[made.x[0]] = made.feeds[made.x[0]]  # one of them in memory
    engine = fg.Engine(executor)
    found = engine.per_sample_gradients(made.loss, lazy)
    agree(found, explicit(made, found.wrt))
    some = engine.per_sample_gradients(made.loss, {v: a[:2] for v, a in made.feeds.items()})
    g = explicit(made, found.wrt)
    same(some.dot(found), g[:2] @ g.T)


def test_a_chunk_that_cannot_be_used_names_the_variable():
    made = Shared(1)
    feeds = {v: da.from_array(a, chunks=3) for v, a in made.feeds.items()}
    feeds[made.x[1]] = da.where(da.arange(9, chunks=3)[:, None] == 7, np.nan, feeds[made.x[1]])
    found = fg.Engine("sync").per_sample_gradients(made.loss, feeds)
    with pytest.raises(fg.errors.FeedError, match=f"{made.x[1].name}.*not finite"):
        found.norms()


def test_wrong_requests_are_told():
    made = Shared(1)
    engine = fg.Engine("sync")
    with pytest.raises(fg.errors.GraphError, match="not a scalar"):
        engine.per_sample_gradients(made.loss.parents[0], made.feeds)
    short = {**made.feeds, made.label: made.feeds[made.label][:5]}
    for feeds in (short, {v: da.from_array(a) for v, a in short.items()}):
        with pytest.raises(fg.errors.FeedError, match=r"differ.*9.*5"):
            engine.per_sample_gradients(made.loss, feeds)
    found = engine.per_sample_gradients(made.loss, made.feeds)
    for call in (
        lambda: found.clipped_sum(0.0),
        lambda: found.project(0),
        lambda: found.dot(3),
        lambda: found.array(made.label),
    ):
        with pytest.raises(fg.errors.GraphError):
            call()
    unknown = da.from_array(made.feeds[made.label], chunks=3)
    unknown = unknown[unknown[:, 0] >= 0]
    again = engine.per_sample_gradients(made.loss, {**made.feeds, made.label: unknown})
    np.testing.assert_allclose(again.norms(), found.norms())


def test_a_loss_that_reaches_no_parameter_has_zero_gradients():
    made = Shared(1)
    with made.graph:
        idle = fg.Variable(2, [1.0, 2.0])
    with pytest.warns(UserWarning, match="does not depend"):
        found = fg.Engine("sync").per_sample_gradients(made.loss, made.feeds, idle)
    assert found.array().shape == (9, 2)
    assert not found.norms().any()
    assert not found.mean()[idle].any()


@settings(max_examples=40)
@given(made=strategies.graphs(samples=7), tile=st.integers(1, 9))
def test_tiles_side_by_side_are_the_same(made, tile):
    one = fg.Engine("sync").per_sample_gradients(made.loss, made.feeds, made.parameters)
    other = fg.Engine("threads").per_sample_gradients(made.loss, made.feeds, made.parameters)
    with mock.patch.object(factors, "TILE", tile), mock.patch.object(work, "THREADED", 0):
        side_by_side = other.gram(), other.dot(one)
    for found in (*side_by_side, one.gram()):
        same(found, explicit(made, made.parameters) @ explicit(made, made.parameters).T)
    np.testing.assert_array_equal(side_by_side[0], side_by_side[0].T)


# -- on workers that may die --


class Losing(LocalExecutor):
    """Loses so many results."""

    def __init__(self, times):
        super().__init__(threads=False)
        self.times = times

    def compute(self, collection):
        self.times -= 1
        if self.times >= 0:
            raise Lost("gone")
        return super().compute(collection)


def gradients_that_are_made_again(executor, w, made, released):
    """By two blocks of one sample; notes when they are made and let go of."""

    def make():
        made.append(len(made))
        factors = [Factors([OuterShare(np.full((1, 1, 2), k), np.ones((1, 3)))], 1, 1, 6, float) for k in (1.0, 2.0)]
        return [[f] for f in factors], partial(released.append, len(made) - 1)

    return PerSampleGradients(executor, [w], [(0, 0, 6)], [6], float, [1, 1], make(), make)


@pytest.mark.parametrize("times", [0, 1, 2])
def test_lost_parts_are_made_again_once(times):
    with fg.Graph():
        w = fg.Variable(6)
    made, released = [], []
    found = gradients_that_are_made_again(Losing(times), w, made, released)
    if times == 2:
        with pytest.raises(Lost):
            found.norms()
    else:
        np.testing.assert_allclose(found.norms(), [6**0.5, 24**0.5])
        assert found.mean()[w].tolist() == [1.5] * 6
    assert len(made) == min(times, 1) + 1
    assert released == []
    del found
    gc.collect()
    assert sorted(released) == made


def test_lost_parts_of_two_sets_are_made_again():
    with fg.Graph():
        w = fg.Variable(6)
    noted = [([], []), ([], [])]
    executor = Losing(1)
    one, other = (gradients_that_are_made_again(executor, w, *n) for n in noted)
    assert one.dot(other).tolist() == [[6, 12], [12, 24]]
    assert [len(made) for made, _ in noted] == [2, 2]


def test_very_many_uses_of_one_variable_are_added_up_first():
    with fg.Graph():
        x, w = fg.Variable(3, trainable=False), fg.Variable(3, [0.1, 0.2, 0.3])
        loss = fg.Sum(fg.Vectorize(*[fg.Tanh(w * fg.Scale(x, 0.1 * k)) for k in range(40)]))
    feeds = {x: np.random.default_rng(0).random((5, 3))}
    found = fg.Engine("sync").per_sample_gradients(loss, feeds)
    same(found.norms(), np.linalg.norm(found.array(), axis=1))


FROM_A_FILE = """
import resource, sys
import numpy as np
import flowgrad as fg

with fg.Graph(seed=0):
    x, w = fg.Variable(64, trainable=False), fg.Variable(64, np.linspace(-1, 1, 64))
    loss = fg.Tanh(fg.Dot(w, x))
gradients = lambda feed: fg.Engine("sync").per_sample_gradients(loss, {x: feed})
gradients(np.ones((10, 64))).norms()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
norms = gradients(np.load(sys.argv[1], mmap_mode="r")).norms()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
np.save(sys.argv[2], norms)
print(after - before)
"""


def test_a_mapped_file_is_not_copied_into_the_client(tmp_path):
    """A file of 256 MB, of which each chunk of 64 MB is mapped, checked and let go of."""
    rng = np.random.default_rng(0)
    rows = rng.random((500_000, 64))
    np.save(tmp_path / "x.npy", rows)
    args = [sys.executable, "-c", FROM_A_FILE, str(tmp_path / "x.npy"), str(tmp_path / "norms.npy")]
    done = subprocess.run(
        args, capture_output=True, text=True, timeout=200, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    w = np.linspace(-1, 1, 64)
    expected = (1 - np.tanh(rows @ w) ** 2) * np.sqrt((rows * rows).sum(axis=1))
    np.testing.assert_allclose(np.load(tmp_path / "norms.npy"), expected, rtol=1e-9, atol=1e-12)
    assert int(done.stdout) < 0.75 * rows.nbytes / 1024  # kB at the most, pages of the file that are mapped included


@pytest.mark.distributed
def test_a_mapped_file_on_a_cluster(tmp_path, client):
    rows = np.random.default_rng(0).normal(size=(50, 4))
    np.save(tmp_path / "x.npy", rows)
    np.save(tmp_path / "label.npy", np.arange(50) % 3)
    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(4, trainable=False), fg.Variable(3, trainable=False)
        loss = fg.CrossEntropyWithSoftMax(fg.MatVec(fg.Variable(12, np.linspace(-1, 1, 12)), x), label)
    feeds = {
        x: np.load(tmp_path / "x.npy", mmap_mode="r")[5:],
        label: np.load(tmp_path / "label.npy", mmap_mode="r")[5:],
    }
    for engine in (fg.Engine("threads"), fg.Engine(client)):
        found = engine.per_sample_gradients(loss, feeds)
        np.testing.assert_allclose(
            found.norms(), engine.per_sample_gradients(loss, {v: np.array(a) for v, a in feeds.items()}).norms()
        )
    assert graph is loss.graph


@pytest.mark.parametrize(("dtype", "large"), [("float32", 1e25), ("float64", 1e200)])
@pytest.mark.parametrize("shared", [False, True])
def test_norms_of_samples_whose_squares_are_no_numbers(dtype, large, shared):
    with fg.Graph():
        x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 1.0])
        loss = fg.Dot(w, x) + (fg.Dot(fg.Scale(w, -0.5), x) if shared else fg.Sum(w))
    rows = np.array([[3.0, 4.0], [3 * large, 4 * large], [0.0, 0.0], [np.finfo(dtype).max] * 2, [large, 0.0]])
    found = fg.Engine("sync", dtype=dtype).per_sample_gradients(loss, {x: rows})
    g = found.array().astype(np.longdouble)
    expected = np.sqrt((g * g).sum(axis=1))
    expected[expected > np.finfo(dtype).max] = np.inf
    np.testing.assert_allclose(found.norms(), expected.astype(float), rtol=1e-6)
    few = fg.Engine("sync", dtype=dtype).per_sample_gradients(loss, {x: rows[[1, 4]]})
    unit = (g[[1, 4]] / expected[[1, 4], None]).sum(axis=0)
    np.testing.assert_allclose(few.clipped_sum(1.0)[w], unit.astype(float), rtol=1e-6)


@pytest.mark.parametrize("where", ["sync", "threads", pytest.param("client", marks=pytest.mark.distributed)])
def test_the_first_bad_sample_of_chunks_is_told(where, request):
    rng = np.random.default_rng(0)
    with fg.Graph(seed=0):
        x, t = fg.Variable(4, trainable=False, name="x"), fg.Variable(3, trainable=False, name="t")
        loss = fg.CrossEntropyWithSoftMax(fg.MatVec(fg.Variable(12, True), x), t)
    X, labels = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    labels[[5, 25, 45]] = 7
    engine = fg.Engine(request.getfixturevalue("client") if where == "client" else where)

    def told(samples):
        feeds = {x: da.from_array(samples, chunks=(20, 4)), t: da.from_array(labels, chunks=20)}
        for call in (engine.forward, lambda *args: engine.per_sample_gradients(*args).norms()):
            with pytest.raises(fg.errors.FeedError) as caught:
                call(loss, feeds)
            yield str(caught.value)

    first, second = told(X)
    assert first == second
    assert "sample 5 of the feed for 't'" in first
    X[50] = np.nan
    first, second = told(X)
    assert first == second
    assert "sample 50" in first

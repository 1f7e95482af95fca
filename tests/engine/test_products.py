"""vjp, jvp, hvp and the diagonals of curvature against HIPS autograd and finite differences."""

import autograd
import dask.array as da
import numpy as np
import oracles
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Cube
from oracles import Shared, explicit, one_op, same

import flowgrad as fg

pytestmark = pytest.mark.filterwarnings("ignore:.* does not depend on")
kernels = st.sampled_from(("numpy", "numba"))
plans = st.tuples(st.sampled_from(("node", "shard")), st.sampled_from((None, 2)), kernels)


@settings(max_examples=80)
@given(made=strategies.graphs(), plan=plans)
def test_vjp_and_jvp_of_random_graphs(made, plan):
    grain, shards, kernel = plan
    rng = np.random.default_rng(0)
    engine = fg.Engine("sync", grain=grain, shards=shards, kernel=kernel)
    variables = list(made.variables)
    jacobians = {v: oracles.jacobians(made, made.result, v) for v in variables}
    u = rng.normal(size=(made.samples, made.result.dim))
    pulled = engine.vjp(made.result, u, made.feeds, wrt=variables)
    tangents = {v: rng.normal(size=(made.samples, v.dim) if v in made.feeds else v.dim) for v in variables}
    pushed = engine.jvp(made.result, tangents, made.feeds)
    expected = np.zeros_like(u)
    for v in variables:
        rows = np.einsum("nv,nvi->ni", u, jacobians[v])
        same(pulled[v], rows if v in made.feeds else rows.sum(axis=0))
        expected += np.einsum("nvi,ni->nv", jacobians[v], np.broadcast_to(tangents[v], (made.samples, v.dim)))
    same(pushed, expected)
    # They are adjoint: <u, J t> = <Jᵀ u, t>.
    left, right = (u * pushed).sum(), sum((pulled[v] * tangents[v]).sum() for v in variables)
    same(left, right)


@settings(max_examples=80)
@given(made=strategies.graphs(max_moves=5), plan=plans)
def test_hessian_times_vector_of_random_graphs(made, plan):
    """Exact: against central differences of the engine's own gradient, to fourth order."""
    grain, shards, kernel = plan
    engine = fg.Engine("sync", grain=grain, shards=shards, kernel=kernel)
    wrt = [v for v in made.variables if v not in made.feeds and v.below is None]
    rng = np.random.default_rng(1)
    direction = {v: rng.normal(size=v.dim) for v in wrt}
    found = engine.hvp(made.loss, direction, made.feeds)
    before = {v: v.value for v in wrt}

    def gradient(h):
        for v in wrt:
            v.set_value(before[v] + h * direction[v])
        values = engine.gradient(made.loss, made.feeds, wrt=wrt)
        return np.concatenate([values[v] for v in wrt])

    h = 1e-3
    try:
        numeric = (8 * (gradient(h) - gradient(-h)) - (gradient(2 * h) - gradient(-2 * h))) / (12 * h)
    finally:
        for v in wrt:
            v.set_value(before[v])
    same(np.concatenate([found[v] for v in wrt]), numeric, 1e-5)


SECOND = ["Multiply", "Exp", "Log", "Reciprocal", "Logistic", "Tanh", "ReLU", "Dot", "RowDot", "MatVec", "SoftMax",
          "LogSoftMax", "MeanSquaredError", "CrossEntropyWithSoftMax", "LogisticCrossEntropy", "Vectorize", "Gather",
          "Embedding"]  # fmt: skip


@pytest.mark.parametrize("fed", ["ak", "b", "m", ""])
@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("op", SECOND)
def test_second_derivatives_of_every_op_by_hips_autograd(op, fed, kernel):
    made, variables = one_op(op, fed)
    with made.graph:  # squares make the second derivative see the first one too
        loss = fg.Dot(made.result, made.result)
    wrt = [v for v in variables.values() if v in made.result.parents and v not in made.feeds]
    if not wrt:
        return
    rng = np.random.default_rng(2)
    flat = np.concatenate([v.value for v in wrt])
    d = rng.normal(size=flat.size)
    hvp = autograd.hessian_vector_product(lambda x: oracles.mean_loss(made, loss, x, wrt))
    starts = np.cumsum([0, *(v.dim for v in wrt)])
    direction = {v: d[a : a + v.dim] for v, a in zip(wrt, starts)}
    found = fg.Engine("sync", kernel=kernel).hvp(loss, direction, made.feeds)
    same(np.concatenate([found[v] for v in wrt]), hvp(flat, d), 1e-10)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_the_second_derivative_of_a_piecewise_linear_loss_is_zero(kernel, samples):
    with fg.Graph():
        x, w = fg.Variable(2, trainable=False), fg.Variable(2, [0.5, -1.0])
        loss = fg.ReLU(fg.MatVec(w, x))
    product = fg.Engine("sync", kernel=kernel).hvp(loss, {w: np.ones(2)}, {x: np.ones((samples, 2))})
    assert product[w].tolist() == [0.0, 0.0]


@settings(max_examples=60)
@given(made=strategies.graphs(max_moves=6), dtype=st.sampled_from(("f4", "f8")))
def test_compiled_products_are_those_of_numpy(made, dtype):
    numpy, compiled = (fg.Engine("sync", dtype=dtype, kernel=kernel) for kernel in ("numpy", "numba"))
    wrt = [v for v in made.variables if v not in made.feeds]
    direction = {v: np.cos(np.arange(v.dim)) for v in wrt}
    moved = direction | {v: np.sin(a) for v, a in made.feeds.items()}
    tolerance = 1e-10 if dtype == "f8" else 2e-3
    found, expected = (e.jvp(made.result, moved, made.feeds) for e in (compiled, numpy))
    assert found.dtype == dtype
    same(found, expected, tolerance)
    found, expected = (e.hvp(made.loss, direction, made.feeds) for e in (compiled, numpy))
    for v in wrt:
        same(found[v], expected[v], tolerance)


def test_a_wrong_bend_in_machine_code_is_noticed():
    class Bent(fg.Elementwise):
        formula, slopes, bends = "exp(a)", ("y",), {(0, 0): "1.002 * y"}

    with fg.Graph():
        x = fg.Variable(3, [0.1, 0.2, 0.3])
        wrong, right = fg.Sum(Bent(x)), fg.Sum(fg.Exp(x))
    engine = fg.Engine("sync", kernel="numba")
    wrong, right = (engine.hvp(node, {x: np.ones(3)})[x] for node in (wrong, right))
    same(right, np.exp([0.1, 0.2, 0.3]), 1e-12)
    with pytest.raises(AssertionError):
        same(wrong, right, 1e-5)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_a_wrong_second_rule_is_noticed(kernel):
    """The comparison above is worth something: a rule that is off by one in a thousand fails it."""
    made, variables = one_op("Tanh", "")

    class Bent(fg.Tanh):
        @staticmethod
        def jacobian_tangent(slot, values, tangents):
            return fg.Diagonal(-2.002 * values[0] * tangents[0])

    with made.graph:
        loss, right = (fg.Sum(op(variables["a"])) for op in (Bent, fg.Tanh))
    d = {variables["a"]: np.ones(4)}
    engine = fg.Engine("sync", kernel=kernel)
    wrong, good = (engine.hvp(node, d)[variables["a"]] for node in (loss, right))
    with pytest.raises(AssertionError):
        same(wrong, good, 1e-5)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_an_op_without_a_second_rule_is_differentiated_by_differences(kernel):
    with fg.Graph():
        x, w = fg.Variable(3, trainable=False), fg.Variable(3, [1.0, -2.0, 0.5])
        loss = fg.Sum(Cube(w * x))
    feeds = {x: np.array([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])}
    found = fg.Engine("sync", kernel=kernel).hvp(loss, {w: [1.0, 2.0, -1.0]}, feeds)[w]
    exact = (6 * w.value * feeds[x] ** 3 * [1.0, 2.0, -1.0]).mean(axis=0)
    same(found, exact, 1e-8)


@pytest.mark.parametrize("units", [1, 3])
def test_diagonals(executor, units):
    made = Shared(units)
    engine = fg.Engine(executor, shards=2)
    fisher = engine.fisher_diagonal(made.loss, made.feeds)
    wrt = list(fisher)
    same(np.concatenate(list(fisher.values())), (explicit(made, wrt) ** 2).mean(axis=0))
    logits = made.loss.parents[0]
    j = np.concatenate([oracles.jacobians(made, logits, v) for v in wrt], axis=2)
    z = np.stack([oracles.evaluate(logits, {v: a[i % len(a)] for v, a in made.variables.items()}) for i in range(9)])
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    h = np.stack([np.diag(pi) - np.outer(pi, pi) for pi in p])
    ggn = engine.ggn_diagonal(made.loss, made.feeds)
    same(np.concatenate([ggn[v] for v in wrt]), np.einsum("nvi,nvw,nwi->i", j, h, j) / 9)
    with made.graph:
        squares = fg.MeanSquaredError(logits, made.label)
    ggn = engine.ggn_diagonal(squares, made.feeds)
    same(np.concatenate([ggn[v] for v in wrt]), np.einsum("nvi,nvi->i", j, j) * 2 / 2 / 9)


def test_the_diagonal_of_one_logit_is_that_of_two():
    rng = np.random.default_rng(0)
    with fg.Graph():
        x, yes = fg.Variable(3, trainable=False), fg.Variable(1, trainable=False)
        label, zero = fg.Variable(2, trainable=False), fg.Variable(1, [0.0], trainable=False)
        w = fg.Variable(3, rng.normal(size=3))
        one = fg.LogisticCrossEntropy(w @ x, yes)
        two = fg.CrossEntropyWithSoftMax(fg.Vectorize(zero, w @ x), label)
    answers, samples = rng.integers(0, 2, 9), rng.normal(size=(9, 3))
    engine = fg.Engine("sync")
    found = engine.ggn_diagonal(one, {x: samples, yes: answers})[w]
    same(found, engine.ggn_diagonal(two, {x: samples, label: answers})[w], 1e-14)
    s = 1 / (1 + np.exp(-samples @ w.value))[:, None]
    same(found, (samples**2 * s * (1 - s)).mean(axis=0), 1e-14)


def test_on_every_executor(executor):
    made = Shared(2)
    engine, other = fg.Engine(executor, shards=3), fg.Engine("sync")
    wrt = [v for v in made.variables if v not in made.feeds]
    direction = {v: np.cos(np.arange(v.dim)) for v in wrt}
    for name, args in {"hvp": (made.loss, direction), "jvp": (made.loss, direction), "vjp": (made.loss, [1.0])}.items():
        found, expected = (getattr(e, name)(*args, made.feeds) for e in (engine, other))
        for a, b in zip(found.values(), expected.values()) if isinstance(found, dict) else [(found, expected)]:
            same(a, b)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda e, m: e.hvp(m.loss.parents[0], {m.w: np.ones(5)}, m.feeds), "not a scalar"),
        (lambda e, m: e.hvp(m.loss, {m.x[0]: np.ones(5)}, m.feeds), "is fed"),
        (lambda e, m: e.hvp(m.loss, {}, m.feeds), "at least one"),
        (lambda e, m: e.hvp(m.loss, {m.w: np.ones(4)}, m.feeds), r"\(4,\)"),
        (lambda e, m: e.jvp(m.loss, {m.loss: np.ones(1)}, m.feeds), "variable"),
        (lambda e, m: e.jvp(m.loss, {m.w: np.ones((9, 5))}, m.feeds), "shared by all samples"),
        (lambda e, m: e.jvp(m.loss, {m.w: "no"}, m.feeds), "not an array"),
        (lambda e, m: e.vjp(m.loss, np.ones((3, 1)), m.feeds), r"\(3, 1\).*\(9, 1\)"),
        (lambda e, m: e.ggn_diagonal(fg.Sum(m.loss), m.feeds), "CrossEntropyWithSoftMax"),
        (lambda e, m: e.fisher_diagonal(m.loss.parents[0], m.feeds), "not a scalar"),
    ],
)
def test_wrong_requests_are_told(call, match):
    made = Shared(1)
    made.w = next(v for v in made.graph.nodes if isinstance(v, fg.Variable) and v.trainable)
    with pytest.raises(fg.FlowgradError, match=match):
        call(fg.Engine("sync"), made)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1j, 0, 0, 0, 0], "complex"),
        (np.ma.array([1.0, 2, 3, 4, 5], mask=[0, 0, 1, 0, 0]), "masked"),
        ([1.0, np.nan, 0, 0, 0], "not finite: entry 1 is nan"),
        ([np.inf] * 5, "not finite"),
        (["a"] * 5, "not an array of numbers"),
        ([1.0, 2.0], r"has shape \(2,\)"),
    ],
)
def test_directions_are_checked_like_values(value, said):
    with fg.Graph():
        x, w = fg.Variable(5, trainable=False), fg.Variable(5, np.ones(5))
        y = fg.Tanh(w * x)
        loss = fg.Sum(y)
    engine, feeds = fg.Engine("sync"), {x: np.ones((3, 5))}
    for call in (lambda: engine.jvp(y, {w: value}, feeds), lambda: engine.hvp(loss, {w: value}, feeds)):
        with pytest.raises(fg.errors.FeedError, match=said):
            call()
    with pytest.raises(fg.errors.FeedError, match=said):
        engine.vjp(y, value, feeds)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("where", ["sync", "threads"])
def test_what_is_too_small_is_rounded_whatever_numpy_is_told(where, kernel):
    with fg.Graph() as graph:
        x, t = fg.Variable(4, trainable=False), fg.Variable(3, trainable=False)
        w = fg.Variable(12, 300 * np.eye(3, 4).ravel())
        loss = fg.CrossEntropyWithSoftMax(fg.MatVec(w, x), t)
    X = np.random.default_rng(0).normal(size=(24, 4))
    X[0] = 1e-200
    feeds = {x: X, t: X[:, :3].argmax(axis=1)}
    chunks = {x: da.from_array(X, chunks=(6, 4)), t: da.from_array(feeds[t], chunks=6)}
    first = w.value

    def numbers():
        w.set_value(first)
        engine = fg.Engine(where, kernel=kernel, shards=2)
        trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=8), engine)
        gradients, lazy = (engine.per_sample_gradients(loss, f) for f in (feeds, chunks))
        found = [
            engine.forward(loss, feeds),
            engine.gradient(loss, feeds)[w],
            engine.jacobian(loss, w, feeds),
            engine.jacobian(loss, w, feeds, memory_budget=1200).compute(),
            engine.vjp(loss, [1e-200], feeds)[w],
            engine.jvp(loss, {w: np.full(12, 1e-200)}, feeds),
            engine.hvp(loss, {w: np.full(12, 1e-200)}, feeds)[w],
            engine.ggn_diagonal(loss, feeds)[w],
            engine.lower(loss, feeds).compute(),
            *(of(g) for g in (gradients, lazy) for of in (type(g).norms, type(g).gram, type(g).array)),
            gradients.clipped_sum(1e-3)[w],
            lazy.norms(compute=False).compute(),
        ]
        found += [trainer.evaluate(feeds)["loss"], trainer.predict(loss, feeds), trainer.fit(feeds, epochs=2).steps]
        x.set_value(X[0])
        t.set_value([1.0, 0.0, 0.0])
        return [*found, loss.forward(), w.backward(loss), fg.Adam(graph, loss, batch_size=1).one_step(), w.value]

    expected = numbers()
    with np.errstate(all="raise"):
        found = numbers()
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12)


def test_only_values_that_were_read_are_missed():
    class Halved(fg.Op):
        uses = ((),)

        @staticmethod
        def apply(a):
            return a / 2

        @staticmethod
        def jacobian(slot, y, a):
            raise OSError("disk full")

    with fg.Graph():
        a = fg.Variable(1, [1.0])
        y = Halved(a)
    with pytest.raises(fg.errors.NodeFailed, match=r"failed: OSError: disk full$"):
        a.backward(y)

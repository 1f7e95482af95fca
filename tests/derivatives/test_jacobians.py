"""Jacobians by any node, in both modes, against HIPS autograd, central differences and the interpreter."""

import mirror
import numpy as np
import oracles
import pytest
import strategies
from dask import array as da
from dask.utils import key_split
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import OPS, one_op, same

import flowgrad as fg
from flowgrad.graph import ancestors

pytestmark = pytest.mark.filterwarnings("ignore:.* does not depend on")
MODES = ("reverse", "forward", "auto")
kernels = st.sampled_from(("numpy", "numba"))
plans = st.tuples(
    st.sampled_from(("node", "sample", "shard")), st.sampled_from((None, 2)), st.sampled_from(MODES), kernels
)


@settings(max_examples=120)
@given(made=strategies.graphs(), plan=plans, data=st.data())
def test_random_graphs_by_any_nodes(made, plan, data):
    grain, shards, mode, kernel = plan
    nodes = [*made.graph.nodes[: made.result.index + 1]]
    wrt = data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=4, unique=True))
    result = data.draw(st.sampled_from([made.result, made.loss, *nodes[-3:]]))
    found = fg.Engine("sync", grain=grain, shards=shards, kernel=kernel).jacobian(result, wrt, made.feeds, mode=mode)
    assert list(found) == wrt
    for node in wrt:
        assert found[node].shape == (made.samples, result.dim, node.dim)
        same(found[node], oracles.jacobians(made, result, node))


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("fed", ["abk", "a", "bm", ""])
@pytest.mark.parametrize("op", OPS)
def test_every_op_with_shared_and_per_sample_operands(op, fed, mode, kernel):
    """By central differences of plain NumPy, to 1e-8, and by HIPS autograd."""
    made, variables = one_op(op, fed)
    twice = OPS[op][0] == "ab" and op not in ("Maximum", "Minimum")  # which have no derivative there
    for repeated in (False, True) if twice else (False,):
        result = made.result
        if repeated:
            with made.graph:
                result = oracles.built(op, variables["a"], variables["a"])
        wrt = [v for v in variables.values() if v in ancestors(result)]
        found = fg.Engine("sync", kernel=kernel).jacobian(result, wrt, made.feeds, mode=mode)
        for v in wrt:
            same(found[v], oracles.jacobians(made, result, v), 1e-10)
            numeric = mirror.jacobian(result, v, made.variables, step=1e-3)
            same(found[v], np.broadcast_to(numeric, found[v].shape), 1e-8)


class Net:
    """Two layers of Dot units that share nothing, 6-5-4."""

    def __init__(self, samples=7, dtype=float):
        rng = np.random.default_rng(0)
        with fg.Graph(seed=0) as self.graph:
            self.x = fg.Variable(6, trainable=False, name="x")
            self.hidden = fg.Tanh(self.layer(self.x, 5, rng), name="hidden")
            self.logits = self.layer(self.hidden, 4, rng)
            self.probabilities = fg.SoftMax(self.logits, name="p")
        self.feeds = {self.x: rng.normal(size=(samples, 6)).astype(dtype)}

    @staticmethod
    def layer(x, units, rng):
        return fg.Vectorize(
            *(fg.Dot(fg.Variable(x.dim, rng.normal(size=x.dim)), x) + fg.Variable(1, [0.1]) for _ in range(units))
        )

    @property
    def parameters(self):
        return [v for v in self.graph.nodes if isinstance(v, fg.Variable) and v.trainable]


class Halves(fg.Diagonal):
    """A kind of the user's own."""

    def pull(self, g, out=None):
        return np.multiply(0.5 * g, 2 * self.d, out)


class Half(fg.Op):
    kinds = (fg.Diagonal,)

    @staticmethod
    def shape(a):
        return a

    @staticmethod
    def apply(a):
        return 0.5 * a * a

    @staticmethod
    def jacobian(slot, y, a):
        return Halves(a)


@pytest.mark.parametrize("act", [fg.ReLU, fg.Tanh, fg.Negative, Half])
@pytest.mark.parametrize("fed", [True, False])
def test_a_diagonal_before_the_last_matrix(act, fed):
    """Of a mask, numbers, one number, a kind of its own; per sample or shared by all."""
    net = Net()
    rng = np.random.default_rng(2)
    with net.graph:
        inner = net.x if fed else fg.Variable(6, rng.normal(size=6), name="inner")
        other = fg.Sum(net.x)
        result = Net.layer(act(Net.layer(inner, 5, rng)), 4, rng) * fg.Vectorize(other, other, other, other)
    found = fg.Engine("sync").jacobian(result, inner, net.feeds, mode="reverse")
    same(found, fg.Engine("sync", grain="node").jacobian(result, inner, net.feeds, mode="reverse"))
    by_both = fg.Engine("sync").jacobian(result, [inner, *net.parameters], net.feeds, mode="reverse")
    same(found, by_both[inner])


def test_forward_mode_is_chosen_where_it_is_cheaper():
    """One input, many outputs: the task that pushes; many inputs, one output: the one that pulls."""
    with fg.Graph():
        x = fg.Variable(1, trainable=False)
        w = fg.Variable(50, np.linspace(-1, 1, 50))
        y = fg.Tanh(fg.MatVec(w, x))
        s = fg.Dot(y, w)
    executor = oracles.Counting()
    engine = fg.Engine(executor)
    feeds = {x: np.array([[0.5], [2.0]])}
    wide = engine.jacobian(y, x, feeds)
    assert [key for key in executor.take() if key_split(key) == "push"]
    same(wide, engine.jacobian(y, x, feeds, mode="reverse"))
    executor.take()
    engine.jacobian(s, w, feeds)
    assert not [key for key in executor.take() if key_split(key) == "push"]


@pytest.mark.parametrize("budget", [1000, 1500, 3000, 10_000])
def test_a_memory_budget_gives_chunks_that_fit(budget, executor):
    net = Net(samples=9)
    engine = fg.Engine(executor)
    wrt = [net.x, net.hidden, net.parameters[0], net.parameters[-1]]
    whole = engine.jacobian(net.probabilities, wrt, net.feeds)
    lazy = engine.jacobian(net.probabilities, wrt, net.feeds, memory_budget=budget)
    for node in wrt:
        if budget < 10_000:
            assert isinstance(lazy[node], da.Array)
            block = np.prod([max(c) for c in lazy[node].chunks])
            assert block * 8 <= budget
        assert lazy[node].shape == whole[node].shape
        same(
            np.asarray(engine.executor.compute(lazy[node]) if isinstance(lazy[node], da.Array) else lazy[node]),
            whole[node],
        )


def test_a_budget_too_small_for_one_row_says_what_is_needed():
    net = Net()
    with pytest.raises(fg.errors.GraphError, match=r"too small for one row.*takes ([\d,]+) bytes") as raised:
        fg.Engine("sync").jacobian(net.logits, net.x, net.feeds, memory_budget=16)
    needed = int(str(raised.value).split("it takes ")[1].split(" bytes")[0].replace(",", ""))
    found = fg.Engine("sync").jacobian(net.logits, net.x, net.feeds, memory_budget=needed)
    same(found.compute(), fg.Engine("sync").jacobian(net.logits, net.x, net.feeds))
    with pytest.raises(fg.errors.GraphError):
        fg.Engine("sync").jacobian(net.logits, net.x, net.feeds, memory_budget=needed - 1)


def test_a_result_that_does_not_depend_is_zero_and_said_so():
    net = Net()
    w = net.parameters[0]
    with pytest.warns(UserWarning, match=rf"does not depend on .*'{net.parameters[-1].name}'.*zero"):
        found = fg.Engine("sync").jacobian(net.hidden, [w, net.logits, net.parameters[-1]], net.feeds)
    assert not found[net.logits].any()
    assert found[net.logits].shape == (7, 5, 4)
    assert found[w].any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "sideways"},
        {"memory_budget": 0},
        {"wrt": ["no such"]},
        {"wrt": Net().x},
        {"feeds": lambda net: {net.x: np.ones((3, 6)), net.parameters[0]: np.ones((2, 6))}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_bad_input(wrong):
    net = Net()
    given = {"wrt": net.x, "feeds": net.feeds, **wrong}
    if callable(given["feeds"]):
        given["feeds"] = given["feeds"](net)
    with pytest.raises(fg.FlowgradError):
        fg.Engine("sync").jacobian(net.logits, **given)


def test_futures(executor):
    net = Net()
    engine = fg.Engine(executor, shards=2)
    futures = engine.jacobian(net.logits, [net.x, net.hidden], net.feeds, compute=False)
    for node, future in futures.items():
        same(future.result(), engine.jacobian(net.logits, node, net.feeds))
    if executor == "sync":
        assert futures[net.x].done()


def test_an_op_of_ones_own_in_forward_mode():
    class Square(fg.Op):
        kinds = (fg.Dense,)

        @staticmethod
        def apply(a):
            return a * a

        @staticmethod
        def jacobian(slot, y, a):
            return fg.Dense(2 * a[:, :, None] * np.eye(a.shape[1]))

    with fg.Graph():
        x = fg.Variable(3, trainable=False)
        y = Square(x)
    feeds = {x: np.arange(6.0).reshape(2, 3)}
    engine = fg.Engine("sync")
    same(engine.jacobian(y, x, feeds, mode="forward"), 2 * feeds[x][:, :, None] * np.eye(3))


def test_kinds_without_a_rule_of_their_own_push_through_the_dense_jacobian():
    class Tripled(fg.LocalJacobian):
        def pull(self, g):
            return 3 * g

    t = np.arange(12.0).reshape(2, 2, 3)
    np.testing.assert_array_equal(Tripled().push(t, 3), 3 * t)


@pytest.mark.parametrize(("kernel", "least", "most"), [("numpy", 10, 100), ("numba", 0, 3)])
def test_a_program_of_very_many_instructions_is_run_in_blocks(kernel, least, most):
    with fg.Graph():
        x = fg.Variable(2, trainable=False)
        value = x
        for k in range(600):
            value = fg.Tanh(value) if k % 2 else value + x
    feeds = {x: np.array([[0.1, 0.2], [0.3, -0.4]])}
    executor = oracles.Counting()
    engine = fg.Engine(executor, kernel=kernel)
    found = engine.jacobian(value, x, feeds)
    ran = [key for key in executor.take() if key_split(key) != "pick"]
    assert least < len(ran) < most
    same(found, fg.Engine("sync", grain="node").jacobian(value, x, feeds))
    engine.jacobian(value, x, feeds)
    assert not [key for key in executor.take() if key_split(key) == "block"]


def test_derivatives_are_by_nodes_or_their_names():
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(2, trainable=False, name="x")
        with fg.scope("net"):
            h = fg.layers.dense(x, 3, "tanh", name="h")
        loss = fg.Sum(h, name="loss")
    feeds, W, engine = {"x": np.ones((4, 2))}, graph["net.h.W"], fg.Engine("sync")
    np.testing.assert_array_equal(engine.jacobian(h, "net.h.W", feeds), engine.jacobian(h, W, feeds))
    assert list(engine.jacobian(h, ["x", "net.h.W"], feeds)) == [x, W]
    assert list(engine.gradient(loss, feeds, "net.h.W")) == [W]
    np.testing.assert_array_equal(engine.per_sample_gradients(loss, feeds, "net.h.W").norms().shape, (4,))
    tangent = np.ones(6)
    np.testing.assert_array_equal(engine.jvp(loss, {"net.h.W": tangent}, feeds), engine.jvp(loss, {W: tangent}, feeds))
    assert list(engine.hvp(loss, {"net.h.W": tangent}, feeds)) == [W]
    x.set_value([1.0, 2.0])
    assert fg.check_gradients(loss, "net.h.W") < 1e-6
    trainer = fg.Trainer(fg.Adam(graph, "loss", batch_size=2), engine)
    np.testing.assert_array_equal(trainer.predict("net.h", feeds), engine.forward(h, feeds))
    with pytest.raises(
        fg.errors.GraphError, match=r"derivatives: no node of .* is called 'h.W': did you mean 'net.h.W'"
    ):
        engine.jacobian(h, "h.W", feeds)

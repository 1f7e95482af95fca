"""What people write: numbers and arrays in expressions, axes, names, scopes, initial values; and what they ask of a graph."""

import contextlib
import copy
import pickle

import numpy as np
import pytest
from refusal import refused

import flowgrad as fg
from flowgrad.errors import FeedError, GraphError, ShapeError

X = np.array([0.5, -1.5, 2.0])


def net():
    with fg.Graph(seed=1) as graph:
        return graph, fg.Variable(3, X, name="x")


@pytest.mark.parametrize(
    "write",
    [
        lambda x: 1 + x,
        lambda x: x + 1,
        lambda x: 1 - x,
        lambda x: x - 0.5,
        lambda x: x + np.array([1, 2, 3]),
        lambda x: np.arange(3.0) - x,
        lambda x: np.float32(2) * x,
        lambda x: x * np.arange(3),
        lambda x: np.arange(3) / x,
        lambda x: x / np.array([1.0, 2.0, 4.0]),
        lambda x: 1 / x,
        lambda x: 3 / x,
        lambda x: x / 4,
        lambda x: x**2,
        lambda x: x**3,
        lambda x: x**-1,
        lambda x: x**1,
        lambda x: 2**x,
        lambda x: x * x + x,
        lambda x: np.eye(3)[:2] @ x,
        lambda x: x @ np.ones((3, 2)),
        lambda x: x @ np.ones(3),
        lambda x: x[::-1],
        lambda x: x[[2, 0]],
        lambda x: x[np.array([True, False, True])],
        lambda x: sum([x, x, x]),
    ],
)
def test_numbers_and_arrays_in_expressions(write):
    _, x = net()
    node = write(x)
    np.testing.assert_allclose(node.forward(), np.ravel(write(X)), rtol=1e-14)
    assert fg.check_gradients(node) < 1e-7


def test_powers_of_and_by_nodes():
    with fg.Graph():
        a, b = fg.Variable(2, [2.0, 3.0]), fg.Variable(2, [0.5, -1.0])
        y = a**b
        np.testing.assert_allclose(y.forward(), [2**0.5, 1 / 3], rtol=1e-14)
        assert fg.check_gradients(y) < 1e-7
        assert (a**0).forward().tolist() == [1.0, 1.0]


def test_the_logistic_function_taken_apart_is_four_ops():
    graph, x = net()
    y = 1 / (1 + fg.Exp(-x))
    ops = [type(n).__name__ for n in graph.nodes if n.parents]
    assert ops == ["Negative", "Exp", "Add", "Reciprocal"]
    np.testing.assert_allclose(y.forward(), fg.Logistic.apply(X), rtol=1e-15)
    with graph:
        whole = fg.Logistic(x)
    np.testing.assert_allclose(x.backward(y), x.backward(whole), rtol=1e-14)


def test_a_constant_is_what_it_says_and_stays_so():
    graph, x = net()
    one = (x + 1).parents[1]
    assert isinstance(one, fg.Constant)
    assert "Constant 1" in repr(one)
    with refused(GraphError, "Constant 1", "Variable", graph=graph):
        one.set_value([2.0, 2.0, 2.0])
    with refused(FeedError, "Constant 1"):
        fg.Engine("sync").forward(x + 1, {one: np.ones((2, 3)), x: np.ones((2, 3))})
    assert not one.trainable


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("op", [fg.Add, fg.Multiply])
@pytest.mark.parametrize("grain", ["node", "auto"])
def test_any_number_of_operands(op, count, grain):
    with fg.Graph(seed=0) as graph:
        xs = [fg.Variable(2, ("normal", 1.0)) for _ in range(count)]
        y = op(*xs, *xs[:1])
    assert len(graph.nodes) == count + 1
    assert fg.check_gradients(y) < 1e-8
    lowered = fg.Engine("sync", grain=grain).jacobian(y, xs)
    for x in xs:
        np.testing.assert_allclose(lowered[x][0], x.backward(y), rtol=1e-13)


def test_a_scalar_is_repeated_beside_a_vector():
    _, x = net()
    with x.graph:
        c = fg.Variable(1, [2.0], name="c")
        for y, value in ((c * x, 2 * X), (x - c, X - 2), (fg.Maximum(x, c), np.maximum(X, 2.0)), (c + c, [4.0])):
            assert y.forward().tolist() == list(value)
        assert c.backward(c * x).tolist() == X[:, None].tolist()


@pytest.mark.parametrize(
    "write",
    [
        lambda x: np.ones((5, 9)) @ x,
        lambda x: x.reshape(3, 1) @ x,
        lambda x: x @ np.ones((2, 3)),
        lambda x: x / x[:2],
        lambda x: x ** x[:2],
        lambda x: x + np.ones(4),
        lambda x: x @ np.ones((3, 2, 2)),
        lambda x: x @ "abc",
    ],
)
def test_what_is_refused_leaves_no_node_behind(write):
    graph, x = net()
    parts = len(graph.nodes)
    x[:2], x.reshape(3, 1)
    more = len(graph.nodes) - parts
    with refused(fg.FlowgradError):
        write(x)
    assert len(graph.nodes) <= parts + 2 * more


# -- axes --


def shaped():
    with fg.Graph(seed=0):
        return fg.Variable((4, 3), ("normal", 1.0), name="W")


def test_a_variable_knows_its_axes_and_everything_else_is_flat():
    W = shaped()
    assert (W.shape, W.dim, W.value.shape) == ((4, 3), 12, (12,))
    assert "4 x 3" in repr(W)
    assert fg.Tanh(W).shape == (W + 1).shape == (W * W).shape == (4, 3)
    assert W.reshape(2, -1).shape == W.reshape((2, 6)).shape == (2, 6)
    W.set_value(np.arange(12.0).reshape(4, 3))
    W.set_value(np.arange(12.0))
    with refused(ShapeError, "W", "(3, 4)", "(4, 3)"):
        W.set_value(np.ones((3, 4)))
    with refused(ShapeError, 12, "5 x 3"):
        W.reshape(5, 3)


@pytest.mark.parametrize(
    "key",
    [
        1,
        -1,
        slice(1, 3),
        slice(None, None, 2),
        slice(None, None, -1),
        (slice(None), 2),
        (1, 2),
        (..., 0),
        [0, 2],
        (slice(1, 3), slice(0, 2)),
        np.eye(4, 3) > 0,
        ([0, 1], [2, 0]),
    ],
)
def test_indexing_follows_numpy(key):
    W = shaped()
    node, value = W[key], W.value.reshape(4, 3)[key]
    assert node.forward().tolist() == value.ravel().tolist()
    assert node.shape == (value.shape or (1,))
    assert fg.check_gradients(node) < 1e-9


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda W: fg.Concat(W, W, axis="a"), "axis"),
        (lambda W: fg.Concat(W, W, axis=2), "axis 2"),
        (lambda W: fg.Concat(W, W[:2], axis=1), "2 x 3"),
        (lambda W: fg.Transpose(W, "ab"), "axis"),
        (lambda W: fg.Transpose(W, (0, 0)), "axis"),
        (lambda W: fg.Broadcast(W, (3, 4)), "4 x 3 cannot be repeated to 3 x 4"),
        (lambda W: W.reshape("12"), "'12'"),
        (lambda W: W.reshape(-1, -1), "-1 x -1"),
        (lambda W: W.reshape(0, 12), "(0, 12)"),
    ],
)
def test_axes_that_do_not_fit(build, told):
    W = shaped()
    with refused(ShapeError, told, graph=W.graph):
        build(W)


def test_axes_turned_and_absolute_values():
    W = shaped()
    assert W.T.shape == (3, 4)
    assert W.T.forward().tolist() == W.value.reshape(4, 3).T.ravel().tolist()
    assert abs(W).forward().tolist() == np.abs(W.value).tolist()


def test_the_matrix_product_that_is_meant():
    W = shaped()
    with W.graph:
        x, B = fg.Variable(3, True), fg.Variable((3, 2), True)
        assert type(W @ x) is fg.MatVec
        assert type(W @ B) is fg.MatMul
        assert type(x @ x) is fg.Dot
        assert (x @ B).shape == (2,)
        np.testing.assert_allclose((W @ B).forward(), (W.value.reshape(4, 3) @ B.value.reshape(3, 2)).ravel())
        with refused(ShapeError, "W", "4 x 3", "4 x 2"):
            W @ fg.Variable((4, 2))
        with refused(ShapeError, "W", "4 x 3", "4"):
            W @ fg.Variable(4)


def test_feeds_may_have_the_axes_of_a_variable_or_its_name():
    with fg.Graph(seed=0):
        x = fg.Variable((2, 3), name="x")
        y = fg.Tanh(x)[:, 1]
    data = np.random.default_rng(0).normal(size=(5, 2, 3))
    engine = fg.Engine("sync")
    expected = np.tanh(data[:, :, 1])
    for feeds in ({x: data}, {"x": data}, {x: data.reshape(5, 6)}, {"x": data.tolist()}):
        np.testing.assert_allclose(engine.forward(y, feeds), expected)
    assert engine.jacobian(y, x, {"x": data}).shape == (5, 2, 6)
    with refused(FeedError, "x", "(5, 3, 2)", 6):
        engine.forward(y, {x: data.transpose(0, 2, 1)})
    with refused(GraphError, "'X'", "'x'"):
        engine.forward(y, {"X": data})


# -- names --


def test_nodes_by_name():
    graph, x = net()
    assert graph["x"] is x
    with refused(GraphError, "'xx'", "'x'"):
        graph["xx"]
    assert "x" in graph
    assert x in graph
    assert "y" not in graph
    assert net()[1] not in graph
    with refused(GraphError, "'x'"):
        graph.saved("x")
    x.name = "input"
    assert graph["input"] is x
    with pytest.raises(GraphError):
        graph["x"]


def test_a_name_that_is_taken():
    graph, x = net()
    with graph, refused(GraphError, "'x'", "Variable 'x'", "scope", graph=graph):
        fg.Variable(2, True, name="x")
    with graph, refused(GraphError, "'x'"):
        fg.Exp(x, name="y").name = "x"
    assert [n.name for n in graph.nodes] == ["x", "y"]
    before = graph.rng.bit_generator.state
    with graph, pytest.raises(GraphError):
        fg.Variable(2, True, name="x")
    assert graph.rng.bit_generator.state == before


def test_a_cell_that_is_run_twice():
    name = "of_a_cell_that_is_run_twice"
    first = fg.Variable(1, [1.0], name=name)
    with pytest.warns(UserWarning, match=f"{name}_2"):
        second = fg.Variable(1, [2.0], name=name)
    assert (first.name, second.name) == (name, f"{name}_2")


def test_scopes():
    with fg.Graph() as graph:
        for part in ("encoder", "decoder"):
            with fg.scope(part), fg.scope("h0"):
                w = fg.Variable(2, name="w")
            fg.Tanh(w, name=f"{part}_out")
    assert graph["decoder.h0.w"] is w
    assert [n.name for n in graph.nodes] == ["encoder.h0.w", "encoder_out", "decoder.h0.w", "decoder_out"]
    with refused(GraphError, "scope"), fg.scope(""):
        pass
    with graph, fg.scope("decoder"):
        fg.Exp(w).name = "y"
        penalty = fg.losses.l2(w, name="penalty")
    assert (graph["decoder.y"].parents, penalty.name) == ((w,), "decoder.penalty")


@pytest.mark.parametrize("way", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g)), "file"])
def test_axes_names_and_constants_are_kept(way, tmp_path):
    W = shaped()
    y = (1 + W.reshape(2, 6))[1]
    graph = W.graph
    if way == "file":
        fg.save(tmp_path / "graph", graph)
        with fg.scope("somewhere"):
            other = fg.load(tmp_path / "graph").graph
    else:
        other = way(graph)
    assert [(n.name, n.shape, type(n)) for n in other.nodes] == [(n.name, n.shape, type(n)) for n in graph.nodes]
    assert other[y.name].forward().tolist() == y.forward().tolist()
    with pytest.raises(GraphError):
        other[y.name].parents[0].parents[0].set_value(np.zeros(12))


# -- initial values --


@pytest.mark.parametrize("init", ["he", "glorot", "lecun", "normal", ("normal", 0.3)])
def test_initial_values_have_the_scale_that_they_should(init):
    with fg.Graph(seed=0):
        W = fg.Variable((200, 300), init)
    scale = {"he": (2 / 300) ** 0.5, "glorot": (2 / 500) ** 0.5, "lecun": (1 / 300) ** 0.5, "normal": 0.05}
    assert abs(W.value.std() / (init[1] if isinstance(init, tuple) else scale[init]) - 1) < 0.02
    assert abs(W.value.mean()) < 0.01


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 2, 3), 4])
def test_orthogonal_rows_or_columns(shape):
    with fg.Graph(seed=0):
        W = fg.Variable(shape, "orthogonal")
    m = W.value.reshape(W.shape[0] if len(W.shape) > 1 else 1, -1)
    product = m @ m.T if m.shape[0] <= m.shape[1] else m.T @ m
    np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-12)


def test_initial_values_are_the_seeds():
    def value(seed):
        with fg.Graph(seed=seed):
            return fg.Variable((3, 4), "he").value.tolist()

    assert value(0) == value(0) != value(1)


@pytest.mark.parametrize("init", ["hee", ("normal", -1), ("he", 2), ("normal", "a")])
def test_an_initial_value_of_no_such_name(init):
    with fg.Graph() as graph, refused(GraphError, "w", graph=graph):
        fg.Variable(3, init, name="w")
    assert graph.nodes == ()


# -- what a graph knows --


def test_what_is_cached_can_be_seen():
    graph, x = net()
    a = x * x
    y = fg.Sum(fg.Exp(-a))
    assert x.jacobi is None
    jacobian = x.backward(y)
    assert np.shares_memory(x.jacobi, jacobian)
    assert not x.jacobi.flags.writeable
    assert set(graph.saved(y)) == {n for n in graph.nodes}
    z = fg.Sum(a)
    a.backward(z)
    assert x.jacobi is None
    assert a.jacobi.tolist() == [[1.0, 1.0, 1.0]]
    assert np.shares_memory(graph.saved(y)[x], jacobian)
    x.set_value(X + 1)
    assert x.jacobi is None
    assert graph.saved(y) == {}


def test_summary():
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(4, name="x")
        w = fg.Variable(2, True, name="w")
        with fg.scope("h0"):
            units = [fg.Dot(fg.Variable(4, True), x) for _ in range(3)]
        fg.Vectorize(*units, fg.Dot(w, x[:2]), fg.Dot(w, x[2:]), name="out")
    text = graph.summary()
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["h0"].split()[1:] == ["3", "variable,", "3", "Dot", "1", "12", "24"]
    assert "w x 2" in lines["w"]
    assert "14 parameters" in text


def test_a_summary_has_a_line_for_each_layer_within_scopes_too():
    texts = []
    for scopes in ((), ("net", "encoder")):
        with fg.Graph(seed=0) as graph, contextlib.ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(fg.scope(scope))
            h = fg.layers.dense(fg.Variable(4, name="x"), 3, "tanh", name="h0")
            fg.layers.dense(h, 2, per_neuron=True, name="h1")
        texts.append([line.split() for line in graph.summary().splitlines()])
    plain, scoped = texts
    assert [line[0] for line in scoped[2:-1]] == ["net.encoder", "net.encoder.h0", "net.encoder.h1"]
    assert [line[1:] for line in scoped[2:]] == [line[1:] for line in plain[2:]]

"""Layers against the same nets written by hand in NumPy; their names, initial values and refusals."""

import contextlib
import threading

import numpy as np
import pytest
from refusal import refused

import flowgrad as fg
from flowgrad.errors import GraphError, ShapeError

L = fg.layers
RNG = np.random.default_rng(0)


def value(graph, name):
    node = graph[name]
    return node.value.reshape(node.shape)


def logistic(a):
    return 1 / (1 + np.exp(-a))


@pytest.mark.parametrize("activation", [None, "relu", fg.Tanh, "gelu"])
def test_dense_by_matrix_and_by_neuron(activation):
    graphs = []
    for per_neuron in (False, True):
        with fg.Graph(seed=3) as graph:
            x = fg.Variable(4, [1.0, -2.0, 0.5, 3.0], name="x")
            L.dense(x, 3, activation, per_neuron, name="h0")
        graphs.append(graph)
    whole, single = graphs
    W, b = value(whole, "h0.W"), value(whole, "h0.b")
    for k in range(3):
        np.testing.assert_array_equal(value(single, f"h0.w{k}"), W[k])
        assert value(single, f"h0.b{k}") == b[k] == 0
        np.testing.assert_allclose(single[f"h0.{k}"].forward(), W[k] @ [1.0, -2.0, 0.5, 3.0])
    np.testing.assert_allclose(whole["h0"].forward(), single["h0"].forward(), rtol=1e-13)


def test_initial_values_suit_the_activation():
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(1000, name="x")
        for name, activation, init in (
            ("r", "relu", None),
            ("t", "tanh", None),
            ("z", "relu", "zeros"),
            ("a", None, True),
        ):
            L.dense(x, 500, activation, init=init, name=name)
    deviations = [value(graph, f"{name}.W").std() for name in "rtza"]
    np.testing.assert_allclose(deviations, [(2 / 1000) ** 0.5, (2 / 1500) ** 0.5, 0, 0.001], rtol=0.01)


def test_layers_without_a_name_are_numbered():
    with fg.Graph() as graph:
        h = L.dense(L.dense(fg.Variable(3), 2), 2)
    assert h.name == "dense1"
    assert graph["dense0.W"].shape == (2, 3)
    with pytest.raises(GraphError, match="scope"):
        L.dense(h, 2, name="dense0")


def test_convolution_and_pooling():
    with fg.Graph(seed=0) as graph:
        x = fg.Variable((2, 6, 6), ("normal", 1.0), name="x")
        y = L.max_pool2d(L.conv2d(x, 4, 3, groups=2, activation="tanh", name="c0"), 2)
    assert (y.shape, y.name) == ((4, 3, 3), "max_pool2d0")
    assert graph["c0.W"].shape == (4, 1, 3, 3)
    graph["c0.b"].set_value([1.0, 2.0, 3.0, 4.0])
    assert fg.check_gradients(y) < 1e-6


SEQUENCE = {
    "rnn": lambda x, W, U, b, h, c, _: (np.tanh(W @ x + U @ h + b), c),
    "lstm": lambda x, W, U, b, h, c, _: lstm_step(np.split(W @ x + U @ h + b, 4), c),
    "gru": lambda x, W, U, b, h, c, more: (gru_step(np.split(W @ x + b, 3), np.split(U @ h + more, 3), h), c),
}


def lstm_step(gates, c):
    i, f, g, o = gates
    c = logistic(f) * c + logistic(i) * np.tanh(g)
    return logistic(o) * np.tanh(c), c


def gru_step(of_x, of_h, h):
    r, z = logistic(of_x[0] + of_h[0]), logistic(of_x[1] + of_h[1])
    return (1 - z) * np.tanh(of_x[2] + r * of_h[2]) + z * h


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", SEQUENCE)
def test_recurrent_layers(kind, masked):
    steps, features, units = 5, 3, 4
    with fg.Graph(seed=1) as graph:
        x = fg.Variable((steps, features), ("normal", 1.0), name="x")
        mask = fg.Variable(steps, [1.0, 1.0, 0.0, 1.0, 0.0], name="mask") if masked else None
        last = getattr(L, kind)(x, units, mask, name="r")
        whole = getattr(L, kind)(x, units, mask, sequence=True, name="s")
        for part in ("W", "U", "b", *(["c"] if kind == "gru" else [])):
            drawn = RNG.normal(size=graph[f"r.{part}"].dim)
            graph[f"r.{part}"].set_value(drawn)
            graph[f"s.{part}"].set_value(drawn)
    W, U, b = (value(graph, f"r.{part}") for part in "WUb")
    more = value(graph, "r.c") if kind == "gru" else None
    h, c, states = np.zeros(units), np.zeros(units), []
    for t in range(steps):
        if not masked or mask.value[t]:
            h, c = SEQUENCE[kind](x.value.reshape(steps, features)[t], W, U, b, h, c, more)
        states.append(h)
    np.testing.assert_allclose(last.forward(), h, rtol=1e-12)
    np.testing.assert_allclose(whole.forward().reshape(whole.shape), states, rtol=1e-12)
    assert (last.name, whole.shape) == ("r", (steps, units))
    for part in ("W", "U", "b"):
        np.testing.assert_allclose(
            fg.Engine("sync").jacobian(last, graph[f"r.{part}"])[0], graph[f"r.{part}"].backward(last), atol=1e-12
        )
    assert fg.check_gradients(last, graph["r.U"]) < 1e-6


def test_the_forget_gate_is_open_at_first():
    with fg.Graph(seed=0) as graph:
        L.lstm(fg.Variable((2, 3)), 2, name="r")
    assert value(graph, "r.b").tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    U = value(graph, "r.U")
    np.testing.assert_allclose(U.T @ U, np.eye(2), atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked):
    with fg.Graph(seed=0) as graph:
        x = fg.Variable((4, 3), ("normal", 1.0), name="x")
        mask = fg.Variable(4, [1.0, 1.0, 0.0, 1.0], name="mask") if masked else None
        y = L.attention(x, 2, mask, name="a")
    X = value(graph, "x")
    Q, K, V = (X @ value(graph, f"a.{part}") for part in "QKV")
    scores = Q @ K.T / np.sqrt(2)
    if masked:
        scores[:, 2] = -np.inf
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    np.testing.assert_allclose(y.forward(), ((p / p.sum(axis=1, keepdims=True)) @ V).ravel(), rtol=1e-12)
    if not masked:
        assert fg.check_gradients(y) < 1e-6


def test_an_embedding():
    with fg.Graph(seed=0) as graph:
        k = fg.Variable(3, [4, 0, 4], trainable=False, name="k")
        y = L.embedding(k, 500, 8, name="e")
        assert L.embedding(k, 5, 2, init="zeros").name == "embedding0"
    table = value(graph, "e.table")
    assert (y.name, y.shape) == ("e", (3, 8))
    np.testing.assert_array_equal(y.forward().reshape(3, 8), table[[4, 0, 4]])
    np.testing.assert_allclose(table.std(), 0.05, rtol=0.05)
    with refused(GraphError, "embedding: rows", "0"), graph:
        L.embedding(k, 0, 2)


def test_a_factorization_machine_has_a_weight_for_every_pair():
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(4, [1.0, -2.0, 0.5, 3.0], name="x")
        y = L.factorization_machine(x, 3, init=("normal", 0.5), name="fm")
    graph["fm.w"].set_value([0.1, 0.2, 0.3, 0.4])
    graph["fm.b"].set_value(2.0)
    V, X = value(graph, "fm.V"), x.value
    pairs = sum(V[:, i] @ V[:, j] * X[i] * X[j] for j in range(4) for i in range(j))
    np.testing.assert_allclose(y.forward(), [2 + [0.1, 0.2, 0.3, 0.4] @ X + pairs], rtol=1e-12)
    assert fg.check_gradients(y) < 1e-6


def test_wide_and_deep():
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(4, [1.0, -2.0, 0.5, 3.0], name="x")
        y = L.wide_and_deep(x[:2], x, [5, 3], name="wd")
    graph["wd.w"].set_value([2.0, 0.5])
    h = x.value
    for k in range(2):
        h = np.maximum(value(graph, f"wd.h{k}.W") @ h, 0)
    np.testing.assert_allclose(y.forward(), value(graph, "wd.o.W") @ h + [2.0 - 1.0], rtol=1e-12)
    with graph, refused(GraphError, "hidden"):
        L.wide_and_deep(x, x, 5)


@pytest.mark.parametrize(
    ("build", "error", "told"),
    [
        (lambda x: L.dense(x, 3, "rleu"), GraphError, "'relu'"),
        (lambda x: L.dense(x, 0), GraphError, "units"),
        (lambda x: L.dense("x", 3), GraphError, "'x'"),
        (lambda x: L.dense(x, 3, per_neuron="yes"), GraphError, "per_neuron"),
        (lambda x: L.conv2d(x.reshape(1, 2, 3), 3, 3, groups=0), GraphError, "groups"),
        (lambda x: L.conv2d("x", 3, 3), ShapeError, "'x'"),
        (lambda x: L.gru("x", 3), ShapeError, "'x'"),
        (lambda x: L.factorization_machine(None, 3), GraphError, "None"),
        (lambda x: L.dense(x, 3, init="hi"), GraphError, "'he'"),
        (lambda x: L.conv2d(x, 3, 3), ShapeError, "channels, height, width"),
        (lambda x: L.lstm(x, 3), ShapeError, "steps, features"),
        (lambda x: L.rnn(x.reshape(3, 2), 3, mask=x), ShapeError, "3 steps"),
        (lambda x: L.attention(x, 3), ShapeError, "steps, features"),
        (lambda x: L.max_pool2d(x.reshape(1, 2, 3), 3), ShapeError, "3 x 3"),
        (lambda x: L.lstm(x.reshape(3, 2), 3, mask=np.ones(3)), GraphError, "lstm: the mask is a node"),
        (lambda x: L.attention(x.reshape(3, 2), 3, mask=[1, 1, 0]), GraphError, "attention: the mask is a node"),
        (lambda x: L.wide_and_deep(np.ones(3), x, [3]), GraphError, "wide_and_deep: wide is a node"),
        (lambda x: L.embedding(np.arange(3), 3, 3), GraphError, "embedding: "),
        (lambda x: fg.losses.categorical_cross_entropy(x, np.eye(6)[0]), GraphError, "labels is a node"),
        (lambda x: L.factorization_machine(x, 0), GraphError, "factorization_machine: factors"),
        (lambda x: L.conv2d(x.reshape(1, 2, 3), 0, 3), GraphError, "conv2d: channels"),
        (lambda x: L.dense(x, 3, init="hi", name="h0"), GraphError, "Variable h0.W"),
    ],
)
def test_what_cannot_be_built(build, error, told):
    with fg.Graph(), refused(error, told):
        build(fg.Variable(6, name="x"))


BUILT = {
    "dense": lambda x, **kw: L.dense(x, 3, **kw),
    "dense, activated": lambda x, **kw: L.dense(x, 3, "relu", **kw),
    "per neuron": lambda x, **kw: L.dense(x, 3, per_neuron=True, **kw),
    "conv2d": lambda x, **kw: L.conv2d(x.reshape(1, 2, 3), 2, 2, **kw),
    "conv2d, activated": lambda x, **kw: L.conv2d(x.reshape(1, 2, 3), 2, 2, activation="relu", **kw),
    "max_pool2d": lambda x, **kw: L.max_pool2d(x.reshape(1, 2, 3), 2, **kw),
    "rnn": lambda x, **kw: L.rnn(x.reshape(3, 2), 2, **kw),
    "lstm": lambda x, **kw: L.lstm(x.reshape(3, 2), 2, **kw),
    "gru": lambda x, **kw: L.gru(x.reshape(3, 2), 2, sequence=True, **kw),
    "attention": lambda x, **kw: L.attention(x.reshape(3, 2), 2, **kw),
    "embedding": lambda x, **kw: L.embedding(x, 2, 2, **kw),
    "factorization_machine": lambda x, **kw: L.factorization_machine(x, 2, **kw),
    "wide_and_deep": lambda x, **kw: L.wide_and_deep(x, x, [2], **kw),
}


@pytest.mark.parametrize("kind", BUILT)
def test_layers_are_named_within_scopes(kind):
    with fg.Graph() as graph:
        x = fg.Variable(6, name="x")
        for part in "ab":
            with fg.scope(part):
                assert BUILT[kind](x, name="out").name == f"{part}.out"
                numbered = BUILT[kind](x).name
                assert numbered.startswith(f"{part}.")
                assert numbered.endswith("0")
    scopes = {n.name.partition(".")[0] for n in graph.nodes} - {"x", "a", "b"}
    assert all(name.startswith("reshape") for name in scopes), scopes


class Failing:
    """Builds nodes until it fails, at the n-th; before that another thread builds one."""

    def __init__(self, n, other):
        self.left, self.other, self.built = n, other, fg.graph.Node.__init__

    def __call__(self, node, *args):
        self.left -= 1
        if self.left == 0:
            thread = threading.Thread(target=self.other)
            thread.start()
            thread.join()
            raise KeyboardInterrupt
        self.built(node, *args)


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("kind", BUILT)
def test_of_a_layer_that_fails_nothing_stays(kind, others, monkeypatch):
    for n in range(1, 100):
        with fg.Graph(seed=0) as graph:
            x = fg.Variable(6, name="x")
            failing = Failing(n, (lambda x=x: fg.Exp(x, name="other")) if others else int)
            with monkeypatch.context() as patch:
                patch.setattr(fg.graph.Node, "__init__", lambda *args, failing=failing: failing(*args))
                with contextlib.suppress(KeyboardInterrupt):
                    BUILT[kind](x, name="out")
            if failing.left > 0:
                break
            assert {type(node) for node in graph.nodes[1:]} <= {fg.Reshape, fg.Exp}
            assert [node.index for node in graph.nodes] == list(range(len(graph.nodes)))
            assert {node.name: node for node in graph.nodes} == graph._named
            assert {*x.children} == {node for node in graph.nodes if x in node.parents}
            BUILT[kind](x, name="out")
        if not others:  # and nothing was drawn
            with fg.Graph(seed=0) as anew:
                BUILT[kind](fg.Variable(6, name="x"), name="out")
            for one in anew.nodes:
                if one.value is not None and one.trainable:
                    np.testing.assert_array_equal(graph[one.name].value, one.value)
    assert n > 1


def test_a_layer_is_corrected_under_its_name():
    with fg.Graph() as graph:
        image = fg.Variable((1, 4, 4), name="image")
        for wrong in ({"padding": "SAME"}, {"kernel": 9, "padding": "valid"}, {"stride": "2"}, {"groups": 3}):
            with pytest.raises(fg.FlowgradError):
                L.conv2d(image, **{"channels": 2, "kernel": 3, "name": "c", **wrong})
        fg.Variable(1, name="out")
        with refused(GraphError, "'out'"):
            L.dense(image, 2, "relu", name="out")
        assert [n.name for n in graph.nodes] == ["image", "out"]
        assert L.conv2d(image, 2, 3, name="c") is graph["c"]

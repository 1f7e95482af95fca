"""What bad input gets: one line that names the node, both sizes and what to do; values stay as they were."""

import contextlib
import re

import dask
import numpy as np
import pytest

import flowgrad as fg
from flowgrad.errors import DataError, FeedError, FlowgradError, GraphError, ShapeError

N = 6
USES = ("forward", "gradient", "jacobian", "fit", "evaluate", "predict", "validation")


class Model:
    """A softmax regression, 4 inputs and 3 classes, with data for it."""

    def __init__(self):
        rng = np.random.default_rng(0)
        with fg.Graph(seed=0) as self.graph:
            self.x = fg.Variable(4, trainable=False, name="x")
            self.label = fg.Variable(3, trainable=False, name="label")
            self.w = fg.Variable(12, True, name="w")
            self.b = fg.Variable(3, True, name="b")
            self.logits = fg.Add(fg.MatVec(self.w, self.x), self.b, name="logits")
            self.loss = fg.CrossEntropyWithSoftMax(self.logits, self.label, name="loss")
        self.images = rng.normal(size=(N, 4))
        self.labels = rng.integers(0, 3, N)
        self.feeds = {self.x: self.images, self.label: self.labels}
        self.optimizer = fg.Adam(self.graph, self.loss, batch_size=2)
        self.engine = fg.Engine("sync", dtype="float64")
        self.trainer = fg.Trainer(self.optimizer, engine=self.engine)

    def use(self, name, feeds):
        """Give `feeds` to one of the things that take them."""
        calls = {
            "forward": lambda: self.engine.forward(self.loss, feeds),
            "gradient": lambda: self.engine.gradient(self.loss, feeds),
            "jacobian": lambda: self.engine.jacobian(self.loss, self.w, feeds),
            "fit": lambda: self.trainer.fit(feeds, epochs=1),
            "evaluate": lambda: self.trainer.evaluate(feeds),
            "predict": lambda: self.trainer.predict(self.loss, feeds),
            "validation": lambda: self.trainer.fit(self.feeds, epochs=1, validation=feeds),
        }
        assert tuple(calls) == USES
        return calls[name]()


@pytest.fixture
def model():
    return Model()


@contextlib.contextmanager
def refused(error, *fragments, graph=None):
    """Expect `error` with every fragment in its one line, and no value of `graph` changed."""
    before = (
        [] if graph is None else [(n, n.value if n.value is None else n.value.copy()) for n in graph.nodes]
    )
    with pytest.raises(error) as caught:
        yield
    assert issubclass(caught.type, FlowgradError)
    message = str(caught.value)
    assert "\n" not in message.strip()
    for fragment in fragments:
        found = (
            re.search(rf"(?<!\d){fragment}(?!\d)", message)
            if isinstance(fragment, int)
            else fragment in message
        )
        assert found, f"{fragment!r} is not in: {message}"
    for node, value in before:
        np.testing.assert_array_equal(node.value, value, err_msg=f"{node} has changed")


# -- building --


@pytest.mark.parametrize(
    "op", ["Add", "Subtract", "Multiply", "Dot", "CrossEntropyWithSoftMax", "MeanSquaredError"]
)
def test_mismatched_dims(op):
    with fg.Graph() as graph:
        left, right = fg.Variable(3, [1.0, 2.0, 3.0], name="left"), fg.Variable(5, name="right")
        with refused(ShapeError, op, "left", "right", 3, 5, graph=graph):
            getattr(fg, op)(left, right)
    assert len(graph.nodes) == 2


def test_a_matrix_that_does_not_fit():
    with fg.Graph() as graph:
        w, x = fg.Variable(10, name="w"), fg.Variable(4, name="x")
        with refused(ShapeError, "MatVec", "w", 10, 4, graph=graph):
            fg.MatVec(w, x)


@pytest.mark.parametrize(
    "operation", [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a @ b]
)
def test_mismatched_operators(operation):
    with fg.Graph():
        left, right = fg.Variable(3, name="left"), fg.Variable(5, name="right")
        with refused(ShapeError, "left", "right", 3, 5):
            operation(left, right)


@pytest.mark.parametrize(
    ("cut", "number"),
    [
        (lambda x: fg.Slice(x, 1, 7), 7),
        (lambda x: fg.Slice(x, 3, 3), 3),
        (lambda x: fg.Slice(x, -1, 2), -1),
        (lambda x: x[9], 9),
        (lambda x: x[::2], 2),
        (lambda x: x[5:5], 5),
        (lambda x: fg.Gather(x, [0, 6]), 6),
    ],
)
def test_ranges_that_leave_the_vector(cut, number):
    with fg.Graph(), refused(ShapeError, "x", number):
        cut(fg.Variable(6, name="x"))


@pytest.mark.parametrize("dim", [0, -3, 2.5, "three", None, True])
def test_a_dim_that_is_no_positive_integer(dim):
    with fg.Graph() as graph, refused(ShapeError, repr(dim)):
        fg.Variable(dim)
    assert graph.nodes == ()


@pytest.mark.parametrize("value", [[1.0, 2.0], np.zeros((1, 3)), np.zeros((3, 2)), 1.0, []])
def test_a_value_of_the_wrong_shape(value):
    with fg.Graph() as graph:
        x = fg.Variable(3, [1.0, 2.0, 3.0], name="x")
        y = x + x
        y.forward()
        with refused(ShapeError, "x", 3, str(np.shape(value)), graph=graph):
            x.set_value(value)
        with refused(ShapeError, 3, str(np.shape(value))):
            fg.Variable(3, value)


@pytest.mark.parametrize(
    "value",
    [
        [1.0, np.nan, 2.0],
        [np.inf, 0.0, 0.0],
        ["a", "b", "c"],
        [1.0, None, 2.0],
        [1j, 0j, 0j],
        [[1.0], [2.0, 3.0], []],
    ],
)
def test_a_value_that_is_not_three_finite_numbers(value):
    with fg.Graph() as graph:
        x = fg.Variable(3, [1.0, 2.0, 3.0], name="x")
        y = x + x
        y.forward()
        with refused(FeedError, "x", graph=graph):
            x.set_value(value)


def test_a_node_of_another_graph():
    with fg.Graph():
        a = fg.Variable(2, name="a")
    with fg.Graph() as graph:
        b = fg.Variable(2, [1.0, 2.0], name="b")
        with refused(GraphError, "a", "b", "graph", graph=graph):
            fg.Add(a, b)
        with refused(GraphError, "a", "b", "graph"):
            a.backward(b)
    assert graph.nodes == (b,)


@pytest.mark.parametrize("operand", [3.0, [1.0, 2.0], np.ones(2), "x", None])
def test_an_operand_that_is_no_node(operand):
    with fg.Graph() as graph:
        x = fg.Variable(2, name="x")
        with refused(GraphError, "Variable"):
            fg.Add(x, operand)
        with refused(GraphError, "x", "Variable"):
            x + operand
    assert graph.nodes == (x,)


def test_an_array_on_the_left_of_a_node():
    with fg.Graph():
        x = fg.Variable(2, name="x")
    with pytest.raises(TypeError):
        np.ones(2) + x


def test_edges_cannot_be_changed_so_no_cycle_can_be_built():
    with fg.Graph():
        x = fg.Variable(2, name="x")
        y = fg.Exp(x)
        z = fg.Exp(y)
    with pytest.raises((AttributeError, TypeError)):
        y.parents = (z,)
    with pytest.raises((AttributeError, TypeError)):
        y.parents[0] = z
    assert y.parents == (x,)
    assert y.children == (z,)


def test_a_vectorize_of_nothing():
    with fg.Graph(), refused(GraphError, "Vectorize"):
        fg.Vectorize()


def test_forward_without_a_value():
    with fg.Graph() as graph:
        x, y = fg.Variable(2, name="given"), fg.Variable(2, name="forgotten")
        z = x + y
        x.set_value([1.0, 2.0])
        with refused(GraphError, "forgotten", 2, "set_value", graph=graph):
            z.forward()


# -- optimizers --


@pytest.mark.parametrize("optimizer", ["GradientDescent", "Momentum", "AdaGrad", "RMSProp", "Adam"])
def test_a_loss_that_is_not_scalar(model, optimizer):
    with refused(GraphError, "logits", 3, 1, graph=model.graph):
        getattr(fg, optimizer)(model.graph, model.logits)


def test_gradient_of_what_is_not_scalar(model):
    with refused(GraphError, "logits", 3, "jacobian", graph=model.graph):
        model.engine.gradient(model.logits, model.feeds)


def test_a_target_of_another_graph(model):
    with refused(GraphError, "loss"):
        fg.Adam(fg.Graph(), model.loss)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", -0.1),
        ("learning_rate", np.nan),
        ("learning_rate", "fast"),
        ("beta_1", 1.0),
        ("beta_2", -0.5),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("batch_size", True),
    ],
)
def test_settings_that_make_no_sense(model, setting, value):
    with refused(GraphError, setting, repr(value) if isinstance(value, str) else str(value)):
        fg.Adam(model.graph, model.loss, **{setting: value})


def test_a_variable_that_the_target_does_not_depend_on(model):
    with model.graph:
        fg.Variable(2, [1.0, 2.0], name="idle")
    idle = model.graph.nodes[-1]
    with pytest.warns(UserWarning, match="idle"):
        gradients = model.engine.gradient(model.loss, model.feeds)
    assert gradients[idle].tolist() == [0.0, 0.0]
    with pytest.warns(UserWarning, match="idle"):
        fg.Trainer(model.optimizer, engine=model.engine).fit(model.feeds, epochs=1)
    assert idle.value.tolist() == [1.0, 2.0]
    for x, value in ((model.x, model.images[0]), (model.label, [1.0, 0.0, 0.0])):
        x.set_value(value)
    with pytest.warns(UserWarning, match="idle"):
        fg.GradientDescent(model.graph, model.loss, batch_size=1).one_step()
    assert idle.value.tolist() == [1.0, 2.0]


# -- feeds --


def changed(array, value, at=(2, 1)):
    array = array.astype(float)
    array[at] = value
    return array


BAD_FEEDS = {
    "too wide": (lambda m: {m.x: np.ones((N, 5))}, ["x", 5, 4]),
    "too narrow": (lambda m: {m.x: np.ones((N, 3))}, ["x", 3, 4]),
    "without an axis of samples": (lambda m: {m.x: np.ones(4)}, ["x", 4]),
    "with an axis too many": (lambda m: {m.x: np.ones((N, 4, 1))}, ["x", 4]),
    "NaN": (lambda m: {m.x: changed(m.images, np.nan)}, ["x", "nan"]),
    "inf": (lambda m: {m.x: changed(m.images, np.inf)}, ["x", "inf"]),
    "NaN in the last sample": (lambda m: {m.x: changed(m.images, np.nan, (N - 1, 0))}, ["x", "nan"]),
    "strings": (lambda m: {m.x: np.full((N, 4), "a")}, ["x"]),
    "objects": (lambda m: {m.x: np.full((N, 4), None)}, ["x"]),
    "complex": (lambda m: {m.x: m.images.astype(complex)}, ["x", "complex"]),
    "ragged rows": (lambda m: {m.x: [[1.0] * 4] * (N - 1) + [[1.0] * 3]}, ["x"]),
    "fewer images than labels": (lambda m: {m.x: m.images[:4]}, ["x", "label", 4, N]),
    "label too large": (lambda m: {m.label: np.array([0, 1, 2, 3, 0, 1])}, ["label", 3]),
    "label negative": (lambda m: {m.label: np.array([0, 1, 2, -1, 0, 1])}, ["label", -1]),
    "labels that are no integers": (lambda m: {m.label: np.array([0.0, 1.0, 0.5, 1.0, 0.0, 1.0])}, ["label"]),
    "labels of the wrong width": (lambda m: {m.label: np.eye(4)[[0, 1, 2, 0, 1, 2]]}, ["label", 4, 3]),
    "empty": (lambda m: {m.x: np.ones((0, 4)), m.label: np.ones(0, int)}, [0]),
    "a computed node": (lambda m: {m.logits: np.ones((N, 3))}, ["logits"]),
    "a name": (lambda m: {"x": m.images}, ["x"]),
    "a node of another graph": (lambda m: {Model().x: m.images}, ["x"]),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("fault", BAD_FEEDS)
def test_feeds(model, fault, use):
    make, fragments = BAD_FEEDS[fault]
    feeds = {**model.feeds, **make(model)}
    with refused((FeedError, GraphError), *fragments, graph=model.graph):
        model.use(use, feeds)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("missing", ["x", "label"])
def test_a_missing_feed(model, missing, use):
    feeds = {variable: array for variable, array in model.feeds.items() if variable.name != missing}
    with refused((FeedError, GraphError), missing, graph=model.graph):
        model.use(use, feeds)


@pytest.mark.parametrize("feeds", [None, [], 3, np.ones((N, 4))])
def test_feeds_that_are_no_dict(model, feeds):
    with refused(FlowgradError, graph=model.graph):
        model.trainer.fit(feeds, epochs=1)


def test_a_batch_larger_than_the_data(model):
    optimizer = fg.Adam(model.graph, model.loss, batch_size=7)
    with refused((FeedError, GraphError), 7, N, graph=model.graph):
        fg.Trainer(optimizer, engine=model.engine).fit(model.feeds, epochs=1)


def test_the_interpreter_is_not_disturbed_by_feeds(model):
    model.x.set_value(np.ones(4))
    model.label.set_value([0.0, 1.0, 0.0])
    before = model.loss.forward().copy()
    for use in ("forward", "gradient", "jacobian", "evaluate", "predict"):
        model.use(use, model.feeds)
    assert model.x.value.tolist() == [1.0] * 4
    assert model.loss.value.tolist() == before.tolist()


# -- engine, trainer, files --


def test_a_variable_of_another_graph(model):
    other = Model()
    for call in (
        lambda: model.engine.jacobian(model.loss, other.w, model.feeds),
        lambda: model.engine.gradient(model.loss, model.feeds, wrt=[other.w]),
        lambda: model.engine.forward([model.loss, other.loss], model.feeds),
    ):
        with refused(GraphError, "graph", graph=model.graph):
            call()


@pytest.mark.parametrize("target", [None, "loss", [], 3])
def test_a_target_that_is_no_node(model, target):
    with refused(GraphError):
        model.engine.forward(target, model.feeds)


@pytest.mark.parametrize(
    "settings",
    [
        {"executor": "clowd"},
        {"executor": 3},
        {"executor": "sync", "grain": "tiny"},
        {"executor": "sync", "shards": 0},
        {"executor": "sync", "shards": 1.5},
        {"executor": "sync", "dtype": "int32"},
        {"executor": "sync", "dtype": "no such type"},
    ],
    ids=str,
)
def test_an_engine_that_makes_no_sense(settings):
    executor, *_ = settings.values()
    named = {key: value for key, value in settings.items() if key != "executor"}
    wrong = list(settings.values())[-1]
    with refused(FlowgradError, str(wrong)):
        fg.Engine(executor, **named)


def test_an_address_where_nobody_listens():
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "500ms"}),
        refused(FlowgradError, "127.0.0.1:9"),
    ):
        fg.Engine("tcp://127.0.0.1:9")


@pytest.mark.parametrize("epochs", [-1, 1.5, "many"])
def test_a_number_of_epochs_that_makes_no_sense(model, epochs):
    with refused(FlowgradError, "epochs", str(epochs), graph=model.graph):
        model.trainer.fit(model.feeds, epochs=epochs)


def test_a_trainer_without_an_optimizer(model):
    with refused(FlowgradError, "Optimizer"):
        fg.Trainer(model.graph)


def test_a_folder_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "missing" / "model.safetensors", tmp_path / "file" / "model.safetensors"):
        with refused(DataError, str(path), graph=model.graph):
            fg.save(path, model.graph, model.optimizer)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with refused(DataError, str(tmp_path / "file"), graph=model.graph):
        model.trainer.fit(model.feeds, epochs=1, checkpoint=tmp_path / "file" / "state")

"""What bad input gets: one line that names the node, both sizes and what to do; values stay as they were."""

import re

import numpy as np
import pytest
from refusal import Model, refused

import flowgrad as fg
from flowgrad.errors import ClusterError, DataError, FeedError, FlowgradError, GraphError, ShapeError
from flowgrad.scheduler.executors.distributed import connect


@pytest.fixture
def model():
    return Model()


# -- building --


@pytest.mark.parametrize("op", ["Add", "Subtract", "Multiply", "Dot", "CrossEntropyWithSoftMax", "MeanSquaredError"])
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


@pytest.mark.parametrize("operation", [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a @ b])
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
    for call in (lambda: np.ones(2) + x, lambda: 1 - x, lambda: x / "a", lambda: np.ones(2) / x):
        with pytest.raises(GraphError, match=r"wrap it as Variable\(2, value, trainable=False\)"):
            call()
    with pytest.raises(GraphError, match=r"\*\* 2: write a \* a for a square"):
        x**2
    with pytest.raises(GraphError, match="a division by zero"):
        x / 0


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
    with refused(ClusterError, "127.0.0.1:9", "0.5 s"):
        connect("tcp://127.0.0.1:9", timeout=0.5)


@pytest.mark.slow
def test_an_engine_at_an_address_where_nobody_listens():
    with refused(ClusterError, "127.0.0.1:9"):
        fg.Engine("tcp://127.0.0.1:9")


@pytest.mark.parametrize("epochs", [-1, 1.5, "many"])
def test_a_number_of_epochs_that_makes_no_sense(model, epochs):
    with refused(FlowgradError, "epochs", str(epochs), graph=model.graph):
        model.trainer.fit(model.feeds, epochs=epochs)


def test_a_trainer_without_an_optimizer(model):
    with refused(FlowgradError, "optimizer"):
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


class Shifted(fg.Op):
    """An op of the user's with an attribute that need not be named."""

    @staticmethod
    def shape(a, by):
        return a

    @staticmethod
    def apply(a, by):
        return a + by


def test_operands_and_attributes_by_the_wrong_name():
    with fg.Graph():
        x, y = fg.Variable(2, [1.0, 2.0]), fg.Variable(2, [1.0, 2.0])
        with pytest.raises(fg.FlowgradError, match=r"^Add: give nodes by position, not as a=, b=$"):
            fg.Add(a=x, b=y)
        with pytest.raises(fg.FlowgradError, match=r"^Dot has no attribute 'nmae'; it takes none$"):
            fg.Dot(x, y, nmae="d")
        with pytest.raises(fg.FlowgradError, match=r"^Shifted has no attribute 'bye'; it takes by$"):
            Shifted(x, bye=1.0)
        assert Shifted(x, by=1.0).forward().tolist() == [2.0, 3.0]
    assert len(x.graph.nodes) == 3


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda x: fg.Add(x, x, x), "Add takes 2 operands (a, b), not 3"),
        (lambda x: fg.Dot(x), "Dot takes 2 operands (a, b), not 1"),
        (lambda x: fg.Negative(x, x), "Negative takes 1 operand (a), not 2"),
        (lambda x: fg.ReLU(x, alpha=0.1), "ReLU has no attribute 'alpha'; it takes none"),
        (lambda x: Shifted(x, x, by=1.0), "Shifted takes 1 operand (a), not 2"),
        (lambda x: Shifted(x, by=np.ones(2)), "Shifted: the attribute 'by' is a ndarray, which cannot be hashed"),
    ],
)
def test_operands_and_attributes_that_no_rule_takes(make, told):
    with fg.Graph() as graph:
        x = fg.Variable(2, [1.0, 2.0])
    with pytest.raises(fg.FlowgradError, match=re.escape(told)):
        make(x)
    assert graph.nodes == (x,)
    for op in (fg.Sum, fg.Scale, fg.MatVec):  # a node is no name
        with pytest.raises(TypeError):
            op(x, *[x] * 3)


def test_hints_for_what_is_nearly_right():
    with fg.Graph():
        x, one = fg.Variable(3, [1.0, 2.0, 3.0]), fg.Variable(1, [2.0])
        with pytest.raises(ShapeError, match=r"got 3 and 1; fg.Gather\(a, \[0\] \* 3\) repeats one number"):
            x * one
        assert (x * fg.Gather(one, [0] * 3)).forward().tolist() == [2.0, 4.0, 6.0]
        with pytest.raises(ShapeError, match=r"has shape \(2, 2\); .*: a matrix is laid out row by row, array.ravel"):
            fg.Variable(4, np.eye(2))

"""What bad input gets: one line that names the node, both sizes and what to do; values stay as they were."""

import os
import re

import numpy as np
import pytest
from refusal import Model, refused

import flowgrad as fg
from flowgrad.errors import ClusterError, DataError, FeedError, FlowgradError, GraphError, SettingError, ShapeError
from flowgrad.files import OPTIMIZERS
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
        (lambda x: x[[1, 6]], 6),
        (lambda x: x[1, 2], 2),
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
    assert graph.nodes == (x,)


@pytest.mark.parametrize("operand", ["x", None, {}, [1.0, 2.0, 3.0], np.ones((2, 2)), [], np.nan, 1j, ["a", "b"]])
def test_an_operand_that_is_no_node_and_no_number(operand):
    with fg.Graph() as graph:
        x = fg.Variable(2, name="x")
        for call in (
            lambda: x + operand,
            lambda: operand - x,
            lambda: x * operand,
            lambda: operand / x,
            lambda: x**operand,
        ):
            with refused(FlowgradError, "x"):
                call()
    assert graph.nodes == (x,)


def test_a_division_by_zero():
    with fg.Graph():
        x = fg.Variable(2, name="x")
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
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
        (lambda x: fg.Subtract(x, x, x), "Subtract takes 2 operands (a, b), not 3"),
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
        with pytest.raises(ShapeError, match=r"got 3 and 1; fg.Broadcast\(a, 3\) repeats one number"):
            fg.Dot(x, one)
        assert (x @ fg.Broadcast(one, 3)).forward().tolist() == [12.0]
        with pytest.raises(ShapeError, match=r"got 2 x 2 and 4; a.reshape\(...\) computes nothing"):
            fg.Variable((2, 2)) * fg.Variable(4)
        with pytest.raises(ShapeError, match=r"has shape \(2, 2\); .*: a matrix is laid out row by row, array.ravel"):
            fg.Variable(4, np.eye(2))


# -- every argument --


class Odd:
    """An object whose ``repr`` fails."""

    def __repr__(self):
        raise RuntimeError("on purpose")


LARGE = 10**5000  # more digits than Python writes
NONE_OF_THEM = [Odd(), object(), b"x", np.array([1, 2]), np.array(3), (1, 2), {1: 2}, lambda: 0, int]
FLAGS = [None, "", "no", 1, 0.0, *NONE_OF_THEM]
WHOLE = ["", "3", 2.5, np.nan, -1, True, *NONE_OF_THEM]
NUMBERS = ["", "0.1", np.nan, np.inf, -1, True, LARGE, *NONE_OF_THEM]
TEXTS = ["", "a", 5, LARGE, True, *NONE_OF_THEM]
PATHS = [None, "", "a\0b", "\ud800", 5, 2.5, True, LARGE, *NONE_OF_THEM]
NODES = ["", "a", 5, LARGE, True, *NONE_OF_THEM]
CALLBACKS = [[5], ["on_epoch"], [None], "ab", type("Mine", (fg.Callback,), {"on_epoch": 5})(), *NONE_OF_THEM]
WEIGHTS = [[1.0], np.ones((6, 2)), [-1.0] * 6, [np.nan] * 6, [0.0] * 6, "a", 5, {}, *NONE_OF_THEM]
CLASSES = [
    {5: 1.0},
    {-1: 1.0},
    {"a": 1.0},
    {0: -1.0},
    {0: np.inf},
    {0: None},
    dict.fromkeys(range(3), 0),
    [1.0],
    "a",
    5,
]
METRICS = ["accuracy", [5], [None], ["never"], ["top_0"], ["loss"], ["f1", "f1"], [lambda y, p: 0], [int], 5, {"f1": 1}]
BAD = {
    "epochs": (WHOLE, lambda m, v: m.trainer.fit(m.feeds, epochs=v)),
    "validation": ([v for v in NODES if not isinstance(v, dict)], lambda m, v: m.trainer.fit(m.feeds, 1, validation=v)),
    "sample_weight": (WEIGHTS, lambda m, v: m.trainer.fit(m.feeds, 1, sample_weight=v)),
    "class_weight": (CLASSES, lambda m, v: m.trainer.fit(m.feeds, 1, class_weight=v)),
    "validation: sample_weight": (WEIGHTS, lambda m, v: m.trainer.fit(m.feeds, 1, validation=(m.feeds, v))),
    "evaluate: sample_weight": (WEIGHTS, lambda m, v: m.trainer.evaluate(m.feeds, v)),
    "checkpoint": (PATHS[1:], lambda m, v: m.trainer.fit(m.feeds, 1, checkpoint=v)),
    "resume": (FLAGS, lambda m, v: m.trainer.fit(m.feeds, 1, checkpoint="never made", resume=v)),
    "fit: feeds": (NODES, lambda m, v: m.trainer.fit(v)),
    "evaluate: feeds": (NODES, lambda m, v: m.trainer.evaluate(v)),
    "predict: feeds": (NODES, lambda m, v: m.trainer.predict(m.loss, v)),
    "forward": ([None, *NODES], lambda m, v: m.trainer.predict(v, m.feeds)),
    "explain: epochs": (WHOLE, lambda m, v: m.trainer.explain(m.feeds, v)),
    "explain: again": (FLAGS, lambda m, v: m.trainer.explain(m.feeds, again=v)),
    "optimizer": (NODES, lambda m, v: fg.Trainer(v)),
    "engine": (NODES, lambda m, v: fg.Trainer(m.optimizer, v)),
    "shuffle": (FLAGS, lambda m, v: fg.Trainer(m.optimizer, m.engine, shuffle=v)),
    "seed": (WHOLE, lambda m, v: fg.Trainer(m.optimizer, m.engine, seed=v)),
    "callbacks": (CALLBACKS, lambda m, v: fg.Trainer(m.optimizer, m.engine, callbacks=v)),
    "metrics": (METRICS, lambda m, v: fg.Trainer(m.optimizer, m.engine, metrics=v)),
    "accumulate": (WHOLE, lambda m, v: fg.Trainer(m.optimizer, m.engine, accumulate=v)),
    "EarlyStopping: monitor": (TEXTS, lambda m, v: fg.EarlyStopping(v)),
    "EarlyStopping: patience": (WHOLE, lambda m, v: fg.EarlyStopping(patience=v)),
    "EarlyStopping: min_delta": (NUMBERS, lambda m, v: fg.EarlyStopping(min_delta=v)),
    "EarlyStopping: restore_best": (FLAGS, lambda m, v: fg.EarlyStopping(restore_best=v)),
    "Checkpoints: folder": (PATHS, lambda m, v: fg.Checkpoints(v)),
    "Checkpoints: every_epochs": (WHOLE, lambda m, v: fg.Checkpoints("x", every_epochs=v)),
    "Checkpoints: every_seconds": (NUMBERS, lambda m, v: fg.Checkpoints("x", every_seconds=v)),
    "Checkpoints: keep": (WHOLE, lambda m, v: fg.Checkpoints("x", keep=v)),
    "path": (PATHS, lambda m, v: fg.save(v, m.graph)),
    "load: path": (PATHS, lambda m, v: fg.load(v)),
    "ops": (NODES[:-1], lambda m, v: fg.load("never read", ops=v)),
    "an optimizer": (NODES, lambda m, v: fg.save("never made", m.graph, v)),
    "a graph": ([None, *NODES], lambda m, v: fg.save("never made", v)),
    "draw: path": (PATHS, lambda m, v: m.graph.draw(v)),
    "draw: targets": (NODES, lambda m, v: m.graph.draw("never.svg", v)),
    "fold": (WHOLE, lambda m, v: m.graph.draw("never.svg", fold=v)),
    "direction": ([None, *TEXTS], lambda m, v: m.graph.draw("never.svg", direction=v)),
    "width": (WHOLE, lambda m, v: m.graph.draw("never.svg", width=v)),
    "draw: values": (FLAGS, lambda m, v: m.graph.draw("never.svg", values=v)),
    "draw: result": (NODES, lambda m, v: m.graph.draw("never.svg", result=v)),
    "Graph": (NODES, lambda m, v: fg.Adam(v, m.loss)),
    "target": ([None, *NODES], lambda m, v: fg.Adam(m.graph, v)),
    "learning_rate": ([None, *NUMBERS[:-2]], lambda m, v: fg.Adam(m.graph, m.loss, v)),
    "beta_1": ([None, *NUMBERS], lambda m, v: fg.Adam(m.graph, m.loss, beta_1=v)),
    "momentum": ([None, *NUMBERS], lambda m, v: fg.Momentum(m.graph, m.loss, momentum=v)),
    "bias_correction": (FLAGS, lambda m, v: fg.Adam(m.graph, m.loss, bias_correction=v)),
    "batch_size": ([None, *WHOLE], lambda m, v: fg.Adam(m.graph, m.loss, batch_size=v)),
    "weight_decay": ([None, *NUMBERS], lambda m, v: fg.Adam(m.graph, m.loss, weight_decay=v)),
    "clip_norm": (NUMBERS, lambda m, v: fg.Adam(m.graph, m.loss, clip_norm=v)),
    "per_sample_clip": (NUMBERS, lambda m, v: fg.Adam(m.graph, m.loss, per_sample_clip=v)),
    "noise_multiplier": ([None, *NUMBERS], lambda m, v: fg.Adam(m.graph, m.loss, noise_multiplier=v)),
    "noise_seed": (WHOLE, lambda m, v: fg.Adam(m.graph, m.loss, noise_seed=v)),
    "rule": ([None, *NODES], lambda m, v: fg.Optimizer(m.graph, m.loss, v)),
    "state": (NODES, lambda m, v: setattr(m.optimizer, "state", v)),
    "engine: dtype": (TEXTS, lambda m, v: fg.Engine("sync", dtype=v)),
    "grain": ([None, *TEXTS], lambda m, v: fg.Engine("sync", grain=v)),
    "shards": (WHOLE, lambda m, v: fg.Engine("sync", shards=v)),
    "kernel": ([None, *TEXTS], lambda m, v: fg.Engine("sync", kernel=v)),
    "cache_bytes": ([None, *WHOLE], lambda m, v: fg.Engine("sync", cache_bytes=v)),
    "derivatives": (NODES, lambda m, v: m.engine.jacobian(m.loss, v, m.feeds)),
    "gradient: wrt": (NODES, lambda m, v: m.engine.gradient(m.loss, m.feeds, v)),
    "jacobian": ([None, *NODES], lambda m, v: m.engine.jacobian(v, m.w, m.feeds)),
    "compute": (FLAGS, lambda m, v: m.engine.jacobian(m.loss, m.w, m.feeds, compute=v)),
    "memory_budget": (WHOLE, lambda m, v: m.engine.jacobian(m.loss, m.w, m.feeds, memory_budget=v)),
    "mode": ([None, *TEXTS], lambda m, v: m.engine.jacobian(m.loss, m.w, m.feeds, mode=v)),
    "lower: gradient": (FLAGS, lambda m, v: m.engine.lower(m.loss, m.feeds, v)),
    "lower: grain": (TEXTS, lambda m, v: m.engine.lower(m.loss, m.feeds, grain=v)),
    "check_gradients": ([None, *NODES], lambda m, v: fg.check_gradients(v)),
    "check_gradients: by variables": (NODES, lambda m, v: fg.check_gradients(m.w, v)),
    "rtol": ([None, *NUMBERS], lambda m, v: fg.check_gradients(m.w, rtol=v)),
    "slot": ([None, *NODES[:4]], lambda m, v: m.logits.local_jacobian(v)),
    "local_jacobian_by: parent": ([None, *NODES], lambda m, v: m.logits.local_jacobian_by(v)),
    "backward": ([None, *NODES], lambda m, v: m.w.backward(v)),
    "ggn_diagonal": ([None, *NODES], lambda m, v: m.engine.ggn_diagonal(v, m.feeds)),
    "Graph: seed": (WHOLE, lambda m, v: fg.Graph(v)),
    "dim": ([None, (1, 2.5), (), *(v for v in WHOLE if type(v) is not tuple)], lambda m, v: fg.Variable(v)),
    "trainable": (FLAGS, lambda m, v: fg.Variable(1, trainable=v)),
    "the value for": (
        [None, "3", ["3"], [None], "2020", *NONE_OF_THEM[:4], *NONE_OF_THEM[5:]],
        lambda m, v: m.b.set_value(v),
    ),
}


@pytest.mark.parametrize("argument", BAD)
def test_an_argument_of_no_sensible_type(model, argument, tmp_path, monkeypatch):
    """One line that names it, whatever is given; nothing is written, and no value changes."""
    monkeypatch.chdir(tmp_path)
    values, call = BAD[argument]
    name = argument.rpartition(": ")[2]
    for value in values:
        with refused(FlowgradError, graph=model.graph) as told:
            call(model, value)
        message = str(told.value)
        assert name in message or name in ("targets", "wrt", "backward"), message
        assert len(message) < 400, message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "missing/model", "file/model", "folder", "folder/", ".", "..", "/", "n" * 300])
def test_a_path_where_no_file_can_be(model, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    calls = [
        lambda: fg.save(name, model.graph),
        lambda: fg.load(name),
        lambda: model.graph.draw(f"{name}.svg" if name[-5:] == "model" or len(name) > 99 else name),
    ]
    for call in calls:
        with refused(DataError, graph=model.graph):
            call()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_pipe_is_no_file(model, tmp_path):
    """It would be replaced, or waited for."""
    os.mkfifo(tmp_path / "pipe.svg")
    for call in (lambda path: fg.save(path, model.graph), fg.load, model.graph.draw):
        with refused(DataError, "pipe.svg", "is a device"):
            call(tmp_path / "pipe.svg")
    assert [p.name for p in tmp_path.iterdir()] == ["pipe.svg"]


@pytest.mark.parametrize("feeds", [None, {}])
def test_a_training_without_feeds(model, feeds):
    with refused(FeedError, "nothing is fed", 2, graph=model.graph):
        model.trainer.fit(feeds)


def test_a_path_of_any_kind_is_taken(model, tmp_path):
    for path in (tmp_path / "model", str(tmp_path / "model"), np.str_(tmp_path / "model")):
        fg.save(path, model.graph)
        assert len(fg.load(path).graph.nodes) == len(model.graph.nodes)


# -- attributes --

NO_ATTRIBUTES = {
    "optimizer.learningrate": "do you mean 'learning_rate'?",
    "optimizer.clipnorm": "do you mean 'clip_norm'?",
    "optimizer.lr": "do you mean 'learning_rate'?",
    "optimizer.xx": "there are batch_size, beta_1, beta_2, bias_correction, clip_norm, ema, epochs, lazy_rows, learning_rate, rule",
    "optimizer.per_sample_clip": "cannot be set: give it to a new Adam",
    "optimizer.noise_seed": "cannot be set: give it to a new Adam",
    "optimizer.privacy": "cannot be set",
    "optimizer.graph": "cannot be set: give it to a new Adam",
    "trainer.sead": "do you mean 'seed'?",
    "trainer.seed": "cannot be set: give it to a new Trainer",
    "trainer.callbacks": "cannot be set: give it to a new Trainer",
    "trainer.optimizer": "cannot be set: give it to a new Trainer",
    "trainer.engine": "cannot be set: give it to a new Trainer",
    "trainer.settings": "cannot be set",
    "engine.grain": "cannot be set: give it to a new Engine",
    "engine.cache_bytes": "cannot be set: give it to a new Engine",
    "engine.kernal": "do you mean 'kernel'?",
    "engine.note": "there is none",
    "graph.seed": "cannot be set: give it to a new Graph",
    "graph.nodes": "cannot be set",
    "graph.loss": "there is none",
    "loss.trainable": "there is name",
    "loss.dim": "cannot be set",
    "loss.parents": "cannot be set",
    "loss.nmae": "do you mean 'name'?",
    "loss.value": "cannot be set: it follows from others",
    "w.trainabel": "do you mean 'trainable'?",
    "w.value": "cannot be set: call set_value(...)",
    "w.dim": "cannot be set: give it to a new Variable",
    "w.init": "cannot be set: give it to a new Variable",
}


@pytest.mark.parametrize("path", NO_ATTRIBUTES)
def test_an_attribute_that_would_count_for_nothing(model, path):
    thing, _, name = path.partition(".")
    told = getattr(model, thing)
    state = dict(vars(told))
    with refused(SettingError, repr(name), NO_ATTRIBUTES[path], graph=model.graph):
        setattr(told, name, 1)
    assert vars(told) == state


class MyGraph(fg.Graph):
    """A graph of a user."""


class MyAdam(fg.Adam):
    """An optimizer of a user, with things of its own."""

    def __init__(self, *args, **settings):
        self.early = 1
        super().__init__(*args, **settings)
        self.late = 2


def test_classes_of_ones_own_have_what_they_like(model):
    mine = MyGraph()
    mine.loss = model.loss
    assert mine.loss is model.loss
    optimizer = MyAdam(model.graph, model.loss)
    optimizer.note, optimizer.learning_rate = "mine", 0.5
    assert (optimizer.early, optimizer.late, optimizer.note, optimizer.rule.learning_rate) == (1, 2, "mine", 0.5)
    with refused(SettingError, "'graph'"):
        optimizer.graph = mine


def test_names_of_settings_that_there_are_none_of(model):
    with refused(GraphError, "Adam takes no 'learning_rat': do you mean 'learning_rate'?"):
        fg.Adam(model.graph, model.loss, learning_rat=1.0)
    with refused(GraphError, "Momentum takes no 'nesterov'", "momentum", "per_sample_clip"):
        fg.Momentum(model.graph, model.loss, nesterov=True)
    with pytest.raises(AttributeError, match="'Adam' object has no attribute 'nesterov'"):
        model.optimizer.nesterov  # noqa: B018


# -- what has another name or place here --


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda w: np.exp(-w), "fg.Exp(...)"),
        (lambda w: np.maximum(w, 0), "fg.Maximum(...)"),
        (lambda w: np.sqrt(w), "fg.Sqrt(...)"),
        (lambda w: np.sum(w), "fg.Sum(...)"),
        (lambda w: np.mean(w), "fg.Mean(...)"),
        (lambda w: np.dot(w, np.ones(2)), "fg.Dot(...)"),
        (lambda w: np.sin(w), "fg.Elementwise"),
        (lambda w: np.ones(2) < w, "np.less"),
        (lambda w: np.add(w, w, out=np.ones(2)), "fg.Add(...)"),
        (lambda w: w.backward(), "w.backward(w)"),
        (lambda w: (-w).set_value(1), "is computed"),
        (lambda w: w.set_value(1), "np.eye(2)[k]"),
        (lambda w: w.graph["w2"], "'net.w2'"),
        (lambda w: fg.layers.dense(w, 2, "sigmoid"), "'logistic'?"),
        (lambda w: fg.layers.dense(w, 2, "Relu"), "'relu'?"),
        (lambda w: fg.layers.dense(w, 2, init="xavier"), "'glorot'?"),
        (lambda w: fg.Adam(w.graph, fg.Sum(w), lr=0.1), "'learning_rate'?"),
        (lambda w: fg.Trainer(fg.Adam(w.graph, fg.Sum(w)), metrics=["mse"]), "'mean_squared_error'?"),
        (lambda w: fg.Adam(w.graph, fg.Sum(w), freeze=[-w]), "is computed"),
        (lambda w: fg.Engine("sync").forward("w", {}), "graph['w']"),
        (lambda w: fg.Trainer(fg.Adam(w.graph, fg.Sum(w))).fit(np.ones((3, 2)), np.ones(3)), "feeds must be a dict"),
        (
            lambda w: fg.Trainer(fg.Adam(w.graph, fg.Sum(w))).fit({"net.w2": np.ones((32, 2))}, validation=([1.0], 1)),
            "validation must be a dict",
        ),
    ],
)
def test_what_is_meant_is_said(call, told):
    with fg.Graph() as graph:
        w = fg.Variable(2, [1.0, 2.0], name="w")
        fg.Variable(2, trainable=False, name="net.w2")
        with refused(FlowgradError, told, graph=graph):
            call(w)


@pytest.mark.parametrize(
    ("module", "name", "told"),
    [
        (fg, "exp", "'Exp'?"),
        (fg, "Sigmoid", "'Logistic'?"),
        (fg, "SGD", "'GradientDescent'?"),
        (fg, "Input", "'Variable'?"),
        (fg, "MSE", "'MeanSquaredError'?"),
        (fg, "nothing_of_the_kind", "no attribute 'nothing_of_the_kind'"),
        (fg.layers, "Dense", "'dense'?"),
        (fg.layers, "Linear", "'dense'?"),
        (fg.losses, "mse", "'mean_squared_error'?"),
    ],
)
def test_names_that_others_give(module, name, told):
    with pytest.raises(AttributeError, match=re.escape(told)):
        getattr(module, name)


def test_arrays_beside_nodes_go_by_operators():
    with fg.Graph():
        w = fg.Variable(2, [1.0, 2.0])
        a = np.array([3.0, 4.0])
        for found, expected in (
            (a + w, [4, 6]),
            (a - w, [2, 2]),
            (a * w, [3, 8]),
            (a / w, [3, 2]),
            (a @ w, [11]),
            (np.float64(2) * w, [2, 4]),
            (np.float64(2) ** w, [2, 4]),
            (np.int64(2) - w, [1, 0]),
            (np.subtract(w, a), [-2, -2]),
            (np.abs(-w), [1, 2]),
        ):
            np.testing.assert_allclose(found.forward(), expected)
        assert (a == w, a != w) == (False, True)
        assert w in [np.float64(1), w]

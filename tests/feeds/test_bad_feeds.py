"""What bad feeds get: one line that names the variable and both sizes; values stay as they were."""

import dask
import numpy as np
import pytest
from dask import array as da
from refusal import USES, Model, N, refused

import flowgrad as fg
from flowgrad.errors import FeedError, FlowgradError, GraphError


@pytest.fixture
def model():
    return Model()


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
    "a name of nothing": (lambda m: {"no such": m.images}, ["no such"]),
    "the same variable by name and node": (lambda m: {"x": m.images, m.x: m.images}, ["x", "twice"]),
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


def test_a_number_that_single_precision_cannot_hold(model):
    engine = fg.Engine("sync", dtype="float32")
    feeds = {**model.feeds, model.x: changed(model.images, 1e300)}
    with np.errstate(over="ignore"), refused(FeedError, "x", "float32", graph=model.graph):
        engine.forward(model.loss, feeds)


def test_a_feed_of_single_precision_numbers_may_be_large(model):
    largest = float(np.finfo(np.float32).max)
    feeds = {model.x: changed(np.zeros((N, 4)), largest)}
    found = fg.Engine("sync", dtype="float32").forward(model.x, feeds)
    assert found[2, 1] == np.float32(largest)


class Questions:
    """A net that is asked which of three classes, and three questions of yes or no."""

    def __init__(self):
        with fg.Graph(seed=0) as graph:
            x, self.w = fg.Variable(4, trainable=False, name="x"), fg.Variable(12, True)
            self.classes, self.answers = (fg.Variable(3, trainable=False, name=name) for name in ("classes", "answers"))
            logits = fg.MatVec(self.w, x)
            by_class = fg.CrossEntropyWithSoftMax(logits, self.classes)
            loss = by_class + fg.Sum(fg.LogisticCrossEntropy(logits, self.answers))
        self.optimizer = fg.Adam(graph, loss, batch_size=4)
        rng = np.random.default_rng(0)
        self.feeds = {x: rng.normal(size=(N, 4)), self.classes: rng.random((N, 3)), self.answers: rng.random((N, 3))}

    def with_label(self, which, value, way=lambda array: array):
        """Feeds one label of which, of sample 4, is something else."""
        v = getattr(self, which)
        return {**self.feeds, v: way(changed(self.feeds[v], value, (4, 1)))}


LABELLED = {
    "fit": lambda trainer, bad, good: trainer.fit(bad, epochs=2),
    "validation": lambda trainer, bad, good: trainer.fit(good, epochs=2, validation=bad),
    "evaluate": lambda trainer, bad, good: trainer.evaluate(bad),
}
AS = {
    "array": lambda folder: lambda array: array,
    "single precision": lambda folder: lambda array: array.astype(np.float32),
    "dask": lambda folder: lambda array: da.from_delayed(dask.delayed(array), array.shape, array.dtype).rechunk((2, 3)),
    "file": lambda folder: (
        lambda array: (np.save(folder / "a.npy", array), np.load(folder / "a.npy", mmap_mode="r"))[1]
    ),
}


@pytest.mark.parametrize("way", AS)
@pytest.mark.parametrize("call", LABELLED)
@pytest.mark.parametrize(
    ("which", "value", "told"),
    [
        ("answers", -1.0, "LogisticCrossEntropy .*from 0 to 1"),
        ("answers", 2.0, "LogisticCrossEntropy .*from 0 to 1"),
        ("answers", 1.001, "LogisticCrossEntropy .*from 0 to 1"),
        ("classes", -1.0, "CrossEntropyWithSoftMax .*from 0 on"),
    ],
)
def test_labels_that_are_none(executor, tmp_path, which, value, told, call, way):
    net = Questions()
    trainer = fg.Trainer(net.optimizer, fg.Engine(executor))
    before = net.w.value.tobytes()
    with pytest.raises(
        FeedError, match=rf"^the feed for '{which}' holds {value}\d* at sample 4, no label of {told}"
    ) as error:
        LABELLED[call](trainer, net.with_label(which, value, AS[way](tmp_path)), net.feeds)
    assert "\n" not in str(error.value)
    assert net.w.value.tobytes() == before


@pytest.mark.parametrize("way", AS)
@pytest.mark.parametrize("call", LABELLED)
@pytest.mark.parametrize(
    ("which", "value"), [("answers", 0.0), ("answers", 1 + 2e-7), ("classes", 3.0), ("classes", -1e-12)]
)
def test_soft_labels_and_rounding_are_right(tmp_path, which, value, call, way):
    net = Questions()
    trainer = fg.Trainer(net.optimizer, fg.Engine("sync"))
    LABELLED[call](trainer, net.with_label(which, value, AS[way](tmp_path)), net.feeds)


def test_what_no_cross_entropy_reads_as_labels_may_be_anything():
    with fg.Graph() as graph:
        x, w = fg.Variable(3, trainable=False), fg.Variable(3, [1.0, 2.0, 3.0])
        loss = fg.CrossEntropyWithSoftMax(x * w, fg.SoftMax(x)) + fg.MeanSquaredError(w, x)
    trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=2), fg.Engine("sync"))
    trainer.fit({x: -np.ones((4, 3))}, epochs=1)
    trainer.evaluate({x: -np.ones((4, 3))})

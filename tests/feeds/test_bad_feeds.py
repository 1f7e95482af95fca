"""What bad feeds get: one line that names the variable and both sizes; values stay as they were."""

import numpy as np
import pytest
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

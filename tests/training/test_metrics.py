"""Metrics: those of scikit-learn, whatever runs them; what does not add up is computed once, on a worker."""

import os
import sys

import numpy as np
import pytest
from dask import array as da
from models import Model
from refusal import refused
from sklearn import metrics as scikit

import flowgrad as fg
from flowgrad.errors import DataError, GraphError
from flowgrad.scheduler.training import evaluation

N = 60
WEIGHTS = np.random.default_rng(3).uniform(0.1, 2, N)


@pytest.fixture(autouse=True)
def several_shards(monkeypatch):
    monkeypatch.setattr(evaluation, "SHARD_SAMPLES", 17)
    monkeypatch.setattr(evaluation, "AHEAD", 1)


class Net:
    """A net whose loss is about three classes, two, yes or no, or values; not trained, so that it errs."""

    def __init__(self, kind):
        rng = np.random.default_rng(1)
        out = {"three": 3, "two": 2, "yes": 1, "values": 1, "vectors": 2}[kind]
        with fg.Graph(seed=0) as self.graph:
            x = fg.Variable(4, trainable=False, name="x")
            label = fg.Variable(out, trainable=False, name="label")
            self.output = fg.MatVec(fg.Variable(4 * out, rng.normal(size=4 * out), name="w"), x)
            if kind in ("values", "vectors"):
                self.loss = fg.losses.mean_squared_error(self.output, label)
            else:
                cross = fg.LogisticCrossEntropy if kind == "yes" else fg.CrossEntropyWithSoftMax
                self.loss = cross(self.output, label)
        images = rng.normal(size=(N, 4))
        values = images[:, :out] + 3 + rng.normal(size=(N, out))
        self.truth = rng.integers(0, max(2, out), N) if kind in ("three", "two", "yes") else values
        if kind == "values":
            self.truth = self.truth[:, 0]
        self.feeds = {x: images, label: self.truth}
        self.label = label

    def trainer(self, metrics, where="sync", **settings):
        optimizer = fg.Adam(self.graph, self.loss, batch_size=20)
        return fg.Trainer(optimizer, fg.Engine(where, kernel="numpy"), metrics=metrics, **settings)

    def predictions(self):
        """Return predicted classes or values, and probabilities, by NumPy."""
        logits = fg.Engine("sync").forward(self.output, self.feeds)
        if self.truth.dtype.kind == "f":
            return logits.reshape(self.truth.shape), None
        if logits.shape[1] == 1:
            return (logits[:, 0] > 0).astype(int), 1 / (1 + np.exp(-logits[:, 0]))
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        return logits.argmax(axis=1), p[:, 1] if p.shape[1] == 2 else p


CLASSES = {
    "accuracy": lambda y, g, p, w: scikit.accuracy_score(y, g, sample_weight=w),
    "confusion_matrix": lambda y, g, p, w: scikit.confusion_matrix(y, g, sample_weight=w),
    "precision": lambda y, g, p, w: scikit.precision_score(y, g, average=mean(y), sample_weight=w),
    "recall": lambda y, g, p, w: scikit.recall_score(y, g, average=mean(y), sample_weight=w),
    "f1": lambda y, g, p, w: scikit.f1_score(y, g, average=mean(y), sample_weight=w),
    "top_1": lambda y, g, p, w: scikit.accuracy_score(y, g, sample_weight=w),
    "roc_auc": lambda y, g, p, w: scikit.roc_auc_score(y, p, multi_class="ovr", sample_weight=w),
    "log_loss": lambda y, g, p, w: scikit.log_loss(y, p, sample_weight=w),
    "matthews_corrcoef": lambda y, g, p, w: scikit.matthews_corrcoef(y, g, sample_weight=w),
    "balanced_accuracy": lambda y, g, p, w: scikit.balanced_accuracy_score(y, g, sample_weight=w),
    "jaccard": lambda y, g, p, w: scikit.jaccard_score(y, g, average=mean(y), sample_weight=w),
}
VALUES = {
    "r2": scikit.r2_score,
    "mean_squared_error": scikit.mean_squared_error,
    "mean_absolute_error": scikit.mean_absolute_error,
    "explained_variance": scikit.explained_variance_score,
    "median_absolute_error": scikit.median_absolute_error,
}


def mean(y):
    return "binary" if y.max() == 1 else "macro"


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("kind", ["three", "two", "yes"])
def test_metrics_of_classes_are_those_of_scikit_learn(executor, kind, weights):
    net = Net(kind)
    found = net.trainer([*CLASSES], executor).evaluate(net.feeds, weights)
    assert list(found) == ["loss", *CLASSES]
    for name, expected in CLASSES.items():
        value = expected(net.truth, *net.predictions(), weights)
        np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("kind", ["values", "vectors"])
def test_metrics_of_values_are_those_of_scikit_learn(executor, kind, weights):
    net = Net(kind)
    found = net.trainer([*VALUES], executor).evaluate(net.feeds, weights)
    for name, function in VALUES.items():
        value = function(net.truth, net.predictions()[0], sample_weight=weights)
        np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)


def test_r2_of_values_that_are_large_beside_their_spread():
    net = Net("values")
    net.truth = net.feeds[net.label] = net.truth + 1e9
    expected = scikit.r2_score(net.truth, net.predictions()[0])
    np.testing.assert_allclose(net.trainer(["r2"]).evaluate(net.feeds)["r2"], expected, rtol=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_the_true_class_among_the_most_likely(k):
    net = Net("three")
    p = net.predictions()[1]
    expected = np.mean([y in np.argsort(-row)[:k] for y, row in zip(net.truth, p)])
    assert net.trainer([f"top_{k}"]).evaluate(net.feeds)[f"top_{k}"] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("loss", ["mean_absolute_error", "huber"])
def test_values_of_other_losses(loss):
    net = Net("values")
    with net.graph:
        net.loss = 2.0 * getattr(fg.losses, loss)(net.output, net.label) + fg.losses.l2(net.graph["w"], scale=0.1)
    expected = scikit.r2_score(net.truth, net.predictions()[0])
    np.testing.assert_allclose(net.trainer(["r2"]).evaluate(net.feeds)["r2"], expected, rtol=1e-9)


def share(y_true, y_pred):
    assert y_true.shape == y_pred.shape == (N,)
    assert y_true.dtype.kind == y_pred.dtype.kind == "i"
    return (y_true == y_pred).mean()


def surest(y_true, y_proba, sample_weight=None):
    assert y_proba.shape == (N, 3)
    return float(y_proba.max()) + (0 if sample_weight is None else sample_weight.sum())


def where(y_true, y_pred):
    return float(os.getpid())


def test_functions_of_ones_own(executor):
    net = Net("three")
    classes, p = net.predictions()
    found = net.trainer([share, surest, where, "accuracy"], executor).evaluate(net.feeds)
    assert found["share"] == found["accuracy"] == (classes == net.truth).mean()
    np.testing.assert_allclose(found["surest"], p.max(), rtol=1e-12)
    assert (found["where"] != os.getpid()) == (executor not in ("sync", "threads"))
    weighted = net.trainer([surest]).evaluate(net.feeds, WEIGHTS)["surest"]
    np.testing.assert_allclose(weighted, p.max() + WEIGHTS.sum(), rtol=1e-12)
    with refused(GraphError, "'share'", "sample_weight", graph=net.graph):
        net.trainer([share]).evaluate(net.feeds, WEIGHTS)
    with refused(GraphError, "'share'", "sample_weight", graph=net.graph):
        net.trainer([share]).fit(net.feeds, 1, class_weight={0: 2.0})


NAMES = ["accuracy", "top_2", "confusion_matrix", "f1", "roc_auc", "log_loss"]


@pytest.mark.parametrize("chunks", [None, 7])
def test_one_worker_and_two_have_the_same_bits(client, chunks):
    net = Net("three")
    feeds = {v: a if chunks is None else da.from_array(a, chunks=chunks) for v, a in net.feeds.items()}
    assert net.trainer(NAMES).evaluate(net.feeds, WEIGHTS) == net.trainer(NAMES, client).evaluate(feeds, WEIGHTS)


def test_the_history_has_them_of_training_and_validation(executor):
    net, labels = Net("three"), {"confusion_matrix": None, "f1": None, "roc_auc": None}
    trainer = net.trainer([*labels], executor)
    half = {v: a[:30] for v, a in net.feeds.items()}
    history = trainer.fit(net.feeds, 2, validation=(half, WEIGHTS[:30]))
    first, last = history.epochs[0], history.epochs[-1]
    now, of_half = trainer.evaluate(net.feeds), trainer.evaluate(half, WEIGHTS[:30])
    assert {name: last[name] for name in labels} == {name: now[name] for name in labels}
    assert {name: last[f"validation_{name}"] for name in labels} == {name: of_half[name] for name in labels}
    assert first["epoch"] == 0
    assert np.isnan(first["f1"])
    assert first["validation_f1"] > 0
    assert last["validation_accuracy"] is None
    alone = net.trainer(["f1"]).fit(net.feeds, 1).epochs[-1]
    assert alone["f1"] > 0
    assert alone["validation_f1"] is None


def test_they_change_no_bit_of_a_training_and_go_into_checkpoints(tmp_path):
    plain, with_them, parts = Net("three"), Net("three"), Net("three")
    plain.trainer(None).fit(plain.feeds, 3)
    history = with_them.trainer(NAMES).fit(with_them.feeds, 3)
    parts.trainer(NAMES).fit(parts.feeds, 2, checkpoint=tmp_path)
    again = Net("three")
    resumed = again.trainer(NAMES).fit(again.feeds, 3, checkpoint=tmp_path, resume=True)
    assert len({net.graph["w"].value.tobytes() for net in (plain, with_them, again)}) == 1
    assert [r["confusion_matrix"] for r in resumed.epochs] == [r["confusion_matrix"] for r in history.epochs]


@pytest.mark.parametrize("name", ["validation_f1", "validation_log_loss"])
def test_a_training_may_be_stopped_by_them(name):
    net = Net("three")
    stopping = fg.EarlyStopping(name, patience=2)
    history = net.trainer(["f1", "log_loss"], callbacks=[stopping]).fit(net.feeds, 40, validation=net.feeds)
    values = [record[name] for record in history.epochs]
    assert stopping.best == (min if "loss" in name else max)(values)
    with refused(GraphError, "EarlyStopping", "validation_recall", "no such number"):
        net.trainer(["f1"], callbacks=[fg.EarlyStopping("validation_recall")]).fit(net.feeds, 1, validation=net.feeds)


def fails(y_true, y_pred):
    raise ValueError("two\nlines")


def twice(y_true, y_pred):
    return [1, 2]


@pytest.mark.parametrize(("function", "told"), [(fails, "ValueError: two lines"), (twice, "must return a number")])
def test_functions_that_fail_are_named(executor, function, told):
    net = Net("three")
    with refused(GraphError, f"the metric {function.__name__!r}", told, graph=net.graph):
        net.trainer([function], executor).evaluate(net.feeds)


def test_metrics_of_something_else_than_the_loss_compares():
    for kind, name in [("three", "r2"), ("values", "f1"), ("values", "accuracy"), ("vectors", "top_2")]:
        net = Net(kind)
        for use in (lambda t, f: t.evaluate(f), lambda t, f: t.fit(f, 1)):
            with refused(GraphError, f"the metric {name!r}", "cross entropy", graph=net.graph):
                use(net.trainer([name]), net.feeds)
    model = Model()
    with model.graph:
        both = model.loss + fg.CrossEntropyWithSoftMax(2 * model.logits, model.label)
    trainer = fg.Trainer(fg.Adam(model.graph, both, batch_size=2), fg.Engine("sync"), metrics=["f1"])
    with refused(GraphError, "'f1'", "one output"):
        trainer.evaluate(model.feeds)


def test_without_scikit_learn_that_is_said(monkeypatch):
    net = Net("three")
    for name in [name for name in sys.modules if name.startswith("sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with refused(DataError, "'roc_auc'", "pip install 'flowgrad[ml]'"):
        net.trainer(["roc_auc"])
    assert 0 < net.trainer(["f1", "top_2", "confusion_matrix"]).evaluate(net.feeds)["f1"] < 1

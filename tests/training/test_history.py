"""What a training run tells: its history, its plan, and the callbacks."""

import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from models import GRAINS, Model, N

import flowgrad as fg
from flowgrad.scheduler.training.history import History, StepLosses


class Recorder:
    """A callback that notes every call."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda argument: self.calls.append((name, argument))

    def of(self, name):
        return [argument for called, argument in self.calls if called == name]


# -- history --


def test_history_with_validation(executor):
    model = Model()
    before = model.numpy_values(model.loss, model.validation).mean()
    history = model.fit(executor, epochs=3, validation=model.validation)
    keys = {"epoch", "loss", "validation_loss", "validation_accuracy", "seconds", "samples_per_second"}
    keys.add("learning_rate")
    assert all(set(record) == keys for record in history.epochs)
    assert [record["epoch"] for record in history.epochs] == [0, 1, 2, 3]
    first, *_, last = history.epochs
    assert math.isnan(first["loss"])
    np.testing.assert_allclose(first["validation_loss"], before, rtol=1e-12)
    after = model.numpy_values(model.loss, model.validation).mean()
    np.testing.assert_allclose(last["validation_loss"], after, rtol=1e-12)
    logits = model.numpy_values(model.logits, model.validation)
    accuracy = (logits.argmax(axis=1) == model.validation[model.label]).mean()
    np.testing.assert_allclose(last["validation_accuracy"], accuracy, rtol=1e-12)
    seconds = [record["seconds"] for record in history.epochs]
    assert seconds == sorted(seconds)
    assert all(record["samples_per_second"] > 0 for record in history.epochs[1:])
    assert [step for step, _ in history.steps] == list(range(1, 10))


def test_a_line_for_each_epoch():
    record = {"epoch": 1, "loss": 0.25, "validation_loss": None, "counts": np.eye(2), "samples_per_second": 12345.6}
    history = History(epochs=[record, {**record, "epoch": 2, "loss": np.float32(0.125)}])
    assert str(history).splitlines() == [
        "epoch 1  loss 0.25  samples_per_second 12,346",
        "epoch 2  loss 0.125  samples_per_second 12,346",
    ]


def test_history_without_validation():
    history = Model().fit(epochs=2)
    assert [record["epoch"] for record in history.epochs] == [1, 2]
    assert {record["validation_loss"] for record in history.epochs} == {None}
    assert {record["validation_accuracy"] for record in history.epochs} == {None}


@pytest.mark.parametrize("grain", GRAINS)
def test_history_keeps_the_plan(grain):
    plan = Model().fit(grain=grain, shards=None if grain == "sample" else 2).plan
    assert plan["grain"] == grain
    assert plan["shards"] == (4 if grain == "sample" else 2)


def test_auto_chooses_a_plan_and_says_why(executor):
    plan = Model().fit(executor, grain="auto").plan
    assert plan["grain"] in GRAINS
    assert plan["shards"] >= 1
    assert plan["reason"]


def test_training_reduces_the_loss():
    history = Model("Adam", n=60).fit(epochs=20)
    assert history.epochs[-1]["loss"] < 0.5 * history.epochs[0]["loss"]


def test_a_loss_without_classes_has_no_accuracy():
    with fg.Graph(seed=0) as graph:
        x, y = fg.Variable(2, trainable=False), fg.Variable(1, trainable=False)
        loss = fg.MeanSquaredError(fg.Variable(2, [1.0, 1.0]) @ x, y)
    feeds = {x: np.ones((4, 2)), y: np.zeros(4)}
    trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=2), fg.Engine("sync"))
    assert trainer.evaluate(feeds) == {"loss": 4.0}
    assert {r["validation_accuracy"] for r in trainer.fit(feeds, 1, validation=feeds).epochs} == {None}


# -- callbacks --


@pytest.mark.parametrize("grain", GRAINS)
def test_callbacks(grain):
    model, recorder, other = Model(), Recorder(), SimpleNamespace(on_recovery=print)
    history = model.fit(grain=grain, epochs=2, callbacks=[recorder, other], validation=model.validation)
    names = [name for name, _ in recorder.calls]
    assert names[0] == "on_train_begin"
    assert names[-1] == "on_train_end"
    assert names.count("on_train_begin") == names.count("on_train_end") == 1
    assert recorder.of("on_train_end") == [history]
    np.testing.assert_equal(recorder.of("on_epoch"), history.epochs)
    (info,) = recorder.of("on_train_begin")
    assert (info["samples"], info["epochs"], info["steps"], info["plan"]) == (N, 2, 6, history.plan)
    steps = recorder.of("on_steps")
    assert [s["step"] for s in steps] == sorted({s["step"] for s in steps})
    assert (steps[-1]["step"], steps[-1]["steps"], steps[-1]["epoch"]) == (6, 6, 2)
    assert sum(s["samples"] for s in steps) == 2 * N
    losses = [loss for _, loss in history.steps]
    done = 0
    for s in steps:
        np.testing.assert_allclose(s["loss"], np.mean(losses[done : s["step"]]), rtol=1e-12)
        done = s["step"]


def test_variables_hold_the_trained_values_when_training_ends():
    model = Model()
    model.x.set_value(model.feeds[model.x][0])
    stale = model.logits.forward().copy()
    model.fit(epochs=2)
    assert model.logits.value is None
    fresh = model.numpy_values(model.logits, model.feeds)[0]
    np.testing.assert_allclose(model.logits.forward(), fresh, rtol=1e-12)
    assert not np.allclose(fresh, stale)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["on_train_begin", "on_steps", "on_epoch"])
def test_an_error_in_a_callback_comes_through(executor, method, error):
    def fail(argument):
        raise error("on purpose")

    model = Model()
    before = model.bits()
    engine = fg.Engine(executor)
    callback = type("Failing", (), {method: staticmethod(fail)})()
    with pytest.raises(error, match="on purpose"):
        fg.Trainer(model.optimizer, engine, callbacks=[callback]).fit(model.feeds, epochs=2)
    assert model.bits() == before
    expected = Model()
    expected.fit(executor, epochs=1)
    fg.Trainer(model.optimizer, engine).fit(model.feeds, epochs=1)
    np.testing.assert_allclose(model.w.value, expected.w.value, rtol=1e-12)


def test_steps_are_like_a_list_of_pairs():
    pairs = [(k, 0.5 / k) for k in range(1, 8)]
    steps = StepLosses(loss for _, loss in pairs)
    assert steps == pairs
    assert pairs == steps
    assert steps == StepLosses(loss for _, loss in pairs)
    assert steps != pairs[:-1]
    assert list(steps) == pairs
    assert len(steps) == 7
    for index in (0, 6, -1, -7, slice(2, 5), slice(None, None, -2), slice(-3, None)):
        assert steps[index] == pairs[index]
    with pytest.raises(IndexError):
        steps[7]
    assert json.loads(json.dumps(History(steps=steps).as_dict()))["steps"] == [list(pair) for pair in pairs]
    assert pickle.loads(pickle.dumps(steps)) == pairs


def test_steps_by_the_integers_of_numpy():
    steps = StepLosses([0.5, 0.25, 0.75])
    assert steps[np.argmin(steps.losses)] == (2, 0.25)
    assert steps[1:] == [(2, 0.25), (3, 0.75)]


def test_what_lies_outside_of_an_axis_is_written_beside_it():
    pytest.importorskip("matplotlib")
    accuracies = [0.0659, 0.9479, 0.9457, 0.962]
    records = [{"epoch": k, "loss": 1.0, "validation_accuracy": a} for k, a in enumerate(accuracies)]
    for kept, mark in ((None, "highest: epoch 3"), (1, "kept: epoch 1")):
        axes = History(epochs=records, kept_epoch=kept).plot().axes[1]
        assert {text.get_text() for text in axes.texts} == {mark, "96.20 %", "epoch 0: 6.59 %, below"}
        assert axes.get_yscale() == "linear"
        assert 0.9 < axes.get_ylim()[0] < 0.9457


def test_a_plot_shows_training_beside_validation_and_the_best_epoch():
    pytest.importorskip("matplotlib")
    model = Model(learning_rate=fg.StepDecay(0.1, factor=0.5, every=3))
    history = model.fit(epochs=3, validation=model.validation)
    figure = history.plot("a title")
    loss = figure.axes[0]
    assert [axes.get_title(loc="left").partition(",")[0] for axes in figure.axes] == [
        "loss",
        "accuracy",
        "learning rate",
    ]
    assert {line.get_label() for line in loss.lines} >= {"training", "validation"}
    best = min(history.epochs, key=lambda record: record["validation_loss"])["epoch"]
    told = [{text.get_text() for text in axes.texts} for axes in figure.axes]
    assert f"lowest: epoch {best}" in told[0]
    best = max(history.epochs, key=lambda record: record["validation_accuracy"])["epoch"]
    assert f"highest: epoch {best}" in told[1]
    assert not told[2]
    assert [r["learning_rate"] for r in history.epochs] == [None, 0.1, 0.05, 0.025]
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert model.fit(epochs=1).plot().axes  # without validation, and a single epoch

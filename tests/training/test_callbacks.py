"""Callbacks that steer, early stopping, gradient accumulation."""

import itertools
import math
import re
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from models import GRAINS, Model

import flowgrad as fg
from flowgrad.errors import ClusterError, FeedError, GraphError
from flowgrad.scheduler.executors import Lost
from flowgrad.scheduler.training.callbacks import Callbacks


class Scripted(fg.Callback):
    """Answers by epoch, and notes which epochs it saw."""

    def __init__(self, answers):
        self.answers, self.seen = answers, []

    def on_epoch(self, record):
        self.seen.append(record["epoch"])
        return self.answers.get(record["epoch"])


# -- what callbacks may answer --


@pytest.mark.parametrize("grain", GRAINS)
def test_stop_ends_after_the_epoch(executor, grain):
    model, other = Model("Adam"), Model("Adam")
    first, second = Scripted({2: fg.STOP}), Scripted({})
    history = model.fit(executor, grain, epochs=9, callbacks=[first, second])
    other.fit(executor, grain, epochs=2)
    assert model.bits() == other.bits()
    assert first.seen == second.seen == [1, 2]
    assert history.epochs[-1]["epoch"] == 2
    assert history.kept_epoch is None


@pytest.mark.parametrize("grain", ["round", "shard"])
def test_the_state_that_was_kept_last_is_given_back(executor, grain):
    model, other = Model("Adam"), Model("Adam")
    history = model.fit(executor, grain, epochs=5, callbacks=[Scripted({1: fg.KEEP, 3: fg.KEEP})])
    other.fit(executor, grain, epochs=3)
    assert model.bits() == other.bits()
    assert history.kept_epoch == 3
    assert len(history.epochs) == 5
    for slot, value in other.optimizer.state.items():
        assert model.optimizer.state[slot].tobytes() == value.tobytes()


def test_the_state_before_training_can_be_kept():
    model = Model()
    before = model.bits()
    model.fit(epochs=2, validation=model.validation, callbacks=[Scripted({0: fg.KEEP | fg.STOP})])
    assert model.bits() == before


def test_another_answer_is_refused():
    model = Model()
    before = model.bits()
    with pytest.raises(GraphError, match=r"on_epoch of Scripted returned True: return fg\.STOP"):
        model.fit(callbacks=[Scripted({1: True})])
    assert model.bits() == before


def test_every_callback_is_asked():
    other = SimpleNamespace(on_steps=print)
    answers = Callbacks([Scripted({1: fg.STOP}), other, Scripted({1: fg.KEEP})]).notify("on_epoch", {"epoch": 1})
    assert answers == fg.STOP | fg.KEEP


def having(base, *methods):
    return type("Mine", (base,), dict.fromkeys(methods, lambda self, about=None: None))()


@pytest.mark.parametrize(
    ("callback", "told"),
    [
        (having(object, "on_epoch_end"), "Mine has 'on_epoch_end', which is never called: do you mean 'on_epoch'?"),
        (
            having(fg.Callback, "on_epoch_end"),
            "Mine has 'on_epoch_end', which is never called: do you mean 'on_epoch'?",
        ),
        (
            having(fg.EarlyStopping, "on_batch_end"),
            "Mine has 'on_batch_end', which is never called; there are on_train_begin",
        ),
        (SimpleNamespace(on_step=print), "'on_step', which is never called: do you mean 'on_steps'?"),
        (having(object, "after_epoch"), "objects with some of the methods on_train_begin"),
        (lambda record: fg.STOP, "objects with some of the methods on_train_begin"),
        ({"on_epoch": print}, "objects with some of the methods on_train_begin"),
        (None, "objects with some of the methods on_train_begin"),
    ],
)
def test_what_would_never_be_called_is_refused(callback, told):
    model = Model()
    with pytest.raises(GraphError, match=re.escape(told)) as error:
        fg.Trainer(model.optimizer, callbacks=[callback])
    assert "\n" not in str(error.value)


def test_what_others_call_may_be_there_too():
    for callback in (
        having(object, "on_epoch", "on_batch_end"),
        having(fg.Callback),
        SimpleNamespace(on_steps=print, on_gpu=True),
    ):
        Callbacks([callback])
    named = having(fg.Callback, "on_epoch")
    named.on_gpu = True  # no method
    Callbacks([named])


@pytest.mark.parametrize("method", ["on_train_begin", "on_steps", "on_epoch", "on_train_end"])
@pytest.mark.parametrize("kind", [ClusterError, Lost, GraphError, OSError])
def test_what_a_callback_raises_comes_out_as_it_is(executor, tmp_path, method, kind):
    """A cluster that a callback uses is none of the training's, which would say where to go on, or begin a window again."""
    error, calls = kind("mine"), []

    def fail(about):
        calls.append(about)
        raise error

    model = Model()
    before = model.bits()
    with pytest.raises(kind) as told:
        model.fit(executor, epochs=2, callbacks=[SimpleNamespace(**{method: fail})], checkpoint=tmp_path)
    assert told.value is error
    assert len(calls) == 1
    assert model.bits() == before


# -- early stopping --


def watch(values, **settings):
    """Return what early stopping answers to a series of validation losses, from epoch 1."""
    stopping = fg.EarlyStopping(**settings)
    stopping.on_train_begin({"validation": True, "past": [], "kept_epoch": None})
    records = ({"epoch": k, stopping.monitor: value} for k, value in enumerate(values, 1))
    answers = []
    for record in records:
        answers.append(stopping.on_epoch(record))
        if fg.STOP in answers[-1]:
            break
    return stopping, answers


@pytest.mark.parametrize(
    ("values", "settings", "best", "stopped"),
    [
        ([3, 2, 1, 2, 3, 4], {"patience": 2}, 3, 5),
        ([3, 2, 1, 2, 0.5, 4], {"patience": 2}, 5, None),
        ([3, 2.95, 2.92, 2.85], {"patience": 2, "min_delta": 0.1}, 1, 3),
        ([3, 2.95, 2.85, 2.8], {"patience": 2, "min_delta": 0.1}, 3, None),
        ([1, math.nan, math.nan, 0.5], {"patience": 2}, 1, 3),
        ([math.nan, 2, 3], {"patience": 5}, 2, None),
        ([0.5, 0.7, 0.6, 0.7], {"patience": 2, "monitor": "validation_accuracy"}, 2, 4),
        ([1, 1, 1], {"patience": 1}, 1, 2),
    ],
)
def test_when_early_stopping_stops(values, settings, best, stopped):
    stopping, answers = watch(values, **settings)
    assert (stopping.best_epoch, stopping.stopped_epoch) == (best, stopped)
    assert fg.KEEP in answers[best - 1]
    assert not any(fg.KEEP in answer for answer in answers[best:])


def overfitting(**settings):
    """A model that learns its 12 samples by heart, labels that cannot be learned."""
    model = Model("Adam", n=12, learning_rate=0.2)
    model.feeds[model.label] = np.random.default_rng(1).integers(0, 3, 12)
    return model


def test_the_best_weights_are_given_back(executor):
    model, other = overfitting(), overfitting()
    stopping = fg.EarlyStopping(patience=3)
    history = model.fit(executor, epochs=200, validation=model.validation, callbacks=[stopping])
    losses = [record["validation_loss"] for record in history.epochs]
    assert stopping.best_epoch == history.kept_epoch == int(np.argmin(losses))
    assert history.epochs[-1]["epoch"] == stopping.stopped_epoch == stopping.best_epoch + 3 < 200
    scores = fg.Trainer(model.optimizer, fg.Engine(executor)).evaluate(model.validation)
    assert scores["loss"] == min(losses) < losses[-1]
    if stopping.best_epoch:
        other.fit(executor, epochs=stopping.best_epoch)
        assert model.bits() == other.bits()


def test_the_last_weights_stay_if_asked_for():
    model, other = overfitting(), overfitting()
    stopping = fg.EarlyStopping(patience=2, restore_best=False)
    history = model.fit(epochs=200, validation=model.validation, callbacks=[stopping])
    other.fit(epochs=history.epochs[-1]["epoch"])
    assert history.kept_epoch is None
    assert model.bits() == other.bits()


@pytest.mark.parametrize("interrupted", range(1, 6))
def test_early_stopping_goes_on_from_a_checkpoint(tmp_path, interrupted):
    """Wherever the run is interrupted: before the best epoch, while it waits, after it stopped."""
    whole, first, second = overfitting(), overfitting(), overfitting()

    def fit(model, **more):
        return model.fit(callbacks=[fg.EarlyStopping(patience=2)], validation=model.validation, **more)

    expected = fit(whole, epochs=50)
    fit(first, epochs=interrupted, checkpoint=tmp_path)
    history = fit(second, epochs=50, checkpoint=tmp_path, resume=True)
    assert second.bits() == whole.bits()
    assert history.kept_epoch == expected.kept_epoch
    assert history.steps == expected.steps


def test_what_was_kept_is_forgotten_without_the_callback(tmp_path):
    model, other, straight = (Model("Adam") for _ in range(3))
    model.fit(epochs=2, callbacks=[Scripted({1: fg.KEEP})], checkpoint=tmp_path)
    history = other.fit(epochs=3, checkpoint=tmp_path, resume=True)
    straight.fit(epochs=3)
    assert other.bits() == straight.bits()
    assert history.kept_epoch is None


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: fg.EarlyStopping("test_loss"), "monitor must be one of"),
        (lambda: fg.EarlyStopping(patience=0), "patience must be"),
        (lambda: fg.EarlyStopping(min_delta=-1), "min_delta must be"),
        (lambda: Model().fit(callbacks=[fg.EarlyStopping()]), "nothing to validate on"),
        (lambda: fg.ReduceLROnPlateau("test_loss"), "ReduceLROnPlateau: monitor must be one of"),
        (lambda: fg.ReduceLROnPlateau(factor=1.0), "factor must be below 1, not 1.0"),
        (lambda: fg.ReduceLROnPlateau(cooldown=-1), "cooldown must be"),
        (
            lambda: Model().fit(callbacks=[fg.ReduceLROnPlateau()]),
            "ReduceLROnPlateau watches 'validation_loss', but there is",
        ),
        (
            lambda: Model(learning_rate=fg.StepDecay(0.1, 3)).fit(callbacks=[fg.ReduceLROnPlateau("loss")]),
            "ReduceLROnPlateau needs a learning rate that is a number, not StepDecay",
        ),
    ],
)
def test_what_watches_says_what_does_not_fit(make, told):
    with pytest.raises(GraphError, match=told):
        make()


# -- reducing the learning rate --


def reduced_by_hand(values, patience, min_delta, cooldown, better=min):
    """After which epochs, as torch.optim.lr_scheduler.ReduceLROnPlateau has it, whose patience is one less."""
    best, bad, cold, found = values[0], 0, 0, []
    for epoch, value in enumerate(values[1:], 2):
        if abs(value - best) > min_delta and better(value, best) == value:
            best, bad = value, 0
        else:
            bad += 1
        if cold:
            cold, bad = cold - 1, 0
        if bad >= patience:
            found.append(epoch)
            bad, cold = 0, cooldown
    return found


@pytest.mark.parametrize("cooldown", [0, 2])
@pytest.mark.parametrize("min_delta", [0.0, 0.3])
@pytest.mark.parametrize("monitor", ["validation_loss", "validation_accuracy"])
def test_when_the_learning_rate_is_reduced(monitor, min_delta, cooldown):
    for seed in range(20):
        model = Model(learning_rate=1.0)
        plateau = fg.ReduceLROnPlateau(monitor, 0.5, 3, min_delta, cooldown, min_lr=0.1)
        plateau.on_train_begin({"optimizer": model.optimizer, "validation": True, "past": []})
        values = np.random.default_rng(seed).random(30).tolist()
        for epoch, value in enumerate(values, 1):
            assert plateau.on_epoch({"epoch": epoch, monitor: value}) is None
        better = min if monitor == "validation_loss" else max
        assert plateau.reduced == reduced_by_hand(values, 3, min_delta, cooldown, better) != []
        assert model.optimizer.learning_rate == max(0.1, 0.5 ** len(plateau.reduced))


@pytest.mark.parametrize("grain", GRAINS)
def test_training_goes_on_with_the_reduced_learning_rate(executor, grain):
    model, other = (Model(n=12, learning_rate=8.0) for _ in range(2))
    plateau = fg.ReduceLROnPlateau("loss", factor=0.25, patience=1)
    model.fit(executor, grain, epochs=6, callbacks=[plateau])
    assert plateau.reduced
    assert model.optimizer.learning_rate == 8.0 * 0.25 ** len(plateau.reduced)
    for epoch in range(1, 7):
        other.fit(executor, grain)
        other.optimizer.learning_rate *= 0.25 if epoch in plateau.reduced else 1.0
    assert model.bits() == other.bits()


@pytest.mark.parametrize("interrupted", range(1, 6))
@pytest.mark.parametrize("pressed", [False, True])
def test_a_reduced_learning_rate_goes_on_from_a_checkpoint(tmp_path, interrupted, pressed):
    """Also where the epoch after which it is reduced was interrupted, and is asked about again."""

    def fit(more=(), **kwargs):
        model, plateau = Model(n=12, learning_rate=8.0), fg.ReduceLROnPlateau("loss", factor=0.25, patience=1)
        model.fit(callbacks=[plateau, *more], **kwargs)
        return model.bits(), model.optimizer.learning_rate, plateau.reduced

    expected = fit(epochs=6)
    if pressed:
        with pytest.raises(KeyboardInterrupt):
            fit([Pressed(interrupted)], epochs=6, checkpoint=tmp_path)
    else:
        fit(epochs=interrupted, checkpoint=tmp_path)
    assert fit(epochs=6, checkpoint=tmp_path, resume=True) == expected


def test_an_accuracy_that_there_is_not():
    with fg.Graph() as graph:
        x = fg.Variable(1, trainable=False)
        loss = fg.Dot(x, fg.Variable(1, [1.0]))
    trainer = fg.Trainer(
        fg.Adam(graph, loss, batch_size=1), fg.Engine("sync"), callbacks=[fg.EarlyStopping("validation_accuracy")]
    )
    with pytest.raises(GraphError, match="only a loss made of CrossEntropyWithSoftMax or LogisticCrossEntropy"):
        trainer.fit({x: [[1.0]]}, validation={x: [[1.0]]})


# -- accumulation --


@pytest.mark.parametrize("grain", GRAINS)
def test_accumulated_gradients_make_one_update(executor, grain):
    """3 times 2 samples an update: the interpreter's batch size is 6, and the last update of an epoch has 4."""
    model, other = Model(batch_size=2), Model()
    losses = other.descend([range(6), range(6, 10)] * 2)
    history = model.fit(executor, grain, epochs=2, shuffle=False, accumulate=3)
    np.testing.assert_allclose([loss for _, loss in history.steps], losses, rtol=1e-12)
    np.testing.assert_allclose(model.w.value, other.w.value, rtol=1e-12)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("accumulate", [1, 4, 9, 20, 67])
def test_accumulation_gives_the_same_bits_at_every_grain(accumulate, kernel):
    """Few shards are kept side by side, many are folded: the tree is the same."""
    if kernel == "numba":
        pytest.importorskip("numba")
    bits = set()
    for where, grain in itertools.product(["sync", "threads"], ["round", "shard"]):
        model = Model("Adam", batch_size=3, n=210)
        engine = fg.Engine(where, grain=grain, shards=3, kernel=kernel)
        history = fg.Trainer(model.optimizer, engine, accumulate=accumulate).fit(model.feeds, epochs=1)
        assert history.plan["shards"] == 3 * accumulate
        bits.add((model.bits(), tuple(history.steps)))
    assert len(bits) == 1


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_memory_does_not_grow_with_accumulation(kernel):
    if kernel == "numba":
        pytest.importorskip("numba")
    with fg.Graph(seed=0) as graph:
        x, w = fg.Variable(500, trainable=False), fg.Variable(500 * 100, np.zeros(50_000))
        loss = fg.Sum(fg.Tanh(fg.MatVec(w, x)))
    feeds = {x: np.random.default_rng(0).normal(size=(80, 500))}

    def peak(accumulate):
        engine = fg.Engine("sync", grain="round", shards=1, kernel=kernel)
        trainer = fg.Trainer(fg.Momentum(graph, loss, 1e-6, batch_size=1), engine, accumulate=accumulate)
        trainer.fit(feeds, epochs=1)  # compiles
        tracemalloc.start()
        try:
            trainer.fit(feeds, epochs=1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    gradient = 50_000 * 8
    assert peak(80) < peak(8) + 8 * gradient  # one more of each level of the tree, and what comes between


def test_a_batch_that_is_too_large_with_accumulation():
    with pytest.raises(FeedError, match=r"batch size 4 times accumulate 3 = 12 is larger than the data: 10 samples"):
        Model().fit(accumulate=3)
    with pytest.raises(GraphError, match="accumulate must be an integer from 1 on, not 0"):
        Model().fit(accumulate=0)


class Pressed(fg.Callback):
    """Ctrl-C while callbacks of an epoch run."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch(self, record):
        if record["epoch"] == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
@pytest.mark.parametrize("first", [True, False])
def test_an_answer_that_was_interrupted_is_asked_for_again(tmp_path, epoch, first):
    rng = np.random.default_rng(0)
    inputs, start = rng.normal(size=(10, 3)), rng.normal(size=3)

    def run(callbacks, **kwargs):
        with fg.Graph(seed=0) as graph:
            x, t = fg.Variable(3, trainable=False), fg.Variable(1, trainable=False)
            loss = fg.MeanSquaredError(fg.Dot(fg.Variable(3, start), x), t)
        feeds = {x: inputs, t: inputs @ [1.0, 2.0, 3.0]}
        stopping = fg.EarlyStopping(patience=4)
        trainer = fg.Trainer(
            fg.Adam(graph, loss, 0.3, batch_size=4),
            fg.Engine("sync"),
            callbacks=[stopping, *callbacks] if first else [*callbacks, stopping],
        )
        history = trainer.fit(feeds, epochs=12, validation=feeds, **kwargs)
        return trainer.fingerprint(), history.kept_epoch, [r["validation_loss"] for r in history.epochs]

    expected = run([])
    with pytest.raises(KeyboardInterrupt):
        run([Pressed(epoch)], checkpoint=tmp_path / "state")
    assert run([], checkpoint=tmp_path / "state", resume=True) == expected


def test_everything_that_is_told_is_on_the_base_class():
    """By the source: whoever reads `fg.Callback` knows all there is."""
    told = set()
    for path in (ROOT / "scheduler" / "training").glob("*.py"):
        told |= set(re.findall(r"(?:notify|_ask)\(\s*\"(\w+)\"", path.read_text()))
    assert told == {name for name in vars(fg.Callback) if name.startswith("on_")}
    assert "on_recovery" in told
    with pytest.raises(AttributeError, match="on_nothing"):
        Callbacks([]).notify("on_nothing")

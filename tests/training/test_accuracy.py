"""Accuracy follows from what a loss is made of."""

import numpy as np
import pytest

import flowgrad as fg

N = 60


class Setting:
    """Three classes, a question of yes or no, a target, and a weight for each sample."""

    def __init__(self):
        rng = np.random.default_rng(0)
        with fg.Graph(seed=0) as self.graph:
            self.x, self.weight = fg.Variable(4, trainable=False), fg.Variable(1, trainable=False)
            self.label, self.yes = fg.Variable(3, trainable=False), fg.Variable(1, trainable=False)
            self.w = fg.Variable(12, rng.normal(size=12))
            self.v = fg.Variable(4, rng.normal(size=4), trainable=False)
            self.logits, self.logit = fg.MatVec(self.w, self.x), fg.Dot(self.v, self.x)
            self.classes = fg.CrossEntropyWithSoftMax(self.logits, self.label)
            self.question = fg.LogisticCrossEntropy(self.logit, self.yes)
        self.feeds = {
            self.x: rng.normal(size=(N, 4)),
            self.weight: rng.uniform(size=N),
            self.label: rng.integers(0, 3, N),
            self.yes: rng.integers(0, 2, N),
        }

    def evaluate(self, loss, where="sync", kernel="auto"):
        needed = {v for v in fg.graph.ancestors(loss) if isinstance(v, fg.Variable)}
        feeds = {v: a for v, a in self.feeds.items() if v in needed}
        return fg.Trainer(fg.Adam(self.graph, loss, batch_size=8), fg.Engine(where, kernel=kernel)).evaluate(feeds)

    def right(self):
        """Return the share of right classes and of right answers to the question, by NumPy."""
        x = self.feeds[self.x]
        w = self.w.value.reshape(3, 4)
        return (
            ((x @ w.T).argmax(axis=1) == self.feeds[self.label]).mean(),
            ((x @ self.v.value > 0) == self.feeds[self.yes]).mean(),
        )


LOSSES = {
    "as it is": lambda s: s.classes,
    "weighted": lambda s: s.weight * s.classes,
    "scaled": lambda s: 0.5 * s.classes,
    "with weight decay": lambda s: s.classes + 0.01 * (s.w @ s.w),
    "with another loss": lambda s: s.classes + fg.MeanSquaredError(s.logit, s.yes),
    "twice": lambda s: s.classes + s.classes,
    "averaged": lambda s: fg.Sum(fg.Vectorize(s.classes, s.weight)) / 2,
    "less its entropy": lambda s: s.classes - 0.1 * fg.CrossEntropyWithSoftMax(s.logits, fg.SoftMax(s.logits)),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_accuracy_is_that_of_the_classes(loss):
    setting = Setting()
    with setting.graph:
        made = LOSSES[loss](setting)
    assert setting.evaluate(made)["accuracy"] == pytest.approx(setting.right()[0], rel=1e-14)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_a_question_of_yes_or_no_has_one_too(executor, kernel):
    setting = Setting()
    with setting.graph:
        several = fg.Sum(fg.LogisticCrossEntropy(setting.logits, setting.label))
        both = setting.classes + setting.question
    classes, answers = setting.right()
    assert setting.evaluate(setting.question, executor, kernel)["accuracy"] == pytest.approx(answers, rel=1e-14)
    assert setting.evaluate(both, executor, kernel)["accuracy"] == pytest.approx((classes + answers) / 2, rel=1e-14)
    yes = (setting.feeds[setting.x] @ setting.w.value.reshape(3, 4).T) > 0
    expected = (yes == np.eye(3)[setting.feeds[setting.label]]).mean()
    assert setting.evaluate(several, executor, kernel)["accuracy"] == pytest.approx(expected, rel=1e-14)


def test_a_training_with_a_penalty_is_stopped_by_its_accuracy():
    setting = Setting()
    with setting.graph:
        loss = setting.classes + 0.01 * (setting.w @ setting.w)
    feeds = {v: setting.feeds[v] for v in (setting.x, setting.label)}
    stopping = fg.EarlyStopping("validation_accuracy", patience=2)
    trainer = fg.Trainer(fg.Adam(setting.graph, loss, batch_size=8), fg.Engine("sync"), callbacks=[stopping])
    history = trainer.fit(feeds, 30, validation=feeds)
    assert history.epochs[-1]["epoch"] < 30
    assert stopping.best == max(r["validation_accuracy"] for r in history.epochs) > 0


def test_a_loss_that_compares_no_classes_has_none():
    setting = Setting()
    with setting.graph:
        loss = fg.MeanSquaredError(fg.SoftMax(setting.logits), setting.label)
    assert set(setting.evaluate(loss)) == {"loss"}


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("loss", ["classes", "question"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_no_number_is_told(kernel, loss):
    setting = Setting()
    fine = setting.evaluate(getattr(setting, loss), kernel=kernel)
    for v in (setting.w, setting.v):
        v.set_value(np.full(v.dim, 1e200))
    setting.feeds[setting.x][:] = np.where(np.arange(4) % 2, 1e200, -1e200)  # inf - inf
    with pytest.warns(UserWarning, match=rf"the loss .*{getattr(setting, loss).name}.* is nan on these feeds") as told:
        scores = setting.evaluate(getattr(setting, loss), kernel=kernel)
    assert "\n" not in str(told[0].message)
    assert np.isnan(scores["loss"])
    assert scores["accuracy"] == 0.0 != fine["accuracy"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_losses_of_both_infinities_are_told():
    with fg.Graph() as graph:
        x, w = fg.Variable(1, trainable=False), fg.Variable(1, [1e200])
        loss = w * x
    trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=2), fg.Engine("sync"))
    with pytest.warns(UserWarning, match="is nan on these feeds"):
        assert np.isnan(trainer.evaluate({x: np.repeat([1e200, -1e200], 6000)})["loss"])
    with pytest.warns(UserWarning, match="is inf on these feeds"):
        assert trainer.evaluate({x: [1e200]})["loss"] == np.inf


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_so_is_that_of_a_validation():
    setting = Setting()
    feeds = {v: setting.feeds[v] for v in (setting.x, setting.label)}
    trainer = fg.Trainer(fg.Adam(setting.graph, setting.classes, batch_size=8), fg.Engine("sync"))
    with pytest.warns(UserWarning, match="is nan on these feeds"):
        history = trainer.fit(feeds, 1, validation={**feeds, setting.x: np.sign(feeds[setting.x]) * 1.7e308})
    assert np.isnan(history.epochs[-1]["validation_loss"])

"""Weights of samples and classes: in the loss, in gradients and in accuracy, the same wherever it runs."""

import numpy as np
import pytest
from dask import array as da
from models import GRAINS, VALID, Model, N
from refusal import refused

import flowgrad as fg
from flowgrad.errors import FeedError, GraphError

WEIGHTS = np.random.default_rng(9).uniform(0, 2, N) * (np.arange(N) % 4 > 0)
CLASSES = {0: 0.5, 2: 3.0}


def fit(model, where="sync", grain="auto", shards=None, kernel="auto", epochs=2, **settings):
    engine = fg.Engine(where, grain=grain, shards=shards, kernel=kernel)
    trainer = fg.Trainer(model.optimizer, engine, shuffle=False, **settings.pop("trainer", {}))
    return trainer.fit(model.feeds, epochs=epochs, **settings)


def descend(model, weights, epochs=2):
    """Gradient descent by the interpreter, of the sum of weight times loss by the size of the batch; return the losses."""
    losses = []
    for rows in [range(4), range(4, 8), range(8, N)] * epochs:
        loss, total = 0.0, [np.zeros(v.dim) for v in model.weights]
        for i in rows:
            one, gradients = model.mean_gradient([i])
            loss += weights[i] * one / len(rows)
            total = [t + weights[i] * g / len(rows) for t, g in zip(total, gradients)]
        losses.append(loss)
        for v, g in zip(list(model.weights), total):
            v.set_value(v.value - 0.1 * g)
    return losses


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("grain", GRAINS)
def test_steps_are_those_of_the_weighted_sum(executor, grain, kernel):
    model, expected = Model(), Model()
    losses = descend(expected, WEIGHTS)
    history = fit(model, executor, grain, kernel="numpy" if grain == "node" else kernel, sample_weight=WEIGHTS)
    np.testing.assert_allclose([loss for _, loss in history.steps], losses, rtol=1e-12)
    for mine, other in zip(model.weights.values(), expected.weights.values()):
        np.testing.assert_allclose(mine, other, rtol=1e-11)
    by_samples = np.average(np.reshape(losses, (2, 3)), axis=1, weights=[4, 4, 2])
    np.testing.assert_allclose([record["loss"] for record in history.epochs], by_samples, rtol=1e-12)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("grain", [*GRAINS, "auto"])
def test_weights_of_one_change_no_bit(grain, kernel):
    found = []
    for given in ({}, {"sample_weight": np.ones(N)}, {"class_weight": {1: 1}}):
        model = Model("Adam")
        history = fit(model, grain=grain, kernel="numpy" if grain == "node" else kernel, **given)
        found.append((model.bits(), list(history.steps)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("grain", ["shard", "round", "collective"])
def test_one_worker_and_two_have_the_same_bits(client, grain):
    alone, two = Model("Adam", n=64, batch_size=16), Model("Adam", n=64, batch_size=16)
    weights = np.random.default_rng(0).uniform(size=64)
    fit(alone, "sync", "round", 4, "numpy", sample_weight=weights)
    fit(two, client, grain, 4, "numpy", sample_weight=da.from_array(weights, chunks=10))
    assert alone.bits() == two.bits()


@pytest.mark.parametrize("kind", [list, np.float32, lambda a: da.from_array(a, chunks=3), lambda a: a[:, None]])
def test_weights_come_as_feeds_do(kind):
    model, expected = Model(), Model()
    fit(model, sample_weight=kind(WEIGHTS.astype(np.float32).astype(float)))
    fit(expected, sample_weight=WEIGHTS.astype(np.float32))
    assert model.bits() == expected.bits()


def test_classes_weigh_as_their_samples_do():
    by_class, by_sample, both = Model(), Model(), Model()
    table = np.array([0.5, 1.0, 3.0])[by_class.feeds[by_class.label]]
    fit(by_class, class_weight=CLASSES)
    fit(by_sample, sample_weight=table)
    assert by_class.bits() == by_sample.bits()
    fit(both, class_weight=CLASSES, sample_weight=da.from_array(WEIGHTS, chunks=3))
    fit(other := Model(), sample_weight=table * WEIGHTS)
    assert both.bits() == other.bits()


def questions(loss_of):
    rng = np.random.default_rng(0)
    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(2, trainable=False), fg.Variable(1, trainable=False)
        loss = loss_of(fg.Variable(2, [0.1, 0.2], name="w") @ x, label)
    yes = rng.integers(0, 2, 12)
    return graph, loss, {x: rng.normal(size=(12, 2)), label: yes}, yes


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classes_of_a_question_of_yes_or_no(smoothing):
    bits = []
    for given in (lambda yes: {"class_weight": {1: 4.0}}, lambda yes: {"sample_weight": np.where(yes, 4.0, 1.0)}):
        graph, loss, feeds, yes = questions(lambda a, b: fg.losses.binary_cross_entropy(a, b, smoothing))
        fg.Trainer(fg.Adam(graph, loss, batch_size=4), fg.Engine("sync")).fit(feeds, 2, **given(yes))
        bits.append(graph["w"].value.tobytes())
    assert bits[0] == bits[1]


@pytest.mark.parametrize("chunks", [None, 3])
def test_evaluation_weighs_loss_and_accuracy(executor, chunks):
    model = Model()
    weights = WEIGHTS if chunks is None else da.from_array(WEIGHTS, chunks=chunks)
    found = fg.Trainer(model.optimizer, fg.Engine(executor)).evaluate(model.feeds, weights)
    losses = model.numpy_values(model.loss, model.feeds)[:, 0]
    right = model.numpy_values(model.logits, model.feeds).argmax(axis=1) == model.feeds[model.label]
    np.testing.assert_allclose(found["loss"], (WEIGHTS * losses).mean(), rtol=1e-12)
    np.testing.assert_allclose(found["accuracy"], np.average(right, weights=WEIGHTS), rtol=1e-12)


def test_validation_may_have_weights():
    model = Model()
    weights = np.linspace(0, 1, VALID)
    history = fit(model, validation=(model.validation, weights), epochs=1)
    losses = model.numpy_values(model.loss, model.validation)[:, 0]
    np.testing.assert_allclose(history.epochs[-1]["validation_loss"], (weights * losses).mean(), rtol=1e-12)
    with refused(FeedError, "sample_weight", 3, VALID):
        fit(model, validation=(model.validation, np.ones(3)))


def test_other_weights_are_noticed_by_a_checkpoint(tmp_path):
    whole = Model()
    fit(whole, epochs=3, sample_weight=WEIGHTS)
    fit(Model(), sample_weight=WEIGHTS, checkpoint=tmp_path)
    for other in (WEIGHTS[::-1], None):
        with refused(GraphError, "of another run", "'sample_weight'"):
            fit(Model(), sample_weight=other, epochs=3, checkpoint=tmp_path, resume=True)
    fit(again := Model(), epochs=3, sample_weight=WEIGHTS, checkpoint=tmp_path, resume=True)
    assert again.bits() == whole.bits()


def test_what_a_callback_writes_to_weights_counts_nowhere():
    class Writes:
        def on_epoch(self, record):
            weights[:] = 100.0

    weights, found = WEIGHTS.copy(), Model()
    fit(found, sample_weight=weights, trainer={"callbacks": [Writes()]})
    fit(expected := Model(), sample_weight=WEIGHTS)
    assert found.bits() == expected.bits()


def test_weights_that_cannot_be_are_refused():
    model = Model()
    bad = np.where(np.arange(N) == 6, -1.0, 1.0)
    for weights in (bad, da.from_array(bad, chunks=4)):
        with refused(FeedError, "sample_weight", "-1.0", "sample 6", graph=model.graph):
            fit(model, sample_weight=weights)
    with refused(FeedError, "'sample_weight' has 9", "'x' has 10", graph=model.graph):
        fit(model, sample_weight=np.ones(9))
    with refused(FeedError, "sample_weight", "all samples have weight 0", graph=model.graph):
        fit(model, sample_weight=np.zeros(N))
    with refused(GraphError, "class 3", "classes 0 to 2", graph=model.graph):
        fit(model, class_weight={3: 1.0})
    labels = da.from_array(model.feeds[model.label], chunks=4).map_blocks(np.positive)
    trainer = fg.Trainer(model.optimizer, fg.Engine("sync"))
    with refused(FeedError, "'label'", "in chunks", "give sample_weight", graph=model.graph):
        trainer.fit({**model.feeds, model.label: labels}, class_weight=CLASSES)
    several = lambda a, b: fg.losses.binary_cross_entropy(fg.Vectorize(a, a), fg.Vectorize(b, b))  # noqa: E731
    for loss_of in (fg.MeanSquaredError, several):
        graph, loss, feeds, _ = questions(loss_of)
        trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=4), fg.Engine("sync"))
        with refused(GraphError, "class_weight", "give sample_weight", graph=graph):
            trainer.fit(feeds, class_weight={0: 2.0})


def test_private_steps_take_none():
    model = Model("Adam", per_sample_clip=1.0, noise_multiplier=1.0)
    for given in ({"sample_weight": WEIGHTS}, {"class_weight": CLASSES}):
        with refused(GraphError, "differentially private", "sample_weight", graph=model.graph):
            fit(model, **given)

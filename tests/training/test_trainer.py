"""The trainer: arithmetic, order of the samples, evaluation, checkpoints."""

import contextlib
import gc
import weakref

import numpy as np
import pytest
from dask import array as da
from faults import wait_for
from models import GRAINS, Model, N

import flowgrad as fg
from flowgrad.errors import FlowgradError, GraphError
from flowgrad.files import OPTIMIZERS

# -- the arithmetic --


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("shards", [None, 3])
def test_the_last_partial_batch_weighs_its_own_samples(executor, grain, shards):
    """10 samples in batches of 4, 4 and 2; against gradient descent in plain Python."""
    if grain == "sample":
        shards = None
    expected, model = Model(), Model()
    batches = [range(4), range(4, 8), range(8, 10)]
    losses = expected.descend(batches * 2)
    history = model.fit(executor, grain, shards, epochs=2, shuffle=False)
    np.testing.assert_allclose([loss for _, loss in history.steps], losses, rtol=1e-12)
    for mine, other in zip(model.weights.values(), expected.weights.values()):
        np.testing.assert_allclose(mine, other, rtol=1e-12)
    by_samples = np.average(np.reshape(losses, (2, 3)), axis=1, weights=[4, 4, 2])
    np.testing.assert_allclose([record["loss"] for record in history.epochs], by_samples, rtol=1e-12)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_agrees_with_one_step(executor, kind):
    model, other = Model(kind, n=12), Model(kind, n=12)
    for _ in range(3):
        for i in range(12):
            other.x.set_value(other.feeds[other.x][i])
            other.label.set_value(np.eye(3)[other.feeds[other.label][i]])
            other.optimizer.one_step()
    model.fit(executor, epochs=3, shuffle=False)
    for mine, theirs in zip(model.weights.values(), other.weights.values()):
        np.testing.assert_allclose(mine, theirs, rtol=1e-11)


def test_adam_with_bias_correction():
    """Against the published algorithm, written out."""
    model, other = Model("Adam", bias_correction=True), Model()
    v = s = 0.0
    w = np.concatenate(list(other.weights.values()))
    for t, rows in enumerate([range(4), range(4, 8), range(8, 10)], 1):
        g = np.concatenate(other.mean_gradient(rows)[1])
        v, s = 0.9 * v + 0.1 * g, 0.99 * s + 0.01 * g * g
        w = w - 0.1 * (v / (1 - 0.9**t)) / (np.sqrt(s / (1 - 0.99**t)) + 1e-8)
        other.w.set_value(w[:9])
        other.b.set_value(w[9:])
    model.fit(shuffle=False)
    np.testing.assert_allclose(np.concatenate(list(model.weights.values())), w, rtol=1e-11)


def test_training_goes_on_where_it_stopped():
    """The optimizer keeps its state from `fit` to `fit`, and between `fit` and `one_step`."""
    at_once, in_parts = Model("Adam", n=12), Model("Adam", n=12)
    at_once.fit(epochs=3, shuffle=False)
    in_parts.fit(epochs=1, shuffle=False)
    for i in range(12):
        in_parts.x.set_value(in_parts.feeds[in_parts.x][i])
        in_parts.label.set_value(np.eye(3)[in_parts.feeds[in_parts.label][i]])
        in_parts.optimizer.one_step()
    in_parts.fit(epochs=1, shuffle=False)
    for mine, other in zip(in_parts.weights.values(), at_once.weights.values()):
        np.testing.assert_allclose(mine, other, rtol=1e-11)


def test_notebooks_show_a_training():
    model = Model("Adam", n=12)
    history = model.fit(epochs=2, shuffle=False)
    text = history._repr_html_()
    assert all(f"<td>{record['loss']:.4g}</td>" in text for record in history.epochs[-2:])
    assert history.plan["grain"] in text
    assert "Adam of" in fg.Trainer(model.optimizer, fg.Engine("sync"))._repr_html_()


def test_a_fed_variable_is_never_trained():
    """Also when it was declared trainable, which is the default."""
    rng = np.random.default_rng(0)
    with fg.Graph(seed=0) as graph:
        x, y = fg.Variable(2, name="x"), fg.Variable(1, name="y")
        w = fg.Variable(2, [0.0, 0.0], name="w")
        loss = fg.MeanSquaredError(w @ x, y)
    images = rng.normal(size=(8, 2))
    optimizer = fg.Adam(graph, loss, 0.1, batch_size=4)
    trainer = fg.Trainer(optimizer, fg.Engine("sync"))
    for _ in range(2):
        trainer.fit({x: images, y: images @ [1.0, 2.0]}, epochs=5)
        assert x.value is None
        assert y.value is None
    assert w.value.min() > 0.1


def test_fit_and_one_step_share_the_state_of_what_is_trained():
    """Inputs that were left trainable are fed to `fit`, and set for `one_step`."""

    def train(trainable):
        with fg.Graph(seed=0) as graph:
            x = fg.Variable(2, trainable=trainable, name="x")
            w = fg.Variable(2, [0.5, -0.5], name="w")
            loss = fg.Dot(w, x) * fg.Dot(w, x)
        images = np.random.default_rng(0).normal(size=(4, 2))
        optimizer = fg.Adam(graph, loss, 0.1, batch_size=2)
        trainer = fg.Trainer(optimizer, fg.Engine("sync"), shuffle=False)
        trainer.fit({x: images}, epochs=1)
        for image in images:
            x.set_value(image)
            optimizer.one_step()
        trainer.fit({x: images}, epochs=1)
        return w.value

    np.testing.assert_allclose(train(True), train(False), rtol=1e-12)


def test_a_loss_without_parameters_changes_nothing():
    with fg.Graph(seed=0) as graph:
        x, idle = fg.Variable(2, trainable=False), fg.Variable(3, [1.0, 2.0, 3.0], name="idle")
        loss = fg.Dot(x, x)
    trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=2), fg.Engine("sync"), shuffle=False)
    with pytest.warns(UserWarning, match="idle"):
        history = trainer.fit({x: np.arange(8.0).reshape(4, 2)}, epochs=1)
    assert [loss for _, loss in history.steps] == [(1 + 13) / 2, (41 + 85) / 2]
    assert idle.value.tolist() == [1.0, 2.0, 3.0]


def test_single_precision(executor):
    double, single = Model("Adam"), Model("Adam")
    single.feeds[single.x] = single.feeds[single.x].astype(np.float32)
    double.fit(executor, epochs=3, shuffle=False)
    history = single.fit(executor, epochs=3, shuffle=False, validation=single.validation)
    for mine, other in zip(single.weights.values(), double.weights.values()):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(mine, mine.astype(np.float32))
        assert not np.array_equal(mine, other)
    assert all(isinstance(loss, float) for _, loss in history.steps)


@pytest.mark.parametrize("grain", GRAINS)
def test_dask_arrays_are_feeds(executor, grain):
    model, other = Model("Adam"), Model("Adam")
    chunks = {model.x: (3, 2), model.label: (4,)}
    model.feeds = {v: da.from_array(a, chunks=chunks[v]) for v, a in model.feeds.items()}
    model.fit(executor, grain, epochs=2, validation=model.feeds)
    other.fit(executor, grain, epochs=2)
    assert model.bits() == other.bits()


def test_a_loss_that_is_not_finite_stops_the_training():
    model = Model(learning_rate=0.1)
    with model.graph:
        blown_up = fg.Exp(fg.Exp(fg.Exp(fg.Sum(model.w * model.w) + model.loss)))
    before = model.bits()
    optimizer = fg.GradientDescent(model.graph, blown_up, 10.0, batch_size=4)
    with np.errstate(all="ignore"), pytest.raises(FlowgradError, match="learning rate"):
        fg.Trainer(optimizer, fg.Engine("sync")).fit(model.feeds, epochs=3)
    assert model.bits() == before


# -- the order of the samples --


def order(seed=0, epochs=2, shuffle=True):
    """Return the samples in the order in which each epoch takes them."""
    model = Model(batch_size=1, learning_rate=1e-300)  # the weights stay, so a step's loss tells its sample
    own = model.numpy_values(model.loss, model.feeds)[:, 0]
    history = model.fit(epochs=epochs, seed=seed, shuffle=shuffle)
    found = [int(np.abs(own - loss).argmin()) for _, loss in history.steps]
    return np.reshape(found, (epochs, N)).tolist()


def test_each_epoch_takes_every_sample_once_in_another_order():
    epochs = order(epochs=4)
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert list(range(N)) not in epochs


def test_the_order_comes_from_the_seed_alone():
    first = order(seed=3)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    assert order(seed=3) == first
    assert order(seed=4) != first
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_without_shuffling_samples_are_taken_as_stored():
    assert order(shuffle=False) == [list(range(N))] * 2


def test_the_same_seed_gives_the_same_bits():
    bits = []
    for seed in (7, 7, 8):
        model = Model("Adam")
        model.fit(epochs=3, seed=seed)
        bits.append(model.bits())
    assert bits[0] == bits[1] != bits[2]


# -- evaluate, predict, checkpoints --


@pytest.mark.parametrize("n", [1, 7, 5000, 12_001])
def test_evaluate_weighs_every_sample_once(executor, n):
    model = Model()
    feeds = model.draw(np.random.default_rng(n), n)
    scores = fg.Trainer(model.optimizer, fg.Engine(executor)).evaluate(feeds)
    losses, logits = (model.numpy_values(node, feeds) for node in (model.loss, model.logits))
    assert set(scores) == {"loss", "accuracy"}
    np.testing.assert_allclose(scores["loss"], losses.mean(), rtol=1e-12)
    np.testing.assert_allclose(scores["accuracy"], (logits.argmax(axis=1) == feeds[model.label]).mean(), rtol=1e-12)


def test_predict(executor):
    model = Model()
    with model.graph:
        probabilities = fg.SoftMax(model.logits)
    trainer = fg.Trainer(model.optimizer, fg.Engine(executor))
    found = trainer.predict(probabilities, {model.x: model.feeds[model.x]})
    np.testing.assert_allclose(found, model.numpy_values(probabilities, model.feeds), rtol=1e-12)
    assert found.shape == (N, 3)


@pytest.mark.parametrize("grain", GRAINS)
def test_resuming_gives_the_same_bits(tmp_path, executor, grain):
    whole, first, second = Model("Adam"), Model("Adam"), Model("Adam")
    expected = whole.fit(executor, grain, epochs=4, validation=whole.validation)
    first.fit(executor, grain, epochs=2, validation=first.validation, checkpoint=tmp_path)
    history = second.fit(executor, grain, epochs=4, validation=second.validation, checkpoint=tmp_path, resume=True)
    assert second.bits() == whole.bits()
    assert history.steps == expected.steps
    assert [r["epoch"] for r in history.epochs] == [0, 1, 2, 3, 4]
    assert [r["validation_loss"] for r in history.epochs] == [r["validation_loss"] for r in expected.epochs]


def test_resuming_without_a_checkpoint_starts_at_the_beginning(tmp_path):
    model, other = Model(), Model()
    model.fit(epochs=2, checkpoint=tmp_path / "empty", resume=True)
    other.fit(epochs=2)
    assert model.bits() == other.bits()


# -- what is left behind --


class Stop:
    """A callback that ends the training early."""

    def on_steps(self, info):
        raise KeyboardInterrupt


def use(engine, stop=()):
    """Do everything that places data on the executor, and return a weak reference to a feed."""
    model = Model("Adam")
    array = model.feeds[model.x]
    trainer = fg.Trainer(model.optimizer, engine, callbacks=stop)
    with contextlib.suppress(KeyboardInterrupt):
        trainer.fit(model.feeds, epochs=2, validation=model.feeds)
    trainer.evaluate(model.feeds)
    engine.gradient(model.loss, model.feeds)
    engine.jacobian(model.logits, model.w, model.feeds)
    engine.lower(model.loss, model.feeds).compute()
    return weakref.ref(array)


@pytest.mark.parametrize("stop", [(), (Stop(),)], ids=["finished", "stopped"])
@pytest.mark.parametrize("where", ["sync", "threads"])
def test_no_feed_is_kept(where, stop):
    engine = fg.Engine(where)
    array = use(engine, stop)
    gc.collect()
    assert array() is None


@pytest.mark.distributed
@pytest.mark.parametrize("stop", [(), (Stop(),)], ids=["finished", "stopped"])
def test_no_task_is_kept_by_the_scheduler(client, stop):
    def kept(dask_scheduler):
        return sorted(map(str, dask_scheduler.tasks))

    engine = fg.Engine(client)
    gc.collect()
    before = client.run_on_scheduler(kept)
    use(engine, stop)
    # The scheduler forgets a moment after the last future has gone.
    wait_for(lambda: gc.collect() >= 0 and set(client.run_on_scheduler(kept)) <= set(before))


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("grain", ["node", "sample", "shard", "round"])
def test_a_parameter_whose_every_entry_is_cut_away(grain, kernel):
    """It is upstream of the loss in the graph, but no entry of it reaches the loss."""
    if kernel == "numba":
        pytest.importorskip("numba")
    with fg.Graph(seed=0) as graph:
        x, w = fg.Variable(1, trainable=False), fg.Variable(2, [1.0, 2.0])
        loss = fg.Slice(fg.Vectorize(x, w), 0, 1)
    engine = fg.Engine("sync", grain=grain, kernel=kernel if grain != "node" else "auto")
    history = fg.Trainer(fg.Adam(graph, loss, batch_size=2), engine).fit({x: [[1.0], [2.0], [3.0]]}, epochs=1)
    assert w.value.tolist() == [1.0, 2.0]
    assert history.epochs[-1]["loss"] == pytest.approx(2.0)


class SignDescent(fg.optim.Rule):
    formulas = {"step": "lr * sign(g)"}


class Hoarding(fg.optim.Rule):
    """A rule that moves more arrays than compiled kernels do."""

    formulas = {**{slot: f"{slot} + g" for slot in ("u", "v", "s", "x", "z", "m")}, "step": "lr * sign(z)"}


@pytest.mark.parametrize("rule", [SignDescent, Hoarding])
@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_a_rule_of_ones_own(rule, kernel):
    if kernel == "numba" and fg.scheduler.kernels.why_not_compiled():
        pytest.skip("not compiled here")
    with fg.Graph() as graph:
        x, w = fg.Variable(1, trainable=False), fg.Variable(1, [1.0])
        optimizer = fg.Optimizer(graph, fg.Dot(x, w), rule(0.25), batch_size=2)
    trainer = fg.Trainer(optimizer, fg.Engine("sync", kernel=kernel))
    if (rule, kernel) == (Hoarding, "numba"):
        with pytest.raises(GraphError, match="Hoarding moves 8 arrays, compiled kernels up to 7"):
            trainer.fit({x: np.ones((4, 1))}, epochs=1)
        return
    trainer.fit({x: np.ones((4, 1))}, epochs=1)
    assert w.value.tolist() == [0.5]

"""What training draws at random, and what it measures: the same bits at every grain and number of workers, after resuming too."""

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.ops import Whiten

SAMPLES, BATCH = 70, 16
RNG = np.random.default_rng(0)
X = RNG.normal(2, 3, (SAMPLES, 18))
LABEL = RNG.integers(0, 3, SAMPLES)


def net(batch_norm=False):
    with fg.Graph(seed=0) as graph:
        x = fg.Variable((2, 3, 3), trainable=False, name="x")
        label = fg.Variable(3, trainable=False, name="label")
        h = x
        if batch_norm:
            h = fg.BatchNorm(fg.layers.conv2d(h, 4, 3, name="c0"), *affine("a", 4), name="b0")
            h = fg.BatchNorm(fg.ReLU(h), name="b1")
        h = fg.Dropout(fg.layers.dense(h, 12, "relu", name="h0"), 0.3)
        mean, spread = fg.layers.dense(h, 5, name="mean"), fg.layers.dense(h, 5, name="spread")
        code = mean + fg.Exp(0.1 * spread) * fg.Noise(5)
        fg.losses.categorical_cross_entropy(fg.layers.dense(code, 3, name="logits"), label, name="loss")
    return graph


def affine(name, channels):
    return fg.Variable(channels, np.ones(channels), name=f"{name}.gain"), fg.Variable(
        channels, True, name=f"{name}.shift"
    )


def bits(graph):
    return b"".join(v.value.tobytes() for v in graph.nodes if isinstance(v, fg.Variable) and v.value is not None)


def trained(where="sync", batch_norm=False, epochs=2, batch=BATCH, accumulate=1, fits=None, **engine):
    graph = net(batch_norm)
    optimizer = fg.Adam(graph, graph["loss"], batch_size=batch)
    trainer = fg.Trainer(optimizer, fg.Engine(where, **engine), seed=7, accumulate=accumulate)
    for k in fits or [epochs]:
        trainer.fit({"x": X, "label": LABEL}, epochs=k)
    return graph


@pytest.fixture(scope="module", params=[False, True], ids=["drawn", "measured too"])
def batch_norm(request):
    return request.param


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("grain", ["shard", "collective", "auto"])
def test_a_cluster_draws_the_same_bits(client, grain, kernel, batch_norm):
    here = trained(kernel=kernel, shards=3, batch_norm=batch_norm)
    assert bits(trained(client, kernel=kernel, shards=3, grain=grain, batch_norm=batch_norm)) == bits(here)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize(
    "other", [{"grain": "node"}, {"grain": "sample"}, {"shards": 1}, {"accumulate": 2, "batch": 8}], ids=str
)
def test_however_it_is_cut_the_same_is_drawn(other, kernel, batch_norm):
    here, there = trained(kernel=kernel, batch_norm=batch_norm), trained(kernel=kernel, batch_norm=batch_norm, **other)
    for v in here.nodes:
        if isinstance(v, fg.Variable) and v.value is not None:
            np.testing.assert_allclose(there[v.name].value, v.value, rtol=1e-9, atol=1e-10, err_msg=v.name)


def test_threads_draw_the_same_bits():
    assert bits(trained("threads", shards=4, kernel="numpy")) == bits(trained(shards=4, kernel="numpy"))


def test_chunked_feeds_draw_the_same_bits(client):
    import dask.array as da

    graph = net()
    trainer = fg.Trainer(fg.Adam(graph, graph["loss"], batch_size=BATCH), fg.Engine(client, shards=2), seed=7)
    trainer.fit({"x": da.from_array(X, chunks=(20, 18)), "label": LABEL}, epochs=2)
    assert bits(graph) == bits(trained(client, shards=2))


def test_one_step_draws_what_training_draws():
    graph, other = net(), net()
    optimizer = fg.Adam(graph, graph["loss"], batch_size=BATCH)
    for k in range(4 * BATCH):
        graph["x"].set_value(X[k])
        graph["label"].set_value(np.eye(3)[LABEL[k]])
        optimizer.one_step(seed=7)
    trainer = fg.Trainer(fg.Adam(other, other["loss"], batch_size=BATCH), fg.Engine("sync"), seed=7, shuffle=False)
    trainer.fit({"x": X[: 4 * BATCH], "label": LABEL[: 4 * BATCH]}, epochs=1)
    for v in graph.nodes:
        if isinstance(v, fg.Variable) and v.trainable:
            np.testing.assert_allclose(other[v.name].value, v.value, rtol=1e-9, atol=1e-12, err_msg=v.name)
    assert not graph["draws"].value.any()


def test_another_seed_draws_something_else():
    def weights(seed):
        graph = net()
        trainer = fg.Trainer(
            fg.Adam(graph, graph["loss"], batch_size=BATCH), fg.Engine("sync"), seed=seed, shuffle=False
        )
        trainer.fit({"x": X, "label": LABEL}, epochs=1)
        return bits(graph)

    assert weights(1) != weights(2)


def test_two_fits_are_one(batch_norm):
    assert bits(trained(batch_norm=batch_norm, fits=[1, 2])) == bits(trained(batch_norm=batch_norm, epochs=3))


@pytest.mark.parametrize("epoch", [1, 2])
def test_resuming_draws_and_measures_the_same(tmp_path, epoch, batch_norm):
    class Stop(fg.Callback):
        def on_epoch(self, record):
            if record["epoch"] == epoch:
                raise KeyboardInterrupt

    def fit(*callbacks, **more):
        graph = net(batch_norm)
        optimizer = fg.Adam(graph, graph["loss"], batch_size=BATCH)
        trainer = fg.Trainer(optimizer, fg.Engine("sync"), seed=7, callbacks=callbacks)
        trainer.fit({"x": X, "label": LABEL}, epochs=3, checkpoint=tmp_path, **more)
        return graph

    with pytest.raises(KeyboardInterrupt):
        fit(Stop())
    assert bits(fit(resume=True)) == bits(trained(batch_norm=batch_norm, epochs=3))


def test_private_steps_draw_too():
    exact = fg.Adam(other := net(), other["loss"], batch_size=10, per_sample_clip=1e6)
    fg.Trainer(exact, fg.Engine("sync", shards=2), seed=7).fit({"x": X, "label": LABEL}, epochs=1)
    for v in (whole := trained(epochs=1, batch=10, shards=2)).nodes:
        if isinstance(v, fg.Variable) and v.trainable:
            np.testing.assert_allclose(other[v.name].value, whole[v.name].value, rtol=1e-9, atol=1e-12)


# -- what is measured ---------------------------------------------------------------------------------------------


def moments(graph, name):
    read = graph[f"{name}.mean"].children[0].parents[0]
    values = np.asarray(fg.Engine("sync").forward(read, {"x": X}))
    values = values.reshape(SAMPLES, read.shape[0], -1)
    return values.mean((0, 2)), values.var((0, 2))


def test_after_the_last_epoch_the_first_norm_has_the_moments_of_all_samples():
    graph = trained(batch_norm=True)
    mean, variance = moments(graph, "b0")
    np.testing.assert_allclose(graph["b0.mean"].value, mean, rtol=1e-12)
    np.testing.assert_allclose(graph["b0.variance"].value, variance, rtol=1e-12)


def test_before_the_first_epoch_each_has_those_after_the_one_before_it():
    graph, seen = net(batch_norm=True), {}

    class Look(fg.Callback):
        def on_epoch(self, record):
            seen[record["epoch"]] = [graph[n].value.tobytes() for n in ("b0.mean", "b1.mean", "b1.variance")]

    adam, feeds = fg.Adam(graph, graph["loss"], learning_rate=1e-30, batch_size=BATCH), {"x": X, "label": LABEL}
    fg.Trainer(adam, fg.Engine("sync"), callbacks=[Look()]).fit(feeds, 1, validation=feeds)
    assert seen[0] == seen[1]
    for name in ("b0", "b1"):
        mean, variance = moments(graph, name)
        np.testing.assert_allclose(graph[f"{name}.mean"].value, mean, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(graph[f"{name}.variance"].value, variance, rtol=1e-10)


def test_what_lies_behind_the_last_norm_is_not_computed_to_measure():
    heard = []

    class Heard(fg.Op):
        """Itself; tells of how many samples."""

        @staticmethod
        def apply(a):
            heard.append(len(a))
            return a + 0

        @staticmethod
        def jacobian(slot, y, a):
            return fg.Diagonal(np.ones_like(a))

    with fg.Graph(seed=0) as graph:
        x = fg.Variable(18, trainable=False, name="x")
        loss = fg.Sum(Heard(fg.BatchNorm(x, fg.Variable(18, np.ones(18)))))
    trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=BATCH), fg.Engine("sync", kernel="numpy"))
    trainer.fit({"x": X}, epochs=2)
    assert heard.count(SAMPLES) == 1  # the loss before the first epoch


def test_what_is_frozen_is_not_measured():
    graph = net(batch_norm=True)
    adam = fg.Adam(graph, graph["loss"], batch_size=BATCH, freeze=["b0", "c0"])
    fg.Trainer(adam, fg.Engine("sync")).fit({"x": X, "label": LABEL}, epochs=1)
    assert not graph["b0.mean"].value.any()
    assert graph["b1.mean"].value.any()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (fg.Adam, {"weight_decay": 0.1, "clip_norm": 0.5}),
        (fg.AdamW, {}),
        (fg.RMSProp, {"momentum": 0.9}),
        (fg.Adam, {"ema": 0.9}),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_no_rule_moves_what_is_measured(kind, more):
    graph = net(batch_norm=True)
    fg.Trainer(kind(graph, graph["loss"], batch_size=BATCH, **more), fg.Engine("sync")).fit(
        {"x": X, "label": LABEL}, epochs=1
    )
    mean, variance = moments(graph, "b0")
    np.testing.assert_allclose(graph["b0.mean"].value, mean, rtol=1e-12)
    np.testing.assert_allclose(graph["b0.variance"].value, variance, rtol=1e-12)


def test_it_is_part_of_the_fingerprint():
    graph = net(batch_norm=True)
    trainer = fg.Trainer(fg.Adam(graph, graph["loss"]), fg.Engine("sync"))
    before = trainer.fingerprint()
    graph["b0.mean"].set_value(np.ones(4))
    assert trainer.fingerprint() != before


def test_private_steps_refuse_it():
    graph = net(batch_norm=True)
    trainer = fg.Trainer(fg.Adam(graph, graph["loss"], per_sample_clip=1.0), fg.Engine("sync"))
    with pytest.raises(fg.FlowgradError, match="GroupNorm"):
        trainer.fit({"x": X, "label": LABEL}, epochs=1)


def test_a_norm_of_unmeasured_variables_is_refused():
    with fg.Graph():
        x, w = fg.Variable((2, 3)), fg.Variable(2)
        with pytest.raises(fg.FlowgradError, match="measured"):
            Whiten(x, w, w)
        with pytest.raises(fg.FlowgradError, match="2 channels, mean and variance have 3"):
            Whiten(x, *(fg.Variable(3, trainable=False) for _ in range(2)))

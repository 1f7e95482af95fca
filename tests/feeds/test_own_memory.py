"""What an engine returns and keeps is its own: nobody's later writing changes it."""

import gc
import threading
import warnings
import weakref

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client

import flowgrad as fg
from flowgrad.scheduler.feeds import memory as known


class Same(fg.Op):
    """Returns its operand itself."""

    @staticmethod
    def apply(a):
        return a

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(1.0)


class Net:
    def __init__(self):
        with fg.Graph():
            self.x, self.label = fg.Variable(4, trainable=False), fg.Variable(3, trainable=False)
            self.w = fg.Variable(12, np.linspace(-1, 1, 12))
            self.hidden = fg.Tanh(fg.MatVec(self.w, Same(self.x)))
            self.loss = fg.CrossEntropyWithSoftMax(self.hidden, self.label)
        self.feeds = {self.x: np.random.default_rng(0).random((6, 4)), self.label: np.array([0, 1, 2, 0, 1, 2])}


def everything(engine, net, feeds):
    """Return functions that give results of what was asked now."""
    gradients = engine.per_sample_gradients(net.loss, feeds)
    lazy = gradients.norms(compute=False)
    by_chunk = engine.jacobian(net.hidden, net.x, feeds, memory_budget=500)
    future = engine.jacobian(net.hidden, net.x, feeds, compute=False)
    value = engine.forward(net.x, feeds)
    assert hasattr(by_chunk, "chunks")
    return [
        gradients.norms,
        lambda: gradients.array(net.w),
        lambda: gradients.mean()[net.w],
        lambda: lazy.compute(scheduler="sync"),
        lambda: by_chunk.compute(scheduler="sync"),
        future.result,
        lambda: value,
    ]


@pytest.mark.parametrize("copied", [0, known.COPIED])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
@pytest.mark.parametrize("labels", [np.asarray, list])
def test_writing_to_a_feed_changes_no_result(monkeypatch, copied, cache_bytes, labels):
    monkeypatch.setattr(known, "COPIED", copied)  # as if these feeds were large
    net, again = Net(), Net()
    engine = fg.Engine("sync", cache_bytes=cache_bytes)
    feeds = {net.x: net.feeds[net.x].copy(), net.label: labels(net.feeds[net.label])}
    results = everything(engine, net, feeds)
    feeds[net.x] *= -3
    expected = everything(fg.Engine("sync"), again, again.feeds)
    for found, right in zip(results, expected):
        np.testing.assert_allclose(found(), right())
    for value in (net.feeds[net.x], feeds[net.x]):  # nor what is kept
        np.testing.assert_allclose(
            engine.jacobian(net.hidden, net.w, {net.x: value}),
            fg.Engine("sync").jacobian(net.hidden, net.w, {net.x: value}),
        )


def test_writing_to_a_result_changes_nothing_on_workers_of_this_process():
    with Client(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, set_as_default=False
    ) as client:
        net = Net()
        engine = fg.Engine(client)
        for _ in range(10):
            found = engine.jacobian(net.hidden, net.x, net.feeds)
            value = engine.forward(net.hidden, net.feeds)
            np.testing.assert_allclose(found, fg.Engine("sync").jacobian(net.hidden, net.x, net.feeds))
            np.testing.assert_allclose(value, fg.Engine("sync").forward(net.hidden, net.feeds))
            found *= 2
            value *= 2


def test_a_masked_array_is_refused():
    net = Net()
    engine = fg.Engine("sync")
    engine.jacobian(net.hidden, net.w, {net.x: np.zeros((2, 4))})
    masked = np.ma.array(np.zeros((2, 4)), mask=np.eye(2, 4))
    with pytest.raises(fg.FlowgradError, match="is a masked array"):
        engine.jacobian(net.hidden, net.w, {net.x: masked})


@pytest.mark.parametrize("cache_bytes", [3000, 1 << 20])
def test_many_threads_use_one_engine(cache_bytes):
    net = Net()
    engine = fg.Engine("threads", cache_bytes=cache_bytes)
    feeds = [{net.x: net.feeds[net.x] + k} for k in range(6)]
    expected = [fg.Engine("sync").jacobian(net.hidden, net.x, f) for f in feeds]
    failed = []

    def work(seed):
        try:
            for k in np.random.default_rng(seed).integers(0, len(feeds), 150):
                np.testing.assert_allclose(engine.jacobian(net.hidden, net.x, feeds[k]), expected[k])
                if seed == 0 and k == 0:
                    engine.clear_cache()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    engine.clear_cache()
    assert not engine.executor._held
    assert not engine.executor._uses


@pytest.mark.parametrize("given", [True, False])
def test_graphs_are_let_go(given):
    engine = fg.Engine("sync")
    alive = []
    for _ in range(10):
        net = Net()
        engine.per_sample_gradients(net.loss, net.feeds, [net.w] if given else None)
        alive.append(weakref.ref(net.x.graph))
        del net
    engine.clear_cache()
    gc.collect()
    assert not any(ref() for ref in alive)


def test_what_a_delayed_function_returns_stays_its_own():
    net, engine = Net(), fg.Engine("sync")
    feed = net.feeds[net.x]
    gradients = engine.per_sample_gradients(net.loss, {**net.feeds, net.x: dask.delayed(lambda: feed)()})
    expected = fg.Engine("sync").per_sample_gradients(net.loss, {**net.feeds, net.x: feed.copy()}).array()
    feed *= -3
    np.testing.assert_array_equal(gradients.array(), expected)


def test_dask_feeds_are_computed_once():
    net, computed = Net(), []

    def load(block):
        computed.append(block.shape)
        return block

    feed = da.from_array(net.feeds[net.x], chunks=(2, 4)).map_blocks(load, meta=np.empty((0, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fg.Engine("sync").jacobian(net.hidden, net.w, {net.x: feed})
    assert computed == [(2, 4)] * 3
    masked = da.ma.masked_greater(da.from_array(net.feeds[net.x], chunks=(2, 4)), 0.5)
    with pytest.raises(fg.FlowgradError, match="is a masked array"):
        fg.Engine("sync").forward(net.hidden, {net.x: masked})


class Held:
    """Something that shows its memory as an array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __getitem__(self, key):
        return self.array[key]

    def __setitem__(self, key, value):
        self.array[key] = value


KINDS = {
    "array": lambda x: x,
    "single precision": lambda x: x.astype(np.float32),
    "in columns": np.asfortranarray,
    "a view": lambda x: np.repeat(x, 2, axis=0)[::2],
    "rows": list,
    "object of ones own": Held,
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_callback_writes_to_feeds_counts_nowhere(executor, kind, dtype):
    def train(write):
        net, given = Net(), KINDS[kind](np.random.default_rng(1).random((6, 4)))
        feeds = {net.x: given, net.label: net.feeds[net.label]}

        class Write(fg.Callback):
            def on_epoch(self, record):
                if write:
                    given[0][:] = record["epoch"]
                    feeds[net.label][:] = 0

        optimizer = fg.Adam(net.w.graph, net.loss, 0.1, batch_size=2)
        engine = fg.Engine(executor, dtype, shards=1, kernel="numpy")
        trainer = fg.Trainer(optimizer, engine, callbacks=[Write()])
        history = trainer.fit(feeds, epochs=3, validation=feeds)
        return trainer.fingerprint(), [record["validation_loss"] for record in history.epochs]

    assert train(True) == train(False)


def test_feeds_by_name_are_copied_for_a_callback_too():
    class Write(fg.Callback):
        def on_epoch(self, record):
            given[:] = 0

    net = Net()
    given = net.feeds[net.x].copy()
    trainer = fg.Trainer(fg.Adam(net.w.graph, net.loss, batch_size=2), fg.Engine("sync"), callbacks=[Write()])
    trainer.fit({net.x.name: given, net.label.name: net.feeds[net.label]}, epochs=2)
    other = Net()
    fg.Trainer(fg.Adam(other.w.graph, other.loss, batch_size=2), fg.Engine("sync")).fit(other.feeds, epochs=2)
    assert net.w.value.tobytes() == other.w.value.tobytes()
    assert not given.any()


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("grain", ["node", "shard"])
def test_what_was_lowered_reads_what_was_fed(executor, dtype, gradient, grain):
    net, x = Net(), np.random.default_rng(1).random((6, 4))
    engine = fg.Engine(executor, dtype)
    lowered = engine.lower(net.loss, {**net.feeds, net.x: x}, gradient, grain)
    expected = engine.lower(net.loss, {**net.feeds, net.x: x.copy()}, gradient, grain).compute()
    x[:] = 0
    found = lowered.compute()
    np.testing.assert_array_equal(found[net.w] if gradient else found, expected[net.w] if gradient else expected)


def test_files_are_not_copied_and_nothing_is_where_nobody_can_write(tmp_path):
    net = Net()
    np.save(tmp_path / "x.npy", net.feeds[net.x])

    def feeds_of(x, callbacks=()):
        optimizer = fg.Adam(net.w.graph, net.loss, batch_size=2)
        trainer = fg.Trainer(optimizer, fg.Engine("sync"), callbacks=callbacks)
        return trainer.settings.checked({net.x: x}, "float64").arrays[net.x]

    class Own(fg.Callback):
        pass

    x, file = net.feeds[net.x], np.load(tmp_path / "x.npy", mmap_mode="c")
    assert np.shares_memory(feeds_of(x), x)
    assert not np.shares_memory(feeds_of(x, [Own()]), x)
    assert np.shares_memory(feeds_of(file, [Own()]), file)
    assert np.shares_memory(feeds_of(np.asarray(file), [Own()]), file)
    file = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert len(feeds_of(file, [Own()]).chunks) == 1

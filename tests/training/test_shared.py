"""Collective rounds: the bits of one worker's rounds, on any workers, whatever happens to them."""

import itertools
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import faults
import numpy as np
import pytest
from distributed import Client, LocalCluster

import flowgrad as fg
from flowgrad.scheduler.collective import Group
from flowgrad.scheduler.steps import shared
from flowgrad.scheduler.training import estimate, job
from flowgrad.scheduler.windows.choice import Choice

pytestmark = pytest.mark.distributed


@contextmanager
def threads_cluster(workers, threads=1):
    cluster = LocalCluster(n_workers=workers, threads_per_worker=threads, processes=False, dashboard_address=None)
    with cluster, Client(cluster, set_as_default=False) as client:
        yield client


class Net(faults.Net):
    """With an optimizer, kernel and shards of the test's choice."""

    def fit(
        self,
        where,
        grain="collective",
        shards=8,
        kernel="numba",
        epochs=2,
        feeds=None,
        accumulate=1,
        callbacks=(),
        **rule,
    ):
        engine = fg.Engine(where, grain=grain, shards=shards, kernel=kernel)
        optimizer = fg.Adam(self.graph, self.loss, batch_size=64 // accumulate, **rule)
        trainer = fg.Trainer(optimizer, engine, seed=5, accumulate=accumulate, callbacks=callbacks)
        history = trainer.fit(feeds or self.feeds, epochs=epochs)
        return trainer.fingerprint(), list(history.steps), history


def same(where, **settings):
    """Compare with rounds in this process; return the history."""
    found, losses, history = Net().fit(where, **settings)
    expected, wanted, _ = Net().fit("sync", grain="round", **settings)
    one = history.plan["shards"] < 2 or "one worker" in history.plan["reason"]
    assert history.plan["grain"] == ("round" if one else "collective")
    assert found == expected
    assert losses == wanted
    return history


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_bits_on_any_number_of_workers(workers, kernel, sliced, monkeypatch):
    monkeypatch.setattr(shared, "worth_slices", lambda array, size: sliced)
    with threads_cluster(workers) as client:
        history = same(client, kernel=kernel)
        same(client, kernel=kernel, shards=3)
    assert (history.plan["grain"] == "collective") == (workers > 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_decay": 0.01},
        {"clip_norm": 0.1},
        {"accumulate": 2},
        {"learning_rate": fg.CosineDecay(0.01, 20)},
        {"per_sample_clip": 0.5, "noise_multiplier": 0.3, "noise_seed": 3},
        {"shards": None},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_bits_of_all_kinds_of_steps(client, settings):
    same(client, **settings)


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_bits_with_vectors_beside_the_parameters(monkeypatch, kernel, sliced):
    monkeypatch.setattr(shared, "worth_slices", lambda array, size: sliced)
    name = next(v.name for v in Net().graph.nodes if getattr(v, "trainable", False))
    with threads_cluster(2) as client:
        same(client, kernel=kernel, ema=0.9, learning_rates={name: 0.5})


def table_net(where, grain, shards=8, kernel="numba", **rule):
    """Train tables of which most rows do not occur in a batch; return the bits, and the bytes of each exchange."""
    rng = np.random.default_rng(0)
    with fg.Graph(seed=0) as graph:
        k, y = fg.Variable(3, trainable=False, name="k"), fg.Variable(1, trainable=False, name="y")
        first, second = (fg.layers.embedding(k, rows, 4, ("normal", 1.0)) for rows in (500, 700))
        loss = fg.MeanSquaredError(fg.layers.dense((first * second).reshape(12), 1), y)
    optimizer = fg.Adam(graph, loss, 0.1, batch_size=16, **rule)
    feeds = {k: rng.integers(0, 500, (40, 3)), y: rng.normal(size=40)}
    trainer = fg.Trainer(optimizer, fg.Engine(where, grain=grain, shards=shards, kernel=kernel), seed=5)
    history = trainer.fit(feeds, epochs=2)
    assert history.plan["grain"] == grain
    values = [v.value.tobytes() for v in graph.nodes if getattr(v, "trainable", False) and v.below is None]
    return values, {name: array.tobytes() for name, array in optimizer.state.items()}, list(history.steps)


@pytest.mark.parametrize("rule", [{}, {"lazy_rows": True}, {"lazy_rows": True, "clip_norm": 0.1, "ema": 0.9}], ids=len)
@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("workers", [2, 3])
def test_gradients_of_tables_travel_as_rows(workers, kernel, rule, monkeypatch):
    exchange, sent = Group.exchange, []

    def counted(self, about, parts, note=None):
        if about == ("gradients",):
            sent.append(sum(a.nbytes for a in parts[self.rank]))
        return exchange(self, about, parts, note)

    monkeypatch.setattr(Group, "exchange", counted)
    expected = table_net("sync", "round", kernel=kernel, **rule)
    with threads_cluster(workers) as client:
        assert table_net(client, "collective", kernel=kernel, **rule) == expected
        assert max(sent) < 3 * 16 * 2 * (4 + 1) * 4 + 8 * 13 * 4 + 100
        if not rule:
            sent.clear()
            monkeypatch.setattr(job, "row_tables", lambda step, target, batch: ())
            assert table_net(client, "collective", kernel=kernel, **rule) == expected
            assert min(sent) > 1200 * 4 * 4


@pytest.mark.parametrize("sliced", [False, True])
def test_whole_tables_are_sent_where_slices_of_them_are_less(sliced, monkeypatch):
    monkeypatch.setattr(shared, "traffic", lambda size, members: (2, 0.0) if sliced else (1, 1e9))
    monkeypatch.setattr(shared, "worth_slices", lambda array, size: True)
    with threads_cluster(3) as client:
        for kernel in ("numpy", "numba"):
            expected = table_net("sync", "round", kernel=kernel)
            assert table_net(client, "collective", kernel=kernel) == expected
            lazy = table_net("sync", "round", kernel=kernel, lazy_rows=True)
            assert table_net(client, "collective", kernel=kernel, lazy_rows=True) == lazy != expected


def test_memory_that_is_believed_free_may_be_overwritten(monkeypatch):
    """Workers of one process hand over the very arrays: who writes to one that is still read changes the bits."""
    monkeypatch.setattr(shared, "worth_slices", lambda array, size: True)
    add = shared._add_in_place
    monkeypatch.setattr(shared, "_add_in_place", lambda pair: (time.sleep(0.001), add(pair))[1])
    with threads_cluster(2) as client:
        for shards in (2, 5, 8):
            same(client, shards=shards)


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("workers", [2, 3])
def test_gradients_are_poisoned_as_soon_as_they_are_believed_free(monkeypatch, workers, sliced):
    """When the exchange after theirs has ended. In one process the others have the very arrays."""
    monkeypatch.setattr(shared, "worth_slices", lambda array, size: sliced)
    exchange, sent, poisoned = Group.exchange, {}, []

    def poisoning(self, about, parts, note=None):
        came = exchange(self, about, parts, note)
        for part in sent.pop(self, ()):
            for array in part:
                array.fill(np.nan)
                poisoned.append(1)
        if about == ("gradients",):
            sent[self] = [part for rank, part in enumerate(parts) if rank != self.rank]
        return came

    monkeypatch.setattr(Group, "exchange", poisoning)
    with threads_cluster(workers) as client:
        same(client, shards=8)
        same(client, shards=3)
    assert poisoned


def test_workers_with_several_threads_and_more_workers_than_shards():
    with threads_cluster(3, threads=2) as client:
        same(client, shards=8)
        same(client, shards=2)


def test_feeds_in_chunks(client):
    da = pytest.importorskip("dask.array")
    net = Net()
    lazy = {v: da.from_array(a, chunks=100) for v, a in net.feeds.items()}
    found, *_ = net.fit(client, feeds=lazy)
    assert found == Net().fit("sync", grain="round")[0]


@pytest.mark.parametrize("there", ["sync", "three"])
def test_a_checkpoint_goes_on_on_other_workers(client, there, tmp_path):
    expected = Net().fit("sync", grain="round", epochs=4)[0]

    def fit(where, epochs, resume):
        net = Net()
        optimizer = fg.Adam(net.graph, net.loss, batch_size=64)
        trainer = fg.Trainer(optimizer, fg.Engine(where, grain="collective", shards=8, kernel="numba"), seed=5)
        trainer.fit(net.feeds, epochs=epochs, checkpoint=tmp_path, resume=resume)
        return trainer.fingerprint()

    fit(client, 2, False)
    with threads_cluster(3) as other:
        assert fit("sync" if there == "sync" else other, 4, True) == expected


@pytest.mark.parametrize("planned", ["round", "collective"])
def test_another_grain_that_is_tried_changes_no_bit(client, monkeypatch, tmp_path, planned):
    """Every second window is a trial of three steps; the run is interrupted in between, and goes on."""
    expected = Net().fit("sync", grain="round", epochs=3)[:2]
    original, turns = estimate.make_plan, itertools.count()
    other = "round" if planned == "collective" else "collective"
    monkeypatch.setattr(estimate, "make_plan", lambda *args: replace(original(*args), steps_per_window=5, other=other))
    monkeypatch.setattr(
        Choice, "next", lambda self, steps, left: (other, min(steps, 3)) if next(turns) % 2 else (planned, steps)
    )

    class Interrupt:
        def on_steps(self, info):
            if info["step"] > 10:
                raise KeyboardInterrupt

    net = Net()
    optimizer = fg.Adam(net.graph, net.loss, batch_size=64)
    engine = fg.Engine(client, grain=planned, shards=8, kernel="numba")
    with pytest.raises(KeyboardInterrupt):
        fg.Trainer(optimizer, engine, seed=5, callbacks=[Interrupt()]).fit(net.feeds, epochs=3, checkpoint=tmp_path)
    trainer = fg.Trainer(optimizer, engine, seed=5)
    history = trainer.fit(net.feeds, epochs=3, checkpoint=tmp_path, resume=True)
    assert (trainer.fingerprint(), list(history.steps)) == expected
    assert min(history.window["grains"].values()) > 0


def test_an_engine_without_workers_runs_rounds_and_says_so():
    found, _, history = Net().fit("threads")
    assert history.plan["grain"] == "round"
    assert "no workers" in history.plan["reason"]
    assert found == Net().fit("sync", grain="round")[0]


@pytest.mark.slow
def test_two_trainings_at_once_beside_gangs_and_other_tasks(client):
    expected = Net().fit("sync", grain="round", epochs=6)[0]
    found, sums = [], []

    def train():
        found.append(Net().fit(client, epochs=6)[0])

    def add():
        for _ in range(10):
            sums.extend(fg.gang(client, lambda group: float(group.all_reduce(np.ones(1))[0]), [()] * 2))

    several = [threading.Thread(target=f, daemon=True) for f in (train, train, add)]
    blocker = client.submit(
        time.sleep, 3, workers=[next(iter(client.scheduler_info(n_workers=-1)["workers"]))], pure=False
    )
    for one in several:
        one.start()
    for one in several:
        one.join(200)
    assert found == [expected] * 2
    assert sums == [2.0] * 20
    del blocker


class Slow(fg.Op):
    """The identity, but a step takes some hundredths of a second: random moments fall into the middle of windows."""

    kinds = (fg.Identity,)
    seconds = 0.005

    @staticmethod
    def apply(a):
        time.sleep(Slow.seconds)
        return a

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Identity()


def killed(client, kills, monkeypatch):
    """Train while workers are killed; compare bits and losses."""
    with faults.Killer(client, kills, seed=1) as killer:
        found, losses, history = Net(Slow).fit(client, epochs=killer.EPOCHS, callbacks=[killer])
    assert killer.killed >= kills
    assert history.recoveries
    monkeypatch.setattr(Slow, "seconds", 0)
    assert (found, losses) == Net(Slow).fit("sync", grain="round", epochs=len(history.epochs))[:2]


class Standstill:
    """A callback that stops a worker in the middle of a window, for so many seconds or `until_noticed`.

    Not in its first step: who stands still while a gang meets is waited for, as one that does something else.
    """

    def __init__(self, folder, client, seconds, until_noticed):
        self.trap, self.processes = faults.Trap(folder), list(faults.pids(client).values())
        self.timer, self.until_noticed = threading.Timer(seconds, self.end), until_noticed

    def on_steps(self, info):
        if not self.timer.is_alive() and not self.timer.finished.is_set():
            self.trap.set(signal.SIGSTOP, self.processes, after=10)  # of the 32 shards that a lane has in a window
            self.timer.start()

    def on_recovery(self, record):
        if self.until_noticed:
            self.end()

    def end(self):
        self.timer.cancel()
        faults.go_on(self.processes)


def stopped(client, folder, epochs, seconds, silence=None):
    """Train while a worker stands still; compare bits and losses."""
    if silence is not None:
        faults.silence(client, silence)
    standstill = Standstill(folder, client, seconds, silence is not None)
    try:
        found, losses, history = Net(standstill.trap.op).fit(client, epochs=epochs, callbacks=[standstill])
    finally:
        standstill.end()
    assert standstill.trap.sprung
    assert any("no sign of life" in record["cause"] for record in history.recoveries)
    assert (found, losses) == Net(standstill.trap.op).fit("sync", grain="round", epochs=epochs)[:2]


@pytest.mark.slow
def test_killed_workers_change_no_bit(hurt, monkeypatch):
    killed(hurt, 2, monkeypatch)


def test_a_worker_that_is_stopped_for_a_while_changes_no_bit(hurt, tmp_path):
    stopped(hurt, tmp_path, epochs=6, seconds=120, silence=2.0)


@pytest.mark.slow
def test_ten_killed_workers_change_no_bit(hurt, monkeypatch):
    killed(hurt, 10, monkeypatch)


@pytest.mark.slow
def test_a_worker_that_is_stopped_for_long_changes_no_bit(hurt, tmp_path):
    stopped(hurt, tmp_path, epochs=100, seconds=20.0)

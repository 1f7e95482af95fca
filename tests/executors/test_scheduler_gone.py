"""The scheduler is killed, or stopped, while somebody waits: one line, from every call; what was trained is kept."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
from conftest import ROOT
from distributed import Client, LocalCluster
from distributed.security import Security
from faults import At, Net, Slow, wait_for

import flowgrad as fg
from flowgrad.errors import ClusterError
from flowgrad.scheduler.executors import distributed

pytestmark = pytest.mark.distributed


@pytest.fixture
def processes(tmp_path):
    """A scheduler and a worker, each started by hand; the client, and the scheduler's process."""
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    quiet = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    where = ["--scheduler-file", str(file)]
    started = [
        subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *where], **quiet),
        subprocess.Popen([*dask, "worker", "--nthreads", "1", "--no-dashboard", "--no-nanny", *where], **quiet),
    ]
    try:
        wait_for(lambda: file.exists() and file.stat().st_size)
        with Client(scheduler_file=str(file), set_as_default=False, timeout=20) as client:
            client.wait_for_workers(1, timeout=60)
            yield client, started[0]
            started[0].kill()
    finally:
        for process in started:
            process.kill()
            process.wait()


CALLS = {
    "forward": lambda e, y, x, f: e.forward(y, f),
    "gradient": lambda e, y, x, f: e.gradient(fg.Sum(y), f),
    "jacobian": lambda e, y, x, f: e.jacobian(y, x, f),
    "per_sample": lambda e, y, x, f: e.per_sample_gradients(fg.Sum(y), f, x).norms(),
    "evaluate": lambda e, y, x, f: fg.Trainer(fg.Adam(y.graph, fg.Sum(y), batch_size=2), e).evaluate(f),
    "fit": lambda e, y, x, f: fg.Trainer(fg.Adam(y.graph, fg.Sum(y), batch_size=2), e).fit(f),
}


def raised_by(client, call, strike, seconds=120):
    """Strike once the call waits for a worker; return what it raises. It does not wait for ever."""
    found = []

    def run():
        try:
            call()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_for(lambda: any(client.processing().values()))
    strike()
    thread.join(seconds)
    assert not thread.is_alive()
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_every_call_that_waits_ends(processes, name):
    client, scheduler = processes
    with fg.Graph():
        x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 2.0])
        y = Slow(x * w)
        engine = fg.Engine(client, grain="shard", kernel="numpy")
        if name == "fit":  # its own measuring would wait
            y = x * w
            engine = fg.Engine(client, grain="node", kernel="numpy", shards=1)
        call = CALLS[name]
        feeds = {x: np.ones((4000 if name == "fit" else 4, 2))}
        error = raised_by(client, lambda: call(engine, y, x, feeds), scheduler.kill)
    assert isinstance(error, ClusterError), error
    assert "the scheduler of" in str(error)
    assert "does not answer any more: start it again" in str(error)
    assert len(str(error).splitlines()) == 1


def test_a_training_leaves_a_checkpoint_and_says_where(processes, tmp_path):
    client, scheduler = processes
    net = Net()
    trainer = net.trainer(client, grain="round", shards=1, callbacks=[At(15, scheduler.kill)])
    with pytest.raises(ClusterError, match=r"does not answer any more.*go on from .*state with resume=True"):
        trainer.fit(net.feeds, epochs=200, checkpoint=tmp_path / "state")
    again = net.trainer("sync", grain="round", shards=1)
    assert len(again.fit(net.feeds, epochs=2, checkpoint=tmp_path / "state", resume=True).steps) >= 15


@pytest.mark.slow
def test_a_scheduler_that_is_stopped_is_given_up(processes, monkeypatch):
    client, scheduler = processes
    monkeypatch.setattr(distributed, "ANSWER_SECONDS", 3.0)
    with fg.Graph():
        x = fg.Variable(2, trainable=False)
        y = Slow(x)
    engine = fg.Engine(client)
    error = raised_by(
        client, lambda: engine.forward(y, {x: np.ones((4, 2))}), lambda: scheduler.send_signal(signal.SIGSTOP)
    )
    scheduler.send_signal(signal.SIGCONT)
    assert isinstance(error, ClusterError)
    assert "does not answer any more" in str(error)


def test_forward_asks_the_scheduler_for_nothing_but_its_values(client, monkeypatch):
    with fg.Graph():
        x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 2.0])
        y = fg.Dot(w, x)
    engine = fg.Engine(client)
    feeds = {x: np.ones((4, 2))}
    asked = []
    monkeypatch.setattr(distributed, "LIST_SECONDS", 100.0)
    known = distributed.DistributedExecutor._known
    monkeypatch.setattr(distributed.DistributedExecutor, "_known", lambda self: asked.append(1) or known(self))
    engine.forward(y, feeds)
    engine.gradient(y, feeds)
    engine.jacobian(y, x, feeds)
    engine.per_sample_gradients(y, feeds).norms()
    assert not asked


@pytest.mark.parametrize("when", ["before", "while it runs"])
def test_a_gang_ends_where_the_scheduler_is_stopped(processes, monkeypatch, when):
    client, scheduler = processes
    monkeypatch.setattr(distributed, "ANSWER_SECONDS", 3.0)
    assert fg.gang(client, lambda group, k: k, [1]) == [1]
    stop = partial(scheduler.send_signal, signal.SIGSTOP)
    if when == "before":
        stop()
        with pytest.raises(ClusterError, match="does not answer any more") as caught:
            fg.gang(client, lambda group, k: k, [1])
        error = caught.value
    else:
        error = raised_by(client, lambda: fg.gang(client, lambda group, seconds: time.sleep(seconds), [300]), stop)
    scheduler.send_signal(signal.SIGCONT)
    assert isinstance(error, ClusterError), error
    assert "does not answer any more" in str(error)


def test_a_scheduler_that_is_stopped_when_it_is_called_is_given_up(processes):
    client, scheduler = processes
    address = client.scheduler.address
    scheduler.send_signal(signal.SIGSTOP)
    with pytest.raises(ClusterError, match=r"no dask scheduler answers at tcp://\S+ within 1 s"):
        distributed.connect(address, timeout=1.0)
    scheduler.send_signal(signal.SIGCONT)
    assert distributed.connect(address).workers()


def test_a_cluster_in_the_event_loop_that_waits_for_it_is_given_up():
    async def main():
        settings = {"processes": False, "dashboard_address": None, "asynchronous": True}
        async with LocalCluster(n_workers=1, protocol="tcp", **settings) as cluster:
            with pytest.raises(ClusterError, match=r"no dask scheduler answers at tcp://\S+ within 1 s"):
                distributed.connect(cluster.scheduler_address, timeout=1.0)

    asyncio.run(main())


def test_who_has_no_certificates_is_told():
    pytest.importorskip("cryptography")
    security = Security.temporary()
    settings = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "security": security}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, **settings) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        with pytest.raises(ClusterError, match=r"give a Client that has its certificates"):
            fg.Engine(cluster.scheduler_address)
        net = Net()
        trainer = net.trainer(client, grain="collective")
        trainer.fit(net.feeds, epochs=1)
        assert fg.gang(client, lambda group, k: k, [1]) == [1]

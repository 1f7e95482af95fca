"""Gangs and steps that workers share where something is unlike what one hopes: slow links, strange workers, clients and tasks."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from conftest import local_cluster
from distributed import Client, LocalCluster, get_client, get_worker, worker_client
from faults import Net, wait_for

import flowgrad as fg
from flowgrad.scheduler.collective import forming, mailbox, member
from flowgrad.scheduler.collective.mailbox import Mailbox

pytestmark = pytest.mark.distributed

TESTS = Path(__file__).parents[1]
HERE = [str(TESTS.parent), str(TESTS), str(TESTS / "collective")]


def total(group, a):
    return float(group.all_reduce(a).sum())


def fingerprint(where, grain="collective", epochs=2, op=None, callbacks=()):
    net = Net(op)
    trainer = net.trainer(where, grain=grain, callbacks=callbacks)
    history = trainer.fit(net.feeds, epochs=epochs)
    assert history.plan["grain"] == grain
    assert not history.recoveries
    return trainer.fingerprint()


@contextmanager
def two_threads():
    """Two workers of this process."""
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None)
    with cluster, Client(cluster, set_as_default=False) as client:
        yield client


@contextmanager
def by_hand(*environments):
    """A scheduler and workers of one thread, each started as one does on machines of one's own; give a client."""
    with ExitStack() as stack:

        def start(module, *args, **more):
            env = {**os.environ, "PYTHONPATH": os.pathsep.join(HERE), **more}
            command = [
                sys.executable,
                "-m",
                f"distributed.cli.{module}",
                *args,
                "--host",
                "127.0.0.1",
                "--no-dashboard",
            ]
            process = stack.enter_context(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            return process

        scheduler = start("dask_scheduler", "--port", "0")
        line = next(line for line in scheduler.stderr if "Scheduler at:" in line)
        address = line.split()[-1]

        def worker(**more):
            start("dask_worker", address, "--nthreads", "1", "--no-nanny", **more)

        for environment in environments:
            worker(**environment)
        client = stack.enter_context(Client(address, set_as_default=False))
        client.wait_for_workers(len(environments), timeout=60)
        yield client, worker


# -- slow links and late members --


def test_an_array_that_takes_long_is_no_silence(monkeypatch):
    """What waits behind it on the same connection comes late; the sender lives all the same."""
    monkeypatch.setattr(mailbox, "BEAT", 0.1)
    monkeypatch.setattr(mailbox, "SILENCE", 3.0)  # shorter ones a loaded machine may have by itself
    with two_threads() as client:
        for worker in client.cluster.workers.values():
            connect = worker.rpc.connect

            async def narrow(address, connect=connect):
                comm, turn = await connect(address), asyncio.Lock()
                write = comm.write

                async def slowly(message, **settings):
                    async with turn:
                        if message is not None and message.get("data") is not None:
                            await asyncio.sleep(4)
                        return await write(message, **settings)

                comm.write = slowly
                return comm

            monkeypatch.setattr(worker.rpc, "connect", narrow)
        assert fg.gang(client, total, [np.ones(10)] * 2, timeout=60) == [20.0, 20.0]


class Late:
    """Takes a while to arrive on a worker, as large arguments do."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __reduce__(self):
        return late, (self.seconds, os.getpid())


def late(seconds, sender):
    if os.getpid() != sender:  # the scheduler, which is in this process, reads it too
        time.sleep(seconds)
    return Late(seconds)


def test_members_whose_tasks_come_far_apart_meet_in_the_end(client, monkeypatch):
    monkeypatch.setattr(forming, "PATIENCE", 0.4)
    late = [(Late(0.0),), (Late(1.2),)]
    assert fg.gang(client, lambda group, what: total(group, np.ones(1)), late, timeout=30) == [2.0, 2.0]


def test_a_connection_that_is_never_made_is_told(monkeypatch):
    """A packet that is dropped on its way is no error anywhere."""

    async def wait(address):
        await asyncio.sleep(6)
        raise OSError("timed out")

    monkeypatch.setattr(forming, "PATIENCE", 0.2)
    monkeypatch.setattr(member, "CONNECTED", 0.2)
    with two_threads() as client:
        monkeypatch.setattr(next(iter(client.cluster.workers.values())).rpc, "connect", wait)
        with pytest.raises(fg.FlowgradError, match=r"cannot reach each other: .* \(no connection within \S+ s\)"):
            fg.gang(client, total, [np.ones(1)] * 2, timeout=60)


# -- clients --


def test_an_asynchronous_client_is_told_what_to_do():
    async def main():
        cluster = LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, asynchronous=True
        )
        async with cluster, Client(cluster, asynchronous=True, set_as_default=False) as client:
            with pytest.raises(fg.FlowgradError, match=r"asynchronous client .* `await asyncio.to_thread\(fg.gang"):
                fg.gang(client, total, [np.ones(1)] * 2)
            return await asyncio.to_thread(fg.gang, client, total, [np.ones(1)] * 2)

    assert asyncio.run(main()) == [2.0, 2.0]


class Slow(fg.Op):
    """The identity, which takes its time."""

    kinds = (fg.Identity,)

    @staticmethod
    def apply(a):
        time.sleep(0.005)
        return a

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Identity()


KILLED = """
import sys
from distributed import Client
from test_trouble import Slow, fingerprint
with Client(sys.argv[1], set_as_default=False) as client:
    fingerprint(client, epochs=200, op=Slow)
"""


def boxes(client):
    return [client.run(lambda dask_worker: len(Mailbox.of(dask_worker).boxes), workers=[w]) for w in workers_of(client)]


def workers_of(client):
    return list(client.scheduler_info(n_workers=-1)["workers"])


def test_a_client_that_was_killed_in_a_window_keeps_no_worker():
    locks = {"lease-timeout": "2s", "lease-validation-interval": "200ms"}
    env = {f"DASK_DISTRIBUTED__SCHEDULER__LOCKS__{name.upper().replace('-', '_')}": s for name, s in locks.items()}
    env |= {**os.environ, "PYTHONPATH": os.pathsep.join(HERE)}
    expected = fingerprint("sync", grain="round")
    with (
        dask.config.set({f"distributed.scheduler.locks.{name}": s for name, s in locks.items()}),
        local_cluster(2) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        with subprocess.Popen([sys.executable, "-c", KILLED, client.scheduler.address], env=env) as other:
            # Members are within their window, each with a thread: the leases are taken.
            wait_for(lambda: [list(found.values()) for found in boxes(client)] == [[1], [1]], 60)
            assert other.poll() is None
            os.kill(other.pid, signal.SIGKILL)
            other.wait()
            assert fingerprint(client) == expected
        assert fg.gang(client, total, [np.ones(1)] * 2, timeout=60) == [2.0, 2.0]


# -- tasks --


def train_in_a_task(how):
    if how == "worker_client":
        with worker_client() as client:
            return fingerprint(client)
    return fingerprint(get_client())


def add_in_a_task(how):
    return fg.gang(get_client(), total, [np.ones(1)] * 2, timeout=60)


@pytest.mark.parametrize("how", ["worker_client", "get_client"])
def test_training_within_a_task(client, how):
    """The task is on one of the two workers of one thread each that share the steps."""
    assert client.submit(train_in_a_task, how, pure=False).result(120) == fingerprint("sync", grain="round")


def test_a_gang_within_a_task_leaves_it_its_thread(client):
    assert client.submit(add_in_a_task, "", pure=False).result(90) == [2.0, 2.0]
    assert client.submit(add_in_a_task, "", pure=False).result(90) == [2.0, 2.0]


@pytest.mark.slow
def test_training_beside_tasks_that_take_long(client):
    """They keep a worker's only thread, one after the other, before the training and within it."""
    busy = workers_of(client)[0]
    several = [client.submit(time.sleep, 10, workers=[busy], pure=False) for _ in range(2)]
    later = []

    class More(fg.Callback):
        def on_epoch(self, record):
            if not later:
                later.append(client.submit(time.sleep, 10, workers=[busy], pure=False))

    assert fingerprint(client, epochs=4, callbacks=[More()]) == fingerprint("sync", grain="round", epochs=4)
    assert [task.status for task in [*several, *later]] == ["finished"] * 3


# -- workers that were started by hand, without flowgrad too --

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "flowgrad":
            raise ModuleNotFoundError("No module named 'flowgrad'", name="flowgrad")

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture
def without_flowgrad(tmp_path):
    """The environment of a process that cannot import flowgrad."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    return {"PYTHONPATH": str(tmp_path)}


def test_scheduler_and_workers_that_were_started_by_hand():
    with by_hand({}, {}) as (client, _):
        assert fingerprint(client) == fingerprint("sync", grain="round")
        assert fg.gang(client, total, [np.ones(1)] * 2, timeout=60) == [2.0, 2.0]


def test_a_worker_without_flowgrad_is_named(without_flowgrad):
    told = rf"worker tcp://\S+ cannot import flowgrad .*: install flowgrad {fg.__version__} where it runs"
    with by_hand({}, without_flowgrad) as (client, worker):
        with pytest.raises(fg.FlowgradError, match=told) as failed:
            fg.gang(client, total, [np.ones(1)] * 2, timeout=60)
        address = str(failed.value).split()[1]
        with pytest.raises(fg.FlowgradError, match=told):
            fingerprint(client)
        others = [a for a in workers_of(client) if a != address]
        assert fg.gang(client, total, [np.ones(1)], workers=others, timeout=60) == [1.0]
        worker(**without_flowgrad)  # it starts: nothing of flowgrad waits for new workers
        client.wait_for_workers(3, timeout=60)


# -- many --


def resident(client):
    """Resident memory of workers, then of this process, which has the scheduler."""
    gc.collect()
    sizes = client.run(lambda: (gc.collect(), psutil.Process().memory_info().rss)[1])
    return [sizes[w] for w in sorted(sizes)] + [psutil.Process().memory_info().rss]


@pytest.mark.slow
def test_memory_is_level_over_many_gangs():
    def exchange(group, n):
        for _ in range(5):
            group.all_reduce(np.ones(n))
        return get_worker().address

    with local_cluster(2) as cluster, Client(cluster, set_as_default=False) as client:

        def some(times):
            for _ in range(times):
                fg.gang(client, exchange, [250_000] * 2)
            return resident(client)

        # The first ones fill what dask keeps: copies of messages, spans, timings.
        some(50)
        before, after = some(50), some(200)
        tasks = len(cluster.scheduler.tasks)
        semaphores = cluster.scheduler.extensions["semaphores"].leases
    grown = [(b - a) / 2**20 for a, b in zip(before, after)]
    print("MiB more after 200 gangs, workers and scheduler:", [round(g, 1) for g in grown])
    assert max(grown) < 12  # letters alone were 4,000 MiB
    assert tasks == 0
    assert not any(semaphores.values())


# -- what cannot be asked --


def inner(group, part):
    return float(group.all_reduce(np.ones(1))[0])


def outer(group, seconds):
    before, forming.NESTED = forming.NESTED, seconds
    try:
        return fg.gang(get_client(), inner, [1, 2], timeout=60)
    finally:
        forming.NESTED = before


def test_a_gang_within_a_gang_that_holds_all_threads_is_told(client):
    with pytest.raises(fg.FlowgradError, match=r"formed by a member of another one, and .* has no thread beside"):
        fg.gang(client, outer, [1.0, 1.0], timeout=60)
    assert fg.gang(client, inner, [1, 2], timeout=60) == [2.0, 2.0]


def outer_with_worker_client(group, seconds):
    before, forming.NESTED = forming.NESTED, seconds
    try:
        with worker_client() as client:
            return fg.gang(client, inner, [1, 2], timeout=60)
    finally:
        forming.NESTED = before


def test_a_gang_within_a_gang_by_a_worker_client_is_told_too(client):
    with pytest.raises(fg.FlowgradError, match=r"^this gang is formed by a member of another one"):
        fg.gang(client, outer_with_worker_client, [1.0, 1.0], timeout=60)


class Locked(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


def trouble(group, what):
    group.barrier()
    if group.rank and what == "error":
        raise Locked("on purpose\nand more")
    if group.rank and what == "cause":
        raise ValueError("on purpose") from Locked("beneath")
    group.barrier()
    return threading.Lock() if group.rank and what == "value" else None


def test_what_cannot_be_sent_back_is_one_line(client):
    for what, told in {
        "error": r"^rank 1 \(tcp://\S+\) raised Locked, which cannot be pickled: on purpose and more$",
        "value": r"^what rank 1 \(tcp://\S+\) returned cannot be brought here: .*lock'?$",
    }.items():
        with pytest.raises(fg.FlowgradError, match=told):
            fg.gang(client, trouble, [what] * 2, timeout=60)
    with pytest.raises(ValueError, match="on purpose"):
        fg.gang(client, trouble, ["cause"] * 2, timeout=60)


class LockedOp(fg.Op):
    """Fails by what cannot be pickled."""

    @staticmethod
    def apply(a):
        raise Locked("on purpose")


def test_a_failure_of_an_op_that_cannot_be_pickled_names_its_node(client):
    with fg.Graph():
        x = fg.Variable(2, trainable=False)
        y = LockedOp(x, name="strange")
    with pytest.raises(fg.FlowgradError, match=r"strange.*on purpose"):
        fg.Engine(client).forward(y, {x: np.ones((3, 2))})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"arguments": [1, threading.Lock()]},
            r"^the arguments of rank 1 of a gang cannot be sent to a worker: .*lock",
        ),
        ({"function": threading.Lock().locked}, r"^the function of a gang cannot be sent to a worker: .*lock"),
        ({"arguments": 5}, "arguments are a sequence, an entry for each member, not 5"),
        ({"client": None}, r"formed by a distributed\.Client, not by None"),
        ({"function": 5}, "calls a function on each worker, and 5 is none"),
        ({"timeout": "5s"}, "timeout, in seconds"),
        ({"timeout": 0}, "timeout, in seconds"),
    ],
)
def test_what_cannot_be_a_gang_is_one_line(client, change, told):
    with pytest.raises(fg.FlowgradError, match=told):
        fg.gang(**{"client": client, "function": inner, "arguments": [1, 2], **change})

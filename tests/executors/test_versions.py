"""Schedulers and workers with another flowgrad, or none, are named once, with what mends it."""

import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import ROOT, local_cluster
from distributed import Client, LocalCluster
from faults import wait_for

import flowgrad as fg
from flowgrad.errors import ClusterError
from flowgrad.scheduler.executors import distributed, existing_cluster, versions

pytestmark = pytest.mark.distributed

NONE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "flowgrad":
            raise ModuleNotFoundError("No module named 'flowgrad'", name="flowgrad")

sys.meta_path.insert(0, Blocker())
"""
OLDER = "import flowgrad; flowgrad.__version__ = '0.0.9'"
# A project of that name that has nothing to do with this one.
FOREIGN = "import sys, types; sys.modules['flowgrad'] = types.ModuleType('flowgrad')"
MENDS = rf"run `pip install flowgrad=={fg.__version__}` where it runs, and start it again$"


@pytest.fixture
def by_hand(tmp_path):
    """A function that starts a scheduler and workers, each with a text to run first; gives their address.

    Its `join` starts one worker more.
    """
    started = []

    def start(text, module, *args):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(text)
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *args, "--host", "127.0.0.1", "--no-dashboard"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
            stderr=subprocess.PIPE if module == "dask_scheduler" else subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        return process

    def join(address, text, *args):
        with Client(address, set_as_default=False) as client:
            there = len(client.scheduler_info(n_workers=-1)["workers"])
            process = start(text, "dask_worker", address, "--nthreads", "1", "--no-nanny", *args)
            client.wait_for_workers(there + 1, timeout=60)
        return process

    @contextmanager
    def made(scheduler, *workers):
        try:
            process = start(scheduler, "dask_scheduler", "--port", "0")
            address = next(line for line in process.stderr if "Scheduler at:" in line).split()[-1]
            for text in workers:
                join(address, text)
            yield address
        finally:
            for process in started:
                process.kill()
                process.wait()
                if process.stderr:
                    process.stderr.close()

    made.join = join
    return made


def total(group, a):
    return group.all_reduce(a).sum()


@pytest.mark.parametrize(
    ("scheduler", "workers", "told"),
    [
        (NONE, [""], r"^the scheduler tcp://\S+ cannot import flowgrad .No module named 'flowgrad'., this client has "),
        (OLDER, [""], r"^the scheduler tcp://\S+ has flowgrad 0\.0\.9, this client has flowgrad "),
        ("", [OLDER], r"^worker tcp://\S+ has flowgrad 0\.0\.9, this client has flowgrad "),
        (
            "",
            ["", NONE, OLDER],
            r"^worker tcp://\S+ .and 1 more. (has|cannot import) flowgrad .*, this client has flowgrad ",
        ),
        (
            FOREIGN,
            [""],
            r"^the scheduler tcp://\S+ cannot import flowgrad .*has no attribute '__version__'.*, this client",
        ),
    ],
)
def test_who_has_another_one_is_named(by_hand, scheduler, workers, told):
    with by_hand(scheduler, *workers) as address, Client(address, set_as_default=False) as client:
        calls = [
            lambda: fg.Engine(client),
            lambda: fg.Engine(client),  # until it is mended
            lambda: fg.Engine(address),
            lambda: fg.gang(client, total, [np.ones(1)] * len(workers), timeout=60),
            lambda: existing_cluster(address).__enter__(),
        ]
        for call in calls:
            with pytest.raises(ClusterError, match=told.replace(" .and 1 more.", ".*") + ".*" + MENDS) as caught:
                call()
            assert "\n" not in str(caught.value)
        with pytest.raises(ClusterError, match=told):
            fg.Engine(client)


def test_where_all_agree_the_client_is_mended(by_hand):
    told = rf"^the scheduler tcp://\S+ and all of its workers have flowgrad 0\.0\.9, this client has flowgrad {fg.__version__}: "
    told += rf"run `pip install flowgrad==0\.0\.9` here, or that of {fg.__version__} there and start them again$"
    with by_hand(OLDER, OLDER, OLDER) as address, pytest.raises(ClusterError, match=told):
        fg.Engine(address)


def test_a_client_asks_once(client, monkeypatch):
    asked = []
    monkeypatch.setattr(versions, "_ask", lambda *args, real=versions._ask: (asked.append(1), real(*args))[1])
    with Client(client.scheduler.address, set_as_default=False) as another:
        with fg.Graph():
            x = fg.Variable(2, trainable=False)
            y = fg.Exp(x)
        for _ in range(3):
            engine = fg.Engine(another)
            engine.forward(y, {x: np.zeros((4, 2))})
        assert fg.gang(another, total, [np.ones(1)], timeout=60) == [1.0]
        assert len(asked) == 1
    with Client(client.scheduler.address, set_as_default=False) as another:
        fg.gang(another, total, [np.ones(1)], timeout=60)
        fg.gang(another, total, [np.ones(1)], timeout=60)
        assert len(asked) == 2  # the scheduler alone
        fg.Engine(another)
        fg.Engine(another)
        assert len(asked) == 3


def calls_of(client):
    """Return an engine made now, and calls that need workers."""
    with fg.Graph() as graph:
        x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 2.0])
        y = fg.Dot(w, x)
    feeds, engine = {x: np.ones((8, 2))}, fg.Engine(client, cache_bytes=0)
    trainer = fg.Trainer(fg.Adam(graph, y, batch_size=4), engine)
    gradients = engine.per_sample_gradients(y, feeds)
    return [
        lambda: engine.forward(y, feeds),
        lambda: engine.gradient(y, feeds),
        lambda: engine.jacobian(y, w, feeds),
        lambda: gradients.norms(),
        lambda: trainer.fit(feeds, epochs=1),
        lambda: trainer.evaluate(feeds),
        lambda: fg.Engine(client),
    ]


def test_workers_that_join_later_are_asked_once(by_hand, monkeypatch):
    asked = []
    monkeypatch.setattr(versions, "_ask", lambda c, who, real=versions._ask: (asked.append(who), real(c, who))[1])
    monkeypatch.setattr(distributed, "LIST_SECONDS", 0.0)  # as if each call came some seconds after the one before
    with by_hand("", "") as address, Client(address, set_as_default=False) as client:
        calls = calls_of(client)
        (first,) = client.scheduler_info(n_workers=-1)["workers"]
        assert asked == [{"", first}]
        by_hand.join(address, "")
        for call in calls:
            call()
        (second,) = set(client.scheduler_info(n_workers=-1)["workers"]) - {first}
        assert asked == [{"", first}, {second}]
        by_hand.join(address, OLDER)
        for call in calls:
            with pytest.raises(ClusterError, match=rf"^worker tcp://\S+ has flowgrad 0\.0\.9, this client .*{MENDS}"):
                call()


def test_a_worker_that_comes_back_as_another_one_is_asked_again(by_hand, monkeypatch):
    monkeypatch.setattr(distributed, "LIST_SECONDS", 0.0)
    with by_hand("", "") as address, Client(address, set_as_default=False) as client:
        place = ("--worker-port", str(free_port()))
        process = by_hand.join(address, "", *place)
        forward, *_ = calls_of(client)
        forward()
        process.kill()
        process.wait()
        wait_for(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 1)
        forward()
        by_hand.join(address, OLDER, *place)
        with pytest.raises(
            ClusterError, match=rf"^worker tcp://\S+:{place[1]} has flowgrad 0\.0\.9, this client .*{MENDS}"
        ):
            forward()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_cluster_in_this_process_is_not_asked(monkeypatch):
    monkeypatch.setattr(versions, "_ask", None)
    with (
        LocalCluster(1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as c,
    ):
        fg.Engine(c)
        assert fg.gang(c, total, [np.ones(1)], timeout=60) == [1.0]


def test_who_does_not_answer_holds_nobody_up(client, monkeypatch):
    """A worker that is busy for long; or a scheduler that runs nothing for others."""

    async def never(*args):
        raise OSError

    monkeypatch.setattr(versions, "ANSWER", 0.5)
    for broken in ("broadcast", "run_function"):
        with local_cluster(1) as cluster, Client(cluster, set_as_default=False) as c:
            cluster.scheduler.handlers[broken] = never
            assert re.match("<Engine on distributed", repr(fg.Engine(c)))


UNASKED = """
import sys, numpy as np, flowgrad as fg
from distributed import Client
from flowgrad.scheduler.executors import versions
from elsewhere import Twice
versions.ANSWER = 1e-9
with fg.Graph() as graph:
    x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 2.0])
    y = fg.Sum(Twice(w * x))
feeds = {x: np.ones((8, 2))}
client = Client(sys.argv[1], set_as_default=False)
engine = fg.Engine(client, grain="round")
trainer = fg.Trainer(fg.Adam(graph, y, batch_size=4), engine)
shared = fg.Trainer(fg.Adam(graph, y, batch_size=4), fg.Engine(client, grain="collective"))
calls = [
    lambda: engine.forward(y, feeds),
    lambda: engine.jacobian(y, x, feeds),
    lambda: fg.gang(client, Twice.total, [np.ones(1)] * 2, timeout=60),
    lambda: engine.per_sample_gradients(y, feeds).norms(),
    lambda: trainer.fit(feeds, epochs=1),
    lambda: shared.fit(feeds, epochs=1),
]
for call in calls[:int(sys.argv[2])]:
    try:
        print(call())
    except Exception as error:
        print(type(error).__name__, error)
"""
ELSEWHERE = """
import numpy as np, flowgrad as fg
class Twice(fg.Op):
    @staticmethod
    def apply(a):
        return 2 * a
    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(np.full_like(a, 2.0))
    @staticmethod
    def total(group, a):
        return group.all_reduce(a).sum()
"""


@pytest.mark.parametrize(("lacking", "first", "calls"), [("flowgrad", NONE, 6), ("elsewhere", "", 4)])
def test_a_scheduler_that_cannot_read_graphs(by_hand, tmp_path_factory, lacking, first, calls):
    """It did not answer in time, or a module of somebody's own is what it lacks: told in one line by every call."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "elsewhere.py").write_text(ELSEWHERE)
    finds = f"import sys; sys.path.append({str(folder)!r})"
    with by_hand(first, finds, finds) as address:
        done = subprocess.run(
            [sys.executable, "-c", UNASKED, address, str(calls)],
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        )
    assert not done.returncode, done.stderr
    told = (
        f"ClusterError the scheduler {address} cannot read the graph that it is sent (No module named '{lacking}'): it needs "
        f"flowgrad {fg.__version__} and the modules of your ops as workers do; run "
        f"`pip install flowgrad=={fg.__version__}` where it runs"
    )
    lines = done.stdout.splitlines()
    assert len(lines) == calls, done.stdout
    assert all(line.startswith(told) for line in lines), done.stdout

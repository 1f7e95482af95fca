"""Schedulers and workers with another flowgrad, or none, are named once, with what mends it."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import ROOT, local_cluster
from distributed import Client, LocalCluster

import flowgrad as fg
from flowgrad.errors import ClusterError
from flowgrad.scheduler.executors import existing_cluster, versions

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
    """A function that starts a scheduler and workers, each with a text to run first; gives their address."""

    @contextmanager
    def made(scheduler, *workers):
        started, address = [], ""
        try:
            for k, text in enumerate((scheduler, *workers)):
                folder = tmp_path / str(len(list(tmp_path.iterdir())))
                folder.mkdir()
                (folder / "sitecustomize.py").write_text(text)
                command = [
                    sys.executable,
                    "-m",
                    "distributed.cli.dask_worker" if k else "distributed.cli.dask_scheduler",
                ]
                command += [address, "--nthreads", "1", "--no-nanny"] if k else ["--port", "0"]
                process = subprocess.Popen(
                    [*command, "--host", "127.0.0.1", "--no-dashboard"],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
                    stderr=subprocess.PIPE if not k else subprocess.DEVNULL,
                    text=True,
                )
                started.append(process)
                if not k:
                    address = next(line for line in process.stderr if "Scheduler at:" in line).split()[-1]
            with Client(address, set_as_default=False) as client:
                client.wait_for_workers(len(workers), timeout=60)
            yield address
        finally:
            for process in started:
                process.kill()
                process.wait()
                if process.stderr:
                    process.stderr.close()

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

"""Schedulers and workers with another flowgrad, or none, are named once, with what mends it."""

import os
import re
import signal
import socket
import subprocess
import sys
import warnings
from contextlib import contextmanager

import dask.array as da
import faults
import numpy as np
import pytest
from conftest import ROOT, local_cluster
from distributed import Client, LocalCluster
from faults import wait_for

import flowgrad as fg
from flowgrad.errors import ClusterError
from flowgrad.scheduler.executors import distributed, existing_cluster, versions
from flowgrad.scheduler.telling import page_address

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
MENDS = rf"install flowgrad {fg.__version__} where it runs, and start it again$"


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
        (NONE, [NONE], r"^worker tcp://\S+ cannot import flowgrad .No module named 'flowgrad'., this client has "),
        ("", [OLDER], r"^worker tcp://\S+ has flowgrad 0\.0\.9, this client has flowgrad "),
        (
            "",
            ["", NONE, OLDER],
            r"^worker tcp://\S+ .and 1 more. (has|cannot import) flowgrad .*, this client has flowgrad ",
        ),
        (NONE, [FOREIGN], r"^worker tcp://\S+ cannot import flowgrad .*has no attribute '__version__'.*, this client"),
    ],
)
@pytest.mark.filterwarnings("ignore:no live page")
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
    told += rf"install flowgrad 0\.0\.9 here, or {fg.__version__} there and start them again$"
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


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        (NONE, r"cannot import flowgrad .No module named 'flowgrad'."),
        (OLDER, r"has flowgrad 0\.0\.9"),
        (FOREIGN, r"cannot import flowgrad .*has no attribute '__version__'.*"),
    ],
)
def test_work_goes_on_with_a_scheduler_that_has_another_one(by_hand, scheduler, told):
    """It is said once for each client, and nothing else is said of a page."""
    with by_hand(scheduler, "", "") as address, Client(address, set_as_default=False) as client:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fg.Engine(client)
            assert page_address(client) is None
            for call in calls_of(client):
                call()
            assert fg.gang(client, lambda group, a: group.all_reduce(a)[0], [np.ones(1)] * 2, timeout=60) == [2.0] * 2
        told = rf"^no live page: the scheduler tcp://\S+ {told}, this client has flowgrad .*{MENDS[:-1]}; work goes on$"
        said = [str(warning.message) for warning in caught]
        assert len(said) == 1, said
        assert re.match(told, said[0])
        with pytest.warns(UserWarning, match=told), existing_cluster(address):
            pass


def test_a_scheduler_without_flowgrad_changes_no_bit(by_hand):
    with by_hand(NONE, "", "") as address, Client(address, set_as_default=False) as client:
        with pytest.warns(UserWarning, match="^no live page: "):
            fg.Engine(client)
        for grain in ("node", "sample", "shard", "collective", "round"):
            setting = {"epochs": 1, "validation": True, "shards": None if grain == "sample" else 4}
            expected = faults.train("sync", grain="shard" if grain == "collective" else grain, **setting)
            found = faults.train(client, grain=grain, **setting)
            assert found[:2] == expected[:2]
        net = faults.Net()
        blocks = da.from_array(net.feeds[net.x], chunks=(100, 20))
        feeds = {net.x: blocks * np.float32(2), net.label: net.feeds[net.label]}
        w = net.graph.nodes[2]
        small = {"memory_budget": 1 << 16}
        with client.as_current():
            for call in (
                lambda e: e.forward(net.loss, feeds),
                lambda e: e.jacobian(net.loss, w, net.feeds, compute=False).result(),
                lambda e: e.jacobian(net.loss, w, net.feeds, **small).compute(),
                lambda e: e.per_sample_gradients(net.loss, feeds).gram(),
                lambda e: e.lower(net.loss, net.feeds).compute(),
                lambda e: e.lower(net.loss, net.feeds, grain="node").persist().compute(),
            ):
                there, here = (call(fg.Engine(e, grain="shard", shards=2)) for e in (client, "sync"))
                assert there.tobytes() == here.tobytes()


def test_a_worker_is_killed_beside_a_scheduler_without_flowgrad(by_hand, tmp_path_factory):
    trap = faults.Trap(tmp_path_factory.mktemp("trap"))
    expected = faults.train("sync", grain="shard", op=trap.op)[:2]
    finds = f"import sys; sys.path.append({os.path.dirname(faults.__file__)!r})"
    with by_hand(NONE, finds, finds) as address, Client(address, set_as_default=False) as client:
        (victim, *_) = client.run(os.getpid).values()
        at = faults.At(8, lambda: trap.set(signal.SIGKILL, [victim]))
        with pytest.warns(UserWarning, match="^no live page: "):
            *found, history = faults.train(client, grain="shard", op=trap.op, callbacks=[at])
    assert trap.sprung
    assert history.recoveries
    assert (*found,) == expected


UNASKED = """
import sys, dask.array as da, numpy as np, flowgrad as fg
from distributed import Client
from flowgrad.scheduler.executors import versions
from elsewhere import Twice
versions.ANSWER = 1e-9
with fg.Graph() as graph:
    x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 2.0])
    y = fg.Sum(Twice(w * x))
feeds = {x: np.ones((8, 2))}
blocks = {x: da.from_array(np.ones((8, 2)), chunks=(4, 2)).map_blocks(Twice.apply)}
def trained(client, grain):
    trainer = fg.Trainer(fg.GradientDescent(graph, y, 1e-9, batch_size=4), fg.Engine(client, grain=grain))
    return len(trainer.fit(feeds, epochs=1).steps.losses)
calls = [
    lambda client: fg.Engine(client).forward(y, feeds).sum(),
    lambda client: fg.Engine(client).forward(y, blocks).sum(),
    lambda client: fg.Engine(client).jacobian(y, x, feeds).sum(),
    lambda client: sum(fg.gang(client, Twice.total, [np.ones(1)] * 2, timeout=60)),
    lambda client: fg.Engine(client).per_sample_gradients(y, feeds).gram()[0, 0],
    lambda client: trained(client, "shard"),
    lambda client: trained(client, "collective"),
]
for call in calls:
    with Client(sys.argv[1], set_as_default=False) as client:
        print(call(client))
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


@pytest.mark.parametrize("first", [NONE, ""], ids=["flowgrad", "elsewhere"])
def test_a_scheduler_that_cannot_read_graphs(by_hand, tmp_path_factory, first):
    """It did not answer in time, or a module of somebody's own is what it lacks: what it could not read is sent again."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "elsewhere.py").write_text(ELSEWHERE)
    finds = f"import sys; sys.path.append({str(folder)!r})"
    with by_hand(first, finds, finds) as address:
        done = subprocess.run(
            [sys.executable, "-c", UNASKED, address],
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        )
    assert not done.returncode, done.stderr
    assert done.stdout.split() == ["48.0", "96.0", "48.0", "4.0", "8.0", "2", "2"]

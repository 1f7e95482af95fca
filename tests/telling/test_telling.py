"""Trainings that tell of themselves to a scheduler: right with several clients and failures, and no bit changed."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
import warnings

import faults
import pytest
from conftest import local_cluster
from distributed import Client, LocalCluster

import flowgrad as fg
from flowgrad.scheduler.dashboard.graph import took_of
from flowgrad.scheduler.dashboard.plugin import Dashboard
from flowgrad.scheduler.telling import link, measure, page_address, tell, untold

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def shown():
    """A cluster of two workers with a dashboard."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        yield cluster


@pytest.fixture
def client(shown):
    with Client(shown, set_as_default=False) as client:
        faults.wait_for_two(client)
        yield client


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Tell at once, so that short trainings are told, and measure as often as can be."""
    monkeypatch.setattr(tell, "EVERY", 0.0)
    monkeypatch.setattr(measure, "SHARE", 1e9)
    monkeypatch.setattr(measure, "NORMS_SECONDS", 0.0)
    monkeypatch.setattr(measure, "VALUES_SECONDS", 0.0)
    monkeypatch.setattr(measure.Budget.__init__, "__defaults__", (0.0,))


def plugin_of(cluster):
    return cluster.scheduler.plugins[Dashboard.name]


def look(cluster):
    """Let it seem as if somebody had the page open."""
    plugin_of(cluster).looked = time.time() + 1e6


def latest(cluster):
    return next(reversed(plugin_of(cluster).board.runs.values()))


@pytest.mark.parametrize("grain", ["round", "shard", "collective", pytest.param("node", marks=pytest.mark.slow)])
def test_all_is_told_and_no_bit_changes(shown, client, grain):
    with untold():
        expected = faults.train(client, grain=grain, validation=True)[0]
    assert page_address(client).endswith("/flowgrad")
    look(shown)
    fingerprint, steps, history = faults.train(client, grain=grain, validation=True)
    assert fingerprint == expected
    run = latest(shown)
    faults.wait_for(lambda: run.status == "done", 20)
    assert (run.step, run.grain) == (len(steps), grain)
    assert sum(b[3] for b in run.losses.buckets.values()) == len(steps)
    assert [r["epoch"] for r in run.epochs] == [r["epoch"] for r in history.epochs]
    assert run.epochs[-1]["validation_loss"] == history.epochs[-1]["validation_loss"]
    assert run.about["plan"] == history.plan
    assert sorted(seat["name"] for seat in run.seats) == ["0", "1"]
    assert run.first_loss == steps[0][1]
    assert (run.about["process"], run.about["host"]) == (os.getpid(), socket.gethostname())
    assert run.about["graph"].startswith(f"{len(run.nodes)} nodes, ")
    assert run.norms.rows
    assert run.values
    assert run.key.startswith({"round": "round", "shard": "gradient", "collective": "collective", "node": ""}[grain])
    assert bool(took_of(run.nodes, run.tasks)) == (grain == "node")


def test_members_of_a_gang_tell_how_long_they_exchanged(shown, client, monkeypatch):
    monkeypatch.setattr("flowgrad.scheduler.dashboard.state.BIN", 0.0)
    faults.train(client, grain="collective", epochs=6)
    run = latest(shown)
    faults.wait_for(lambda: run.status == "done", 20)
    assert sum(row[2] for row in run.times.rows) > 0


def test_a_client_that_is_closed_at_once_has_told_its_end(shown):
    for _ in range(3):
        with Client(shown.scheduler_address, set_as_default=False) as client:
            steps = faults.train(client, grain="round")[1]
        run = latest(shown)
        assert (run.status, run.step) == ("done", len(steps))


def test_two_clients_on_one_scheduler(shown, client):
    with Client(shown.scheduler_address, set_as_default=False) as other:
        first, second = faults.train(client, grain="shard"), faults.train(other, grain="round")
        runs = list(plugin_of(shown).board.runs.values())[-2:]
        faults.wait_for(lambda: all(run.status == "done" for run in runs), 20)
        assert [run.client for run in runs] == [client.id, other.id]
        assert [run.grain for run in runs] == ["shard", "round"]
        assert [run.step for run in runs] == [len(first[1]), len(second[1])]
        assert runs[0].key.startswith("gradient")
        assert runs[1].key.startswith("round")


def test_a_worker_is_killed_while_somebody_looks(shown, client):
    expected = faults.train("sync", grain="shard")[0]
    page_address(client)
    look(shown)
    history = None
    while history is None or not history.recoveries:  # where nothing was under way, nothing is lost
        faults.wait_for_two(client)
        kill = faults.At(8, lambda: faults.kill(list(faults.pids(client).values())[:1]))
        fingerprint, steps, history = faults.train(client, grain="shard", callbacks=[kill])
        assert fingerprint == expected
    run = latest(shown)
    faults.wait_for(lambda: run.status == "done", 20)
    assert run.step == len(steps)
    assert [r["cause"] for r in run.recoveries] == [r["cause"] for r in history.recoveries]
    assert any(name.startswith(("0 · tcp://", "1 · tcp://")) for r in run.recoveries for name in r["workers"])


def test_a_training_that_breaks_off_says_why(shown, client):
    def stop():
        raise RuntimeError("enough of it")

    page_address(client)
    with pytest.raises(RuntimeError):
        faults.train(client, grain="round", callbacks=[faults.At(20, stop)])
    run = latest(shown)
    faults.wait_for(lambda: run.status == "stopped", 20)
    assert run.cause == "RuntimeError: enough of it"


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/home/me/train.py", "--token", "secret"], "train.py"),
        (["/usr/bin/flowgrad", "train", "mnist", "--epochs", "3"], "flowgrad train mnist"),
        (["/lib/flowgrad/__main__.py", "train", "digits"], "flowgrad train digits"),
        (["/usr/bin/dask", "flowgrad", "train", "mnist"], "flowgrad train mnist"),
        (["/lib/pytest/__main__.py", "tests"], "pytest"),
        (["/usr/bin/torchrun"], "torchrun"),
        (["/lib/ipykernel_launcher.py", "-f", "kernel.json"], "notebook"),
        (["-c"], "python"),
        ([""], "python"),
    ],
)
def test_runs_are_called_by_their_script(argv, name):
    assert tell.script_of(argv) == name


def test_a_client_that_leaves_is_noticed(shown):
    with Client(shown.scheduler_address, set_as_default=False) as client:
        page_address(client)
        teller = plugin_of(shown)
        teller.tell(run="left", client=client.id, messages=[("begin", {"steps": 10, "plan": {}})])
    faults.wait_for(lambda: latest(shown).status == "gone", 20)


def test_measurements_are_no_trainings(shown, client):
    faults.train(client, grain="auto", epochs=1)
    before = latest(shown).number
    engine = fg.Engine(client)
    engine.executor.measured.clear()
    with fg.Graph() as graph:
        x = fg.Variable(1, trainable=False)
        y = fg.Variable(1, [2.0]) * x
    fg.Trainer(fg.Adam(graph, y * y, batch_size=2), engine).explain({x: [1.0, 2.0, 3.0, 4.0]})
    assert latest(shown).number == before


def test_what_goes_wrong_here_does_not_reach_the_training(shown, client, monkeypatch):
    expected = faults.train("sync", grain="round")[0]
    page_address(client)
    look(shown)

    def fails(*args):
        raise ValueError("no numbers today")

    monkeypatch.setattr(measure.Measures, "due", fails)
    with pytest.warns(UserWarning, match="stands still: no numbers today; the training goes on") as told:
        fingerprint = faults.train(client, grain="round")[0]
    assert fingerprint == expected
    assert len(told) == 1


def test_a_scheduler_without_flowgrad_is_told_in_one_line(shown, client, monkeypatch):
    def missing(*args):
        raise ModuleNotFoundError("No module named 'flowgrad'")

    monkeypatch.setattr(link, "dumps", missing)
    expected = faults.train("sync", grain="round")[0]
    with pytest.warns(
        UserWarning, match=r"no live page: the scheduler tcp://\S+ cannot import flowgrad .* goes on"
    ) as told:
        found = [faults.train(client, grain="round")[0] for _ in range(2)]
    assert found == [expected] * 2
    assert len(told) == 1
    assert page_address(client) is None


def test_a_scheduler_without_a_dashboard_is_no_matter():
    with local_cluster(1) as cluster, Client(cluster, set_as_default=False) as client:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            faults.train(client, grain="round")
        assert page_address(client) is None


@pytest.mark.parametrize("prefix", ["", "/behind"])
def test_a_scheduler_of_another_process_shows_the_page_from_its_start(prefix):
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0)), two.bind(("127.0.0.1", 0))
        port, web = one.getsockname()[1], two.getsockname()[1]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dashboard-address", f"127.0.0.1:{web}", "--preload", "flowgrad.scheduler.dashboard"]
    command += ["--dashboard-prefix", prefix] if prefix else []
    scheduler = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def get(path):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{web}{prefix}/{path}", timeout=5) as answer:
                    return answer.read().decode()
            except OSError:
                return ""

        faults.wait_for(lambda: "flowgrad" in get("flowgrad"), 60)
        assert 'href="flowgrad"' in get("status")
        with Client(f"tcp://127.0.0.1:{port}", set_as_default=False) as client:
            assert page_address(client) == f"http://127.0.0.1:{web}{prefix}/flowgrad"
        assert get("status").count('href="flowgrad"') == 1
    finally:
        scheduler.terminate()
        scheduler.wait(30)

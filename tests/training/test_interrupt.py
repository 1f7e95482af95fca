"""Training is interrupted: a checkpoint is written, a cluster of others is left as it was, and the run can go on."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import local_cluster
from distributed import Client
from faults import At, Net, wait_for

import flowgrad as fg
from flowgrad.errors import ClusterError
from flowgrad.scheduler.training.checkpoint import read_checkpoint

TESTS = Path(__file__).parents[1]
EPOCHS = 6

# A shell starts what runs in the background with SIGINT ignored, and children inherit that.
SCRIPT = """
import signal
import sys
from distributed import Client
from faults import Net

class Tell:
    def on_steps(self, info):
        print(info["step"], flush=True)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    net = Net()
    where = Client(sys.argv[1], set_as_default=False) if sys.argv[1] != "sync" else "sync"
    net.trainer(where, callbacks=[Tell()]).fit(net.feeds, epochs=1000, checkpoint=sys.argv[2])
"""


def interrupted(error, where, folder, step, grain="shard"):
    def stop():
        raise error

    net = Net()
    with pytest.raises(error):
        net.trainer(where, grain, callbacks=[At(step, stop)]).fit(net.feeds, epochs=EPOCHS, checkpoint=folder)


@pytest.fixture(scope="module")
def expected():
    net = Net()
    trainer = net.trainer("sync")
    return trainer.fit(net.feeds, epochs=EPOCHS).steps, trainer.fingerprint()


def resumed(where, folder):
    net = Net()
    trainer = net.trainer(where)
    history = trainer.fit(net.feeds, epochs=EPOCHS, checkpoint=folder, resume=True)
    return history.steps, trainer.fingerprint()


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (KeyboardInterrupt, 1),
        (KeyboardInterrupt, 15),
        (KeyboardInterrupt, 40),
        (SystemExit, 15),
        pytest.param(SystemExit, 1, marks=pytest.mark.slow),
        pytest.param(SystemExit, 40, marks=pytest.mark.slow),
    ],
)
def test_what_was_interrupted_goes_on_to_the_same_bits(executor, tmp_path, expected, error, step):
    interrupted(error, executor, tmp_path, step)
    assert read_checkpoint(tmp_path) is not None
    assert resumed(executor, tmp_path) == expected


def test_in_the_middle_of_an_epoch(tmp_path, expected, monkeypatch):
    """The position within the epoch is in the checkpoint, and the losses of its first steps."""
    from flowgrad.scheduler.training import estimate as prepare

    original = prepare.make_plan
    monkeypatch.setattr(prepare, "make_plan", lambda *args: prepare.replace(original(*args), steps_per_window=4))
    interrupted(KeyboardInterrupt, "sync", tmp_path, 22)
    found = read_checkpoint(tmp_path)
    assert found.about["epoch"] == 1
    assert 0 < found.about["position"] < 15
    assert len(found.losses) == 15 + found.about["position"]
    assert resumed("sync", tmp_path) == expected


def start(where, folder):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, where, str(folder)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(3):
        assert process.stdout.readline(), process.stderr.read()
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_signals(tmp_path, number, code):
    process = start("sync", tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    found = read_checkpoint(tmp_path)
    assert found.state["t"][0] == len(found.losses) > 0


@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cluster_of_others_is_left_without_our_keys(client, tmp_path, number):
    def kept(dask_scheduler):
        return sorted(map(str, dask_scheduler.tasks))

    gc.collect()  # an exception of an earlier test may hold keys
    before = set(client.run_on_scheduler(kept))
    process = start(client.scheduler.address, tmp_path)
    assert set(client.run_on_scheduler(kept)) - before
    process.send_signal(number)
    process.communicate(timeout=120)
    wait_for(lambda: set(client.run_on_scheduler(kept)) <= before)
    assert len(client.nthreads()) == 2
    assert read_checkpoint(tmp_path) is not None


@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_a_client_that_is_killed(client, tmp_path, expected, number):
    """Its keys go with its connection; the next run goes on from the last epoch."""
    process = start(client.scheduler.address, tmp_path)
    while not list(tmp_path.glob("step-*")):
        assert process.stdout.readline()
    process.send_signal(number)
    process.communicate(timeout=120)
    net = Net()
    trainer = net.trainer(client)
    done = len(read_checkpoint(tmp_path).about["history"]["epochs"])
    trainer.fit(net.feeds, epochs=done + 1, checkpoint=tmp_path, resume=True)
    whole = Net()
    other = whole.trainer("sync")
    other.fit(whole.feeds, epochs=done + 1)
    assert trainer.fingerprint() == other.fingerprint()


@pytest.mark.slow
@pytest.mark.distributed
def test_the_scheduler_goes(tmp_path, expected):
    """The run ends with what to do, and goes on from its checkpoint on another cluster."""
    with local_cluster(1) as cluster, Client(cluster, set_as_default=False, timeout=2) as client:

        def close():
            time.sleep(0.1)
            client.sync(cluster.scheduler.close)

        net = Net()
        trainer = net.trainer(client, callbacks=[At(31, close)])
        with pytest.raises(ClusterError, match="resume=True"):
            trainer.fit(net.feeds, epochs=EPOCHS, checkpoint=tmp_path)
    assert resumed("sync", tmp_path) == expected


class Destroyed:
    """Is interrupted in its destructor, where Python ignores what is raised."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)


@pytest.fixture
def handlers():
    """The handlers that Python begins with, wherever these tests run."""
    begins = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in begins.items()}
    yield begins
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_an_interrupt_in_a_destructor_is_not_lost(tmp_path, handlers, number, error):
    net, seen = Net(), []

    class Ends(fg.Callback):
        def on_epoch(self, record):
            seen.append(record["epoch"])
            Destroyed(number)

    trainer = net.trainer("sync", callbacks=[Ends()])
    with pytest.raises(error):
        trainer.fit(net.feeds, epochs=5, checkpoint=tmp_path)
    assert seen == [1]
    assert read_checkpoint(tmp_path).about["epoch"] == 1
    assert {n: signal.getsignal(n) for n in handlers} == handlers

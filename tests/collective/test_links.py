"""Gangs and shared steps on a network of their own, whose links are slow, or cut in the middle of a window."""

import json
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
import pytest
from distributed import Client, get_worker

import flowgrad as fg

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WORKERS = ("one", "two")
# Entries of the gang's array, whose bytes take longer than a member may be silent at a megabit per second.
LARGE, MEGABIT = 350_000, 1e6


class Cut(fg.Op):
    """The identity; where `command` is set, the first worker runs it in the middle of a window."""

    kinds = (fg.Identity,)
    calls, command = 0, ()

    @staticmethod
    def apply(a):
        Cut.calls += 1
        if Cut.calls == 15 and Cut.command:
            subprocess.run(Cut.command, check=True)
        return a

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Identity()


def arm(command):
    Cut.calls, Cut.command = 0, command


def train(where, hidden, samples=480):
    rng = np.random.default_rng(1)
    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(100, trainable=False), fg.Variable(5, trainable=False)
        w = fg.Variable(100 * hidden, rng.normal(0, 0.1, 100 * hidden))
        h = Cut(fg.Tanh(fg.MatVec(w, x)))
        loss = fg.CrossEntropyWithSoftMax(fg.MatVec(fg.Variable(5 * hidden, rng.normal(0, 0.1, 5 * hidden)), h), label)
    features = rng.normal(size=(samples, 100)).astype(np.float32)
    grain = "round" if where == "sync" else "collective"
    engine = fg.Engine(where, np.float32, grain=grain, shards=4, kernel="numpy")
    trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=48), engine, seed=5)
    history = trainer.fit({x: features, label: features[:, :5].argmax(axis=1)}, epochs=2)
    return trainer.fingerprint(), history


def add(group):
    a = np.random.default_rng(group.rank).normal(size=LARGE).astype(np.float32)
    return float(group.all_reduce(a).sum()), get_worker().address


def main(what, address, *command):
    """Run in a namespace of its own, with a client."""
    with Client(address, set_as_default=False, timeout=60) as client:
        client.wait_for_workers(2, timeout=60)
        began = time.monotonic()
        if what == "slow":
            sums = fg.gang(client, add, [()] * 2)
            fingerprint, history = train(client, 500, 240)
            print(json.dumps({"sums": [s for s, _ in sums], "fingerprint": fingerprint, "again": history.recoveries}))
            return
        first = min(client.scheduler_info(n_workers=-1)["workers"])
        client.run(arm, list(command), workers=[first])
        try:
            fingerprint, history = train(client, 12)
            told = {"fingerprint": fingerprint, "again": history.recoveries}
        except fg.FlowgradError as error:
            told = {"error": str(error)}
        print(json.dumps({**told, "seconds": time.monotonic() - began}))


def run(net, *args):
    """Run `main` beside a cluster; return what it tells."""
    with ExitStack() as stack:
        address = net.cluster(stack, "scheduler", WORKERS)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        client = net.start(stack, "scheduler", "test_links", args[0], address, *args[1:], **pipes)
        out, errors = client.communicate(timeout=280)
    assert client.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


def test_a_megabit_between_workers(network):
    with network(["scheduler", *WORKERS], one=MEGABIT, two=MEGABIT) as net:
        found = run(net, "slow")
    arrays = [np.random.default_rng(rank).normal(size=LARGE).astype(np.float32) for rank in range(2)]
    assert found["sums"] == [float((arrays[0] + arrays[1]).sum())] * 2
    assert found["fingerprint"] == train("sync", 500, 240)[0]
    assert not found["again"]  # nobody was taken for dead


def test_a_workers_link_is_cut(network):
    with network(["scheduler", *WORKERS]) as net:
        found = run(net, "cut", *net.cut("one"))
    assert found["again"]
    assert found["fingerprint"] == train("sync", 12)[0]
    assert found["seconds"] < 120


def test_two_workers_that_lose_each_other_are_told(network):
    """Both are there for the scheduler, but no packet comes from one to the other any more."""
    with network(["scheduler", *WORKERS]) as net:
        found = run(net, "cut", *net.part("one", "two"))
    assert "workers of a gang cannot reach each other" in found["error"]
    assert found["seconds"] < 120


if __name__ == "__main__":
    from test_links import main  # workers know this file by its name

    main(*sys.argv[1:])

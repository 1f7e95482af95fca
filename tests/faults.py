"""Training that is disturbed: a small net, its fingerprint, and ways to hurt a cluster."""

import os
import random
import signal
import threading
import time
from contextlib import suppress

import numpy as np

import flowgrad as fg

SAMPLES, BATCH = 480, 32


class Net:
    """20 inputs, 12 hidden units, 5 classes; data that it can learn."""

    def __init__(self, op=None):
        rng = np.random.default_rng(1)
        with fg.Graph(seed=0) as self.graph:
            self.x = fg.Variable(20, trainable=False, name="x")
            self.label = fg.Variable(5, trainable=False, name="label")
            hidden = fg.Add(fg.MatVec(fg.Variable(240, rng.normal(0, 0.3, 240)), self.x), fg.Variable(12, True))
            hidden = fg.Tanh(hidden if op is None else op(hidden))
            logits = fg.MatVec(fg.Variable(60, rng.normal(0, 0.3, 60)), hidden)
            self.loss = fg.CrossEntropyWithSoftMax(logits, self.label)
        samples = rng.normal(size=(SAMPLES, 20)).astype(np.float32)
        self.feeds = {self.x: samples, self.label: samples[:, :5].argmax(axis=1)}

    def trainer(self, where, grain="shard", shards=4, callbacks=(), **settings):
        engine = fg.Engine(where, grain=grain, shards=shards, kernel="numpy", **settings)
        return fg.Trainer(fg.Adam(self.graph, self.loss, batch_size=BATCH), engine, seed=5, callbacks=callbacks)


def train(where, epochs=4, callbacks=(), validation=False, op=None, **settings):
    """Train; return fingerprint, losses of all steps, and the history."""
    net = Net(op)
    trainer = net.trainer(where, callbacks=callbacks, **settings)
    history = trainer.fit(net.feeds, epochs=epochs, validation=net.feeds if validation else None)
    return trainer.fingerprint(), history.steps, history


class At:
    """A callback that does something to the cluster, once, when a step is reached; meanwhile training goes on."""

    def __init__(self, step, action):
        self.step, self.action, self.done = step, action, False

    def on_steps(self, info):
        if info["step"] >= self.step and not self.done:
            self.done = True
            self.action()


def pids(client):
    """Return the process of every worker."""
    found = {}
    for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
        found[address] = worker.get("pid") or client.run(os.getpid, workers=[address])[address]
    return found


def kill(processes):
    """Kill -9 some workers; nannies bring them back."""
    for pid in processes:
        os.kill(pid, signal.SIGKILL)


def pause(client, seconds):
    """Stop a worker for some seconds, as a machine that swaps does; return at once."""
    pid = next(iter(pids(client).values()))
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(seconds, os.kill, (pid, signal.SIGCONT)).start()


class Killer(threading.Thread):
    """Kills a random worker at random moments until it is stopped or has done its work."""

    def __init__(self, client, kills, seed, longest=1.5):
        super().__init__(daemon=True)
        self.client, self.kills, self.longest = client, kills, longest
        self.random, self.stop, self.killed = random.Random(seed), threading.Event(), 0

    def run(self):
        while self.killed < self.kills and not self.stop.wait(self.random.uniform(0.1, self.longest)):
            there = list(pids(self.client).values())
            if there:
                with suppress(ProcessLookupError):
                    os.kill(self.random.choice(there), signal.SIGKILL)
                    self.killed += 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        self.join()


def wait_for(condition, seconds=30):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


class Slow(fg.Op):
    """Waits for longer than anybody."""

    @staticmethod
    def apply(a):
        time.sleep(300)
        return a

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(1.0)

"""Training that is disturbed: a small net, its fingerprint, and ways to hurt a cluster."""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

import flowgrad as fg
from flowgrad import samples
from flowgrad.scheduler.collective import mailbox

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
    """Return the process of every worker that is there; the nannies know, whatever their workers do."""
    there = client.scheduler_info(n_workers=-1)["workers"]
    nannies = list(client.cluster.workers.values())
    return {nanny.worker_address: nanny.pid for nanny in nannies if nanny.worker_address in there and nanny.pid}


def kill(processes):
    """Kill -9 some workers; nannies bring them back."""
    for pid in processes:
        os.kill(pid, signal.SIGKILL)


def go_on(processes):
    """Let stopped workers go on, those that are still there."""
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def pause(client, seconds):
    """Stop a worker for some seconds, as a machine that swaps does; return at once."""
    pid = next(iter(pids(client).values()))
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(seconds, go_on, ([pid],)).start()


def silence(client, seconds):
    """Let members of gangs on the workers that there are wait for so long for a sign of life."""

    def limit(seconds):
        mailbox.SILENCE = seconds

    client.run(limit, seconds)


class Trap:
    """Strikes workers while they compute a step: a graph has its `op`, and the next one that computes it after `set` is hit.

    So a fault falls into the middle of a step, however fast or slow anything is.
    """

    def __init__(self, folder):
        self.path = folder / "trap"

    def op(self, node):
        return Trapped(node, path=str(self.path))

    def set(self, number, processes, together=False, after=0):
        """Let the first of these processes send itself a signal, and all others before if they are hit `together`.

        A process computes the op so many times `after` this before it is hit.
        """
        about = {"number": int(number), "processes": list(processes), "together": together, "after": after}
        whole = self.path.with_suffix(".whole")
        whole.write_text(json.dumps(about))
        whole.rename(self.path)

    @property
    def sprung(self):
        return self.path.with_suffix(".sprung").exists()


class Trapped(fg.Op):
    """The identity; looks whether there is a trap."""

    kinds = (fg.Identity,)
    passed = Counter()

    @staticmethod
    def shape(a, *, path):
        return a

    @staticmethod
    def apply(a, *, path):
        with suppress(FileNotFoundError):
            about = json.loads(Path(path).read_text())
            if (me := os.getpid()) in about["processes"]:
                Trapped.passed[path] += 1
                if Trapped.passed[path] <= about["after"]:
                    return a
                Path(path).rename(Path(path).with_suffix(".sprung"))  # there for the first one only
                others = [pid for pid in about["processes"] if pid != me] if about["together"] else []
                for pid in (*others, me):
                    with suppress(ProcessLookupError):
                        os.kill(pid, about["number"])
        return a

    @staticmethod
    def jacobian(slot, y, a, *, path):
        return fg.Identity()


class Killer(threading.Thread):
    """A callback that kills a random worker at random moments, while training goes on until it is done.

    That is when so many kills were done, and one of them noticed, for some workers are of no use when they die.
    """

    EPOCHS = 100_000  # that nobody comes to

    def __init__(self, client, kills, seed, longest=1.5):
        super().__init__(daemon=True)
        self.client, self.kills, self.longest = client, kills, longest
        self.random, self.stop, self.killed = random.Random(seed), threading.Event(), 0
        self.begun, self.noticed = threading.Event(), False

    def run(self):
        self.begun.wait()
        while not self.done and not self.stop.wait(self.random.uniform(0.1, self.longest)):
            there = list(pids(self.client).values())
            if there:
                with suppress(ProcessLookupError):
                    os.kill(self.random.choice(there), signal.SIGKILL)
                    self.killed += 1

    @property
    def done(self):
        return self.killed >= self.kills and self.noticed

    def on_steps(self, info):
        self.begun.set()

    def on_recovery(self, record):
        self.noticed = True

    def on_epoch(self, record):
        return fg.STOP if self.done else None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        self.begun.set()
        self.join()


def wait_for(condition, seconds=120):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def wait_for_two(client):
    """Wait until there are two workers that have started: a nanny gives up when its worker dies before that."""

    def there():
        client.cluster.scale(2)  # nannies may have given up
        nannies = [nanny.status.name for nanny in client.cluster.workers.values()]
        return nannies == ["running"] * 2 and len(client.scheduler_info(n_workers=-1)["workers"]) == 2

    wait_for(there)


class Slow(fg.Op):
    """Waits for longer than anybody."""

    @staticmethod
    def apply(a):
        time.sleep(300)
        return a

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(1.0)


samples.known.add(Slow)  # which nobody has the time to try

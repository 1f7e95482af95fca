"""flowgrad as its users run it: the `Trainer` on threads, many steps per task; rates are those of its own history."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import flowgrad as fg
from benchmarks.setting import BETA_1, BETA_2, LAYERS, RATE, Array, Task

Dense = Callable[[fg.Node, Array, Array], tuple[fg.Node, list[fg.Variable]]]


def neurons(x: fg.Node, w: Array, b: Array) -> tuple[fg.Node, list[fg.Variable]]:
    """Write a layer neuron by neuron; return its variables too, row by row, then the biases."""
    rows = [fg.Variable(x.dim, column) for column in w.T]
    biases = [fg.Variable(1, [value]) for value in b]
    return fg.Vectorize(*(fg.Add(fg.Dot(row, x), bias) for row, bias in zip(rows, biases))), [*rows, *biases]


def matrix(x: fg.Node, w: Array, b: Array) -> tuple[fg.Node, list[fg.Variable]]:
    """Write the same layer as one `MatVec`."""
    weights, bias = fg.Variable(w.size, w.T.ravel()), fg.Variable(b.size, b)
    return fg.Add(fg.MatVec(weights, x), bias), [weights, bias]


class Own:
    """A flowgrad trainer on the task.

    Parameters
    ----------
    task : Task
    dense : callable
        How a layer is written: `neurons` or `matrix`.
    threads : int
        1: everything in one thread; 0: flowgrad's own choice.
    """

    def __init__(self, task: Task, dense: Dense, threads: int = 0):
        w1, b1, w2, b2 = task.weights
        with fg.Graph(seed=0) as graph:
            self.x = fg.Variable(LAYERS[0], trainable=False, name="x")
            self.label = fg.Variable(LAYERS[-1], trainable=False, name="label")
            hidden, first = dense(self.x, w1, b1)
            logits, second = dense(fg.ReLU(hidden), w2, b2)
            loss = fg.CrossEntropyWithSoftMax(logits, self.label)
        self.variables = [*first, *second]
        optimizer = fg.Adam(graph, loss, RATE, BETA_1, BETA_2, batch_size=task.batch)
        engine = fg.Engine("sync" if threads == 1 else "threads", dtype=np.float32, grain="round")
        self.cpu: list[float] = []
        self.trainer = fg.Trainer(optimizer, engine, shuffle=True, seed=0, callbacks=[self])
        self.feeds: dict[Any, Array] = {self.x: task.x, self.label: task.y}

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Read the processor's time at the end of an epoch."""
        self.cpu.append(time.process_time())

    def turn(self) -> dict[str, list[float]]:
        """Train two epochs more; return samples per second, by wall clock of each, by processor time of the second."""
        self.cpu.clear()
        history = self.trainer.fit(self.feeds, epochs=2)
        samples = len(self.feeds[self.x])
        return {
            "wall": [record["samples_per_second"] for record in history.epochs],
            "cpu": [samples / (self.cpu[1] - self.cpu[0])],
        }

    def digest(self) -> str:
        """Return a hash of all weights, in an order that does not depend on how the layers are written."""
        flat = np.concatenate([v.value for v in self.variables]).astype(np.float32)
        return hashlib.sha256(flat.tobytes()).hexdigest()[:16]


OWN: dict[str, tuple[str, Dense]] = {
    "flowgrad": ("flowgrad, neuron by neuron", neurons),
    "flowgrad-matvec": ("flowgrad, two MatVec nodes", matrix),
    "flowgrad-numpy": ("flowgrad without numba", neurons),
}

"""What is worth looking at in a training's numbers: norms by layer of one step, and of one sample by the interpreter.

Both are computed by the client, from the state that it has between windows, and change nothing; the time that they take is bounded.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from flowgrad.graph import Node, Variable, ancestors
from flowgrad.optim import State
from flowgrad.typing import Array

from ..dashboard import LAYERS, Budget
from ..feeds import Chunked
from ..machine import one_thread
from ..steps import Step, shard_step, update

# Of the time of `fit`, what both may take; seconds between two of the first kind, and of the second.
SHARE, NORMS_SECONDS, VALUES_SECONDS = 0.004, 1.0, 3.0
# Nodes of a graph whose values are looked at.
NODES = 3000


class Norms:
    """Norms of the gradient, and how much an update changes weights, by layer: variables that follow each other and are alike."""

    def __init__(self, step: Step, variables: Sequence[Variable], batch: int):
        self.batch, self.random = batch, np.random.default_rng(0)
        layers: dict[tuple[str, int], list[Variable]] = {}
        for v in variables:
            if v.trainable and v.index in step.program.layout:
                layers.setdefault((re.sub(r"\d+$", "", v.name), v.dim), []).append(v)
        found = list(layers.values())[:LAYERS]
        self.layers = [f"{vs[0].name} \N{MULTIPLICATION SIGN} {len(vs)}" if vs[1:] else vs[0].name for vs in found]
        self.places = [_place([step.program.layout[v.index][1:] for v in vs]) for vs in found]

    def of(self, step: Step, state: State, const: Array | None, feeds: list[Array]) -> dict[str, Any]:
        """Return norms by layer of one step from a state, on rows that are drawn here."""
        samples = max(map(len, feeds), default=1)
        rows = self.random.integers(0, samples, min(self.batch, samples))
        gradient = shard_step(step, state, const, feeds, rows, len(rows))
        after = update(step, state, gradient)["w"]
        w, g = state["w"], gradient[0]
        gradients = [float(np.linalg.norm(g[p])) for p in self.places]
        sizes = [(float(np.linalg.norm(after[p] - w[p])), float(np.linalg.norm(w[p]))) for p in self.places]
        return {"layers": self.layers, "gradient": gradients, "ratio": [a / b if b else math.nan for a, b in sizes]}


def _place(spans: Sequence[tuple[int, int]]) -> Any:
    """Return what picks spans of a vector: a slice where they lie end to end."""
    entries = np.concatenate([np.arange(*span) for span in spans])
    first, stop = int(entries.min()), int(entries.max()) + 1
    return slice(first, stop) if len(entries) == stop - first else entries


class Values:
    """Norms of the values and cotangents of one sample, and the time that each node took, by the interpreter on a copy."""

    def __init__(self, target: Node, variables: Sequence[Variable]):
        graph = deepcopy(target.graph)
        self.target: Node = graph.nodes[target.index]
        self.nodes = sorted(ancestors(self.target), key=lambda n: n.index)
        self.variables: list[Any] = [graph.nodes[v.index] for v in variables]

    def of(self, layout: dict[int, Any], state: State, fed: dict[int, Array]) -> dict[int, list[float]]:
        """Return by index of a node the norm of its value and of its cotangent, and microseconds."""
        for v in self.variables:
            if v.index in layout:
                v._assign(np.array(state["w"][None, slice(*layout[v.index][1:])], np.float64))
        for index, row in fed.items():
            node: Any = self.target.graph.nodes[index]
            node._assign(np.asarray(row, np.float64).reshape(1, -1))
        found = {}
        for node in self.nodes:
            start = time.perf_counter()
            value = node.forward()
            seconds = time.perf_counter() - start
            found[node.index] = [float(np.linalg.norm(value)), 0.0, 1e6 * seconds if node.parents else 0.0]
        for node in reversed(self.nodes):
            found[node.index][1] = float(np.linalg.norm(node.backward(self.target)))
        return found


class Measures:
    """Both, as often as they may be."""

    def __init__(self, job: Any, batch: int):
        self.job, self.batch = job, batch
        self.step_budget, self.sample_budget = (
            Budget(SHARE / 2, NORMS_SECONDS),
            Budget(SHARE / 2, VALUES_SECONDS),
        )
        self._norms: Norms | None = None
        self._values: Values | None = None
        self._reads: Any = None
        feeds = job.feeds.arrays.values()
        # Of private trainings nothing is shown that says more of samples than their loss; chunks are not here.
        self.possible = job.step.private is None and not any(isinstance(feed, Chunked) for feed in feeds)

    def due(self, state: State, elapsed: float) -> list[tuple[str, dict[str, Any]]]:
        """Return messages: what is due, and may be done after so many seconds."""
        if not self.possible:
            return []
        found = []
        for kind, budget, measure in (
            ("norms", self.step_budget, self._of_step),
            ("values", self.sample_budget, self._of_sample),
        ):
            if budget.allows(elapsed):
                start = time.perf_counter()
                with one_thread():
                    told = measure(state)
                budget.spent(elapsed, time.perf_counter() - start)
                if told is not None:
                    found.append((kind, told))
        return found

    def _of_step(self, state: State) -> dict[str, Any] | None:
        job = self.job
        self._norms = self._norms or Norms(job.step, job.variables, self.batch)
        self._reads = self._reads or job.reads()
        return self._norms.of(job.step, state, *self._reads)

    def _of_sample(self, state: State) -> dict[str, Any] | None:
        job = self.job
        target = job.settings.optimizer.target
        if len(target.graph.nodes) > NODES:
            return None
        self._values = self._values or Values(target, job.variables)
        k = int(np.random.default_rng(int(state["t"][0])).integers(job.feeds.samples))
        fed = {
            v.index: feed[k] for v, feed in job.feeds.arrays.items() if v.index >= 0
        }  # weights of samples are no node
        return {"nodes": self._values.of(job.step.program.layout, state, fed)}

"""Measuring what tasks cost on an executor, by short trainings of nets that compute next to nothing."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import flowgrad as fg

from ..engine.engine import Engine
from ..executors import Executor, LocalExecutor, Worker
from ..tasks.records import Task
from ..training.history import History
from .calibrate import burst
from .measure import run_now, steadily, task_links
from .rates import Links

# Runs a training: optimizer, engine, feeds, epochs -> history.
Fit = Callable[[Any, Engine, dict[Any, Any], int], History]

# Epochs of which the shortest counts: where tasks are far apart, they differ less and take longer.
NEAR, FAR = 3, 2
# Steps of an epoch at grain shard, at grain round.
STEPS, ROWS = 4, 100


def links_of(executor: Executor, fit: Fit) -> Links:
    """Return what tasks of trainings cost on an executor, measured once for the workers that there are, in less than a second.

    Parameters
    ----------
    executor : Executor
    fit : callable
        How to train: so all is measured that a training does, whatever that is.
    """
    known = ("links", *executor.workers())
    if known not in executor.measured:
        executor.measured[known] = _measure(executor, fit)
    found: Links = executor.measured[known]
    return found


def _measure(executor: Executor, fit: Fit) -> Links:
    base = task_links(executor)

    def epoch(grain: str, shards: int, steps: int, where: Executor = executor) -> float:
        return _epoch(Engine(where, "float32", grain, shards, "numpy"), fit, shards, steps)

    looks = [_look(executor, base.slots)]
    window = epoch("round", 2, 1)
    rows = epoch("round", 2, ROWS) - epoch("round", 2, ROWS, where=LocalExecutor(threads=False))
    looks.append(_look(executor, base.slots))
    step = (epoch("shard", 2, STEPS) - window) / STEPS
    looks.append(_look(executor, base.slots))
    alone, together = map(min, zip(*looks))
    return replace(
        base,
        window=max(window, 0.0),
        rows=max(rows - window, 0.0) / (2 * ROWS),
        step=max(step, 0.0),
        crowd=max(1.0, together / alone),
    )


def _epoch(engine: Engine, fit: Fit, shards: int, steps: int) -> float:
    """Return the seconds of the shortest epoch of a net of two parameters."""
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(2, trainable=False, name="x")
        loss = fg.Dot(fg.Variable(2, np.zeros(2), name="w"), x)
    samples = np.zeros((steps * shards, 2), np.float32)
    epochs = NEAR if isinstance(engine.executor, LocalExecutor) else FAR
    history = fit(fg.Adam(graph, loss, batch_size=shards), engine, {x: samples}, epochs)
    return min(len(samples) / record["samples_per_second"] for record in history.epochs)


def _look(executor: Executor, slots: int) -> tuple[float, float]:
    """Return the seconds of a matrix product, alone and with one in each slot; no matter how many, where there is one slot.

    Other work on the machine comes and goes within half a second, so that one look in three is wrong by a third: the shortest of
    some that are apart counts.
    """
    if slots == 1:
        return 1.0, 1.0

    def measured(workers: Sequence[Worker]) -> tuple[float, float]:
        def seconds(tasks: int) -> float:
            keys = [f"burst-{uuid.uuid4().hex}" for _ in range(tasks)]
            return max(run_now(executor, {key: Task(burst, ()) for key in keys}, keys, workers))

        return seconds(1), seconds(slots)

    return steadily(executor, measured)

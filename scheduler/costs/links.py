"""Measuring what tasks cost on an executor, by short trainings of nets that compute next to nothing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

import flowgrad as fg
from flowgrad.errors import ClusterError
from flowgrad.optim import Optimizer

from .. import collective
from ..executors import Executor, LocalExecutor, Lost, Worker
from ..programs import pick
from ..tasks import Data, Key, Record, Ref, Task
from .times import Links
from .work import burst, letters, new_state

# Trains: optimizer, executor, grain, shards, feeds, epochs -> seconds of the shortest epoch.
Fit = Callable[[Optimizer, Executor, str, int, dict[Any, Any], int], float]
# Epochs of which the shortest counts: where tasks are far apart, they differ less and take longer.
NEAR, FAR = 3, 2
# Steps of an epoch at grain shard, at grain round.
STEPS, ROWS = 4, 100
# How often something is measured when workers go away meanwhile.
ATTEMPTS = 5
# Hops of a chain that is timed; one takes 0.1 ms on threads and 5 ms between processes.
REMOTE_HOPS, LOCAL_HOPS = 6, 50
# Tasks side by side, of which one more is timed; bytes that workers give each other.
WIDE, MOVED = 40, 1 << 22
# Bytes of letters between workers; seconds that they may take: a worker may be busy for as long as it likes.
LETTERS, PATIENCE = (1 << 12, 1 << 20), 3.0

T = TypeVar("T")


def links_of(executor: Executor, fit: Fit) -> Links:
    """Return what tasks of trainings cost on an executor, measured once for the workers that there are, in less than a second.

    Parameters
    ----------
    fit : callable
        How to train: so all is measured that a training does, whatever that is.
    """
    return _known(executor, ("links", *executor.workers()), lambda: _measure(executor, fit))


def _known(executor: Executor, key: tuple[Any, ...], measure: Callable[[], Links]) -> Links:
    if key not in executor.measured:
        executor.measured[key] = measure()
    return executor.measured[key]


def _measure(executor: Executor, fit: Fit) -> Links:
    base = task_links(executor)

    def epoch(grain: str, steps: int, where: Executor = executor) -> float:
        """Return the seconds of the shortest epoch of a net of two parameters."""
        with fg.Graph(seed=0) as graph:
            x = fg.Variable(2, trainable=False, name="x")
            loss = fg.Dot(fg.Variable(2, np.zeros(2), name="w"), x)
        samples = np.zeros((2 * steps, 2), np.float32)
        epochs = NEAR if isinstance(where, LocalExecutor) else FAR
        return fit(fg.Adam(graph, loss, batch_size=2), where, grain, 2, {x: samples}, epochs)

    looks = [_look(executor, base.slots)]
    window = epoch("round", 1)
    rows = epoch("round", ROWS) - epoch("round", ROWS, where=LocalExecutor(threads=False))
    looks.append(_look(executor, base.slots))
    step = (epoch("shard", STEPS) - window) / STEPS
    looks.append(_look(executor, base.slots))
    alone, together = map(min, zip(*looks))
    return replace(
        base,
        window=max(window, 0.0),
        rows=max(rows - window, 0.0) / (2 * ROWS),
        step=max(step, 0.0),
        crowd=max(1.0, together / alone),
    )


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


def run_now(
    executor: Executor, records: dict[Key, Record], keys: Sequence[Key], workers: Sequence[Worker]
) -> list[Any]:
    """Run tasks on some workers and return their values; raises `Lost` if one of the workers went away."""
    return executor.run(records, keys, [worker.address for worker in workers])


def _seconds(executor: Executor, records: dict[Key, Record], keys: Sequence[Key], workers: Sequence[Worker]) -> float:
    start = time.perf_counter()
    run_now(executor, records, keys, workers)
    return time.perf_counter() - start


def _slope(seconds: Callable[[int], float], small: int, large: int) -> float:
    """Return the seconds of one more, between two sizes; nothing is free, whatever else the machine did meanwhile."""
    times = [(seconds(small), seconds(large)) for _ in range(2)]
    one, many = (min(each) for each in zip(*times))
    return max(many - one, 0.1 * many) / (large - small)


def steadily(executor: Executor, measure: Callable[[Sequence[Worker]], T]) -> T:
    """Measure on the workers that there are; anew, up to a limit, when one of them went away meanwhile."""
    for _ in range(ATTEMPTS - 1):
        with suppress(Lost):
            return measure(executor.workers())
    return measure(executor.workers())


def task_links(executor: Executor) -> Links:
    """Return what tasks cost and what comes from worker to worker, measured once for the workers that there are.

    Nothing of it is about training.
    """
    return steadily(executor, lambda workers: _known(executor, ("tasks", *workers), lambda: _links(executor, workers)))


def _links(executor: Executor, workers: Sequence[Worker]) -> Links:
    hop, several, key = _hop(executor, workers), len(workers) > 1, f"update-{uuid.uuid4().hex}"
    letter, letter_byte = _letters(executor, workers) if several and executor.remote else (0.0, 0.0)
    return Links(
        letter=letter,
        letter_byte=letter_byte,
        workers=len(workers),
        threads=executor.threads,
        slots=sum(worker.threads for worker in workers),
        hop=hop,
        task=_task(executor, workers, hop),
        move=_move(executor, workers) if several else 0.0,
        update=run_now(executor, {key: Task(new_state, ())}, [key], workers)[0] if several else 0.0,
        machine=executor.machine_threads(workers),
    )


def _letters(executor: Any, workers: Sequence[Worker]) -> tuple[float, float]:
    """Return the seconds of an exchange between two workers, and of each byte more; zeros where they do not come to it."""
    places = [worker.address for worker in workers[:2]]
    try:
        measured = collective.gang(executor.client, letters, [(LETTERS,)] * 2, workers=places, timeout=PATIENCE)
    except ClusterError:
        return 0.0, 0.0
    small, large = map(max, zip(*measured))
    return small, max(large - small, 0.0) / (LETTERS[1] - LETTERS[0])


def _hop(executor: Executor, workers: Sequence[Worker]) -> float:
    """Return the seconds of one dependent hop from task to task: a longer chain takes as long to hand over as a short one."""

    def chain(hops: int) -> float:
        name = uuid.uuid4().hex
        records: dict[Key, Record] = {f"hop-{name}-0": Data([0])}
        for k in range(1, hops + 1):
            records[f"hop-{name}-{k}"] = Task(pick, ([Ref(f"hop-{name}-{k - 1}")], 0))
        return _seconds(executor, records, [f"hop-{name}-{hops}"], workers)

    return _slope(chain, 1, 1 + (REMOTE_HOPS if executor.remote else LOCAL_HOPS))


def _task(executor: Executor, workers: Sequence[Worker], hop: float) -> float:
    """Return the seconds of one task more beside others."""
    name = uuid.uuid4().hex
    wide: dict[Key, Record] = {f"task-{name}-0": Data([0])}
    for k in range(1, WIDE + 1):
        wide[f"task-{name}-{k}"] = Task(pick, ([Ref(f"task-{name}-0")], 0))
    wide[f"task-{name}-all"] = Task(len, ([Ref(f"task-{name}-{k}") for k in range(1, WIDE + 1)],))
    return max(_seconds(executor, wide, [f"task-{name}-all"], workers) - 2 * hop, 0.0) / WIDE


def _move(executor: Executor, workers: Sequence[Worker]) -> float:
    """Return the seconds per byte of what two workers give each other."""

    def swap(size: int) -> float:
        name = uuid.uuid4().hex
        made = [f"make-{name}-{k}" for k in range(2)]
        keys = [f"move-{name}-{k}" for k in range(2)]
        records: dict[Key, Record] = {key: Task(np.ones, (size, np.uint8), k) for k, key in enumerate(made)}
        records |= {key: Task(len, ([Ref(m) for m in made],), k) for k, key in enumerate(keys)}
        return _seconds(executor, records, keys, workers[:2])

    return _slope(swap, 1, 1 + MOVED)

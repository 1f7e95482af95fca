"""Asking an executor: how fast its workers are, what tasks cost there. Each is asked once."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from ..executors import Executor, Lost, Worker
from ..programs.work import pick
from ..tasks.records import Data, Record, Ref, Task
from .calibrate import new_state, rates_here
from .rates import Links, Rates

# Hops of a chain that is timed; one takes 0.1 ms on threads and 5 ms between processes.
REMOTE_HOPS, LOCAL_HOPS = 6, 50
# Tasks side by side, of which one more is timed; bytes that workers give each other.
WIDE, MOVED = 40, 1 << 22
# How often something is measured when workers go away meanwhile.
ATTEMPTS = 5

T = TypeVar("T")


def rates_of(executor: Executor, kernel: str, dtype: str, again: bool = False) -> Rates:
    """Return the rates of a worker of an executor, from its memory or its disk, or measured there."""
    name = f"rates-{kernel}-{dtype}"
    if again or name not in executor.measured:

        def measured(workers: Sequence[Worker]) -> Any:
            key = f"measure-{uuid.uuid4().hex}"
            return run_now(executor, {key: Task(rates_here, (kernel, dtype, again))}, [key], workers)[0]

        executor.measured[name] = Rates.from_dict(steadily(executor, measured))
    found: Rates = executor.measured[name]
    return found


def run_now(
    executor: Executor, records: dict[str, Record], keys: Sequence[str], workers: Sequence[Worker]
) -> list[Any]:
    """Run tasks, wait for their values and let go of them.

    Raises
    ------
    Lost
        If one of the workers went away and the values do not come: dask now and then waits for one that has died for ever.
    """
    addresses = [worker.address for worker in workers]
    handles = executor.submit(records, keys, addresses)
    try:
        return executor.outcome(handles, addresses)
    finally:
        executor.release(handles)


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
    return steadily(executor, lambda workers: _links(executor, workers))


def _links(executor: Executor, workers: Sequence[Worker]) -> Links:
    known = ("tasks", *workers)
    if known not in executor.measured:
        hop = _hop(executor, workers)
        executor.measured[known] = Links(
            workers=len(workers),
            threads=executor.threads,
            slots=sum(worker.threads for worker in workers),
            hop=hop,
            task=_task(executor, workers, hop),
            move=_move(executor, workers) if len(workers) > 1 else 0.0,
            update=_update(executor, workers) if len(workers) > 1 else 0.0,
            machine=executor.machine_threads(workers),
        )
    found: Links = executor.measured[known]
    return found


def _hop(executor: Executor, workers: Sequence[Worker]) -> float:
    """Return the seconds of one dependent hop from task to task: a longer chain takes as long to hand over as a short one."""

    def chain(hops: int) -> float:
        name = uuid.uuid4().hex
        records: dict[str, Record] = {f"hop-{name}-0": Data([0])}
        for k in range(1, hops + 1):
            records[f"hop-{name}-{k}"] = Task(pick, ([Ref(f"hop-{name}-{k - 1}")], 0))
        start = time.perf_counter()
        run_now(executor, records, [f"hop-{name}-{hops}"], workers)
        return time.perf_counter() - start

    hops = REMOTE_HOPS if executor.remote else LOCAL_HOPS
    times = [(chain(1), chain(1 + hops)) for _ in range(2)]
    one, many = (min(each) for each in zip(*times))
    return max(many - one, 0.1 * many) / hops


def _task(executor: Executor, workers: Sequence[Worker], hop: float) -> float:
    """Return the seconds of one task more beside others."""
    name = uuid.uuid4().hex
    wide: dict[str, Record] = {f"task-{name}-0": Data([0])}
    for k in range(1, WIDE + 1):
        wide[f"task-{name}-{k}"] = Task(pick, ([Ref(f"task-{name}-0")], 0))
    wide[f"task-{name}-all"] = Task(len, ([Ref(f"task-{name}-{k}") for k in range(1, WIDE + 1)],))
    start = time.perf_counter()
    run_now(executor, wide, [f"task-{name}-all"], workers)
    return max(time.perf_counter() - start - 2 * hop, 0.0) / WIDE


def _move(executor: Executor, workers: Sequence[Worker]) -> float:
    """Return the seconds per byte of what two workers give each other."""

    def swap(size: int) -> float:
        name = uuid.uuid4().hex
        made = [f"make-{name}-{k}" for k in range(2)]
        keys = [f"move-{name}-{k}" for k in range(2)]
        records: dict[str, Record] = {key: Task(np.ones, (size, np.uint8), k) for k, key in enumerate(made)}
        records |= {key: Task(len, ([Ref(m) for m in made],), k) for k, key in enumerate(keys)}
        start = time.perf_counter()
        run_now(executor, records, keys, workers[:2])
        return time.perf_counter() - start

    times = [(swap(1), swap(MOVED)) for _ in range(2)]
    small, large = (min(each) for each in zip(*times))
    return max(large - small, 0.1 * large) / MOVED  # bytes are never free, whatever else the machine did meanwhile


def _update(executor: Executor, workers: Sequence[Worker]) -> float:
    key = f"update-{uuid.uuid4().hex}"
    found: float = run_now(executor, {key: Task(new_state, ())}, [key], workers)[0]
    return found

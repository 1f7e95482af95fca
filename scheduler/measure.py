"""Asking an executor: how fast its workers are, what tasks cost there. Each is asked once."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from .blocks import pick
from .calibrate import rates_here
from .executors import Executor
from .rates import Links, Rates
from .tasks import Data, Record, Ref, Task

# Tasks side by side, of which one more is timed.
WIDE = 64


def rates_of(executor: Executor, kernel: str, dtype: str, again: bool = False) -> Rates:
    """Return the rates of a worker of an executor, from its memory or its disk, or measured there."""
    name = f"rates-{kernel}-{dtype}"
    if again or name not in executor.measured:
        key = f"measure-{uuid.uuid4().hex}"
        executor.measured[name] = Rates.from_dict(
            run_now(executor, {key: Task(rates_here, (kernel, dtype, again))}, [key])[0]
        )
    found: Rates = executor.measured[name]
    return found


def run_now(executor: Executor, records: dict[str, Record], keys: Sequence[str]) -> list[Any]:
    """Run tasks, wait for their values and let go of them."""
    handles = executor.submit(records, keys)
    try:
        return executor.result(handles)
    finally:
        executor.release(handles)


def hop_and_task(executor: Executor) -> Links:
    """Return what hops and tasks cost, measured once for the workers that there are; nothing about training."""
    workers = executor.workers()
    known = ("tasks", *workers)
    if known not in executor.measured:
        name = uuid.uuid4().hex
        wide: dict[str, Record] = {f"task-{name}-0": Data([0])}
        for k in range(1, WIDE + 1):
            wide[f"task-{name}-{k}"] = Task(pick, ([Ref(f"task-{name}-0")], 0))
        wide[f"task-{name}-all"] = Task(len, ([Ref(f"task-{name}-{k}") for k in range(1, WIDE + 1)],))
        hop = executor.task_seconds()
        start = time.perf_counter()
        run_now(executor, wide, [f"task-{name}-all"])
        task = max(time.perf_counter() - start - 2 * hop, 0.0) / WIDE
        slots = sum(worker.threads for worker in workers)
        executor.measured[known] = Links(
            len(workers), executor.threads, slots, hop, task, machine=executor.machine_threads
        )
    found: Links = executor.measured[known]
    return found

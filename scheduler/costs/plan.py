"""What a training run will do: grain, shards, steps per round; chosen once, printed, kept in history and checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flowgrad.draw import Shown
from flowgrad.errors import GraphError
from flowgrad.inputs import count

from .words import idle

# A round should last about this long: long against the cost of its task, short enough to watch.
ROUND_SECONDS = 0.25
# Rounds from one state that the client has to the next; of a gang twice as many, for it takes a while to meet.
ROUNDS_PER_WINDOW = 8
# Tasks in one submission to the scheduler.
WINDOW_TASKS = 1500
# Steps that workers share have to promise less than this share of the time of rounds: predictions are no surer than that.
SURE = 0.93
# How many times slower another grain may be predicted to be that is tried all the same.
NEAR = 2.0
# Shards of a mini-batch by kernel and operations of one step: more work, more parts that can run side by side. NumPy's calls
# cost more, so a part of its own has to be larger.
SHARDS_FROM = {"numba": ((1e9, 8), (2e8, 4), (2e7, 2)), "numpy": ((1e9, 8), (2e8, 4), (6e7, 2))}
# Samples of a shard of a large step, at most: what lies between its instructions should stay in a processor's cache.
MOST_ROWS = 1024
# Seconds of a step from which on the threads of a round may belong to several workers of one machine: they wait for each other
# at every step, and if something else has a processor meanwhile, for as long as that keeps it: some milliseconds.
LONG_STEP = 4e-3
# Operations in matrix products from which on more BLAS threads are worth waking, where a single task runs.
BLAS_FROM = 1e8


@dataclass(frozen=True)
class Plan(Shown):
    """The plan of a training run.

    Attributes
    ----------
    shards : int
        Parts of every mini-batch; with `kernel` and the seed it fixes the arithmetic.
    kernel : str
        ``"numba"`` or ``"numpy"``.
    steps_per_task : int
        Steps in one task (grain ``"round"``), else 1.
    steps_per_window : int
        Steps from one state that the client has to the next: what is submitted ahead, and at most done again.
    reason : str
        Why, in words.
    blas_threads : int
        Threads of each matrix product: 1, because another number gives other last digits.
    threads : int
        Threads that share the shards of a round, if there are as many; they change no bit.
    other : str
        Another grain with the same bits, which is tried now and then and runs where it proves faster; empty: none comes near.
    """

    grain: str
    shards: int
    kernel: str
    steps_per_task: int
    steps_per_window: int
    reason: str
    blas_threads: int = 1
    threads: int = 1
    other: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return asdict(self)


def choose_shards(grain: str, shards: int | None, batch_size: int, step_flops: float, kernel: str) -> int:
    """Return into how many shards mini-batches are cut; from the work alone, so that it is the same everywhere."""
    if grain == "sample":
        if shards not in (None, batch_size):
            raise GraphError(
                f"grain sample has one shard per sample: leave shards out, or give the batch size {batch_size}, not {shards}"
            )
        return batch_size
    if shards is None and grain != "node":
        most = SHARDS_FROM[kernel][0][1]
        shards = next((n for least, n in SHARDS_FROM[kernel] if step_flops >= least), 1)
        while shards >= most and batch_size > shards * MOST_ROWS:
            shards *= 2
    return min(shards or 1, batch_size)


def choose_kernel(asked: str, grain: str, unsupported: str) -> tuple[str, str]:
    """Return which kernel runs the steps, and why.

    Parameters
    ----------
    asked : str
        ``"auto"``, ``"numba"`` or ``"numpy"``.
    unsupported : str
        Why it cannot be compiled, or empty.
    """
    if grain == "node":
        return "numpy", "each node is a task of its own"
    if unsupported:
        if asked == "numba":
            raise GraphError(f"no compiled kernel: {unsupported}; use kernel='numpy'")
        return "numpy", unsupported
    return ("numpy", "asked for") if asked == "numpy" else ("numba", "compiled")


def tasks_per_step(grain: str, shards: int, nodes: int = 0, lanes: int | None = None) -> int:
    """Return how many tasks a step is at a grain other than ``"round"``.

    Parameters
    ----------
    nodes : int
        Of the graph: at grain ``"node"`` a task goes forward through each and back over each edge, for every shard; at the most.
    lanes : int, optional
        Workers that share a step; as many as shards if not given.
    """
    if grain == "shard":
        parts = min(shards, lanes or shards)
        return parts + 2 if parts > 1 else 1  # the parameters on their way, the update
    gradients = shards * (3 * nodes if grain == "node" else 1)
    return gradients + (shards - 1) + 2  # added up, then the update and the loss


def choose_round_threads(one_worker: int, machine: int, step_seconds: float) -> int:
    """Return how many threads share the shards of a round.

    Parameters
    ----------
    one_worker, machine : int
        Threads of a worker; of all workers on its machine, where nothing else runs on them.
    step_seconds : float
        Of a step by the threads of one worker.
    """
    return max(one_worker, machine) if step_seconds >= LONG_STEP else one_worker


def idle_workers(plan: Plan, workers: int, threads: int) -> str:
    """Return how many workers, of so many threads, a plan leaves idle, why, and what would use them; empty if none.

    Examples
    --------
    >>> idle_workers(Plan("shard", 2, "numpy", 1, 1, "asked for"), 3, 1)
    '1 of 3 workers stands idle: each mini-batch has 2 shards; larger ones, or shards=3, would use them'
    """
    alone = plan.grain == "round"
    busy = -(-plan.threads // threads) if alone else min(plan.shards, workers)
    if plan.grain == "node" or busy >= workers:
        return ""
    who = idle(workers - busy, workers)
    if not alone or plan.reason.startswith("collective"):  # which was asked for, and there are too few shards
        return f"{who}: each mini-batch has {count(plan.shards, 'shard')}; larger ones, or shards={workers}, would use them"
    if plan.other:
        return f"{who} most of the time: sharing steps is tried now and then, and costs about what it saves"
    if plan.reason.startswith("asked"):
        return f"{who}: a round runs on one of them; grain auto or collective lets them share steps"
    return f"{who}: sharing a step among them would take longer than it saves; larger batches or layers may pay"


def steps_per_round(step_seconds: float) -> int:
    """Return how many steps of this length share a task."""
    return max(1, round(ROUND_SECONDS / max(step_seconds, 1e-6)))


def best_grain(costs: Mapping[str, float]) -> str:
    """Return what ``"auto"`` chooses, from the seconds of a step by grain: rounds, unless sharing them is clearly faster.

    Other grains are for those who want to see them.
    """
    return "collective" if costs["collective"] < SURE * costs["round"] else "round"


def choose_grain(asked: str, costs: Mapping[str, float]) -> tuple[str, str]:
    """Return the grain and why.

    Parameters
    ----------
    asked : str
        ``"auto"`` leaves it to this function.
    costs : mapping
        Seconds per step by grain, of ``"round"`` and ``"collective"`` at least; empty where sharing steps cannot pay.
    """
    if asked != "auto":
        return asked, "asked for"
    if not costs:
        return "round", "auto: steps of this size are not worth sharing among workers, so many of them share a task"
    known = {grain: seconds for grain, seconds in costs.items() if seconds < math.inf}
    times = ", ".join(f"{seconds * 1e3:.2f} ms at grain {grain}" for grain, seconds in known.items())
    return best_grain(costs), f"auto: a step takes about {times}"


def worth_trying(grain: str, costs: Mapping[str, float]) -> str:
    """Return the grain that is tried beside the one that was chosen by predictions; empty if it is said to be much slower."""
    other = "round" if grain == "collective" else "collective"
    return other if costs.get(other, math.inf) < NEAR * costs.get(grain, 0.0) else ""


def make_plan(
    grain: tuple[str, str],
    shards: int,
    kernel: tuple[str, str],
    step_seconds: float,
    nodes: int,
    threads: int = 1,
    other: str = "",
) -> Plan:
    """Return the plan of a run, from grain and kernel, each with why, and the work of one optimizer step in one task.

    The graph has so many `nodes`; so many `threads` share the shards of a round; the `other` grain is tried, too.
    """
    reason = f"{grain[1]}; the work of a step takes {step_seconds * 1e3:.2f} ms; kernel {kernel[0]}: {kernel[1]}"
    if grain[0] in ("round", "collective"):
        steps = steps_per_round(step_seconds)
        window = steps * ROUNDS_PER_WINDOW * (1 + (grain[0] == "collective"))
        return Plan(grain[0], shards, kernel[0], steps, window, reason, threads=threads, other=other)
    per_step = tasks_per_step(grain[0], shards, nodes)
    return Plan(grain[0], shards, kernel[0], 1, max(1, WINDOW_TASKS // (per_step + 2)), reason)

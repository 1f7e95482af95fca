"""What a training run will do: grain, shards, steps per round; chosen once, printed, kept in history and checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flowgrad.errors import GraphError

# A round should last about this long: long against the cost of its task, short enough to watch.
ROUND_SECONDS = 0.25
# Rounds from one state that the client has to the next.
ROUNDS_PER_WINDOW = 8
# Tasks in one submission to the scheduler.
WINDOW_TASKS = 1500
# From this many task costs on, one step is worth spreading over tasks.
SPREAD_FROM = 20.0
# Operations of a whole run from which on compiling pays; below, NumPy is done before the compiler.
COMPILE_FROM = 2e10
# Shards of a mini-batch by kernel and operations of one step: more work, more parts that can run side by side. NumPy's calls
# cost more, so a part of its own has to be larger.
SHARDS_FROM = {"numba": ((1e9, 8), (2e8, 4), (4e6, 2)), "numpy": ((1e9, 8), (2e8, 4), (6e7, 2))}
DEFAULT_SHARDS = {"node": 1}


@dataclass(frozen=True)
class Plan:
    """The plan of a training run.

    Attributes
    ----------
    grain : str
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
    """

    grain: str
    shards: int
    kernel: str
    steps_per_task: int
    steps_per_window: int
    reason: str

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
    found = (
        shards or DEFAULT_SHARDS.get(grain) or next((n for least, n in SHARDS_FROM[kernel] if step_flops >= least), 1)
    )
    return min(found, batch_size)


def choose_kernel(asked: str, grain: str, run_flops: float, unsupported: str) -> tuple[str, str]:
    """Return which kernel runs the steps, and why.

    Parameters
    ----------
    asked : str
        ``"auto"``, ``"numba"`` or ``"numpy"``.
    grain : str
    run_flops : float
        Operations of the whole run.
    unsupported : str
        Why it cannot be compiled, or empty.
    """
    if grain == "node":
        return "numpy", "each node is a task of its own"
    if unsupported:
        if asked == "numba":
            raise GraphError(f"no compiled kernel: {unsupported}; use kernel='numpy'")
        return "numpy", unsupported
    if asked == "auto" and run_flops < COMPILE_FROM:
        return "numpy", f"compiling does not pay for {run_flops:.1e} operations"
    return ("numpy", "asked for") if asked == "numpy" else ("numba", "compiled")


def choose_plan(
    grain: str, shards: int, kernel: tuple[str, str], step_seconds: float, task_seconds: float, step_tasks: int
) -> Plan:
    """Choose a plan from measured times.

    Parameters
    ----------
    grain : str
        As asked for; ``"auto"`` leaves it to this function. Both grains that it chooses from give the same bits.
    shards : int
    kernel : (str, str)
        Kernel and why.
    step_seconds : float
        Measured time of one optimizer step in one task, in seconds.
    task_seconds : float
        Measured time of one dependent hop between tasks, in seconds.
    step_tasks : int
        Tasks per shard and step at grain ``"node"``.
    """
    told = f"one step takes {step_seconds * 1e3:.2f} ms, one hop between tasks {task_seconds * 1e3:.2f} ms"
    if grain == "auto":
        spread = shards > 1 and step_seconds > SPREAD_FROM * task_seconds
        grain = "shard" if spread else "round"
        reason = f"auto: {told}; " + ("a step is worth a task per shard" if spread else "so many steps share a task")
    else:
        reason = f"asked for; {told}"
    reason += f"; kernel {kernel[0]}: {kernel[1]}"
    if grain == "round":
        steps = max(1, round(ROUND_SECONDS / max(step_seconds, 1e-6)))
        return Plan(grain, shards, kernel[0], steps, steps * ROUNDS_PER_WINDOW, reason)
    per_step = shards * (step_tasks if grain == "node" else 1) + 2
    return Plan(grain, shards, kernel[0], 1, max(1, WINDOW_TASKS // per_step), reason)

"""What a training run will do: grain, shards, steps per round; chosen once, printed, kept in history and checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flowgrad.errors import GraphError

# A round should last about this long: long against the cost of its task, short enough to watch.
ROUND_SECONDS = 0.25
# Tasks in one submission to the scheduler.
WINDOW_TASKS = 1500
# From this many task costs on, one step is worth spreading over tasks.
SPREAD_FROM = 20.0
DEFAULT_SHARDS = {"node": 1, "sample": 0, "shard": 4, "round": 1}


@dataclass(frozen=True)
class Plan:
    """The plan of a training run.

    Attributes
    ----------
    grain : str
    shards : int
        Parts of every mini-batch; with `grain` and the seed it fixes the arithmetic.
    steps_per_task : int
        Steps in one task (grain ``"round"``), else 1.
    steps_per_window : int
        Steps in one submission.
    reason : str
        Why, in words.
    """

    grain: str
    shards: int
    steps_per_task: int
    steps_per_window: int
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return asdict(self)


def choose_plan(
    grain: str, shards: int | None, batch_size: int, step_seconds: float, task_seconds: float, step_tasks: int
) -> Plan:
    """Choose a plan from measured times.

    Parameters
    ----------
    grain : str
        As asked for; ``"auto"`` leaves it to this function.
    shards : int or None
        As asked for.
    batch_size : int
    step_seconds : float
        Measured time of one optimizer step in one task, in seconds.
    task_seconds : float
        Measured time of one dependent hop between tasks, in seconds.
    step_tasks : int
        Tasks per shard and step at grain ``"node"``.
    """
    told = f"one step takes {step_seconds * 1e3:.2f} ms, one hop between tasks {task_seconds * 1e3:.2f} ms"
    if grain == "auto":
        spread = step_seconds > SPREAD_FROM * task_seconds
        grain = "shard" if spread else "round"
        reason = f"auto: {told}; " + ("a step is worth a task per shard" if spread else "so many steps share a task")
    else:
        reason = f"asked for; {told}"
    if grain == "sample":
        if shards not in (None, batch_size):
            raise GraphError(
                f"grain sample has one shard per sample: leave shards out, or give the batch size {batch_size}, not {shards}"
            )
        count = batch_size
    else:
        count = shards or DEFAULT_SHARDS[grain]
    count = min(count, batch_size)
    if grain == "round":
        steps = max(1, round(ROUND_SECONDS / max(step_seconds, 1e-6)))
        return Plan(grain, count, steps, steps, reason)
    per_step = count * (step_tasks if grain == "node" else 1) + 2
    return Plan(grain, count, 1, max(1, WINDOW_TASKS // per_step), reason)

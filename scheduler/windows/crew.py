"""Who runs a window of steps, and what that takes on a worker."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowgrad.optim import State

from ..costs import Plan
from ..executors import Worker
from ..feeds import ORDER_BYTES, Batches, Lane, Placement


@dataclass
class Crew:
    """Workers and lanes; what runs at one may go on at an equal one.

    Attributes
    ----------
    only : bool
        Whether steps run on these workers or nowhere: there is one to avoid.
    salt : str
        Tells the keys of one attempt from those of another.
    """

    workers: list[Worker]
    lanes: list[Lane]
    only: bool = False
    salt: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)

    @property
    def addresses(self) -> list[str]:
        """Addresses of the workers."""
        return [w.address for w in self.workers]

    @property
    def needed(self) -> list[str]:
        """Addresses of the workers of the lanes, without which a window cannot end."""
        return [self.workers[lane.worker].address for lane in self.lanes]

    @property
    def seats(self) -> list[dict[str, Any]]:
        """What each worker has of a step, as plain values."""
        shards = {lane.worker: (lane.first, lane.stop) for lane in self.lanes}
        return [
            {"address": w.address, "name": w.name, "threads": w.threads, "first": first, "stop": stop}
            for k, w in enumerate(self.workers)
            for first, stop in [shards.get(k, (None, None))]
        ]


def find_crew(placement: Placement, plan: Plan, avoid: Collection[str]) -> Crew:
    """Find the workers that there are, and place what they need.

    Rounds have one lane, with the threads that a long task may use.
    """
    workers = placement.executor.workers(avoid)
    lanes = 1 if plan.grain == "round" else plan.shards
    if len(workers) > lanes:
        workers = _ordered(placement, workers, lanes)
    alone = max(max(w.threads for w in workers), min(plan.threads, placement.executor.machine_threads(workers)))
    return Crew(workers, placement.lanes(workers, plan.shards, plan.grain == "round", alone), bool(avoid))


def _ordered(placement: Placement, workers: Sequence[Worker], lanes: int) -> list[Worker]:
    """Return workers, those first that have what steps read, then those that nobody else uses."""
    there = [w for w in workers if placement.on(w.address)]
    others = [w for w in workers if not placement.on(w.address)]
    return there + (placement.executor.spare_first(others) if len(there) < lanes else others)


def steps_at_once(placement: Placement, crew: Crew, most: int, batches: Batches) -> int:
    """Return how many steps are submitted together, `most` or as many as have their rows in one bucket."""
    if not placement.bucketed(crew.workers):
        return most
    return max(1, min(most, placement.bucket_rows(crew.workers, len(crew.lanes)) // batches.largest))


def note_bytes(
    bounds: dict[str, Any], placement: Placement, crew: Crew, state: State, buckets: int, gradients: int
) -> None:
    """Note what a worker holds: feeds, or so many buckets of them, the state twice, and so many gradients."""
    feeds = placement.samples * (placement.row_bytes + ORDER_BYTES)
    if placement.bucketed(crew.workers):
        feeds = placement.bucket_rows(crew.workers, 1) * placement.row_bytes * buckets
    held = feeds + 2 * sum(v.nbytes for v in state.values()) + gradients * state["w"].nbytes
    bounds["worker_bytes"] = max(bounds["worker_bytes"], held)

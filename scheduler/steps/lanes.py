"""What the tasks of grain ``shard`` run: gradients of a lane's shards, and the update by those of all lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flowgrad.optim import State
from flowgrad.typing import Array

from ..machine import canonical, without_subnormals
from ..programs import Gradient, add_gradients
from ..tasks import SIDE_BY_SIDE, bounds, reduce_some
from .step import Step
from .work import Done, map_of, run_round, shard_step, update, worth_threads

# What a lane has of the tree of gradients, by level and index.
Subtotals = dict[tuple[int, int], Gradient]


@dataclass(frozen=True, slots=True, eq=False)
class LaneInputs:
    """What all tasks of a lane read: one value, for each reference of a task takes time at every step."""

    step: Step
    const: Array | None
    feeds: list[Array]

    def __sizeof__(self) -> int:
        """Return next to nothing: these arrays are values of their own on the worker, and dask would count them twice."""
        return 64


class LaneBatch(NamedTuple):
    """A lane's part of a mini-batch: per shard its rows in the lane's feeds.

    Attributes
    ----------
    first : int
        Index of the first of these shards.
    shards, batch : int
        Shards and samples of the whole mini-batch.
    threads : int
        How many may share the work.
    """

    rows: Sequence[Array]
    first: int
    shards: int
    batch: int
    threads: int = 1


def gradients(lane: LaneInputs, state: State, part: LaneBatch) -> Subtotals:
    """Compute the gradients of a lane's shards; several at a time, where they are worth a thread."""

    def compute(shard: tuple[Array, tuple[int, int]]) -> Gradient:
        rows, (first, _) = shard
        return shard_step(lane.step, state, lane.const, lane.feeds, rows, part.batch, first=first)

    shares: Subtotals = {}
    size = max(SIDE_BY_SIDE, part.threads)
    each = map_of(lane.step.program, [part.rows], part.threads)
    spans = bounds(part.batch, part.shards)[part.first :]
    for k in range(0, len(part.rows), size):  # memory does not grow with the number of shards
        sums = each(compute, zip(part.rows[k : k + size], spans[k : k + size]))
        shares |= {(0, part.first + m): share for m, share in enumerate(sums, k)}
        shares = reduce_some(shares, part.shards, add_gradients)
    return shares


def total_gradient(lanes: Sequence[Subtotals], shards: int) -> Gradient:
    """Add up the gradients of all lanes: always the same tree."""
    share_of = {key: share for shares in lanes for key, share in shares.items()}
    (mean,) = reduce_some(share_of, shards, add_gradients).values()
    return mean


def whole_step(lane: LaneInputs, before: Done, first: bool, shards: Sequence[Array], threads: int) -> Done:
    """Run a step of which one lane has all shards; the losses of earlier steps are kept unless it is the `first` one."""
    steps = [list(shards)]
    if not worth_threads(lane.step.program, steps, threads):
        threads = 1
    state, losses = run_round(lane.step, before, lane.const, lane.feeds, steps, threads)
    return state, losses if first else [*before[1], *losses]


def pick_weights(done: Done, names: Sequence[str]) -> State:
    """Return what gradients are computed from: the rest of the state stays where updates are made."""
    return {name: done[0][name] for name in names}


@without_subnormals
def lane_gradient(lane: LaneInputs, weights: State, part: LaneBatch) -> Subtotals:
    """Compute the gradients of a lane's shards."""
    return gradients(lane, {name: canonical(array) for name, array in weights.items()}, part)


@without_subnormals
def update_lanes(lane: LaneInputs, before: Done, first: bool, parts: list[Subtotals], shards: int) -> Done:
    """Update by the gradients of all lanes; the losses of earlier steps are kept unless it is the `first` one."""
    gradient, loss = total_gradient(parts, shards)
    return update(lane.step, before[0], (gradient, loss)), [loss] if first else [*before[1], loss]

"""What the tasks of grain ``shard`` run: gradients of a lane's shards, and the update that each lane makes for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flowgrad.optim import State
from flowgrad.typing import Array

from ..executors import Lost
from ..machine import canonical, without_subnormals
from ..programs import Gradient, add_gradients
from ..tasks import SIDE_BY_SIDE, reduce_some
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


@dataclass(slots=True, eq=False)
class Carry:
    """What a lane hands on from step to step.

    Attributes
    ----------
    state : dict, or None
        At which `subtotals` were computed; None where it stayed behind.
    subtotals : dict
        The gradients of the lane's shards, added up as far as the tree allows.
    losses : list of float
        Mean losses of the steps that were updated by.
    travels : bool
        Whether the state goes along to another process. Every lane has the same state, so that gradients alone need to.
    """

    state: State | None
    subtotals: Subtotals
    losses: list[float]
    travels: bool = True

    def __sizeof__(self) -> int:
        """Return the bytes of all arrays: dask asks after each task, and would else look through all that is inside."""
        held = [gradient for gradient, _ in self.subtotals.values()] + list((self.state or {}).values())
        return sum(array.nbytes for array in held)

    def __reduce__(self) -> tuple[type[Carry], tuple[State | None, Subtotals, list[float], bool]]:
        """Leave the state behind where it does not travel."""
        return Carry, (self.state if self.travels else None, self.subtotals, self.losses, self.travels)


class StateAway(Lost):
    """The gradients are there, but no lane's state: a task moved to a worker that had no lane, or values went to disk."""


def gradients(lane: LaneInputs, state: State, part: LaneBatch) -> Subtotals:
    """Compute the gradients of a lane's shards; several at a time, where they are worth a thread."""

    def compute(rows: Array) -> Gradient:
        return shard_step(lane.step, state, lane.const, lane.feeds, rows, part.batch)

    shares: Subtotals = {}
    size = max(SIDE_BY_SIDE, part.threads)
    each = map_of(lane.step.program, [part.rows], part.threads)
    for k in range(0, len(part.rows), size):  # memory does not grow with the number of shards
        sums = each(compute, part.rows[k : k + size])
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


@without_subnormals
def first_gradient(lane: LaneInputs, travels: bool, before: Done, part: LaneBatch) -> Carry:
    """Compute the gradients of a lane's shards at the state that a submission begins with."""
    state = {k: canonical(v) for k, v in before[0].items()}
    return Carry(state, gradients(lane, state, part), [], travels)


@without_subnormals
def update_gradient(lane: LaneInputs, travels: bool, carries: Sequence[Carry], shards: int, part: LaneBatch) -> Carry:
    """Update by the gradients of all lanes, then compute those of a lane's own shards; `shards` are those before."""
    state, losses = last_update(lane, carries, shards)
    return Carry(state, gradients(lane, state, part), losses, travels)


@without_subnormals
def last_update(lane: LaneInputs, carries: Sequence[Carry], shards: int) -> Done:
    """Update by the gradients of all lanes; return the state and the mean losses of all steps.

    Raises
    ------
    StateAway
        If none of the carries has its state.
    """
    states = [carry.state for carry in carries if carry.state is not None]
    if not states:
        raise StateAway("the optimizer's state stayed on another worker; from now on it travels with the gradients")
    mean = total_gradient([carry.subtotals for carry in carries], shards)
    return update(lane.step, states[0], mean), [*carries[0].losses, mean[1]]

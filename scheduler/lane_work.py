"""What the tasks of grain ``shard`` run: gradients of a lane's shards, and the update that each lane makes for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flowgrad.jacobian import Array
from flowgrad.optim import Rule

from .blocks import Gradient, State, Step, add_gradients, shard_step, update
from .kernel import canonical
from .scratch import shard_threads
from .tree import SIDE_BY_SIDE, reduce_some

# What a lane has of the tree of gradients, by level and index.
Shares = dict[tuple[int, int], Gradient]


class Part(NamedTuple):
    """A lane's part of a mini-batch: per shard its rows in the lane's feeds.

    Attributes
    ----------
    rows : list of int array
    first : int
        Index of the first of these shards.
    shards, batch : int
        Shards and samples of the whole mini-batch.
    threads : int
        How many may share the work.
    """

    rows: list[Array]
    first: int
    shards: int
    batch: int
    threads: int = 1


class Carry(NamedTuple):
    """What a lane hands on from step to step.

    Attributes
    ----------
    state : dict
        At which `shares` were computed.
    shares : dict
        The gradients of the lane's shards, added up as far as the tree allows.
    losses : list of float
        Mean losses of the steps that were updated by.
    """

    state: State
    shares: Shares
    losses: list[float]


def gradients(step: Step, rule: Rule, state: State, const: Array | None, feeds: list[Array], part: Part) -> Shares:
    """Compute the gradients of a lane's shards; several at a time, where they are worth a thread."""

    def compute(rows: Array) -> Gradient:
        return shard_step(step, rule, state, const, feeds, rows, part.batch)

    shares: Shares = {}
    size = max(SIDE_BY_SIDE, part.threads)
    with shard_threads(step.program, [part.rows], part.threads) as each:
        for k in range(0, len(part.rows), size):  # memory does not grow with the number of shards
            found = each(compute, part.rows[k : k + size])
            shares |= {(0, part.first + m): share for m, share in enumerate(found, k)}
            shares = reduce_some(shares, part.shards, add_gradients)
    return shares


def total(lanes: Sequence[Shares], shards: int) -> Gradient:
    """Add up the gradients of all lanes: always the same tree."""
    found = {key: share for shares in lanes for key, share in shares.items()}
    (mean,) = reduce_some(found, shards, add_gradients).values()
    return mean


def first_gradient(step: Step, rule: Rule, state: State, const: Array | None, feeds: list[Array], part: Part) -> Carry:
    """Compute the gradients of a lane's shards at the state that a submission begins with."""
    state = {k: canonical(v) for k, v in state.items()}
    return Carry(state, gradients(step, rule, state, const, feeds, part), [])


def update_gradient(
    step: Step,
    rule: Rule,
    lane: int,
    carries: Sequence[Carry],
    shards: int,
    const: Array | None,
    feeds: list[Array],
    part: Part,
) -> Carry:
    """Update by the gradients of all lanes, then compute those of a lane's own shards; `shards` are those before."""
    state, losses = _updated(step, rule, lane, carries, shards)
    return Carry(state, gradients(step, rule, state, const, feeds, part), losses)


def last_update(step: Step, rule: Rule, carries: Sequence[Carry], shards: int) -> tuple[State, list[float]]:
    """Update by the gradients of all lanes; return the state and the mean losses of all steps."""
    return _updated(step, rule, 0, carries, shards)


def _updated(step: Step, rule: Rule, lane: int, carries: Sequence[Carry], shards: int) -> tuple[State, list[float]]:
    mean = total([carry.shares for carry in carries], shards)
    return update(step, rule, carries[lane].state, mean), [*carries[lane].losses, mean[1]]

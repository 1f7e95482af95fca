"""What the members of a gang run: a window of steps that all lanes share, gradients and weights exchanged at each.

Gradients are added up in the tree of all shards, whoever has which: the same bits as one lane alone. Every lane updates all
parameters; where there are many of them, each lane adds up and updates a slice, and sends its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flowgrad.optim import State
from flowgrad.typing import Array

from ..collective import Group, slices
from ..kernels import compiled_round
from ..machine import canonical, empty_array, without_subnormals
from ..programs import Gradient
from ..tasks import reduce_some
from .lanes import LaneBatch, LaneInputs, Subtotals, gradients
from .step import Step
from .work import Done, update

# Bytes of a parameter vector from which on each lane updates a slice.
SLICED = 1 << 19
# Entries of a slice are a multiple of so many, as those of a thread are.
CACHE_LINE = 64


@without_subnormals
def shared_steps(
    group: Group,
    lane: LaneInputs,
    before: State,
    steps: Sequence[Sequence[Array]],
    spans: Sequence[tuple[int, int]],
    threads: int,
) -> Done | None:
    """Run steps together with the other lanes; return the state and the losses of all steps, on rank 0 alone.

    Parameters
    ----------
    steps : sequence of sequence of int array
        Per step the rows of each shard, of this lane's in its feeds.
    spans : sequence of (int, int)
        First and last shard of each lane, by rank.
    """
    state = {k: np.array(canonical(v)) for k, v in before.items()}
    step = lane.step
    whole = step.private is not None or step.rule.clip_norm is not None or state["w"].nbytes < SLICED
    losses: list[float] = []
    own = _own_gradients(group, lane, state, spans, threads)
    for shards in steps:
        mine = own(shards)
        if whole:
            mean = _total(_exchanged(group, mine, spans, len(shards), None), len(shards))
            state |= update(step, state, mean)
        else:
            cuts = _cuts(len(state["w"]), group.size)
            mean = _total(_exchanged(group, mine, spans, len(shards), cuts), len(shards))
            _update_slice(group, step, state, mean[0], cuts)
        losses.append(mean[1])
    if not whole:
        _gather_slots(group, state)
    return (state, losses) if group.rank == 0 else None


def _cuts(entries: int, size: int) -> list[tuple[int, int]]:
    """Return the slice of each lane: a loop over numbers ends with single ones, which round otherwise than vectors do."""
    lines = -(-entries // CACHE_LINE)
    return [(min(a * CACHE_LINE, entries), min(b * CACHE_LINE, entries)) for a, b in slices(lines, size)]


def _own_gradients(
    group: Group, lane: LaneInputs, state: State, spans: Sequence[tuple[int, int]], threads: int
) -> Any:
    """Return what computes the gradients of this lane's shards, added up as far as the tree allows, in one of two buffers.

    What was sent in one step is read by the others when the next exchange has ended: so it is written to again in the one after.
    """
    first, stop = spans[group.rank]
    step, turn = lane.step, 0
    if not step.program.compiled or step.private is not None:
        def compute(shards: Sequence[Array]) -> Subtotals:
            batch = sum(map(len, shards))
            part = LaneBatch(shards[first:stop], first, len(shards), batch, threads)
            return gradients(lane, state, part)
        return compute
    run = compiled_round(step.program, step.names, step.rule, state["w"].dtype)
    buffers = [run.gradient_room(stop - first) for _ in range(2)]

    def compute_in_place(shards: Sequence[Array]) -> Subtotals:
        nonlocal turn
        turn = 1 - turn
        batch, rows = sum(map(len, shards)), shards[first:stop]
        losses = run.gradients(state, lane.const, lane.feeds, rows, batch, threads, buffers[turn])
        shares = {(0, first + k): (buffers[turn][k], losses[k]) for k in range(len(rows))}
        return reduce_some(shares, len(shards), _add_in_place)

    return compute_in_place


def _add_in_place(pair: list[Gradient]) -> Gradient:
    (a, loss), (b, more) = pair
    return np.add(a, b, out=a), loss + more


def _add(pair: list[Gradient]) -> Gradient:
    (a, loss), (b, more) = pair
    return np.add(a, b, out=empty_array(a.shape, a.dtype)), loss + more


def _total(nodes: Subtotals, shards: int) -> Gradient:
    (mean,) = reduce_some(nodes, shards, _add).values()
    return mean


def _exchanged(
    group: Group, mine: Subtotals, spans: Sequence[tuple[int, int]], shards: int, cuts: Sequence[tuple[int, int]] | None
) -> Subtotals:
    """Return the nodes of the tree that all lanes have; with `cuts` only this lane's slice of them."""
    arrays = [gradient for gradient, _ in mine.values()]
    losses = np.array([loss for _, loss in mine.values()])
    parts = [
        [*(a if cuts is None else a[slice(*cuts[rank])] for a in arrays), losses] for rank in range(group.size)
    ]
    nodes: Subtotals = {}
    for (first, stop), (*came, each) in zip(spans, group.exchange(("gradients",), parts)):
        nodes |= zip(_nodes(first, stop, shards), zip(came, each.tolist()))
    return nodes


def _nodes(first: int, stop: int, shards: int) -> Iterator[tuple[int, int]]:
    """Return level and index of what a lane has, that added up its shards."""
    return iter(reduce_some({(0, k): None for k in range(first, min(stop, shards))}, shards, lambda group: None))


def _update_slice(group: Group, step: Step, state: State, gradient: Array, cuts: Sequence[tuple[int, int]]) -> None:
    """Update this lane's slice of the state, and bring the others' weights here."""
    lo, hi = cuts[group.rank]
    part = {k: v if k == "t" else v[lo:hi] for k, v in state.items()}
    for k, v in update(step, part, (gradient, 0.0)).items():
        part[k][...] = v
    mine = state["w"][lo:hi]
    came = group.exchange(("weights",), [mine] * group.size)
    for rank, weights in enumerate(came):
        if rank != group.rank:
            state["w"][slice(*cuts[rank])] = weights


def _gather_slots(group: Group, state: State) -> None:
    """Bring the slices of everything but the weights to rank 0."""
    cuts = _cuts(len(state["w"]), group.size)
    for name in sorted(set(state) - {"w", "t"}):
        mine = state[name][slice(*cuts[group.rank])]
        came = group.exchange((f"slot {name}",), [mine if rank == 0 else None for rank in range(group.size)])
        if group.rank == 0:
            for rank, values in enumerate(came):
                state[name][slice(*cuts[rank])] = values

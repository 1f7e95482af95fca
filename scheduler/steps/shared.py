"""What the members of a gang run: a window of steps that all lanes share, gradients and weights exchanged at each.

Gradients are added up in the tree of all shards, whoever has which: the same bits as one lane alone. Every lane updates all
parameters; where there are many of them, each lane adds up and updates a slice, and sends its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle

import numpy as np

from flowgrad.optim import State
from flowgrad.typing import Array

from ..collective import Group, slices
from ..kernels import compiled_round
from ..machine import canonical, empty_array, without_subnormals
from ..programs import Gradient
from ..tasks import reduce_some
from .lanes import LaneBatch, LaneInputs, Subtotals, gradients
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
    cuts = _cuts(len(state["w"]), group.size)
    lo, hi = cuts[group.rank]
    own, advance = _worker(group, lane, state, spans, threads)
    losses: list[float] = []
    for shards in steps:
        nodes = _exchanged(group, own(shards), spans, len(shards), None if whole else cuts)
        gradient, loss = _total(nodes, len(shards))
        if whole:
            advance(gradient, 0, len(state["w"]))
        else:
            advance(gradient, lo, hi)
            came = group.exchange(("weights",), [state["w"][lo:hi]] * group.size)
            for rank, weights in enumerate(came):
                if rank != group.rank:
                    state["w"][slice(*cuts[rank])] = weights
        losses.append(loss)
    if not whole:
        _gather_slots(group, state, cuts)
    return (state, losses) if group.rank == 0 else None


def _cuts(entries: int, size: int) -> list[tuple[int, int]]:
    """Return the slice of each lane: a loop over numbers ends with single ones, which round otherwise than vectors do."""
    lines = -(-entries // CACHE_LINE)
    return [(min(a * CACHE_LINE, entries), min(b * CACHE_LINE, entries)) for a, b in slices(lines, size)]


Compute = Callable[[Sequence[Array]], Subtotals]
Advance = Callable[[Array, int, int], None]


def _worker(
    group: Group, lane: LaneInputs, state: State, spans: Sequence[tuple[int, int]], threads: int
) -> tuple[Compute, Advance]:
    """Return what computes the gradients of this lane's shards, added up as far as the tree allows, and what updates the state."""
    first, stop = spans[group.rank]
    step = lane.step
    if not step.program.compiled or step.private is not None:

        def compute(shards: Sequence[Array]) -> Subtotals:
            part = LaneBatch(shards[first:stop], first, len(shards), sum(map(len, shards)), threads)
            return gradients(lane, state, part)

        def advance(gradient: Array, lo: int, hi: int) -> None:
            part = {k: v if k == "t" else v[lo:hi] for k, v in state.items()}
            for k, v in update(step, part, (gradient, 0.0)).items():
                part[k][...] = v

        return compute, advance
    run = compiled_round(step.program, step.names, step.rule, state["w"].dtype)
    # What was sent in one step has been read by the others when the next exchange has ended: so there are two buffers in turn.
    buffers = cycle([run.gradient_room(stop - first) for _ in range(2)])

    def compute_in_place(shards: Sequence[Array]) -> Subtotals:
        batch, rows, out = sum(map(len, shards)), shards[first:stop], next(buffers)
        losses = run.gradients(state, lane.const, lane.feeds, rows, batch, threads, out) if rows else []
        shares = {(0, first + k): (out[k], loss) for k, loss in enumerate(losses)}
        return reduce_some(shares, len(shards), _add_in_place)

    return compute_in_place, partial(run.advance, state)


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
    parts = [[*(a if cuts is None else a[slice(*cuts[rank])] for a in arrays), losses] for rank in range(group.size)]
    nodes: Subtotals = {}
    for (first, stop), (*came, each) in zip(spans, group.exchange(("gradients",), parts)):
        nodes |= zip(_nodes(first, stop, shards), zip(came, each.tolist()))
    return nodes


def _nodes(first: int, stop: int, shards: int) -> Iterator[tuple[int, int]]:
    """Return level and index of what a lane has, that added up its shards."""
    return iter(reduce_some({(0, k): None for k in range(first, min(stop, shards))}, shards, lambda group: None))


def _gather_slots(group: Group, state: State, cuts: Sequence[tuple[int, int]]) -> None:
    """Bring the slices of everything but the weights to rank 0."""
    for name in sorted(set(state) - {"w", "t"}):
        mine = state[name][slice(*cuts[group.rank])]
        came = group.exchange((f"slot {name}",), [mine if rank == 0 else None for rank in range(group.size)])
        if group.rank == 0:
            for rank, values in enumerate(came):
                state[name][slice(*cuts[rank])] = values

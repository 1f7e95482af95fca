"""What the members of a gang run: a window of steps that all lanes share, gradients and weights exchanged at each.

Gradients are added up in the tree of all shards, whoever has which: the same bits as one lane alone. Every lane updates all
parameters; where there are many of them, each lane adds up and updates a slice, and sends its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

from flowgrad.optim import State
from flowgrad.typing import Array

from ..collective import Group, slices, worth_slices
from ..kernels import compiled_round
from ..machine import CACHE_LINE, canonical, empty_array, without_subnormals
from ..programs import Gradient
from ..tasks import reduce_some
from .lanes import LaneBatch, LaneInputs, Subtotals, gradients
from .work import Done, update


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
    # The noise of a private step is drawn, and a norm is taken, of the whole vector at once.
    whole = step.private is not None or step.rule.clip_norm is not None or not worth_slices(state["w"], group.size)
    cuts = _cuts(len(state["w"]), group.size)
    lo, hi = cuts[group.rank]
    losses: list[float] = []
    with _worker(group, lane, state, steps, spans, threads) as (compute, advance):
        for k, shards in enumerate(steps):
            nodes = _exchanged(group, compute(k), spans, len(shards), None if whole else cuts)
            gradient, loss = _total(nodes, len(shards))
            losses.append(loss)
            if whole:
                advance(gradient, 0, len(state["w"]))
                continue
            advance(gradient, lo, hi)
            letters = group.exchange(("weights",), [state["w"][lo:hi]] * group.size)
            for (start, stop), letter in zip(cuts, letters):
                if start != lo:
                    state["w"][start:stop] = letter.data
        if not whole:
            _gather_slots(group, state, cuts)
    return (state, losses) if group.rank == 0 else None


def _cuts(entries: int, size: int) -> list[tuple[int, int]]:
    """Return the slice of each lane: a loop over numbers ends with single ones, which round otherwise than vectors do."""
    lines = -(-entries // CACHE_LINE)
    return [(min(a * CACHE_LINE, entries), min(b * CACHE_LINE, entries)) for a, b in slices(lines, size)]


Compute = Callable[[int], Subtotals]
Advance = Callable[[Array, int, int], None]


@contextmanager
def _worker(
    group: Group,
    lane: LaneInputs,
    state: State,
    steps: Sequence[Sequence[Array]],
    spans: Sequence[tuple[int, int]],
    threads: int,
) -> Iterator[tuple[Compute, Advance]]:
    """Give what computes a step's gradients of this lane's shards, added up as far as can be, and what updates the state."""
    first, stop = spans[group.rank]
    step = lane.step
    batches = [sum(map(len, shards)) for shards in steps]
    if not step.program.compiled or step.private is not None:

        def compute(k: int) -> Subtotals:
            part = LaneBatch(steps[k][first:stop], first, len(steps[k]), batches[k], threads)
            return gradients(lane, state, part)

        def advance(gradient: Array, lo: int, hi: int) -> None:
            part = {k: v if k == "t" else v[lo:hi] for k, v in state.items()}
            for k, v in update(step, part, (gradient, 0.0)).items():
                part[k][...] = v

        yield compute, advance
        return
    run = compiled_round(step.program, step.names, step.rule, state["w"].dtype)
    # What was sent in one step has been read by the others when the next exchange has ended: so there are two buffers in turn.
    buffers = [run.gradient_room(stop - first) for _ in range(2)]
    mine = [shards[first:stop] for shards in steps]
    with run.gradients(state, lane.const, lane.feeds, mine, batches, threads) as walk:

        def compute_in_place(k: int) -> Subtotals:
            out = buffers[k % 2]
            losses = walk(k, out) if mine[k] else []
            shares = {(0, first + n): (out[n], loss) for n, loss in enumerate(losses)}
            return reduce_some(shares, len(steps[k]), _add_in_place)

        yield compute_in_place, partial(run.advance, state)


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
    parts = [arrays if cuts is None else [a[slice(*cuts[rank])] for a in arrays] for rank in range(group.size)]
    nodes: Subtotals = {}
    for (first, stop), letter in zip(spans, group.exchange(("gradients",), parts, [loss for _, loss in mine.values()])):
        nodes |= zip(_nodes(first, stop, shards), zip(letter.data, letter.note))
    return nodes


def _nodes(first: int, stop: int, shards: int) -> Iterator[tuple[int, int]]:
    """Return level and index of what a lane has, that added up its shards."""
    return iter(reduce_some({(0, k): None for k in range(first, min(stop, shards))}, shards, lambda group: None))


def _gather_slots(group: Group, state: State, cuts: Sequence[tuple[int, int]]) -> None:
    """Bring the slices of everything but the weights to rank 0."""
    for name in sorted(set(state) - {"w", "t"}):
        mine = state[name][slice(*cuts[group.rank])]
        letters = group.exchange((f"slot {name}",), [mine if rank == 0 else None for rank in range(group.size)])
        if group.rank == 0:
            for cut, letter in zip(cuts, letters):
                state[name][slice(*cut)] = letter.data

"""What the members of a gang run: a window of steps that all lanes share, gradients and weights exchanged at each.

Gradients are added up in the tree of all shards, whoever has which: the same bits as one lane alone. Every lane updates all
parameters; where there are many of them, each lane adds up and updates a slice, and sends its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flowgrad.optim import RowGradient, State
from flowgrad.typing import Array

from ..collective import Group, slices, traffic, worth_slices
from ..executors import Lost
from ..machine import CACHE_LINE, canonical, empty_array, without_subnormals
from ..programs import Gradient, add_gradients
from ..tasks import bounds, reduce_some
from .draws import Span, with_keys
from .lanes import LaneBatch, LaneInputs, Subtotals, gradients
from .step import Step
from .work import as_rows, compiled, update, whole_gradient


@dataclass(slots=True, eq=False)
class Shared:
    """What a lane has after steps: the state, and their losses.

    Of the optimizer's arrays its own slice may be the only one that is up to date, unless the state `travels`.
    """

    state: State | None
    losses: list[float]
    travels: bool = True

    def __sizeof__(self) -> int:
        """Return the bytes of the state: dask would else look through all that is inside."""
        return sum(array.nbytes for array in (self.state or {}).values())

    def __reduce__(self) -> tuple[type[Shared], tuple[State | None, list[float], bool]]:
        """Leave the state behind where it does not travel: the client wants one of them."""
        return Shared, (self.state if self.travels else None, self.losses, self.travels)


@without_subnormals
def shared_steps(
    group: Group,
    lane: LaneInputs,
    before: Shared,
    steps: Sequence[Sequence[Array]],
    spans: Sequence[tuple[int, int]],
    threads: int,
    last: bool,
) -> Shared:
    """Run steps together with the other lanes.

    Parameters
    ----------
    before : Shared
        What this lane has after the steps before.
    steps : sequence of sequence of int array
        Per step the rows of each shard, of this lane's in its feeds.
    spans : sequence of (int, int)
        First and last shard of each lane, by rank.
    last : bool
        Whether the state is fetched after these steps, from rank 0.

    Raises
    ------
    Lost
        If the state went to disk, where it does not come back from.
    """
    if before.state is None:
        raise Lost("a worker that is short of memory put the optimizer's state away")
    state = {k: np.array(canonical(v)) for k, v in before.state.items()}
    lane = _sending(group, lane, state["w"], max(sum(map(len, shards)) for shards in steps))
    step = lane.step
    # The noise of a private step is drawn, and a norm is taken, of the whole vector at once.
    whole = step.private is not None or step.rule.clip_norm is not None or not worth_slices(state["w"], group.size)
    whole |= bool(step.tables)
    cuts = _cuts(len(state["w"]), group.size)
    lo, hi = cuts[group.rank]
    losses: list[float] = []
    with _worker(group, lane, state, steps, spans, threads) as (compute, advance):
        for k, shards in enumerate(steps):
            nodes = _exchanged(group, step, compute(k), spans, len(shards), None if whole else cuts)
            gradient, loss = _total(nodes, len(shards), add_gradients if step.tables else _add)
            losses.append(loss)
            if whole:
                advance(gradient, 0, len(state["w"]))
                continue
            advance(gradient, lo, hi)
            letters = group.exchange(("weights",), [state["w"][lo:hi]] * group.size)
            for (start, stop), letter in zip(cuts, letters):
                if start != lo:
                    state["w"][start:stop] = letter.data
        if last and not whole:
            _gather_slots(group, state, cuts)
    return Shared(state, losses, last and group.rank == 0)


def _cuts(entries: int, size: int) -> list[tuple[int, int]]:
    """Return the slice of each lane: a loop over numbers ends with single ones, which round otherwise than vectors do."""
    lines = -(-entries // CACHE_LINE)
    return [(min(a * CACHE_LINE, entries), min(b * CACHE_LINE, entries)) for a, b in slices(lines, size)]


def _sending(group: Group, lane: LaneInputs, w: Array, batch: int) -> LaneInputs:
    """Return the lane; without tables where whole gradients, each lane's slice, are less to send, and nothing else is asked for."""
    step = lane.step
    fewer = (group.size - 1) * step.sent(batch, w.itemsize) < traffic(w.nbytes, group.size)[1]
    return lane if fewer or step.rule.lazy_rows else replace(lane, step=replace(step, tables=()))


Compute = Callable[[int], Subtotals]
Advance = Callable[[Any, int, int], None]


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

        def advance(gradient: Any, lo: int, hi: int) -> None:
            part = {k: v if k == "t" else v[lo:hi] for k, v in state.items()}
            for k, v in update(step, part, (gradient, 0.0)).items():
                part[k][...] = v

        yield compute, advance
        return
    run = compiled(step, state)
    # What was sent in one step has been read by the others when the next exchange has ended: so there are two buffers in turn.
    buffers = [run.gradient_room(stop - first) for _ in range(2)]
    mine = [shards[first:stop] for shards in steps]
    samples = (
        Span(k, begin, end - begin)
        for k, (shards, batch) in enumerate(zip(steps, batches), 1)
        for begin, end in bounds(batch, len(shards))[first:stop]
    )
    feeds = with_keys(step.draws, state, lane.feeds, samples)
    with run.gradients(state, lane.const, feeds, mine, batches, threads) as walk:

        def compute_in_place(k: int) -> Subtotals:
            out = buffers[k % 2]
            losses = walk(k, out) if mine[k] else []
            if step.tables:
                given = [as_rows(step, lane.const, lane.feeds, rows, g) for rows, g in zip(mine[k], out)]
            else:
                given = list(out)
            shares = {(0, first + n): (given[n], loss) for n, loss in enumerate(losses)}
            return reduce_some(shares, len(steps[k]), add_gradients if step.tables else _add_in_place)

        def advance_in_place(gradient: Any, lo: int, hi: int) -> None:
            run.advance(state, *whole_gradient(step, gradient), lo, hi)

        yield compute_in_place, advance_in_place


def _add_in_place(pair: list[Gradient]) -> Gradient:
    (a, loss), (b, more) = pair
    return np.add(a, b, out=a), loss + more


def _add(pair: list[Gradient]) -> Gradient:
    (a, loss), (b, more) = pair
    return np.add(a, b, out=empty_array(a.shape, a.dtype)), loss + more


def _total(nodes: Subtotals, shards: int, add: Callable[[list[Gradient]], Gradient]) -> Gradient:
    (mean,) = reduce_some(nodes, shards, add).values()
    return mean


def _exchanged(
    group: Group,
    step: Step,
    mine: Subtotals,
    spans: Sequence[tuple[int, int]],
    shards: int,
    cuts: Sequence[tuple[int, int]] | None,
) -> Subtotals:
    """Return the nodes of the tree that all lanes have; with `cuts` only this lane's slice of them."""
    arrays = [gradient for gradient, _ in mine.values()]
    if step.tables:
        arrays = [array for gradient in arrays for array in gradient.arrays]
    parts = [arrays if cuts is None else [a[slice(*cuts[rank])] for a in arrays] for rank in range(group.size)]
    nodes: Subtotals = {}
    for (first, stop), letter in zip(spans, group.exchange(("gradients",), parts, [loss for _, loss in mine.values()])):
        data = letter.data
        if step.tables:
            count, size = 1 + 2 * len(step.tables), step.program.size("param")
            data = [RowGradient(size, step.tables, tuple(data[k : k + count])) for k in range(0, len(data), count)]
        nodes |= zip(_nodes(first, stop, shards), zip(data, letter.note))
    return nodes


def _nodes(first: int, stop: int, shards: int) -> Iterator[tuple[int, int]]:
    """Return level and index of what a lane has, that added up its shards."""
    return iter(reduce_some({(0, k): None for k in range(first, min(stop, shards))}, shards, lambda group: None))


def _gather_slots(group: Group, state: State, cuts: Sequence[tuple[int, int]]) -> None:
    """Bring the slices of everything but the weights to rank 0."""
    for name in sorted(set(state) - {"w", "t", "rates"}):
        mine = state[name][slice(*cuts[group.rank])]
        letters = group.exchange((f"slot {name}",), [mine if rank == 0 else None for rank in range(group.size)])
        if group.rank == 0:
            for cut, letter in zip(cuts, letters):
                state[name][slice(*cut)] = letter.data

"""What the tasks of steps run: rounds and shards on arrays that are used again, updates, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from flowgrad.ops.loss import sample_sum
from flowgrad.optim import WORK, RowGradient, State, entries_of
from flowgrad.program import Program
from flowgrad.typing import Array

from ..kernels import compiled_round, kernel_of
from ..machine import canonical, each_side_by_side, without_subnormals
from ..programs import Gradient, add_gradients, counts_of, flat_gradient, run_seeded
from ..tasks import SIDE_BY_SIDE, fold_tree
from .draws import Span, with_keys
from .metrics import ACCURACY, Metric, Part, answers, sums_of
from .step import Step, arrange

# Entries that are updated at a time, so that the room for it does not grow with the parameters.
UPDATE_ENTRIES = 1 << 17
# Operations of a shard from which on a thread of its own pays: below, Python's lock is the limit.
THREAD_FLOPS = 2e7
# A state and the mean losses of the steps that led to it.
Done = tuple[State, list[float]]


class Scratch:
    """Arrays of one shard, kept from step to step."""

    def __init__(self) -> None:
        self.arrays: dict[Any, Array] = {}

    def array(self, name: Any, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return the array of this name; a new one where the shape changes."""
        array = self.arrays.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            array = self.arrays[name] = np.empty(shape, dtype)
        return array

    def take(self, name: Any, feed: Array, rows: Array) -> Array:
        """Return rows of a feed, which may lie at any address: as bytes they are aligned, and only they are copied."""
        out = self.array(name, (len(rows), *feed.shape[1:]), feed.dtype)
        if feed.flags.aligned or not feed.flags.c_contiguous:
            return np.take(feed, rows, axis=0, out=out, mode="clip")
        np.take(feed.view(np.uint8), rows, axis=0, out=out.view(np.uint8), mode="clip")
        return out


def worth_threads(program: Program, steps: Sequence[Sequence[Array]], threads: int) -> bool:
    """Whether shards are worth a thread each."""
    shards, largest = max(map(len, steps)), max(map(len, steps[0]), default=0)
    return min(threads, shards) > 1 and counts_of(program).flops(largest) >= THREAD_FLOPS


def map_of(program: Program, steps: Sequence[Sequence[Array]], threads: int) -> Callable[..., Iterable[Any]]:
    """Return a ``map`` over shards: in several threads, where shards are worth it."""
    return partial(each_side_by_side, threads=threads) if worth_threads(program, steps, threads) else map


@without_subnormals
def shard_step(
    step: Step,
    state: State,
    const: Array | None,
    feeds: list[Array],
    rows: Array,
    batch: int,
    scratch: Scratch | None = None,
    first: int = 0,
) -> Gradient:
    """Take a shard's rows from the feeds and compute its gradient at the parameters in `state`; of tables as rows.

    With `scratch` the rows and the gradient are written into its arrays. Its first sample is number `first` of the mini-batch.
    """
    gradient, loss = _shard_gradient(step, state, const, feeds, rows, batch, scratch, first)
    return as_rows(step, const, feeds, rows, gradient), loss


def as_rows(step: Step, const: Array | None, feeds: Sequence[Array], samples: Array, gradient: Array) -> Any:
    """Return the gradient of samples, of tables the rows that they pick."""
    return RowGradient.of(gradient, step.tables, step.rows(const, feeds, samples)) if step.tables else gradient


def with_rows(step: Step, const: Array | None, taken: Sequence[Array], share: Gradient) -> Gradient:
    """Return the gradient of all samples in `taken` as `shard_step` does."""
    return as_rows(step, const, taken, np.arange(max(map(len, taken), default=0)), share[0]), share[1]


def _shard_gradient(
    step: Step,
    state: State,
    const: Array | None,
    feeds: list[Array],
    rows: Array,
    batch: int,
    scratch: Scratch | None,
    first: int,
) -> tuple[Array, float]:
    if step.program.compiled:
        keyed = with_keys(step.draws, state, feeds, [Span(1, first, len(rows))])
        return compiled(step, state).gradient(state, const, keyed, rows, batch)
    scratch = scratch or Scratch()
    inputs = shard_inputs(step, state, const, feeds, rows, scratch, first)
    if step.private is not None:
        return step.private.gradient(inputs, len(rows), batch)
    size = step.program.size("param")
    into = {name: scratch.array(name, (1, 1, size), state["w"].dtype) for name in step.names}
    outputs = run_seeded(step.program, batch, len(rows), inputs, into)
    return flat_gradient(outputs["0"], len(rows), batch, size, *(outputs[name] for name in step.names))


def shard_inputs(
    step: Step, state: State, const: Array | None, feeds: list[Array], rows: Array, scratch: Scratch, first: int = 0
) -> list[Array]:
    """Return what the program of a shard reads, but for the seed."""
    taken = [scratch.take(k, f, rows) for k, f in enumerate(feeds)]
    return arrange(step.program, state, const, with_keys(step.draws, state, taken, [Span(1, first, len(rows))]))


def compiled(step: Step, state: State) -> Any:
    """Return the compiled step for states such as this one."""
    keys = None if step.draws is None else step.draws.at
    return compiled_round(step.program, step.names, step.rule, state["w"].dtype, "rates" in state, keys, step.tables)


@without_subnormals
def update(step: Step, state: State, mean: Gradient) -> State:
    """Return the state after one update by the mean gradient."""
    state = {k: canonical(v) for k, v in state.items()}
    gradient, spans = whole_gradient(step, mean[0])
    if step.program.compiled:
        return compiled(step, state).update(state, gradient, spans)
    state = {k: v.copy() for k, v in state.items()}
    _update(step, state, gradient, spans, Scratch())
    return state


def whole_gradient(step: Step, gradient: Any) -> tuple[Array, Array | None]:
    """Return a gradient as one vector, and where it moves the state: None if everywhere."""
    if not isinstance(gradient, RowGradient):
        return canonical(gradient), None
    return gradient.dense(), gradient.spans if step.rule.lazy_rows else None


def _update(step: Step, state: State, gradient: Array, spans: Array | None, scratch: Scratch) -> None:
    if step.private is not None:
        gradient = step.private.blurred(gradient, int(state["t"][0]) + 1)
    room = scratch.array("work", (WORK, min(len(gradient), UPDATE_ENTRIES)), gradient.dtype)
    step.rule.update_in_place(state["w"], gradient, state, room, None if spans is None else entries_of(spans))


@without_subnormals
def run_round(
    step: Step,
    before: Done,
    const: Array | None,
    feeds: list[Array],
    steps: Sequence[Sequence[Array]],
    threads: int = 1,
) -> Done:
    """Run several optimizer steps; per step the rows of each shard. Same arithmetic as the tasks of grain ``shard``.

    `threads` share the work; the result does not depend on how many.
    """
    state = {k: canonical(v) for k, v in before[0].items()}
    if step.program.compiled:
        keyed = with_keys(step.draws, state, feeds, (Span(k, 0, sum(map(len, s))) for k, s in enumerate(steps, 1)))
        if max(map(len, steps)) == 1 and not step.rule.lazy_rows:  # nothing is added up: a whole table is as fast
            step = replace(step, tables=())
        spans = [step.spans(const, feeds, np.concatenate(shards)) for shards in steps] if step.tables else None
        return compiled(step, state).run(state, const, keyed, steps, threads, spans)
    state = {k: v.copy() for k, v in state.items()}
    scratches = [Scratch() for _ in range(max(SIDE_BY_SIDE, threads))]
    losses = []
    each = map_of(step.program, steps, threads)
    for shards in steps:
        batch = sum(map(len, shards))
        parts = list(zip(shards, accumulate(map(len, shards), initial=0)))

        def share(part: tuple[tuple[Array, int], Scratch], batch: int = batch) -> Gradient:
            (rows, first), scratch = part
            return shard_step(step, state, const, feeds, rows, batch, scratch, first)

        gradient, loss = fold_tree(_shares(each, share, parts, scratches), add_gradients)
        _update(step, state, *whole_gradient(step, gradient), scratches[0])
        losses.append(loss)
    return state, losses


def _shares(each: Any, share: Any, shards: Sequence[Any], scratches: list[Scratch]) -> Iterator[Gradient]:
    """Give the gradients of shards in their order, as many at a time as there are scratches."""
    again = len(shards) > len(scratches)
    for k in range(0, len(shards), len(scratches)):
        for gradient, loss in list(each(share, zip(shards[k : k + len(scratches)], scratches))):
            # Where the arrays are used again, the tree may still hold on to one.
            yield (gradient.copy() if again and isinstance(gradient, np.ndarray) else gradient), loss


@without_subnormals
def evaluate_shard(
    program: Program,
    state: State | None,
    const: Array | None,
    feeds: list[Array],
    samples: int,
    kinds: Sequence[str],
    metrics: Sequence[Metric] | None = None,
) -> Any:
    """Return the `Part` of so many samples; of metrics that do not add up, a pair: that, and the predictions.

    `kinds` are those of the questions, see `Question`. Where a loss is nan no answer is right.
    """
    outputs = kernel_of(program)(arrange(program, state, const, feeds))
    weights = outputs.get("weights")
    right, known = 0.0, ~np.isnan(outputs["0"][:, 0])
    if weights is not None:
        known = known * weights[:, 0]
    for k, kind in enumerate(kinds):
        output, truth = outputs[str(2 * k + 1)], outputs[str(2 * k + 2)]
        if kind == "binary":
            right += sample_sum(((output > 0) == (truth > 0.5)).mean(axis=1) * known, samples)
        elif kind == "classes":
            right += sample_sum((output.argmax(axis=1) == truth.argmax(axis=1)) * known, samples)
    total = samples if weights is None else sample_sum(weights, samples)
    part = Part(sample_sum(outputs["0"], samples), right / max(1, len(kinds)), total, {})
    more = [m for m in metrics or () if m != ACCURACY]
    if not more:
        return part
    answered = answers(kinds[0], outputs["1"], outputs["2"], samples)
    each = None if weights is None else np.broadcast_to(weights[:, 0], samples)
    if adding := [m for m in more if m.adds_up]:
        part = part._replace(sums=sums_of(kinds[0], adding, answered, each))
    return part if len(adding) == len(more) else (part, (*answered, each))

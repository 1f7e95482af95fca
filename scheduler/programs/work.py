"""What tasks run: functions of a module, on plain arrays; new state in, new state out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowgrad.errors import FlowgradError
from flowgrad.ops.loss import sample_sum
from flowgrad.optim import Rule, State
from flowgrad.program import Program
from flowgrad.typing import Array

from ..kernels.numba_kernel import can_compile, compiled_round
from ..kernels.numpy_kernel import canonical, kernel_of
from ..machine.floats import without_subnormals
from ..steps.private import PrivateStep
from ..steps.work import Scratch, shard_threads
from ..tasks.tree import SIDE_BY_SIDE, fold_tree


@dataclass(frozen=True, eq=False)
class Step:
    """One optimizer step as a program.

    Attributes
    ----------
    program : Program
        Forward and backward; output ``"0"`` is the loss.
    names : tuple of str
        The output that is the gradient of the flat parameter vector; empty if the loss depends on no parameter.
    fed : tuple of int
        The variables that are fed, by index, in the order of the program's inputs.
    compiled : bool
        Whether machine code runs it, or NumPy; the bits of the results differ, so it belongs to the plan.
    private : PrivateStep, optional
        What clips each sample's gradient and adds noise, if that is asked for.
    """

    program: Program
    names: tuple[str, ...]
    fed: tuple[int, ...]
    compiled: bool = False
    private: PrivateStep | None = None


Gradient = tuple[Array, float]
# A state and the mean losses of the steps that led to it.
Done = tuple[State, list[float]]


def pick(values: Any, index: Any) -> Any:
    """Return one of several results."""
    return values[index]


def collect(*values: Any) -> list[Any]:
    """Return several results as one list."""
    return list(values)


def take_rows(array: Array, rows: Array) -> Array:
    """Return rows of a feed."""
    return canonical(array[rows])


def cut_rows(array: Array, start: int, stop: int) -> Array:
    """Return a range of rows of a feed."""
    return canonical(array[start:stop])


def weights_of(state: State) -> Array:
    """Return the flat parameter vector as a value ``(1, P)``."""
    return state["w"][None]


def mean_seed(like: Array, samples: int, batch: int) -> Array:
    """Return the seed of a shard's share of the mean: 1/`batch` for each of its samples.

    A loss that no feed reaches has one row for all samples and gets the share of the whole shard.
    """
    share = 1.0 / batch if len(like) == samples else samples / batch
    return np.full((1, len(like), 1), share, like.dtype)


def flat_gradient(loss: Array, samples: int, batch: int, size: int, *cotangents: Array) -> Gradient:
    """Return a shard's share of the mean gradient, laid end to end, and of the mean loss.

    Without cotangents, where the loss depends on no parameter, the gradient is `size` zeros.
    """
    flat = [c.sum(axis=1)[0] if c.shape[1] > 1 else c[0, 0] for c in cotangents]
    total = sample_sum(loss, samples)
    gradient = flat[0] if len(flat) == 1 else np.concatenate(flat) if flat else np.zeros(size, loss.dtype)
    return canonical(gradient), total / batch


def run_program(program: Program, names: tuple[str, ...], *inputs: Any) -> Any:
    """Run a program on one shard and return the named outputs."""
    found = kernel_of(program)([canonical(np.asarray(i)) for i in inputs])
    values = [canonical(found[name]) for name in names]
    return values[0] if len(values) == 1 else values


def shard_gradient(program: Program, names: tuple[str, ...], batch: int, samples: int, *inputs: Array) -> Gradient:
    """Run a forward and backward program on one shard of a mini-batch.

    Parameters
    ----------
    program : Program
        Its last input is the seed, its output ``"0"`` the loss.
    names : tuple of str
        The outputs that make up the gradient.
    batch, samples : int
        Size of the whole mini-batch and of this shard.
    *inputs : ndarray
        The program's inputs but the seed.
    """
    found = _run_seeded(program, batch, samples, list(map(canonical, inputs)))
    return flat_gradient(found["0"], samples, batch, program.size("param"), *(found[name] for name in names))


def _run_seeded(
    program: Program, batch: int, samples: int, inputs: list[Array], into: dict[str, Array] | None = None
) -> dict[str, Array]:
    batched = program.types[program.inputs[-1].var].batched
    like = np.empty((samples if batched else 1, 0), inputs[-1].dtype)
    return kernel_of(program)([*inputs, mean_seed(like, samples, batch)], into)


@without_subnormals
def shard_step(
    step: Step,
    rule: Rule,
    state: State,
    const: Array | None,
    feeds: list[Array],
    rows: Array,
    batch: int,
    scratch: Scratch | None = None,
) -> Gradient:
    """Take a shard's rows from the feeds and compute its gradient at the parameters in `state`.

    With `scratch` the rows and the gradient are written into its arrays.
    """
    if step.compiled:
        return _compiled(step, rule, state).gradient(state, const, feeds, rows, batch)
    if scratch is None:
        scratch = Scratch()
    taken = [scratch.take(k, f, rows) for k, f in enumerate(feeds)]
    inputs = arrange(step.program, state, const, taken)
    if step.private is not None:
        return step.private.gradient(inputs, len(rows), batch)
    size = step.program.size("param")
    into = {name: scratch.array(name, (1, 1, size), state["w"].dtype) for name in step.names}
    found = _run_seeded(step.program, batch, len(rows), inputs, into)
    return flat_gradient(found["0"], len(rows), batch, size, *(found[name] for name in step.names))


def _compiled(step: Step, rule: Rule, state: State) -> Any:
    if not can_compile():
        raise FlowgradError(
            "the plan uses compiled kernels, but numba is not installed here: pip install 'flowgrad[fast]'"
        )
    return compiled_round(step.program, step.names, rule, state["w"].dtype)


def arrange(program: Program, state: State, const: Array | None, feeds: list[Array]) -> list[Array]:
    """Return the inputs of a program in its order, aligned as the bits of the result need it."""
    given = iter(feeds)
    inputs: list[Array] = []
    for i in program.inputs:
        if i.role == "feed":
            inputs.append(canonical(next(given)))
        elif i.role == "param":
            inputs.append(canonical(weights_of(state)))
        elif i.role == "const":
            assert const is not None
            inputs.append(canonical(const))
    return inputs


@without_subnormals
def add_gradients(shares: list[Gradient]) -> Gradient:
    """Add neighbouring shares, in their order."""
    gradient, loss = shares[0]
    for more, more_loss in shares[1:]:
        gradient = gradient + more
        loss = loss + more_loss
    return gradient, loss


@without_subnormals
def update(step: Step, rule: Rule, state: State, mean: Gradient) -> State:
    """Return the state after one update by the mean gradient."""
    state = {k: canonical(v) for k, v in state.items()}
    if step.compiled:
        return _compiled(step, rule, state).update(state, canonical(mean[0]))
    state = {k: v.copy() for k, v in state.items()}
    _update(step, rule, state, canonical(mean[0]), Scratch())
    return state


def _update(step: Step, rule: Rule, state: State, gradient: Array, scratch: Scratch) -> None:
    if step.private is not None:
        gradient = step.private.blurred(gradient, int(state["t"][0]) + 1)
    rule.update_in_place(state["w"], gradient, state, scratch.work(len(gradient), gradient.dtype))


@without_subnormals
def run_round(
    step: Step,
    rule: Rule,
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
    if step.compiled:
        return _compiled(step, rule, state).run(state, const, feeds, steps, threads)
    state = {k: v.copy() for k, v in state.items()}
    scratches = [Scratch() for _ in range(max(SIDE_BY_SIDE, threads))]
    losses = []
    with shard_threads(step.program, steps, threads) as each:
        for shards in steps:
            batch = sum(map(len, shards))

            def share(rows: Array, scratch: Scratch, batch: int = batch) -> Gradient:
                return shard_step(step, rule, state, const, feeds, rows, batch, scratch)

            gradient, loss = fold_tree(_shares(each, share, shards, scratches), add_gradients)
            _update(step, rule, state, gradient, scratches[0])
            losses.append(loss)
    return state, losses


def _shares(each: Any, share: Any, shards: Sequence[Array], scratches: list[Scratch]) -> Iterator[Gradient]:
    """Give the gradients of shards in their order, as many at a time as there are scratches."""
    again = len(shards) > len(scratches)
    for k in range(0, len(shards), len(scratches)):
        for gradient, loss in list(each(share, shards[k : k + len(scratches)], scratches)):
            # Where the arrays are used again, the tree may still hold on to one.
            yield (gradient.copy() if again else gradient), loss


@without_subnormals
def evaluate_shard(
    program: Program, state: State, const: Array | None, feeds: list[Array], samples: int
) -> tuple[float, int]:
    """Return the sum of the losses of so many samples, and the number of right classes (-1 without classes)."""
    found = kernel_of(program)(arrange(program, state, const, feeds))
    right = -1
    if "1" in found:
        right = int(sample_sum(found["1"].argmax(axis=1) == found["2"].argmax(axis=1), samples))
    return sample_sum(found["0"], samples), right

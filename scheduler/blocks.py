"""What tasks run: functions of a module, on plain arrays; new state in, new state out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flowgrad.errors import FlowgradError
from flowgrad.jacobian import Array
from flowgrad.optim import Rule
from flowgrad.program import Program

from . import compiled
from .kernel import canonical, kernel_of
from .private import PrivateStep
from .tree import reduce_tree


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


State = dict[str, Array]
Gradient = tuple[Array, float]


def pick(values: Any, index: Any) -> Any:
    """Return one of several results."""
    return values[index]


def collect(*values: Any) -> list[Any]:
    """Return several results as one list."""
    return list(values)


def take(array: Array, rows: Array) -> Array:
    """Return rows of a feed."""
    return canonical(array[rows])


def cut(array: Array, start: int, stop: int) -> Array:
    """Return a range of rows of a feed."""
    return canonical(array[start:stop])


def weights(state: State) -> Array:
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
    total = float(loss.sum(dtype=np.float64)) * (1.0 if len(loss) == samples else samples)
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
    batched = program.types[program.inputs[-1].var].batched
    like = np.empty((samples if batched else 1, 0), inputs[-1].dtype)
    found = kernel_of(program)([*map(canonical, inputs), mean_seed(like, samples, batch)])
    return flat_gradient(found["0"], samples, batch, program.size("param"), *(found[name] for name in names))


def shard_step(
    step: Step, rule: Rule, state: State, const: Array | None, feeds: list[Array], rows: Array, batch: int
) -> Gradient:
    """Take a shard's rows from the feeds and compute its gradient at the parameters in `state`."""
    if step.compiled:
        return _compiled(step, rule, state).gradient(state, const, feeds, rows, batch)
    inputs = arrange(step.program, state, const, [f[rows] for f in feeds])
    if step.private is not None:
        return step.private.gradient(inputs, len(rows), batch)
    return shard_gradient(step.program, step.names, batch, len(rows), *inputs)


def _compiled(step: Step, rule: Rule, state: State) -> Any:
    if not compiled.available():
        raise FlowgradError(
            "the plan uses compiled kernels, but numba is not installed here: pip install 'flowgrad[fast]'"
        )
    return compiled.compiled_round(step.program, step.names, rule, state["w"].dtype)


def arrange(program: Program, state: State, const: Array | None, feeds: list[Array]) -> list[Array]:
    """Return the inputs of a program in its order."""
    given = iter(feeds)
    inputs: list[Array] = []
    for i in program.inputs:
        if i.role == "feed":
            inputs.append(next(given))
        elif i.role == "param":
            inputs.append(weights(state))
        elif i.role == "const":
            assert const is not None
            inputs.append(const)
    return inputs


def add_gradients(shares: list[Gradient]) -> Gradient:
    """Add neighbouring shares, in their order."""
    gradient, loss = shares[0]
    for more, more_loss in shares[1:]:
        gradient = gradient + more
        loss = loss + more_loss
    return gradient, loss


def update(step: Step, rule: Rule, state: State, mean: Gradient) -> State:
    """Return the state after one update by the mean gradient."""
    state = {k: canonical(v) for k, v in state.items()}
    if step.compiled:
        return _compiled(step, rule, state).update(state, canonical(mean[0]))
    rest = {k: v for k, v in state.items() if k != "w"}
    gradient = canonical(mean[0])
    if step.private is not None:
        gradient = step.private.blurred(gradient, int(state["t"][0]) + 1)
    w, rest = rule.update(state["w"], gradient, rest)
    return {"w": w, **rest}


def run_round(
    step: Step,
    rule: Rule,
    state: State,
    const: Array | None,
    feeds: list[Array],
    steps: list[list[Array]],
    threads: int = 1,
) -> tuple[State, list[float]]:
    """Run several optimizer steps; per step the rows of each shard. Same arithmetic as the tasks of grain ``shard``.

    `threads` share the work of compiled kernels; the result does not depend on how many.
    """
    if step.compiled:
        state = {k: canonical(v) for k, v in state.items()}
        return _compiled(step, rule, state).run(state, const, feeds, steps, threads)
    losses = []
    for shards in steps:
        batch = sum(map(len, shards))
        shares = [shard_step(step, rule, state, const, feeds, rows, batch) for rows in shards]
        mean = reduce_tree(shares, add_gradients)
        state = update(step, rule, state, mean)
        losses.append(mean[1])
    return state, losses


def evaluate_shard(program: Program, state: State, const: Array | None, feeds: list[Array]) -> tuple[float, int, int]:
    """Return the sum of the losses, the number of right classes (-1 without classes) and the number of samples."""
    samples = max(map(len, feeds))
    found = kernel_of(program)([canonical(i) for i in arrange(program, state, const, feeds)])
    loss = found["0"]
    total = float(loss.sum(dtype=np.float64)) * (1.0 if len(loss) == samples else samples)
    right = -1
    if "1" in found:
        right = int((found["1"].argmax(axis=1) == found["2"].argmax(axis=1)).sum())
    return total, right, samples

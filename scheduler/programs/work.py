"""What tasks run: functions of a module, on plain arrays; new state in, new state out."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowgrad.ops.loss import sample_sum
from flowgrad.optim import State
from flowgrad.program import Program
from flowgrad.typing import Array

from ..kernels import kernel_of
from ..machine import canonical, without_subnormals

# Of a shard: an array, or a `RowGradient` where there are tables; and the loss.
Gradient = tuple[Any, float]


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


def seed_of(program: Program, dtype: Any, samples: int, batch: int) -> Array:
    """Return the seed of a shard's share of the mean."""
    batched = next(program.types[i.var].batched for i in program.inputs if i.role == "seed")
    return mean_seed(np.empty((samples if batched else 1, 0), dtype), samples, batch)


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
    outputs = kernel_of(program)([canonical(np.asarray(i)) for i in inputs])
    values = [canonical(outputs[name]) for name in names]
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
    outputs = run_seeded(program, batch, samples, list(map(canonical, inputs)))
    return flat_gradient(outputs["0"], samples, batch, program.size("param"), *(outputs[name] for name in names))


def run_seeded(
    program: Program, batch: int, samples: int, inputs: list[Array], into: dict[str, Array] | None = None
) -> dict[str, Array]:
    """Run a program whose last input is the seed of a shard's share of the mean; outputs may be written `into` arrays."""
    return kernel_of(program)([*inputs, seed_of(program, inputs[-1].dtype, samples, batch)], into)


@without_subnormals
def add_gradients(shares: list[Gradient]) -> Gradient:
    """Add neighbouring shares, in their order."""
    gradient, loss = shares[0]
    for more, more_loss in shares[1:]:
        gradient = gradient + more
        loss = loss + more_loss
    return gradient, loss

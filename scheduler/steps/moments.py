"""Count, mean and sum of squared deviations of channels: what means and variances over shards are put together from.

T. Chan, G. Golub and R. LeVeque, *Updating formulae and a pairwise algorithm for computing sample variances*, 1979.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flowgrad.optim import State
from flowgrad.program import Program
from flowgrad.typing import Array

from ..kernels import kernel_of
from ..machine import without_subnormals
from .step import arrange


class Moments(NamedTuple):
    """Of some numbers, by channel: how many, their mean, and the sum of their squared deviations from it."""

    size: int
    mean: Array
    squares: Array


@without_subnormals
def moments_of_shard(
    program: Program,
    state: State | None,
    const: Array | None,
    feeds: list[Array],
    samples: int,
    channels: Mapping[int, int],
) -> list[Moments]:
    """Return the moments of outputs by their channels; `channels` has how many, by the number of the output."""
    outputs = kernel_of(program)(arrange(program, state, const, feeds))
    return [_moments(outputs[str(k)], count) for k, count in channels.items()]


def _moments(values: Array, channels: int) -> Moments:
    values = values.reshape(len(values), channels, -1)
    mean = values.mean(axis=(0, 2), dtype=np.float64)
    squares = ((values - mean[:, None]) ** 2).sum(axis=(0, 2))
    return Moments(values.size // channels, mean, squares)


def total_moments(parts: Sequence[Sequence[Moments]]) -> list[Moments]:
    """Return the moments of all shards together, in their order.

    Examples
    --------
    >>> a, b = _moments(np.array([[1.0], [3.0]]), 1), _moments(np.array([[8.0]]), 1)
    >>> total_moments([[a], [b]])
    [Moments(size=3, mean=array([4.]), squares=array([26.]))]
    """
    return [_total(of) for of in zip(*parts)]


def _total(parts: Sequence[Moments]) -> Moments:
    size = sum(p.size for p in parts)
    mean = sum(p.mean * (p.size / size) for p in parts)
    squares = sum(p.squares + (p.mean - mean) ** 2 * p.size for p in parts)
    return Moments(size, np.asarray(mean), np.asarray(squares))

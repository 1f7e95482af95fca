"""The norm of a gradient: added up in an order that slices, threads and workers cannot change."""

from __future__ import annotations

import math

import numpy as np

from ..typing import Array

# Entries whose squares are added up at a time, from the beginning of the flat vector; slices that start and stop at multiples of
# this give the same sums as the whole vector.
NORM_BLOCK = 4096
# Sums that run side by side within a block, so that a compiler can use wide registers.
NORM_LANES = 64


def block_norms(g: Array) -> Array:
    """Return the sum of squares of each block of `NORM_BLOCK` entries, in float64.

    The order of the additions depends on the position in the vector alone: entry ``64 i + j`` of a block is added to sum ``j``,
    in the order of ``i``; then halves are added until one is left.

    Parameters
    ----------
    g : ndarray (P,)
        A gradient, or a slice of one that begins at a multiple of `NORM_BLOCK`.

    Returns
    -------
    ndarray (ceil(P / NORM_BLOCK),)

    Examples
    --------
    >>> import numpy as np
    >>> block_norms(np.ones(5000))
    array([4096.,  904.])
    """
    padded = np.zeros(-(-len(g) // NORM_BLOCK) * NORM_BLOCK)
    with np.errstate(over="ignore", invalid="ignore"):  # `norm_of` looks
        np.multiply(g, g, out=padded[: len(g)], dtype=np.float64)
    rows = padded.reshape(-1, NORM_BLOCK // NORM_LANES, NORM_LANES)
    sums = rows[:, 0].copy()
    for i in range(1, rows.shape[1]):
        sums += rows[:, i]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]


def norm_of(g: Array) -> float:
    """Return the Euclidean norm of a gradient; where its square is too large for a number, by its entries over the largest.

    Examples
    --------
    >>> norm_of(np.array([0.0, -1e200]))
    1e+200
    """
    total = 0.0
    for block in block_norms(g).tolist():
        total += block
    norm = math.sqrt(total)
    if math.isinf(norm):
        largest = float(np.abs(g).max())
        if math.isfinite(largest):
            return largest * norm_of(g / largest)
    return norm


def scale_of(g: Array, clip_norm: float) -> float:
    """Return the factor that brings a gradient down to norm `clip_norm`; 1 where it is not longer.

    ``g *= clip_norm / |g| if |g| > clip_norm`` (R. Pascanu, T. Mikolov, Y. Bengio, ICML 2013, algorithm 1).

    Parameters
    ----------
    g : ndarray (P,)
        The whole gradient.
    clip_norm : float

    Returns
    -------
    float
        nan where the norm is not finite, so that the loss of the next step tells.

    Examples
    --------
    >>> scale_of(np.array([3.0, 4.0]), 1.0)
    0.2
    """
    norm = norm_of(g)
    if not math.isfinite(norm):
        return math.nan
    return clip_norm / norm if norm > clip_norm else 1.0

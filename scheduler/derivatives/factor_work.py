"""What is computed from the factors of one block of samples, in this process or by a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from flowgrad.jacobians import Factors
from flowgrad.typing import Array

from ..machine.arrays import empty_array
from ..machine.threads import each_side_by_side, spread

# By variable.
Part = list[Factors]
Places = Sequence[tuple[int, int, int] | int]
# Entries of a result from which on it is worth several threads.
THREADED = 1 << 20


def array_of(part: Part, places: Places, threads: int = 1) -> Array:
    """Return the gradients by several nodes, laid end to end, ``(N, sum of dims)``."""
    size = sum(p if isinstance(p, int) else p[2] - p[1] for p in places)
    samples = part[0].samples
    out = empty_array((samples, size), part[0].dtype)
    if threads == 1 or out.size < THREADED:
        _write(part, places, out)
    else:
        spread(lambda lo, hi: _write([f.of(lo, hi) for f in part], places, out[lo:hi]), samples, threads)
    return out


def _write(part: Part, places: Places, out: Array) -> None:
    start = 0
    for place in places:
        if isinstance(place, int):
            out[:, start : start + place] = 0
            start += place
        else:
            wrt, lo, hi = place
            part[wrt].write(lo, hi, out[None, :, start : start + hi - lo])
            start += hi - lo


def norms_of(part: Part) -> Array:
    """Return the norms ``(N,)``."""
    total = part[0].squared_norms()
    for more in part[1:]:
        total += more.squared_norms()
    # Rounding may leave a sum of cross terms a little below zero.
    return np.sqrt(np.maximum(total, 0, out=total), out=total)


def dot_of(part: Part, other: Part | None, each: Callable[..., Iterable[Any]] = map) -> Array:
    """Return the scalar products ``(N, M)``; `each` is like ``map``."""
    shape = (part[0].samples, (other or part)[0].samples)
    total = part[0].dot(None if other is None else other[0], each, empty_array(shape, part[0].dtype))
    for k, more in enumerate(part[1:], 1):
        total += more.dot(None if other is None else other[k], each)
    return total


def dot_here(part: Part, other: Part | None, threads: int) -> Array:
    """Return the scalar products ``(N, M)``, many of them tile by tile in several threads."""
    alone = threads == 1 or part[0].samples * (other or part)[0].samples < THREADED
    return dot_of(part, other, map if alone else each_side_by_side)


def project_of(part: Part, ranges: Sequence[Sequence[tuple[int, int, int]]], k: int, seed: int) -> Array:
    """Return the projections ``(N, k)``."""
    total = part[0].project(ranges[0], k, seed)
    for more, its in zip(part[1:], ranges[1:]):
        total += more.project(its, k, seed)
    return total


def sum_of(part: Part, max_norm: float | None, scale: float) -> Array:
    """Return the sum over the samples, clipped if asked for, times `scale`, all variables laid end to end."""
    if max_norm is None:
        weights = np.full(part[0].samples, scale, part[0].dtype)
    else:
        weights = clip_weights(norms_of(part), max_norm) * scale
    return np.concatenate([factors.sum(weights)[0] for factors in part])


def squares_of(part: Part, scale: float) -> Array:
    """Return the sum of the squared entries over rows and samples times `scale`, all variables laid end to end."""
    return np.concatenate([factors.square_sum() for factors in part]) * part[0].dtype.type(scale)


def clip_weights(norms: Array, max_norm: float) -> Array:
    """Return ``min(1, max_norm / norm)``."""
    return max_norm / np.maximum(norms, max_norm)

"""Results over blocks of samples as dask arrays. Loaded when the first is asked for: ``dask.array`` takes a while to import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask import delayed


def rows(
    func: Callable[..., Any],
    parts: Sequence[Any],
    lengths: Sequence[int],
    tail: tuple[int, ...],
    dtype: Any,
    *args: Any,
) -> Any:
    """Return ``func(part, *args)`` of every block, one below the other."""
    return da.concatenate(
        [da.from_delayed(delayed(func)(part, *args), (n, *tail), dtype) for part, n in zip(parts, lengths)]
    )


def total(func: Callable[..., Any], parts: Sequence[Any], size: int, dtype: Any, *args: Any) -> Any:
    """Return the sum of ``func(part, *args)`` over all blocks."""
    return da.stack([da.from_delayed(delayed(func)(part, *args), (size,), dtype) for part in parts]).sum(axis=0)


def pairs(
    func: Callable[..., Any],
    left: Sequence[Any],
    right: Sequence[Any] | None,
    n: Sequence[int],
    m: Sequence[int],
    dtype: Any,
) -> Any:
    """Return ``func(a, b)`` of all pairs of blocks as one matrix.

    Without `right` it is symmetric, with ``func(a, None)`` on the diagonal.
    """
    grid: list[list[Any]] = []
    for i, a in enumerate(left):
        if right is not None:
            grid.append([delayed(func)(a, b) for b in right])
        else:
            above = [delayed(np.transpose)(grid[j][i]) for j in range(i)]
            grid.append([*above, delayed(func)(a, None), *(delayed(func)(a, b) for b in left[i + 1 :])])
    return da.block(
        [[da.from_delayed(x, (n[i], m[j]), dtype) for j, x in enumerate(line)] for i, line in enumerate(grid)]
    )


def zeros(size: int, dtype: Any) -> Any:
    """Return zeros."""
    return da.zeros(size, dtype=dtype)

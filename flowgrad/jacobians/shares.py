"""One use of variables in a derivative: two factors, and where their outer product lies in a flat vector."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..typing import Array
from .base import add_at
from .outer import WIDE, scale_rows


class OuterShare(NamedTuple):
    """One share: factors and place.

    Attributes
    ----------
    delta : ndarray (V, N, k)
        ``N == 1`` where all samples are alike.
    row : ndarray (N, n), or None
        None: a row of one 1.
    start : int
        The share covers ``start : start + k * n`` of the vector;
    entries : int array, or None
        or, in its order, these entries, which may repeat.
    """

    delta: Array
    row: Array | None
    start: int = 0
    entries: Array | None = None

    @property
    def width(self) -> int:
        """Length of the rows."""
        return 1 if self.row is None else self.row.shape[1]

    @property
    def span(self) -> tuple[int, int]:
        """First entry, and one past the last."""
        if self.entries is not None:
            return int(self.entries.min()), int(self.entries.max()) + 1
        return self.start, self.start + self.delta.shape[2] * self.width

    @property
    def place(self) -> Any:
        """Where the factors lie; equal for shares that can be multiplied factor by factor."""
        return None if self.entries is not None else (self.start, self.delta.shape[2], self.width)

    def of(self, samples: slice) -> OuterShare:
        """Return that of some samples; nothing is copied."""
        delta = np.swapaxes(cut(np.swapaxes(self.delta, 0, 1), samples), 0, 1)
        return self._replace(delta=delta, row=None if self.row is None else cut(self.row, samples))


def write_share(share: OuterShare, a: int, b: int, out: Array) -> None:
    """Write entries ``a:b`` of a share that lies end to end into `out` ``(V, N, b - a)``."""
    n = share.width
    if share.row is None:
        out[...] = share.delta[:, :, a:b]
        return
    first, last = a // n, -(-b // n)
    if last - first == 1:
        np.multiply(share.delta[:, :, first:last], share.row[:, a - first * n : b - first * n], out=out)
    elif a % n == 0 and b % n == 0:
        wide = out.reshape(*out.shape[:2], last - first, n)
        if n < WIDE and max(share.delta.shape[1], len(share.row)) == out.shape[1]:  # half of the time of `multiply`
            np.einsum("vnk,ni->vnki", share.delta[:, :, first:last], share.row, out=wide)
        else:
            scale_rows(share.delta[:, :, first:last], share.row[:, None, :], wide)
    else:
        block = share.delta[:, :, first:last, None] * share.row[:, None, :]
        out[...] = block.reshape(*block.shape[:2], -1)[:, :, a - first * n : b - first * n]


def add_share(share: OuterShare, a: int, b: int, part: Array, lo: int, out: Array) -> None:
    """Add entries ``a:b`` of a share to `part`, the same entries of `out`, which begins at `lo`."""
    if share.entries is None:
        block = np.empty_like(part)
        write_share(share, a - share.start, b - share.start, block)
        part += block
        return
    values = share.delta
    if share.row is not None:
        values = (values[..., None] * share.row[:, None, :]).reshape(*np.broadcast_shapes(
            values.shape[:2], (1, len(share.row))), -1)  # fmt: skip
    inside = (share.entries >= a) & (share.entries < b)
    add_at(out, share.entries[inside] - lo, values[:, :, inside])


def cut(factor: Array, samples: slice) -> Array:
    """Return a factor of some samples; one row serves all."""
    return factor if len(factor) == 1 else factor[samples]

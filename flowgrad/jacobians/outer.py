"""Outer products written into place: what large derivatives spend their time with."""

from __future__ import annotations

import numpy as np

from ..typing import Array

# Length of a row from which on it is worth it; entries of the smallest buffer that NumPy takes.
WIDE = 128
SMALLEST_BUFFER = 16


def scale_rows(g: Array, rows: Array, out: Array) -> None:
    """Write each row times an entry of the cotangent.

    NumPy copies what is repeated into a buffer first wherever a row is shorter than the buffer, which takes three times as long
    as the products. In the smallest buffer no wide row has room.

    Parameters
    ----------
    g : ndarray (V, N, k)
    rows : ndarray (N, k, n)
        Of 1 where all samples, or all entries, have the same row; so `g` may have one sample for all.
    out : ndarray (V, N, k, n)

    Examples
    --------
    >>> out = np.empty((1, 1, 2, 3))
    >>> scale_rows(np.array([[[1.0, 10.0]]]), np.array([[[1.0, 2.0, 3.0]]]), out)
    >>> out.tolist()
    [[[[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]]]
    """
    if out.shape[3] < WIDE:
        np.multiply(g[..., None], rows, out=out)
        return
    before = np.setbufsize(SMALLEST_BUFFER)  # of this thread
    try:
        np.multiply(g[..., None], rows, out=out)
    finally:
        np.setbufsize(before)

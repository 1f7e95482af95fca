"""Large arrays in memory that was used before: fresh pages from the system cost more than the arithmetic that fills them.

A buffer is free when nobody but this module refers to it; NumPy's views refer to the array that owns their memory.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np

from flowgrad.typing import Array

# Bytes of arrays that are worth it; buffers that are kept, and their bytes together.
LEAST, MOST, COUNT, TOTAL = 1 << 18, 128 << 20, 16, 256 << 20

_lock = threading.Lock()
_buffers: list[Array] = []
# References to a free buffer: the list's, the loop variable's, and the argument of `getrefcount`.
_FREE = 3


def empty_array(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an array with arbitrary content, like ``np.empty``; large ones take over memory that nobody uses any more."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if not LEAST <= size <= MOST:
        return np.empty(shape, dtype)
    with _lock:
        for buffer in _buffers:
            if size <= buffer.nbytes <= 2 * size and sys.getrefcount(buffer) == _FREE:
                return buffer[:size].view(dtype).reshape(shape)
        fresh = np.empty(size, np.uint8)
        _buffers.append(fresh)
        while len(_buffers) > COUNT or sum(b.nbytes for b in _buffers) > TOTAL:
            del _buffers[0]
        return fresh.view(dtype).reshape(shape)


def clear_arrays() -> None:
    """Give the memory back."""
    with _lock:
        _buffers.clear()


def canonical(x: Array) -> Array:
    """Return `x` aligned and C-contiguous: other memory layouts give other bits in sums and matrix products."""
    return x if x.flags.aligned and x.flags.c_contiguous else np.array(x, order="C")

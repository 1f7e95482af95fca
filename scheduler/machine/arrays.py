"""Memory of arrays: aligned as bits need it, large results in memory that was used before, and one bound on all that is kept.

Fresh pages from the system cost more than the arithmetic that fills them. So memory of large results and buffers of kernels stay
in this process when they are let go of, `ROOM` bytes of them together at most, until `clear_room`.
"""

from __future__ import annotations

import ctypes
import math
from collections import OrderedDict, deque
from collections.abc import Hashable
from contextlib import suppress
from pickle import PickleBuffer
from typing import Any

import numpy as np

from flowgrad.typing import Array

from .forks import forked_lock

# Bytes that are kept to be used again: memory of results, of arrays that are worth it, and buffers of kernels.
ROOM = 256 << 20
LEAST, MOST = 1 << 18, ROOM // 2
# A vector is cut at multiples of this many entries: so threads do not share cache lines, and only its last entries are left over
# from vector code, which rounds otherwise.
CACHE_LINE = 64
# Of the GNU C library's malloc.h; it accepts no larger threshold.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGEST_FROM_HEAP = -1, -3, 1 << 25

_free: deque[Array] = deque()


class _Owner:
    """The base of an array, and of all views of it: gives the memory back when the last of them dies.

    That may happen in any thread and at any time, also while memory is handed out: so it takes no lock.
    """

    __slots__ = ("__array_interface__", "__weakref__", "memory")

    def __init__(self, memory: Array, size: int):
        self.memory = memory
        self.__array_interface__ = {**memory[:size].__array_interface__}

    def __del__(self) -> None:
        _free.append(self.memory)
        # Somebody else may change the deque meanwhile, who will bound it then.
        with suppress(RuntimeError, IndexError):
            while sum(memory.nbytes for memory in tuple(_free)) > MOST:
                _free.popleft()


def empty_array(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an array with arbitrary content, like ``np.empty``; large ones take over memory that nobody uses any more."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if not LEAST <= size <= MOST:
        return np.empty(shape, dtype)
    memory = None
    for _ in range(len(_free)):
        try:
            one = _free.pop()  # what was let go of last is in the processor's cache
        except IndexError:  # another thread was faster
            break
        if size <= one.nbytes <= 2 * size:
            memory = one
            break
        _free.appendleft(one)
    owner = _Owner(np.empty(size, np.uint8) if memory is None else memory, size)
    return np.asarray(owner).view(dtype).reshape(shape)


class Frames:
    """Sets of buffers that are kept for the next call, those used last; each caller gets a set of its own."""

    def __init__(self, limit: int):
        self.limit, self.nbytes = limit, 0
        self._lock = forked_lock()
        self._sets: OrderedDict[Hashable, list[list[Array]]] = OrderedDict()

    def take(self, key: Hashable) -> list[Array] | None:
        """Return a set that was given under this key, which is the caller's then; None if there is none."""
        with self._lock:
            sets = self._sets.get(key)
            if not sets:
                return None
            frame = sets.pop()
            if not sets:
                del self._sets[key]
            self.nbytes -= _size(frame)
            return frame

    def give(self, key: Hashable, frame: list[Array]) -> None:
        """Keep a set; those that were not used for longest go where there is no room for all."""
        with self._lock:
            self._sets.setdefault(key, []).append(frame)
            self._sets.move_to_end(key)
            self.nbytes += _size(frame)
            while self.nbytes > self.limit:
                oldest = next(iter(self._sets))
                self.nbytes -= _size(self._sets[oldest].pop())
                if not self._sets[oldest]:
                    del self._sets[oldest]

    def clear(self) -> None:
        """Drop all of them."""
        with self._lock:
            self._sets.clear()
            self.nbytes = 0


def _size(frame: list[Array]) -> int:
    return sum(array.nbytes for array in frame)


# The buffers of all kernels of this process.
frames = Frames(ROOM - MOST)


def room_bytes() -> int:
    """Return the bytes that are kept in this process to be used again."""
    for _ in range(3):
        with suppress(RuntimeError):
            return sum(memory.nbytes for memory in tuple(_free)) + frames.nbytes
    return frames.nbytes


def clear_room() -> None:
    """Give the memory back."""
    _free.clear()
    frames.clear()


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, `ROOM` bytes at most, where the C library can.

    What comes over a network is read into new memory, and dask sets its workers to give all that is freed back at once: then
    every page of every message is fetched from the system anew, which takes as long as the message.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP)
        mallopt(M_TRIM_THRESHOLD, ROOM)


def canonical(x: Array) -> Array:
    """Return `x` aligned and C-contiguous: other memory layouts give other bits in sums and matrix products."""
    return x if x.flags.aligned and x.flags.c_contiguous else np.array(x, order="C")


class Aligned:
    """An array on its way to another process, where a plain array comes out that is aligned.

    What comes over a network lies wherever its message does; NumPy copies such an array as a whole for each read of some rows.
    """

    def __init__(self, array: Array):
        self.array = np.ascontiguousarray(array)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as what makes the array."""
        if protocol < 5:
            return self.array.__reduce_ex__(protocol)
        data: Any = self.array.reshape(-1).view(np.uint8)
        return _settle, (PickleBuffer(data), self.array.dtype, self.array.shape)

    def __sizeof__(self) -> int:
        return 64 + self.array.nbytes


def _settle(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    settled = np.empty(shape, dtype)
    settled.reshape(-1).view(np.uint8)[...] = np.frombuffer(data, np.uint8)
    return settled


def aligned(value: Any) -> Any:
    """Return a value to send away, whose arrays will be aligned where it arrives; arrays may lie in tuples, lists and dicts."""
    if type(value) is np.ndarray and value.dtype.kind in "fiub" and value.size:
        return Aligned(value)
    if type(value) in (tuple, list):
        return type(value)(map(aligned, value))
    return {k: aligned(v) for k, v in value.items()} if type(value) is dict else value

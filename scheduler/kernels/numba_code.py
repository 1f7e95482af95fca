"""A table ready to walk: addresses of kernels, memory, and what Python does on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from flowgrad.typing import Array

from ..machine import frames, one_thread, without_subnormals
from . import numba_walk as w
from .numba_library import addresses_of, blas_address, walker
from .numpy_kernel import run_instr
from .table import ALIGNED, COPY, EXTRA, FEEDS, FRAME, INDICES, NUMBERS, SUM, Table, View


def aligned_bytes(size: int) -> Array:
    """Return so many bytes of memory that begin where a cache line does."""
    room = np.empty(size + ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED
    return room[start : start + size]


@contextmanager
def room(sizes: Sequence[int]) -> Iterator[list[Array]]:
    """Lend memory of so many bytes each, which is kept for the next walk that needs as much."""
    key = ("walk", *sizes)
    arrays = frames.take(key) or [aligned_bytes(size) for size in sizes]
    yield arrays
    frames.give(key, arrays)


class Code:
    """A table as numbers.

    Parameters
    ----------
    samples, directions : int
        Samples of a walk, at most; rows of a cotangent.

    Attributes
    ----------
    frame : int
        Bytes of memory that a walk needs beside what it is given.
    """

    def __init__(self, table: Table, dtype: np.dtype[Any], samples: int, directions: int = 1):
        self.table, self.dtype, self.samples, self.directions = table, dtype, samples, directions
        size = dtype.itemsize
        self.code, self.frame = table.numbered(samples, directions, size, addresses_of(table.kernels, dtype))
        self.offsets, _ = table.offsets(samples, directions, size)
        self.numbers, self.units = table.numbers.astype(dtype), np.array([0.0, 1.0], dtype)
        self.common = addresses_of([SUM, COPY], dtype)

    def context(self, frame: Array, sync: Array) -> Array:
        """Return a context that stands at the first row, without the places of what is given.

        Parameters
        ----------
        frame : ndarray
            Memory of the walk's own.
        sync : ndarray (2,)
            Shared by the threads of a walk; to set ``sync[1]`` ends it.
        """
        ctx = np.zeros(w.BASES + FEEDS + self.table.feeds + max(self.table.feeds, len(self.table.outputs)), np.int64)
        ctx[[w.SAMPLES, w.DIRECTIONS, w.SIZE, w.THREADS]] = self.samples, self.directions, self.dtype.itemsize, 1
        ctx[[w.ADD, w.COPY_ROW, w.BLAS]] = *self.common, blas_address(self.dtype)
        ctx[[w.ZERO, w.ONE]] = self.units.ctypes.data, self.units.ctypes.data + self.dtype.itemsize
        lay(ctx, {w.SYNC: sync})
        lay(ctx, {w.BASES + FRAME: frame, w.BASES + NUMBERS: self.numbers, w.BASES + INDICES: self.table.indices})
        return ctx

    def array(self, view: View, ctx: Array) -> Array:
        """Return a value or cotangent where it lies, as NumPy sees it."""
        slot = self.table.slots[view.slot]
        size, batched = self.dtype.itemsize, slot.type.batched
        start = int(ctx[w.BASES + slot.space]) + int(self.offsets[view.slot]) + view.start * size
        shape: tuple[int, ...] = (int(ctx[w.SAMPLES]) if batched else 1, view.dim)
        strides: tuple[int, ...] = (slot.type.dim * size, size)
        if slot.type.cotangent:
            shape = self.directions, *shape
            strides = (self.samples if batched else 1) * strides[0], *strides
        return np.asarray(_Lent(start, shape, strides, self.dtype))

    def walk(self, ctx: Array, measure: Callable[[], None] | None = None) -> None:
        """Walk to the end, or until it is told to stop; what no kernel does, Python does on the way, and `measure` the norm."""
        run, code, context = walker(), self.code.ctypes.data, ctx.ctypes.data
        while (why := run(code, context)) in (w.CALL, w.PAUSE, w.MEASURE):
            if why == w.MEASURE and measure is not None:
                measure()
            if why == w.CALL:
                instr, out, args = self.table.calls[self.code[ctx[w.ROW] - 1, EXTRA]]
                self.array(out, ctx)[...] = run_instr(instr, *(self.array(a, ctx) for a in args))


class _Lent:
    """Memory of a walk as an array."""

    def __init__(self, start: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]):
        self.__array_interface__ = {
            "data": (start, False), "shape": shape, "strides": strides, "typestr": dtype.str, "version": 3,
        }  # fmt: skip


def lay(ctx: Array, arrays: dict[int, Array]) -> None:
    """Write addresses of arrays into a context; who calls keeps the arrays alive."""
    for place, array in arrays.items():
        ctx[place] = array.ctypes.data


def run_threads(work: Callable[[int], None], threads: int, sync: Array) -> None:
    """Run ``work(k)`` in `threads` threads, this one among them; an error in one of them, or a signal, ends them all."""
    errors: list[BaseException] = []

    @without_subnormals
    def guarded(k: int) -> None:
        try:
            work(k)
        except BaseException as error:
            sync[1] = 1
            errors.append(error)

    helpers = [threading.Thread(target=guarded, args=(k,), daemon=True) for k in range(1, threads)]
    with one_thread():
        for helper in helpers:
            helper.start()
        guarded(0)
        for helper in helpers:
            helper.join()
    if errors:
        raise errors[0]

"""Memory of large results is used again only when nobody refers to it."""

import numpy as np

from flowgrad.scheduler import buffers

SHAPE = (300, 1000)


def test_memory_is_used_again_when_the_last_view_is_gone():
    buffers.clear()
    first = buffers.empty(SHAPE, float)
    address = first.ctypes.data
    view = first.T[5:]
    held = memoryview(view)
    del first, view
    assert buffers.empty(SHAPE, float).ctypes.data != address
    del held
    again = buffers.empty(SHAPE, np.float64)
    assert again.ctypes.data == address
    assert again.flags.c_contiguous
    assert again.flags.writeable
    buffers.clear()


def test_results_never_share_memory():
    buffers.clear()
    held = [buffers.empty(SHAPE, np.float32) for _ in range(5)]
    for k, array in enumerate(held):
        array[...] = k
    assert [array.min() for array in held] == [array.max() for array in held] == list(range(5))
    small = buffers.empty((2, 2), float)
    assert small.base is None
    buffers.clear()

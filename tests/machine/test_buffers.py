"""Memory of large results is used again only when nobody refers to it."""

import gc

import numpy as np

import flowgrad as fg
from flowgrad.scheduler.machine.arrays import clear_arrays, empty_array

SHAPE = (300, 1000)


def test_memory_is_used_again_when_the_last_view_is_gone():
    clear_arrays()
    first = empty_array(SHAPE, float)
    address = first.ctypes.data
    view = first.T[5:]
    held = memoryview(view)
    del first, view
    assert empty_array(SHAPE, float).ctypes.data != address
    del held
    again = empty_array(SHAPE, np.float64)
    assert again.ctypes.data == address
    assert again.flags.c_contiguous
    assert again.flags.writeable
    clear_arrays()


def test_results_never_share_memory():
    clear_arrays()
    held = [empty_array(SHAPE, np.float32) for _ in range(5)]
    for k, array in enumerate(held):
        array[...] = k
    assert [array.min() for array in held] == [array.max() for array in held] == list(range(5))
    small = empty_array((2, 2), float)
    assert small.base is None
    clear_arrays()


def test_results_are_let_go_of_without_a_collection():
    with fg.Graph(seed=0):
        x = fg.Variable(300, trainable=False)
        y = fg.Tanh(fg.MatVec(fg.Variable(300 * 20, np.linspace(-1, 1, 6000)), x))
    engine = fg.Engine("threads")
    data = np.random.default_rng(0).normal(size=(100, 300))
    gc.disable()
    try:
        addresses = set()
        for _ in range(5):
            data[0, 0] += 1
            addresses.add(engine.jacobian(y, x, {x: data}).ctypes.data)
        assert len(addresses) == 1
    finally:
        gc.enable()

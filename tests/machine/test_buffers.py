"""Memory of large results is used again only when nobody refers to it."""

import gc
import pickle
import sys
import threading
import time

import numpy as np

import flowgrad as fg
from flowgrad.scheduler.machine.arrays import ROOM, clear_room, empty_array, frames, room_bytes

SHAPE = (300, 1000)


def test_memory_is_used_again_when_the_last_view_is_gone():
    clear_room()
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
    clear_room()


def test_results_never_share_memory():
    clear_room()
    held = [empty_array(SHAPE, np.float32) for _ in range(5)]
    for k, array in enumerate(held):
        array[...] = k
    assert [array.min() for array in held] == [array.max() for array in held] == list(range(5))
    small = empty_array((2, 2), float)
    assert small.base is None
    clear_room()


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


def test_the_last_view_may_be_any_view():
    clear_room()
    first = empty_array(SHAPE, float)
    address, last = first.ctypes.data, first[::2].T.reshape(-1)[3:].view(np.int64)
    copied = pickle.loads(pickle.dumps(first))
    assert not np.may_share_memory(copied, first)
    inner = first[10:20].T[1:]
    del first, last
    assert empty_array(SHAPE, float).ctypes.data != address  # `inner` still reads it
    del inner
    assert empty_array(SHAPE, float).ctypes.data == address
    clear_room()


def test_what_is_in_use_is_never_handed_out_whatever_counts_references(monkeypatch):
    """On Python 3.14 a local counts one reference less: nothing may hang on such counts."""
    monkeypatch.setattr(sys, "getrefcount", lambda thing: 3)
    clear_room()
    held = [empty_array(SHAPE, np.float32) for _ in range(8)]
    assert len({a.ctypes.data for a in held}) == 8


def test_memory_comes_back_while_it_is_handed_out():
    """The last view dies in a collection that starts within `empty_array`."""
    clear_room()

    class Cycle:
        def __init__(self):
            self.me, self.array = self, empty_array(SHAPE, float)

    gc.disable()
    try:
        before = Cycle().array.ctypes.data
        threshold = gc.get_threshold()
        gc.enable()
        gc.set_threshold(1, 1, 1)
        seen = {empty_array(SHAPE, float).ctypes.data for _ in range(5)}
        assert before in seen
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
        clear_room()


def test_many_threads_never_share_memory():
    clear_room()
    wrong = []

    def work(number):
        for k in range(200):
            array = empty_array((300, 1000 + k % 3), np.float32)
            array[...] = number
            time.sleep(0)
            if array.min() != number or array.max() != number:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert room_bytes() <= ROOM
    clear_room()
    assert room_bytes() == 0


def test_kept_memory_is_bounded_and_cleared():
    clear_room()
    for k in range(40):
        empty_array((1 << 20, 2 + k), np.uint8)
    assert 0 < room_bytes() <= ROOM
    with fg.Graph(seed=0):
        x = fg.Variable(1000, trainable=False)
        nodes = [fg.Tanh(fg.Scale(x, 0.5 + k)) for k in range(12)]
    engine = fg.Engine("sync")
    for node in nodes:  # each has a kernel of its own
        engine.forward(node, {x: np.ones((2000, 1000))})
    assert 0 < frames.nbytes <= ROOM
    info = engine.cache_info()
    assert info.room == room_bytes() <= info.room_limit == ROOM
    engine.clear_cache()
    assert engine.cache_info().room == 0

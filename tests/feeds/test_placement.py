"""What is placed on workers lies aligned there, and whoever reads rows of it copies no more than those."""

import pickle
import tracemalloc

import numpy as np
import pytest
from models import Model

import flowgrad as fg
from flowgrad.scheduler.machine.arrays import Aligned, aligned, canonical
from flowgrad.scheduler.steps.work import Scratch


def misaligned(array):
    """The same numbers at an address that is no multiple of their size."""
    room = np.empty(array.nbytes + 1, np.uint8)
    found = room[1:].view(array.dtype).reshape(array.shape)
    found[...] = array
    assert not found.flags.aligned
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_what_is_sent_away_arrives_aligned(dtype):
    array = np.arange(60).reshape(12, 5).astype(dtype)[::2]
    buffers = []
    data = pickle.dumps(Aligned(array), protocol=5, buffer_callback=buffers.append)
    there = pickle.loads(data, buffers=[bytearray(b) for b in buffers])
    assert type(there) is np.ndarray
    assert there.flags.aligned
    assert there.flags.c_contiguous
    np.testing.assert_array_equal(there, array)
    again = pickle.loads(pickle.dumps(aligned({"w": array, "t": (array, [1.0])}), protocol=5))
    np.testing.assert_array_equal(again["t"][0], array)


def test_rows_of_a_misaligned_feed_are_taken_alone():
    feed = misaligned(np.random.default_rng(0).random((50_000, 64), np.float32))
    scratch, rows = Scratch(), np.array([3, 49_999, 3, 7])
    tracemalloc.start()
    taken = scratch.take(0, feed, rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken.tobytes() == canonical(feed)[rows].tobytes()
    assert peak < feed.nbytes / 10


class Look(fg.Callback):
    """Looks at what workers hold, once in an epoch."""

    def __init__(self, client):
        self.client, self.seen = client, []

    def on_steps(self, info):
        self.seen += [found for each in self.client.run(arrays_held).values() for found in each]


def arrays_held(dask_worker):
    found, stack = [], list(dask_worker.data.values())
    while stack:
        value = stack.pop()
        if isinstance(value, np.ndarray) and value.nbytes > 64:
            found.append((value.shape, bool(value.flags.aligned and value.flags.c_contiguous)))
        elif isinstance(value, (list, tuple)):
            stack += value
        elif isinstance(value, dict):
            stack += value.values()
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("grain", ["round", "shard"])
def test_no_worker_holds_a_feed_or_state_that_is_misaligned(client, grain):
    model, look = Model("Adam", batch_size=4), Look(client)
    engine = fg.Engine(client, grain=grain, shards=2, kernel="numpy")
    fg.Trainer(model.optimizer, engine, callbacks=[look]).fit(model.feeds, epochs=2)
    feeds = [shape for shape, _ in look.seen if shape[0] == 10]
    assert feeds
    assert all(straight for shape, straight in look.seen if shape[0] == 10), look.seen

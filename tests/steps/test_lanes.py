"""Where the parts of a step run: shards on all workers."""

import os
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from dask.sizeof import sizeof
from faults import BATCH, Net, train
from hypothesis import given
from hypothesis import strategies as st

import flowgrad as fg
from flowgrad.scheduler.costs.plan import Plan, tasks_per_step
from flowgrad.scheduler.executors import Executor, Handle, Worker
from flowgrad.scheduler.feeds.placement import Lane, Placement
from flowgrad.scheduler.steps.lanes import LaneInputs
from flowgrad.scheduler.steps.lower import lower_steps
from flowgrad.scheduler.tasks import tree
from flowgrad.scheduler.tasks.keys import Ref
from flowgrad.scheduler.tasks.records import Task, TaskGraph, references


class Recording(Executor):
    """Runs nothing; notes what is placed where."""

    def __init__(self):
        self.name, self.threads, self.placed, self.gone = "recording", 1, [], set()

    def workers(self, avoid=()):
        raise AssertionError("not needed")

    def put(self, data, worker=None):
        self.placed += [(key.split("-")[0], worker) for key in data]
        return [Handle(key, worker) for key in data]

    def submit(self, records, keys, workers=(), only=False):
        raise AssertionError("planning computes nothing")

    def result(self, handles):
        raise AssertionError("planning computes nothing")

    compute = future = result

    def alive(self, handle):
        return handle.future not in self.gone

    def release(self, handles):
        for h in handles:
            h.future = None


def workers(*threads, memory=0):
    return [Worker(f"w{k}", n, memory) for k, n in enumerate(threads)]


# -- planning --


@pytest.mark.parametrize(
    ("threads", "shards", "expected"),
    [
        ((1, 1), 4, [(0, 0, 2), (1, 2, 4)]),
        ((1, 1), 1, [(0, 0, 1)]),
        ((2,), 4, [(0, 0, 4)]),
        ((3, 1), 4, [(0, 0, 3), (1, 3, 4)]),
        ((8, 1), 4, [(0, 0, 4)]),
        ((1, 1, 1), 2, [(0, 0, 1), (1, 1, 2)]),
    ],
)
def test_lanes(threads, shards, expected):
    placement = Placement(Recording(), "program", None, [np.zeros((6, 2))])
    lanes = placement.lanes(workers(*threads), shards, False, 1)
    assert [(lane.worker, lane.first, lane.stop) for lane in lanes] == expected


def test_feeds_are_placed_once_per_worker_that_needs_them_and_again_when_lost():
    executor = Recording()
    placement = Placement(executor, "program", np.zeros((1, 1)), [np.zeros((6, 2)), np.zeros((6, 1))])
    per_worker = ["program", "const", "feed", "feed"]
    first = placement.lanes(workers(1, 1, 1), 2, False, 1)
    assert executor.placed == [(name, w) for w in ("w0", "w1") for name in per_worker]
    assert placement.lanes(workers(1, 1, 1), 2, False, 1) == first
    assert len(executor.placed) == 8
    executor.gone.add("w1")
    again = placement.lanes(workers(1, 1, 1), 2, False, 1)
    assert executor.placed[8:] == [(name, "w1") for name in per_worker]
    assert again[0] == first[0]
    assert not set(again[1].feeds) & set(first[1].feeds)  # new keys: the old ones are spoilt


def test_one_lane_for_a_round():
    executor = Recording()
    (lane,) = Placement(executor, "program", None, [np.zeros((6, 2))]).lanes(workers(1, 1), 4, True, 2)
    assert (lane.worker, lane.first, lane.stop, lane.threads) == (0, 0, 4, 2)
    assert {w for _, w in executor.placed} == {"w0"}


def test_feeds_larger_than_a_worker_are_read_by_the_bucket():
    placement = Placement(Recording(), "program", None, [np.zeros((100, 10))])
    assert not placement.bucketed(workers(1, memory=1 << 20))
    assert placement.bucketed(workers(1, memory=10_000))
    assert not placement.bucketed(workers(1))


def lowered(lanes=2, steps=3):
    graph = TaskGraph()
    plan = Plan("shard", 4, "numpy", 1, 10, "")
    found = [Lane(k, Ref(f"p{k}"), None, [Ref(f"f{k}")], 2 * k, 2 * k + 2) for k in range(lanes)]
    rows = [[np.arange(s, s + 2) for s in range(4)] for _ in range(steps)]
    after = lower_steps(graph, plan.grain, found, Ref("s"), rows, SimpleNamespace(draws=None))
    return graph.records, after


def kinds(records):
    return Counter((key.rsplit("-", 1)[0], r.worker) for key, r in records.items() if isinstance(r, Task))


def test_a_step_is_a_task_per_lane_and_an_update():
    records, after = lowered()
    assert after.key in records
    assert kinds(records) == {
        ("inputs", 0): 1,
        ("inputs", 1): 1,
        ("weights", 0): 3,
        ("gradient", 0): 3,
        ("gradient", 1): 3,
        ("update", 0): 3,
    }
    assert sum(kinds(records).values()) == 2 + 3 * tasks_per_step("shard", 4, lanes=2)


def test_a_step_of_a_single_lane_is_one_task():
    records, after = lowered(lanes=1)
    assert after.key in records
    assert kinds(records) == {("inputs", 0): 1, ("step", 0): 3}


def test_tasks_of_a_step_refer_to_one_value_besides_each_other():
    records, _ = lowered()
    for key, record in records.items():
        outside = references([record]) - set(records)
        reads = ({"p0", "f0"}, {"p1", "f1"})[record.worker]
        assert outside <= (reads if key.startswith("inputs") else {"s"})
        given = {k for k in references([record]) if k.startswith("inputs")}
        assert all(records[k].worker == record.worker for k in given)


def test_what_a_lane_is_given_is_not_counted_twice():
    feed = np.zeros((1000, 100))
    assert sizeof(LaneInputs(None, None, [feed])) < 1000 < feed.nbytes


@given(st.integers(1, 40), st.lists(st.integers(0, 40), max_size=4))
def test_a_tree_in_parts_is_the_tree(shards, cuts):
    """Each lane adds up what it can; the rest comes to the same sum, in the same order."""

    def combine(group):
        return "(" + "".join(group) + ")"

    whole = tree.reduce_tree([f"{k}." for k in range(shards)], combine)
    ends = sorted({0, shards, *(min(c, shards) for c in cuts)})
    nodes = {}
    for first, stop in pairwise(ends):
        nodes |= tree.reduce_some({(0, k): f"{k}." for k in range(first, stop)}, shards, combine)
    assert list(tree.reduce_some(nodes, shards, combine).values()) == [whole]


# -- on workers --


class NotesProcess(fg.Op):
    """The identity; notes in which process it ran."""

    kinds = (fg.Identity,)

    @staticmethod
    def shape(a, *, path):
        return a

    @staticmethod
    def apply(a, *, path):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        return a

    @staticmethod
    def jacobian(slot, y, a, *, path):
        return fg.Identity()


@pytest.mark.distributed
def test_gradients_run_on_both_workers(client, tmp_path):
    """They read the same state and are cheap: dask alone would run them all where the state is."""
    path = tmp_path / "pids"
    net = Net(lambda node: NotesProcess(node, path=str(path)))
    trainer = net.trainer(client, shards=4)
    path.write_text("")
    trainer.fit(net.feeds, epochs=2)
    counts = Counter(path.read_text().split())
    counts.pop(str(os.getpid()), None)  # measured here before
    steps = 2 * len(range(0, 480, BATCH))
    assert list(counts.values()) == [2 * steps, 2 * steps]


@pytest.mark.parametrize("shards", [2, 3, 4])
def test_no_number_of_lanes_changes_a_bit(executor, shards):
    assert train(executor, 2, shards=shards)[:2] == train("sync", 2, shards=shards)[:2]

"""Where the parts of a step run: shards on all workers, slices of large parameters on workers of their own."""

import os
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from dask.sizeof import sizeof
from distributed.protocol import deserialize, serialize
from distributed.utils import nbytes
from faults import BATCH, Net, train
from hypothesis import given
from hypothesis import strategies as st

import flowgrad as fg
from flowgrad.scheduler.costs.forecast import WAYS, choose_way, exchange_seconds
from flowgrad.scheduler.costs.plan import Plan
from flowgrad.scheduler.costs.times import Links
from flowgrad.scheduler.executors import Executor, Handle, Worker
from flowgrad.scheduler.feeds.placement import Lane, Placement
from flowgrad.scheduler.steps.lanes import Carry, LaneInputs, StateAway, last_update
from flowgrad.scheduler.steps.lower import lower_steps
from flowgrad.scheduler.steps.slices import cut_state, join_state
from flowgrad.scheduler.tasks import tree
from flowgrad.scheduler.tasks.keys import Ref
from flowgrad.scheduler.tasks.records import Task, TaskGraph, references
from flowgrad.scheduler.training import windows


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


def lowered(state_slices, exchange="together", lanes=2, steps=3):
    graph = TaskGraph()
    plan = Plan("shard", 4, "numpy", 1, 10, "")
    found = [Lane(k, Ref(f"p{k}"), None, [Ref(f"f{k}")], 2 * k, 2 * k + 2) for k in range(lanes)]
    rows = [[np.arange(s, s + 2) for s in range(4)] for _ in range(steps)]
    before = [Ref(f"s{k}") for k in range(state_slices)]
    after = lower_steps(graph, plan.grain, found, before, rows, None, exchange)
    return graph.records, after


def kinds(records):
    return Counter((key.rsplit("-", 1)[0], r.worker) for key, r in records.items() if isinstance(r, Task))


def test_a_step_is_one_task_per_lane():
    records, after = lowered(1)
    assert len(after) == 1
    assert kinds(records) == {
        ("inputs", 0): 1,
        ("inputs", 1): 1,
        ("gradient", 0): 1,
        ("gradient", 1): 1,
        ("update-gradient", 0): 2,
        ("update-gradient", 1): 2,
        ("update", 0): 1,
    }


def test_a_step_of_a_single_lane_is_one_task():
    records, after = lowered(1, lanes=1)
    assert len(after) == 1
    assert kinds(records) == {("inputs", 0): 1, ("step", 0): 3}


@pytest.mark.parametrize("exchange", ["together", "slices"])
def test_tasks_of_a_step_refer_to_one_value_besides_each_other(exchange):
    records, _ = lowered(2 if exchange == "slices" else 1, exchange)
    for key, record in records.items():
        outside = references([record]) - set(records)
        reads = ({"p0", "f0"}, {"p1", "f1"})[record.worker]
        assert outside <= (reads if key.startswith("inputs") else {"s0", "s1"})
        given = {k for k in references([record]) if k.startswith("inputs")}
        assert all(records[k].worker == record.worker for k in given)


def test_what_a_lane_is_given_is_not_counted_twice():
    feed = np.zeros((1000, 100))
    assert sizeof(LaneInputs(None, None, [feed])) < 1000 < feed.nbytes


@pytest.mark.parametrize("stays", [True, False])
def test_gradients_travel_and_the_state_stays(stays):
    state = {"w": np.zeros(1000)}
    carry = Carry(state, {(0, 0): (np.ones(3), 0.5)}, [1.0], travels=not stays)
    header, frames = serialize(carry)
    there = deserialize(header, frames)
    assert there.subtotals[0, 0][0].tolist() == [1, 1, 1]
    assert there.losses == [1.0]
    assert (there.state is None) == stays
    assert 8000 + 24 <= sizeof(carry) < 8200
    assert sizeof(there) == sizeof(carry) - 8000 * stays
    assert carry.state is state
    assert (sum(map(nbytes, frames)) < 2000) == stays


def test_an_update_without_any_state_says_so():
    with pytest.raises(StateAway, match="stayed on another worker"):
        last_update(None, [Carry(None, {}, []), Carry(None, {}, [])], 2)


def test_slices_are_updated_on_workers_of_their_own():
    records, after = lowered(2, "slices")
    assert len(after) == 2
    found = kinds(records)
    for worker in (0, 1):
        assert found["update", worker] == 3
        assert found["weights", worker] == found["gradient", worker] == 3
        assert found["cut", worker] == 2 * 3


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


@given(st.integers(1, 50), st.integers(1, 6))
def test_a_state_in_slices_is_the_state(size, n):
    n = min(n, size)
    state = {"w": np.arange(size), "v": -np.arange(size), "t": np.array([7])}
    parts = cut_state(state, n)
    assert len(parts) == n
    assert {k: v.tolist() for k, v in join_state(parts).items()} == {k: v.tolist() for k, v in state.items()}


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


@pytest.mark.parametrize("way", [*WAYS, "carried"])
@pytest.mark.parametrize("shards", [2, 3, 4])
def test_no_way_to_update_changes_a_bit(executor, monkeypatch, way, shards):
    expected = train("sync", 2, shards=shards)[:2]
    monkeypatch.setattr(windows, "choose_way", lambda *given: way)
    fingerprint, losses, history = train(executor, 2, shards=shards)
    assert (fingerprint, losses) == expected
    assert history.window["exchange"] == ("together" if executor in ("sync", "threads") else way)


@pytest.mark.distributed
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_the_way_to_update_follows_from_what_was_measured(client, monkeypatch, clip_norm):
    """A cluster on which updates are dear, and tasks are not; a norm is taken of the whole gradient."""
    links = Links(2, 1, 2, hop=1e-9, task=1e-9, move=1e-9, update=1.0)
    monkeypatch.setattr(windows, "task_links", lambda executor: links)
    net = Net()
    optimizer = fg.Adam(net.graph, net.loss, batch_size=BATCH, clip_norm=clip_norm)
    engine = fg.Engine(client, grain="shard", shards=2, kernel="numpy")
    history = fg.Trainer(optimizer, engine).fit(net.feeds, epochs=1)
    assert history.window["exchange"] == ("slices" if clip_norm is None else "together")


@pytest.mark.distributed
def test_a_state_that_stayed_behind_travels_from_then_on(client, monkeypatch):
    """As where a task moves to a worker that has no lane: here no worker may use the state of its own lane."""
    expected = train("sync", 2, shards=2)[:2]
    client.run(forget_states, True)
    try:
        fingerprint, losses, history = train(client, 2, shards=2)
    finally:
        client.run(forget_states, False)
    assert (fingerprint, losses) == expected
    assert history.window["exchange"] == "carried"
    (recovery,) = history.recoveries
    assert "travels with the gradients" in recovery["cause"]


def forget_states(forget):
    if forget:
        Carry.kept = Carry.__init__
        Carry.__init__ = without_state
    else:
        Carry.__init__ = Carry.kept


def without_state(self, state, subtotals, losses, travels=True):
    Carry.kept(self, state if travels else None, subtotals, losses, travels)


sizes, lanes = st.integers(0, 1 << 32), st.integers(2, 16)
links = st.builds(
    lambda hop, task, move, update: Links(2, 1, 2, hop, task, move=move, update=update),
    st.floats(1e-5, 1e-1), st.floats(1e-5, 1e-2), st.floats(1e-11, 1e-7), st.floats(1e-11, 1e-8),
)  # fmt: skip


@given(sizes, st.integers(0, 2), lanes, links)
def test_the_way_to_update_that_is_chosen_takes_the_least_time(size, slots, lanes, links):
    costs = {way: exchange_seconds(way, size, slots, lanes, links) for way in WAYS}
    assert costs[choose_way(size, slots, lanes, links)] == min(costs.values()) > 0


@given(st.integers(0, 2), lanes, links)
def test_more_parameters_are_split_more(slots, lanes, links):
    """What travels grows with the parameters, hops do not."""
    chosen = [WAYS.index(choose_way(1 << k, slots, lanes, links)) for k in range(40)]
    assert chosen[0] == WAYS.index("together")
    assert all(a <= b for a, b in pairwise(chosen))


def test_each_way_where_it_was_the_fastest():
    """Steps of two workers on one machine, measured with each way: one hop 2.1 ms, a task 1 ms, 1.5 billion bytes per second."""
    links = Links(2, 1, 2, hop=2.1e-3, task=1e-3, move=7e-10, update=1.4e-10)
    chosen = [choose_way(megabytes << 20, 2, 2, links) for megabytes in (0, 3, 16, 64)]
    assert chosen == ["together", "together", "together", "slices"]

"""Gangs: verbs against NumPy, one order for all, and what happens when members are late, wrong or gone."""

import asyncio
import gc
import os
import re
import signal
import threading
from fractions import Fraction
from functools import partial
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import scipy.sparse
from distributed import Client, LocalCluster, Semaphore, get_worker
from faults import go_on, pids, silence, wait_for
from tornado.ioloop import PeriodicCallback

import flowgrad as fg
from flowgrad.scheduler.collective import slices
from flowgrad.scheduler.collective.mailbox import Mailbox
from flowgrad.scheduler.tasks.tree import reduce_tree

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def threads():
    """Four workers in this process, whose connections hand over the very arrays."""
    cluster = LocalCluster(n_workers=4, threads_per_worker=1, processes=False, dashboard_address=None)
    with cluster, Client(cluster, set_as_default=False) as client:
        yield client


def verbs(group, arrays):
    mine = arrays[group.rank]
    before = mine.copy()
    done = group.all_reduce(mine), group.reduce_scatter(mine), group.all_gather(mine[: group.rank + 1])
    group.barrier()
    again = group.all_reduce(mine)
    assert (mine == before).all()
    assert again.tobytes() == done[0].tobytes()
    done[0][...] = 7  # they are the caller's own
    return (again, *done[1:], (group.rank, group.size))


def check(client, size, arrays):
    found = fg.gang(client, verbs, [(arrays,)] * size)
    total = reduce_tree(arrays[:size], lambda pair: pair[0] + pair[1])
    gathered = np.concatenate([a[: rank + 1] for rank, a in enumerate(arrays[:size])])
    for rank, ((lo, hi), (whole, part, ends, where)) in enumerate(zip(slices(len(total), size), found)):
        assert where == (rank, size)
        assert whole.tobytes() == total.tobytes()
        assert part.tobytes() == total[lo:hi].tobytes()
        assert ends.tobytes() == gathered.tobytes()


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8"])
@pytest.mark.parametrize("shape", [(5,), (6, 3), (200_000,)])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_verbs_are_those_of_numpy(threads, size, shape, dtype):
    rng = np.random.default_rng(size)
    check(threads, size, [(100 * rng.normal(size=shape)).astype(dtype) for _ in range(4)])


@pytest.mark.parametrize("shape", [(5,), (300_000,)])
def test_verbs_between_processes(client, shape):
    rng = np.random.default_rng(0)
    check(client, 2, [rng.normal(size=shape) for _ in range(2)])


def test_members_that_do_other_things_are_told_at_once(client):
    def differ(group, what):
        if group.rank and what == "verb":
            group.barrier()
        group.all_reduce(
            np.zeros(3 + (group.rank if what == "shape" else 0), "f4" if group.rank and what == "dtype" else "f8")
        )

    for what, told in {
        "verb": r"rank 0 is in all_reduce\(float64 \(3,\)\), rank 1 in barrier\(\)",
        "shape": r"float64 \(3,\)\), rank 1 in all_reduce\(float64 \(4,\)\)",
        "dtype": r"float64 \(3,\)\), rank 1 in all_reduce\(float32 \(3,\)\)",
    }.items():
        with pytest.raises(fg.FlowgradError, match=told):
            fg.gang(client, differ, [what] * 2)


def given(group, verb, kind):
    ones = np.ones(3)
    gifts = {
        "masked": np.ma.array(ones, mask=[0, 1, 0]),
        "masked row": [ones, np.ma.array(ones, mask=[0, 1, 0])],
        "masked at rank 1": ones if not group.rank else np.ma.array(ones, mask=[0, 1, 0]),
        "masked number": 1.0 if not group.rank else np.ma.masked,
        "None": None,
        "objects": ones.astype(object),
        "fractions": [Fraction(1, 2)],
        "a generator": (k for k in range(3)),
        "ragged": [[1], [2, 3]],
        "dask's": da.ones(3),
        "sparse": scipy.sparse.eye(2),
        "records": np.zeros(3, [("a", "f8"), ("b", "i4")]),
        "text": np.array(["a", "b"]),
        "dates": np.array(["2000-01-01"], "M8[D]"),
        "truths": ones > 0,
        "complex": ones * 1j,
        "a list": [1, 2, 3],
        "a number": 2.5,
        "a mask of nothing": np.ma.array(ones),
        "other layout": np.asfortranarray(np.arange(6.0).reshape(2, 3))[:, ::-1],
        "nothing": np.zeros((0, 3)),
    }
    return getattr(group, verb)(gifts[kind])


NOT_SUMMED = {
    "records": r"rank 0 .* gave (\w+) ndarray of dtype \[\('a'",
    "text": "ndarray of dtype <U1",
    "dates": "ndarray of dtype datetime64",
    "truths": r"ndarray of dtype bool, shape \(3,\): give numbers to add up; to count, integers",
}
REFUSED = {
    "masked": r"^rank 0 \(tcp://\S+\) gave (\w+) MaskedArray with masked entries, dtype float64, shape \(3,\)",
    "masked row": "MaskedArray with masked entries",
    "masked at rank 1": "^rank 1 .* MaskedArray with masked entries",
    "masked number": "^rank 1 .* MaskedConstant with masked entries",
    "None": "NoneType of dtype object",
    "objects": "ndarray of dtype object",
    "fractions": "list of dtype object",
    "a generator": "generator of dtype object",
    "ragged": "list that is no array",
    "dask's": "Array of dask that is not computed",
    "sparse": "dia_(matrix|array) of dtype object",
}


@pytest.mark.parametrize("verb", ["all_reduce", "reduce_scatter", "all_gather"])
def test_what_is_given_is_right_or_refused(client, verb):
    refused = REFUSED | (NOT_SUMMED if verb != "all_gather" else {})
    for kind, told in refused.items():
        with pytest.raises(fg.FlowgradError, match=told) as caught:
            fg.gang(client, given, [(verb, kind)] * 2, timeout=60)
        assert f"gave {verb} " in str(caught.value)
        assert "\n" not in str(caught.value)


def test_sums_of_every_kind_that_is_taken(client):
    for kind, total in {
        "complex": [2j] * 3,
        "a list": [2, 4, 6],
        "a number": 5.0,
        "a mask of nothing": [2.0] * 3,
        "other layout": [[4.0, 2.0, 0.0], [10.0, 8.0, 6.0]],
        "nothing": np.zeros((0, 3)),
    }.items():
        for found in fg.gang(client, given, [("all_reduce", kind)] * 2, timeout=60):
            assert type(found) is np.ndarray
            np.testing.assert_array_equal(found, total)


def test_shapes_of_large_arrays_are_compared_as_they_are_given(threads):
    def reduce(group, *shapes):
        return group.all_reduce(np.ones(shapes[group.rank]))

    for last, other in {(200, 500): r"\(200, 500\)", (3,): r"\(3,\)"}.items():
        told = rf"in all_reduce\(float64 \(500, 200\)\), rank 2 in all_reduce\(float64 {other}\)"
        with pytest.raises(fg.FlowgradError, match=told):
            fg.gang(threads, reduce, [((500, 200), (500, 200), last)] * 3, timeout=60)


def test_the_exception_of_one_ends_all(client):
    def fail(group):
        if group.rank:
            raise ValueError("no such thing")
        group.barrier()

    with pytest.raises(ValueError, match="no such thing") as caught:
        fg.gang(client, fail, [()] * 2)
    (note,) = caught.value.__notes__
    assert re.match(r"rank 1 \(tcp://\S+\) of a gang of 2 raised this", note)

    def leave(group):
        if not group.rank:
            group.barrier()

    with pytest.raises(fg.FlowgradError, match=r"rank 1 .* has ended, while rank 0 was in barrier\(\)"):
        fg.gang(client, leave, [()] * 2)


def test_what_cannot_be_is_refused(client):
    with pytest.raises(fg.FlowgradError, match="a gang of 3 needs as many workers, and there are 2"):
        fg.gang(client, verbs, [()] * 3)
    with pytest.raises(fg.FlowgradError, match="a gang of 0"):
        fg.gang(client, verbs, [])
    with pytest.raises(fg.FlowgradError, match="tcp://nowhere:1 is none"):
        fg.gang(client, verbs, [()], workers=["tcp://nowhere:1"])


def test_workers_may_be_chosen(client):
    addresses = list(client.scheduler_info(n_workers=-1)["workers"])[::-1]
    assert fg.gang(client, lambda group: get_worker().address, [()] * 2, workers=addresses) == addresses


def wait_for_file(path):
    wait_for(Path(path).exists)


@pytest.mark.slow
def test_time_may_be_limited(client, tmp_path):
    def stay(group):
        if group.rank:
            wait_for_file(tmp_path / "end")
        group.barrier()

    with pytest.raises(fg.FlowgradError, match="in the time that it was given"):  # while one stays
        fg.gang(client, stay, [()] * 2, timeout=1)
    (tmp_path / "end").touch()
    assert fg.gang(client, lambda group: group.rank, [()] * 2) == [0, 1]  # when it has ended


def total(group, times):
    for _ in range(times):
        found = group.all_reduce(np.array([group.rank + 1.0]))
    return float(found[0])


def test_gangs_at_once_do_not_wait_for_each_others_halves(client):
    found = []

    def run():
        found.extend(fg.gang(client, total, [(20,)] * 2) for _ in range(5))

    several = [threading.Thread(target=run, daemon=True) for _ in range(4)]
    for one in several:
        one.start()
    for one in several:
        one.join(200)
    assert found == [[3.0, 3.0]] * 20


@pytest.mark.slow
def test_a_member_whose_partner_is_busy_gives_its_thread_back(client, tmp_path):
    busy, free = client.scheduler_info(n_workers=-1)["workers"]
    blocker = client.submit(wait_for_file, tmp_path / "end", workers=[busy], pure=False)
    found = []
    waiting = threading.Thread(target=lambda: found.append(fg.gang(client, total, [(1,)] * 2)), daemon=True)
    waiting.start()

    def met():  # or has done so, and waits for the other's thread
        processing = client.processing()
        return any("gang" in key for key in processing[free]) or any("gang-thread" in key for key in processing[busy])

    wait_for(met)
    assert client.submit(len, "abc", workers=[free], pure=False).result(60) == 3
    assert not found
    assert not blocker.done()
    (tmp_path / "end").touch()
    waiting.join(120)
    assert found == [[3.0, 3.0]]


def test_nothing_is_left(client):
    for _ in range(20):
        fg.gang(client, total, [(3,)] * 2)

    def boxes(dask_worker):
        return len(Mailbox.of(dask_worker).boxes)

    wait_for(lambda: set(client.run(boxes).values()) == {0})
    wait_for(lambda: not [key for keys in client.has_what().values() for key in keys if "gang" in key])


def test_workers_that_cannot_reach_each_other_are_told(threads, monkeypatch):
    async def cut_off(*args, **kwargs):
        raise OSError("no route")

    workers = list(threads.cluster.workers.values())[:2]
    monkeypatch.setattr(workers[0].rpc, "connect", cut_off)
    with pytest.raises(fg.FlowgradError, match=r"cannot reach each other: .* cannot be reached \(OSError: no route\)"):
        fg.gang(threads, total, [(1,)] * 2, workers=[w.address for w in workers], timeout=120)


def test_a_connection_that_opens_when_its_member_has_left_keeps_nobody_waiting(threads, monkeypatch, tmp_path):
    late, early = list(threads.cluster.workers.values())[:2]
    connect, tried = early.rpc.connect, threading.Event()

    async def slow(*args, **kwargs):
        tried.set()
        while not (tmp_path / "end").exists():
            await asyncio.sleep(0.01)
        return await connect(*args, **kwargs)

    def left():
        return tried.is_set() and not early.state.executing

    monkeypatch.setattr(early.rpc, "connect", slow)
    blocker = threads.submit(wait_for_file, tmp_path / "end", workers=[late.address], pure=False)
    found = []
    gang = partial(fg.gang, threads, total, [(1,)] * 2, workers=[late.address, early.address], timeout=60)
    waiting = threading.Thread(target=lambda: found.append(gang()), daemon=True)
    waiting.start()
    wait_for(left)  # when it has waited for its partner long enough
    (tmp_path / "end").touch()
    waiting.join(90)
    assert found == [[3.0, 3.0]]
    del blocker


def test_leases_that_ended_are_not_looked_after_any_more(client):
    def looked_after():
        running = [t for t in gc.get_objects() if isinstance(t, PeriodicCallback) and t.is_running()]
        return [t for t in running if isinstance(getattr(t.callback, "__self__", None), Semaphore)]

    for _ in range(5):
        fg.gang(client, total, [(1,)] * 2)
    wait_for(lambda: not looked_after())


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_lost_member_ends_the_gang(hurt, how):
    def suicide(group):
        group.barrier()
        if group.rank:
            os.kill(os.getpid(), how)
        group.barrier()

    # A connection that breaks is noticed whatever the patience with silence is.
    silence(hurt, 1000.0 if how == signal.SIGKILL else 2.0)
    processes = pids(hurt).values()
    try:
        with pytest.raises(
            fg.FlowgradError, match=r"rank 1 \(tcp://\S+\) (is gone|went away|has given no sign of life|was lost)"
        ):
            fg.gang(hurt, suicide, [()] * 2)
    finally:
        go_on(processes)

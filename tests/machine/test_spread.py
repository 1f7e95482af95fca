"""Samples dealt out to threads."""

import multiprocessing
import threading

import pytest
from test_blas import counts

from flowgrad.scheduler.machine.threads import each_side_by_side, spread


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_every_sample_once_and_in_order(threads):
    parts = spread(lambda start, stop: list(range(start, stop)), 5, threads)
    assert [sample for part in parts for sample in part] == list(range(5))
    assert len(parts) == min(threads, 5)


def test_several_threads_at_once_with_one_of_blas_each():
    meet = threading.Barrier(2, timeout=60)  # broken, and so an error, if one comes after the other

    def work(*_):
        meet.wait()
        return counts(), threading.current_thread()

    before = counts()
    seen = spread(work, 2, 2)
    assert all(set(found) <= {1} for found, _ in seen)
    assert len({thread for _, thread in seen}) == 2
    assert seen[0][1] is threading.current_thread()
    assert all(set(found) <= {1} for found, _ in each_side_by_side(work, range(2)))
    assert counts() == before


def test_within_itself():
    def work(*_):
        return spread(lambda start, stop: each_side_by_side(range(start, stop).__getitem__, range(stop - start)), 8, 4)

    expected = [[0, 1], [2, 3], [4, 5], [6, 7]]
    child = multiprocessing.get_context("fork").Process(target=spread, args=(work, 64, 64))  # what goes wrong hangs
    child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 0
    assert spread(work, 1, 1) == [expected]


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_comes_when_all_are_done(bad):
    done = []

    def work(start, stop):
        if start == bad:
            raise ValueError(f"part {start}")
        done.append(start)

    with pytest.raises(ValueError, match=f"part {bad}"):
        spread(work, 2, 2)
    assert done == [1 - bad]


def test_after_a_fork():
    spread(lambda start, stop: None, 2, 2)
    child = multiprocessing.get_context("fork").Process(target=spread, args=(max, 4, 2))
    child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 0

"""One BLAS thread per task, whoever asks."""

import threading

from threadpoolctl import ThreadpoolController

from flowgrad.scheduler.machine import blas
from flowgrad.scheduler.machine.blas import blas_threads, one_thread


def counts():
    return [pool["num_threads"] for pool in ThreadpoolController().info() if pool["user_api"] == "blas"]


def test_one_thread_and_what_was_there_before():
    before = counts()
    with one_thread():
        assert set(counts()) <= {1}
        with one_thread():
            assert set(counts()) <= {1}
        assert set(counts()) <= {1}
    assert counts() == before


def test_from_any_thread_and_overlapping():
    before, inside, leave, seen = counts(), threading.Event(), threading.Event(), []

    def work():
        with one_thread():
            inside.set()
            leave.wait(10)
            seen.append(counts())

    with one_thread():
        helper = threading.Thread(target=work)
        helper.start()
        assert inside.wait(10)
    assert set(counts()) <= {1}
    leave.set()
    helper.join()
    assert set(seen[0]) <= {1}
    assert counts() == before


def test_one_thread_within_more():
    before = counts()
    with blas_threads(2):
        assert counts() == [min(2, n) for n in before]
        with one_thread():
            assert set(counts()) <= {1}
    assert counts() == before


class Library:
    """A BLAS that notes how often it is asked."""

    def __init__(self, name, threads):
        self.filepath, self.threads, self.asked = name, threads, 0

    @property
    def num_threads(self):
        self.asked += 1
        return self.threads

    def set_num_threads(self, threads):
        self.threads = threads


def test_a_library_that_is_loaded_meanwhile_is_limited_and_restored(monkeypatch):
    first, later = Library("first", 4), Library("later", 3)
    loaded = [first]
    monkeypatch.setattr(blas, "_pools", lambda compiled: loaded)
    with one_thread():
        loaded.append(later)
        assert (first.threads, later.threads) == (1, 3)
        with one_thread():
            assert (first.threads, later.threads) == (1, 1)
            with one_thread():
                assert first.asked == 2
    assert (first.threads, later.threads) == (4, 3)

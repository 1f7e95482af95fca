"""One BLAS thread per task, whoever asks."""

import threading

from threadpoolctl import ThreadpoolController

from flowgrad.scheduler.blas import one_thread


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

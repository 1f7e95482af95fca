"""Workers are killed at random moments, many times over; every fingerprint is that of an undisturbed run."""

from functools import cache

import conftest
import pytest
from distributed import Client
from faults import Killer, train

from flowgrad.scheduler.executors.cluster import local_cluster

pytestmark = pytest.mark.distributed
EPOCHS = 140
SIZES = [(1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (2, 2)]


@pytest.fixture(scope="module")
def expected():
    return cache(lambda grain, epochs: train("sync", epochs, grain=grain)[:2])


def disturbed(grain, workers, threads, kills, longest):
    with (
        local_cluster(workers, threads, dashboard=False, memory_limit=0) as client,
        Killer(client, kills, seed=workers, longest=longest) as killer,
    ):
        found = train(client, killer.EPOCHS, callbacks=[killer], grain=grain)
    assert killer.killed >= kills
    assert found[2].recoveries
    return found


@pytest.mark.slow
def test_two_random_kills(expected):
    *found, history = disturbed("shard", 2, 1, kills=2, longest=0.6)
    assert tuple(found) == expected("shard", len(history.epochs))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "threads"), SIZES)
@pytest.mark.parametrize("grain", ["shard", "round"])
def test_ten_random_kills(expected, grain, workers, threads):
    *found, history = disturbed(grain, workers, threads, kills=10, longest=0.8)
    assert tuple(found) == expected(grain, len(history.epochs))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "threads"), SIZES)
@pytest.mark.parametrize("grain", ["shard", "round"])
def test_many_steps(expected, grain, workers, threads):
    with local_cluster(workers, threads, dashboard=False, memory_limit=0) as client:
        assert train(client, EPOCHS, grain=grain)[:2] == expected(grain, EPOCHS)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("grain", ["shard", "round"])
def test_workers_in_one_process(expected, grain, workers):
    with (
        conftest.local_cluster(workers, processes=False, protocol="tcp") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert train(client, 5, grain=grain)[:2] == expected(grain, 5)

"""Workers are killed at random moments, many times over; every fingerprint is that of an undisturbed run."""

import conftest
import pytest
from distributed import Client
from faults import Killer, train

from flowgrad.scheduler.executors.cluster import local_cluster

pytestmark = pytest.mark.distributed
EPOCHS = 140


@pytest.fixture(scope="module")
def expected():
    known = {}

    def of(grain, epochs):
        if (grain, epochs) not in known:
            known[grain, epochs] = train("sync", epochs, grain=grain)[:2]
        return known[grain, epochs]

    return of


def test_two_random_kills(expected):
    with (
        local_cluster(2, 1, dashboard=False, memory_limit=0) as client,
        Killer(client, 2, seed=1, longest=0.6) as killer,
    ):
        found = train(client, 25)
    assert killer.killed == 2
    assert found[:2] == expected("shard", 25)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [0, 10])
@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (2, 2)])
@pytest.mark.parametrize("grain", ["shard", "round"])
def test_random_kills(expected, grain, workers, threads, kills):
    # Rounds are fast: more of them for as many kills.
    epochs = EPOCHS if grain == "shard" else 3 * EPOCHS
    with (
        local_cluster(workers, threads, dashboard=False, memory_limit=0) as client,
        Killer(client, kills, seed=workers, longest=0.8) as killer,
    ):
        found = train(client, epochs, grain=grain)
    assert killer.killed == kills
    assert found[:2] == expected(grain, epochs)
    assert kills == 0 or len(found[2].recoveries) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("grain", ["shard", "round"])
def test_workers_in_one_process(expected, grain, workers):
    with (
        conftest.local_cluster(workers, processes=False, protocol="tcp") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert train(client, 5, grain=grain)[:2] == expected(grain, 5)

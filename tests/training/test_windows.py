"""Windows of a run follow each other on the state that is on workers: the same bits, whatever comes in between."""

import gc

import pytest
from conftest import local_cluster
from distributed import Client, Event
from faults import At, kill, pids, train, wait_for
from test_faults import GRAINS, small_windows

import flowgrad as fg
from flowgrad.scheduler.windows.chain import Chain

STEPS = 15  # of an epoch


@pytest.fixture
def begun(monkeypatch):
    """At which step states were put on workers."""
    found, original = [], Chain.place

    def begin(self, state):
        found.append(int(state["t"][0]))
        return original(self, state)

    monkeypatch.setattr(Chain, "place", begin)
    return found


@pytest.fixture(scope="module")
def expected():
    return {grain: train("sync", grain=grain)[:2] for grain in GRAINS}


def nothing_left(client):
    gc.collect()
    wait_for(lambda: not client.cluster.scheduler.tasks)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("limit", "states"), [(60, [0]), (30, [0, 30]), (44, [0, 30]), (29, [0, 15, 30, 45]), (10, None)]
)
@pytest.mark.parametrize("grain", GRAINS)
def test_epochs_follow_each_other_up_to_the_bound(client, begun, expected, monkeypatch, grain, limit, states):
    small_windows(monkeypatch, limit)
    *found, history = train(client, grain=grain)
    assert tuple(found) == expected[grain]
    assert begun == (states if states is not None else [0, 10, 15, 25, 30, 40, 45, 55])
    assert history.window["steps"] == max(b - a for a, b in zip(begun, [*begun[1:], 4 * STEPS]))
    assert history.window["steps"] <= limit
    nothing_left(client)


@pytest.mark.distributed
def test_a_run_that_stops_early_leaves_nothing(client, begun, expected):
    class Stop:
        def on_epoch(self, record):
            return fg.STOP if record["epoch"] == 2 else None

    _, steps, history = train(client, callbacks=[Stop()])
    assert begun == [0]
    assert len(history.epochs) == 2
    assert steps == expected["shard"][1][: 2 * STEPS]
    nothing_left(client)


@pytest.mark.distributed
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_between_two_epochs_leaves_nothing(client, error):
    def fail():
        raise error

    with pytest.raises(error):
        train(client, callbacks=[At(STEPS, fail)])
    nothing_left(client)


@pytest.mark.distributed
@pytest.mark.parametrize("grain", GRAINS)
def test_workers_change_between_two_epochs(begun, expected, grain):
    class Between:
        """A worker joins after the first epoch; all die after the second one."""

        def on_epoch(self, record):
            if record["epoch"] == 1:
                cluster.scale(3)
                client.wait_for_workers(3, timeout=120)
            elif record["epoch"] == 2:
                self.killed = set(pids(client).values())
                kill(self.killed)

    with local_cluster(2) as cluster, Client(cluster, set_as_default=False) as client:
        between = Between()
        *found, _ = train(client, grain=grain, callbacks=[between])
        assert between.killed.isdisjoint(pids(client).values())
    assert tuple(found) == expected[grain]
    assert begun[0] == 0
    assert set(begun[1:]) <= {15, 30, 45}
    assert 30 in begun


@pytest.mark.distributed
@pytest.mark.parametrize("grain", ["round", "shard"])
def test_a_worker_that_others_use_is_left_to_them(client, monkeypatch, grain):
    small_windows(monkeypatch, 10)
    expected = train("sync", grain=grain, shards=1)[:2]
    used, original = [], Chain.place
    monkeypatch.setattr(Chain, "place", lambda self, state: used.append(self.crew.needed) or original(self, state))
    first, second = sorted(client.scheduler_info(n_workers=-1)["workers"])
    for busy, free in ((first, second), (second, first)):
        event = Event(client=client)
        others = client.submit(event.wait, workers=[busy], allow_other_workers=False, pure=False)
        wait_for(lambda busy=busy: client.processing()[busy])
        assert train(client, grain=grain, shards=1)[:2] == expected
        event.set()
        others.result()
        assert len(used) > 3
        assert used == [[free]] * len(used)
        used.clear()

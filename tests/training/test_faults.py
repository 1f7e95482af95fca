"""Workers die, pause, leave and join while a net is trained: the result is that of an undisturbed run, bit for bit."""

import os
import signal

import pytest
from conftest import local_cluster
from distributed import Client
from faults import At, Net, Trap, kill, pause, pids, train, wait_for_two

import flowgrad as fg
from flowgrad.errors import NodeFailed

pytestmark = pytest.mark.distributed
GRAINS = ("shard", "round")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    trap = Trap(tmp_path_factory.mktemp("empty"))
    return {(grain, op): train("sync", grain=grain, op=trap.op if op else None) for grain in GRAINS for op in (0, 1)}


@pytest.fixture
def trap(tmp_path):
    return Trap(tmp_path)


def check(expected, client, grain, action, trap=None):
    disturbance = At(8, action)  # of 15 steps that an epoch has
    fingerprint, steps, history = train(client, grain=grain, callbacks=[disturbance], op=trap and trap.op)
    assert disturbance.done
    assert fingerprint == expected[grain, trap is not None][0]
    assert steps == expected[grain, trap is not None][1]
    if trap is not None:
        assert trap.sprung
        assert history.recoveries
        assert all(r["again"] <= history.plan["steps_per_window"] for r in history.recoveries)


def small_windows(monkeypatch, steps=10):
    """Cut a run into windows of a few steps, so that a disturbance meets one in the middle."""
    from flowgrad.scheduler.training import estimate as prepare

    original = prepare.make_plan

    def choose(*args):
        plan = original(*args)
        return prepare.replace(plan, steps_per_task=min(plan.steps_per_task, 3), steps_per_window=steps)

    monkeypatch.setattr(prepare, "make_plan", choose)


@pytest.mark.parametrize("grain", GRAINS)
def test_a_worker_is_killed(hurt, expected, monkeypatch, trap, grain):
    small_windows(monkeypatch, 60)
    processes = pids(hurt).values()
    check(expected, hurt, grain, lambda: trap.set(signal.SIGKILL, processes), trap)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [10, 60])
@pytest.mark.parametrize("grain", GRAINS)
def test_all_workers_are_killed(hurt, expected, monkeypatch, trap, grain, steps):
    small_windows(monkeypatch, steps)
    both = pids(hurt).values()
    check(expected, hurt, grain, lambda: trap.set(signal.SIGKILL, both, together=True), trap)


@pytest.mark.slow
@pytest.mark.parametrize("grain", GRAINS)
def test_all_workers_are_killed_between_two_windows(hurt, expected, monkeypatch, grain):
    """Or in the middle of one: whatever they do when so many steps are known here."""
    small_windows(monkeypatch)
    both = pids(hurt).values()
    check(expected, hurt, grain, lambda: kill(both))


def test_workers_are_killed_during_an_evaluation(hurt, monkeypatch):
    from flowgrad.scheduler.training import evaluation as evaluate

    original, killed = evaluate.Sweep._attempt, []

    def attempt(self, *args):
        if len(killed) < 2:
            wait_for_two(hurt)
            killed.append(kill(pids(hurt).values()))
        return original(self, *args)

    monkeypatch.setattr(evaluate.Sweep, "_attempt", attempt)
    fingerprint, steps, history = train(hurt, epochs=2, validation=True)
    monkeypatch.undo()
    undisturbed = train("sync", epochs=2, validation=True)
    assert len(killed) == 2
    assert (fingerprint, steps) == undisturbed[:2]
    scores = [r["validation_loss"] for r in history.epochs]
    assert scores == [r["validation_loss"] for r in undisturbed[2].epochs]


@pytest.mark.slow
def test_workers_are_killed_that_hold_predictions(hurt, monkeypatch):
    from flowgrad.scheduler.training import evaluation as evaluate

    original, killed = evaluate.Sweep._join, []

    def join(self, *args):
        if len(killed) < 2:
            wait_for_two(hurt)
            killed.append(kill(list(pids(hurt).values())[: 1 + len(killed)]))
        return original(self, *args)

    monkeypatch.setattr(evaluate, "SHARD_SAMPLES", 100)
    monkeypatch.setattr(evaluate.Sweep, "_join", join)
    net = Net()
    optimizer = fg.Adam(net.graph, net.loss, batch_size=32)
    found, expected = (
        fg.Trainer(optimizer, fg.Engine(where, kernel="numpy"), metrics=["roc_auc", "f1"]).evaluate(net.feeds)
        for where in (hurt, "sync")
    )
    assert len(killed) == 2
    assert found == expected


@pytest.mark.slow
def test_a_worker_is_paused(hurt, expected):
    check(expected, hurt, "shard", lambda: pause(hurt, 3))


@pytest.mark.slow
def test_a_worker_is_paused_for_long(hurt, expected):
    check(expected, hurt, "shard", lambda: pause(hurt, 20))


@pytest.mark.slow
def test_a_worker_joins_and_one_retires(expected, monkeypatch):
    small_windows(monkeypatch)
    with local_cluster(1) as cluster, Client(cluster, set_as_default=False) as client:
        first = next(iter(pids(client)))

        def join():
            cluster.scale(2)
            client.wait_for_workers(2)

        def retire():
            client.retire_workers([first])

        for k, action in enumerate((join, retire)):
            check(expected, client, "shard", action)
            assert len(client.scheduler_info(n_workers=-1)["workers"]) == 2 - k


class RaisesOnOneWorker(fg.Op):
    """The identity; raises in the process whose number the file tells."""

    kinds = (fg.Identity,)

    @staticmethod
    def shape(a, *, path):
        return a

    @staticmethod
    def apply(a, *, path):
        with open(path) as file:
            if file.read() in (str(os.getpid()), "all"):
                raise MemoryError("on purpose")
        return a

    @staticmethod
    def jacobian(slot, y, a, *, path):
        return fg.Identity()


def with_raising_op(path, where):
    net = Net(lambda node: RaisesOnOneWorker(node, path=str(path)))
    trainer = net.trainer(where)
    return trainer.fit(net.feeds, epochs=2), trainer.fingerprint()


def test_a_task_raises_on_one_worker_only(hurt, tmp_path):
    path = tmp_path / "pid"
    path.write_text("none")
    _, expected = with_raising_op(path, "sync")
    path.write_text(str(next(iter(pids(hurt).values()))))
    history, fingerprint = with_raising_op(path, hurt)
    assert fingerprint == expected
    assert "on purpose" in history.recoveries[0]["cause"]


def test_a_task_that_raises_everywhere_ends_the_run(hurt, tmp_path):
    path = tmp_path / "pid"
    path.write_text("none")
    before = Net(lambda node: RaisesOnOneWorker(node, path=str(path))).trainer("sync").fingerprint()
    path.write_text("all")
    net = Net(lambda node: RaisesOnOneWorker(node, path=str(path)))
    trainer = net.trainer(hurt)
    with pytest.raises(NodeFailed, match=r"RaisesOnOneWorker.*MemoryError: on purpose"):
        trainer.fit(net.feeds, epochs=1)
    assert trainer.fingerprint() == before

"""Measuring machines and executors: a bounded number of short probes, kept, and never wrong in sign."""

import pytest
from models import Model

import flowgrad as fg
from flowgrad.scheduler.costs import links as links_room
from flowgrad.scheduler.costs import measure, work
from flowgrad.scheduler.costs.links import links_of, task_links
from flowgrad.scheduler.executors import LocalExecutor, Lost, Worker
from flowgrad.scheduler.training.trainer import shortest_epoch


def test_a_run_is_repeated_until_it_can_be_timed(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    asked = []

    def run(repetitions):
        asked.append(repetitions)
        clock[0] += 1.0 if len(asked) == 1 else 0.001 * repetitions  # the first one compiles

    assert measure.seconds_of(run) == pytest.approx(0.001)
    assert asked[:2] == [1, 1]  # the second is too short to count
    assert asked[2:] == [10] * measure.TRIES

    asked.clear()
    assert measure.seconds_of(lambda repetitions: run(100 * repetitions)) == pytest.approx(0.1)
    assert len(asked) == 2  # long enough at once


def test_a_pause_of_the_machine_is_no_measure(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    pauses = iter([0.0, 0.0, 5.0])

    def run(repetitions):
        clock[0] += 0.001 * repetitions + next(pauses, 0.0)

    assert measure.seconds_of(run) == pytest.approx(0.001)


def test_curves_never_fall_and_leave_out_what_takes_too_long(monkeypatch):
    seconds = {1: 0.2, 8: 0.1, 64: 2.0, 512: 3.0}
    monkeypatch.setattr(measure, "seconds_of", lambda size: seconds[size])
    assert measure.curve_of(lambda size: size, (8, 1, 8)) == ((1, 0.2), (8, 0.2))
    assert measure.curve_of(lambda size: size, (1, 8, 64, 512)) == ((1, 0.2), (8, 0.2), (64, 2.0))


@pytest.mark.parametrize("gradient", [False, True])
def test_programs_of_jobs_are_timed_on_any_number_of_samples(gradient):
    model = Model()
    job = fg.Engine("sync").lower(model.loss, model.feeds, gradient=gradient).job
    times = measure.program_times(job, 1)
    assert [n for n, _ in times.steps] == [1, 2, 10]
    assert all(seconds > 0 for _, seconds in times.steps)


def test_tasks_that_are_timed_tell_seconds():
    assert 0 < work.burst() < 1
    assert 0 < work.new_state() < 1e-6


def test_an_executor_is_asked_once(monkeypatch):
    executor = LocalExecutor(threads=True)
    assert task_links(executor) is task_links(executor)
    monkeypatch.setattr(links_room, "run_now", None)  # nothing runs any more
    assert task_links(executor).hop > 0


def test_links_of_each_executor(executor):
    """A few short trainings, counted; tasks cost something wherever they run."""
    found, asked = [], fg.Engine(executor).executor
    asked.measured.clear()

    def fit(optimizer, executor, grain, shards, feeds, epochs):
        found.append(epochs * -(-len(next(iter(feeds.values()))) // optimizer.batch_size))
        return shortest_epoch(optimizer, executor, grain, shards, feeds, epochs)

    links = links_of(asked, fit)
    assert len(found) <= 4
    assert sum(found) <= 6000
    assert links.workers == len(asked.workers())
    assert links.slots == sum(worker.threads for worker in asked.workers())
    assert links.hop > 0
    assert links.window > 0
    assert min(links.task, links.rows, links.step, links.move, links.update) >= 0
    assert (links.move > 0) == (links.update > 0) == (links.workers > 1)
    assert links.crowd >= 1
    assert links_of(asked, None) is links


def test_other_workers_are_measured_anew(monkeypatch):
    executor = LocalExecutor(threads=True)
    before = task_links(executor)
    monkeypatch.setattr(executor, "workers", lambda: [Worker("a", 1), Worker("b", 3)])
    after = task_links(executor)
    assert (before.workers, after.workers, after.slots) == (1, 2, 4)


class Vanishing(LocalExecutor):
    """Two workers, of which now and then one goes away while something is measured."""

    def __init__(self, times):
        super().__init__(threads=False)
        self.left, self.waited_for = times, []

    def workers(self, avoid=()):
        return [Worker(f"w{self.left}", 1), Worker("stays", 1)]

    def outcome(self, handles, workers=()):
        self.waited_for.append(list(workers))
        if self.left:
            self.left -= 1
            raise Lost("a worker went away")
        return super().outcome(handles, workers)


def test_what_is_measured_while_workers_go_away_is_measured_again():
    executor = Vanishing(times=links_room.ATTEMPTS - 1)
    assert task_links(executor).workers == 2
    assert executor.waited_for[:2] == [["w4", "stays"], ["w3", "stays"]]  # none is waited for in vain
    with pytest.raises(Lost, match="went away"):
        task_links(Vanishing(times=links_room.ATTEMPTS))

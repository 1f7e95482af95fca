"""Which number of threads is the faster one: steps are tried by both, long enough to tell, and not too often."""

import pytest

from flowgrad.scheduler.machine import threads as machine


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(machine.time, "monotonic", lambda: now[0])
    return now


def run(pace, clock, steps, seconds):
    """Run steps that take so long by number of threads; return how many each number ran."""
    counts, at = {}, 0
    for first, last, threads in pace.segments(steps, 2):
        assert first == at
        with pace.measure(last - first, threads):
            clock[0] += (last - first) * seconds[threads]
        counts[threads] = counts.get(threads, 0) + last - first
        at = last
    assert at == steps
    return counts


@pytest.mark.parametrize("seconds", [{1: 1e-3, 2: 0.6e-3}, {1: 1e-3, 2: 1.7e-3}])
def test_the_faster_number_runs_most_steps(clock, seconds):
    pace = machine.Pace()
    assert run(pace, clock, 400, seconds) == {2: 400}  # what a step takes is not known yet
    faster = min(seconds, key=seconds.get)
    for _ in range(3):
        counts = run(pace, clock, 400, seconds)
        assert counts[faster] > 300
    assert run(pace, clock, 400, seconds) == {faster: 400}  # it was looked at a moment ago


def test_it_is_looked_at_again(clock):
    pace = machine.Pace()
    run(pace, clock, 400, {1: 1e-3, 2: 0.5e-3})
    assert run(pace, clock, 400, {1: 1e-3, 2: 0.5e-3})[2] > 300
    clock[0] += machine.LOOK + 1
    assert run(pace, clock, 400, {1: 1e-3, 2: 3e-3})[1] > 300  # now something else has a processor


def test_few_steps_are_not_tried(clock):
    pace = machine.Pace()
    run(pace, clock, 10, {1: 1e-3, 2: 1e-3})
    assert run(pace, clock, 10, {1: 1e-3, 2: 1e-3}) == {2: 10}
    assert list(machine.Pace().segments(5, 1)) == [(0, 5, 1)]

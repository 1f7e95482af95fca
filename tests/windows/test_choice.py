"""Which grain runs: the faster one nearly always, whatever was planned; trials are short and rare."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrad.scheduler.windows.choice import LONG, SHARE, TRIAL, Choice


def run(choice, windows, size, seconds, first=0.5):
    """Run windows of so many steps; return the seconds and steps of each grain. The first steps of a grain take longer."""
    spent, total, left = {grain: 0.0 for grain in seconds}, 0.0, windows * size
    for _ in range(windows):
        todo = size
        while todo:
            grain, steps = choice.next(todo, left)
            assert 0 < steps <= todo
            took = steps * seconds[grain] + (0.0 if choice.steps[grain] else first)
            choice.note(grain, steps, took)
            spent[grain] += took
            total += took
            todo, left = todo - steps, left - steps
    return spent, total


@pytest.mark.parametrize("seconds", [{"round": 0.01, "collective": 0.006}, {"round": 0.01, "collective": 0.02}])
@pytest.mark.parametrize("planned", ["round", "collective"])
def test_the_faster_one_runs_nearly_all(seconds, planned):
    other = next(grain for grain in seconds if grain != planned)
    choice = Choice([planned, other])
    spent, total = run(choice, 100, 200, seconds)
    faster = min(seconds, key=seconds.get)
    assert spent[faster] > 0.9 * total
    assert min(choice.steps.values()) > 0


def test_a_short_training_tries_nothing():
    choice = Choice(["round", "collective"])
    spent, total = run(choice, 4, 200, {"round": 0.01, "collective": 0.001})
    assert total < LONG
    assert spent["collective"] == 0


def test_one_grain_is_left_in_peace():
    choice = Choice(["shard"])
    assert choice.next(7, 1000) == ("shard", 7)
    choice.note("shard", 7, 10.0)
    assert choice.next(7, 1000) == ("shard", 7)


def test_it_is_looked_at_again():
    choice = Choice(["round", "collective"])
    run(choice, 50, 200, {"round": 0.01, "collective": 0.02})
    before = choice.steps["collective"]
    run(choice, 100, 200, {"round": 0.03, "collective": 0.02})  # something else has a processor now
    assert choice.steps["collective"] - before > 10_000


@given(st.floats(1e-4, 1.0), st.floats(1e-4, 1.0), st.integers(1, 300), st.floats(0, 3))
def test_trials_take_a_small_share(a, b, size, first):
    choice = Choice(["round", "collective"])
    seconds = {"round": a, "collective": max(a, b)}
    windows = int(200 / (a * size)) + 1
    spent, total = run(choice, windows, size, seconds, first)
    longest = max(TRIAL, seconds["round"]) * seconds["collective"] / seconds["round"]
    # Two trials at first, and what is placed for them.
    assert spent["collective"] <= 2 * SHARE * total + 3 * longest + first

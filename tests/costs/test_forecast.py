"""Planning by predicted costs: pure, with machines that are made up."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrad.scheduler.collective.group import SLICED, traffic, worth_slices
from flowgrad.scheduler.costs.forecast import (
    WITH_HEADERS,
    Case,
    Wire,
    collective_seconds,
    crossing,
    gang_seconds,
    job_seconds,
    measured_seconds,
    round_threads,
    spreading,
    step_seconds,
    sum_seconds,
)
from flowgrad.scheduler.costs.plan import (
    ROUNDS_PER_WINDOW,
    SURE,
    choose_grain,
    choose_kernel,
    choose_shards,
    make_plan,
    steps_per_round,
)
from flowgrad.scheduler.costs.times import Links, Times, between
from flowgrad.scheduler.programs.counts import Counts

FLOPS = 1e11
GRAINS = ("round", "shard", "sample", "node")


def machine(case, kernel="numba", speed=FLOPS, call=1e-5):
    """What a machine takes for the steps of a training that does 1e11 operations per second."""
    sizes = sorted({1, case.largest, 1024})
    return Times(
        kernel, tuple((n, 2 * call + case.work.flops(n) / speed) for n in sizes), call + case.work.each / speed
    )


def cluster(workers=2, threads=1, hop=6e-3):
    """A cluster on which all that tasks cost is in proportion to a hop."""
    slots = workers * threads
    links = Links(workers, threads, slots, hop, hop / 5, 3 * hop, hop / 200, 3 * hop, 1e-9, 1e-11)
    return replace(links, letter=hop / 6, letter_byte=1e-9) if workers > 1 else links


def net(hidden=90, batch=32, shards=2, samples=50_000, node_tasks=1448):
    """A net of 784 inputs, `hidden` units and 10 outputs."""
    params = hidden * 785 + 10 * (hidden + 1)
    products = 2.0 * (2 * 784 * hidden + 3 * 10 * hidden)
    work = Counts(0.0, products + 12 * hidden, products, params, 12)
    return Case(work, batch, samples, shards, 2, node_tasks)


def both(case, links, kernel="numba"):
    """Seconds per step at the grains that share the work of a step, and in rounds."""
    grains = ("round", "shard", "collective")
    return {grain: step_seconds(case, grain, machine(case, kernel), links) for grain in grains}


sizes = st.integers(1, 20_000)
nets = st.builds(net, st.integers(1, 2000), sizes, st.integers(1, 8), st.integers(1, 10**6))
places = st.builds(cluster, st.integers(1, 8), st.integers(1, 8), st.floats(1e-6, 1e-1))


@given(nets, places, st.sampled_from(GRAINS), st.sampled_from(["numba", "numpy"]))
def test_predictions_are_positive_and_finite(case, links, grain, kernel):
    case = replace(case, shards=min(case.shards, case.batch))
    assert 0 < step_seconds(case, grain, machine(case, kernel), links) < math.inf


@given(nets, places, st.sampled_from(GRAINS))
def test_more_samples_take_no_less(case, links, grain):
    case = replace(case, shards=1, samples=10**6)
    more = replace(case, batch=2 * case.batch)
    times = machine(case)
    # Per step: what is spent once per epoch is spread over half as many steps.
    assert step_seconds(more, grain, times, links) >= 0.999 * step_seconds(case, grain, times, links)


@given(nets, places, st.sampled_from(GRAINS), st.floats(1.0, 10.0))
def test_a_faster_machine_takes_no_longer(case, links, grain, factor):
    case = replace(case, shards=min(case.shards, case.batch))
    slow, fast = machine(case), machine(case, speed=factor * FLOPS)
    assert step_seconds(case, grain, fast, links) <= step_seconds(case, grain, slow, links) * (1 + 1e-9)


@given(nets, places, st.floats(1.0, 10.0))
def test_slower_links_make_tasks_dearer(case, links, factor):
    case = replace(case, shards=min(case.shards, case.batch))
    slower = cluster(links.workers, links.threads, links.hop * factor)
    for grain in ("shard", "node"):
        before = step_seconds(case, grain, machine(case), links)
        assert step_seconds(case, grain, machine(case), slower) >= before * (1 - 1e-9)


def test_round_for_tiny_steps_and_shared_ones_for_large():
    links = cluster(2)
    costs = {batch: both(net(1024, batch, 8), links) for batch in (32, 16384)}
    assert choose_grain("auto", costs[32])[0] == "round"
    assert choose_grain("auto", costs[16384])[0] == "collective"
    assert costs[16384]["collective"] < costs[16384]["shard"] < 0.65 * costs[16384]["round"]


def test_one_task_at_a_time_makes_rounds():
    for batch in (32, 16384):
        costs = both(net(1024, batch, 8), cluster(1))
        assert costs["round"] < costs["shard"]


def test_a_round_uses_the_threads_of_a_worker():
    """So that tasks for the same threads bring nothing: compiled kernels, and NumPy's where a shard is worth a thread."""
    links = cluster(1, 2, hop=1e-4)
    case = net(1024, 16384, 8)
    compiled, plain = both(case, links), both(case, links, "numpy")
    assert compiled["round"] < compiled["shard"] < 1.1 * compiled["round"]
    assert plain["round"] < plain["shard"] < 1.1 * plain["round"]
    small = net(8, 256, 8)
    assert spreading(small, "numba", links) == 1.0
    assert spreading(small, "numpy", links) == 0.5


def test_tasks_of_one_process_share_the_interpreter():
    """Two small NumPy gradients gain nothing side by side in one process, but in two."""
    case, free = net(4, 8, 2), {"hop": 1e-9}
    times = machine(case, "numpy", call=2e-4)
    together = step_seconds(case, "shard", times, cluster(1, 2, **free))
    apart = step_seconds(case, "shard", times, cluster(2, 1, **free))
    assert apart < 0.8 * together


def test_the_break_even_is_where_costs_cross():
    def saved(batch, hop=6e-3):
        costs = both(net(512, batch, 8), cluster(2, hop=hop))
        return costs["round"] - costs["shard"]

    found = crossing(lambda batch: saved(batch) > 0)
    assert found is not None
    assert saved(found) > 0 >= saved(found - 1)
    assert crossing(lambda batch: saved(batch, hop=12e-3) > 0) > 1.5 * found


@pytest.mark.parametrize("threshold", [1, 2, 3, 100, 1023, 1024, 1025, 99_999])
def test_crossing_finds_the_threshold(threshold):
    asked = []

    def pays(n):
        asked.append(n)
        return n >= threshold

    assert crossing(pays) == threshold
    assert len(asked) < 45


def test_crossing_gives_up():
    assert crossing(lambda n: False, limit=1000) is None


# -- from a measured step --


@given(nets, places, st.sampled_from(["numba", "numpy"]), st.floats(1e-6, 10.0), st.floats(0.0, 1.0))
def test_a_measured_step_is_the_least_that_a_round_takes(case, links, kernel, seconds, part):
    case = replace(case, shards=min(case.shards, case.batch))
    costs = measured_seconds(case, kernel, seconds, part * seconds, seconds, links)
    assert costs["round"] >= seconds
    assert costs["shard"] >= part * seconds


def test_what_workers_do_not_shorten_stays():
    case, links = net(shards=2), cluster(2, hop=1e-6)
    assert measured_seconds(case, "numpy", 1.0, 0.0, 1.0, links)["shard"] == pytest.approx(0.5, rel=0.01)
    assert measured_seconds(case, "numpy", 1.0, 0.4, 1.0, links)["shard"] == pytest.approx(0.7, rel=0.01)
    assert spreading(net(batch=32, shards=8), "numba", cluster(1, 2)) == 1.0
    assert spreading(net(batch=32, shards=8), "numpy", cluster(1, 2)) == 0.5
    assert spreading(net(batch=32, shards=3), "numba", cluster(2)) == pytest.approx(2 / 3)


def test_long_steps_may_use_the_threads_of_other_workers_on_the_machine():
    long, short = net(hidden=1000, batch=4096, shards=4), net(batch=32, shards=4)
    own, other = replace(cluster(2), machine=2), cluster(2)
    assert both(long, own)["round"] == pytest.approx(both(long, other)["round"] / 2, rel=0.1)
    assert both(short, own) == both(short, other)
    assert round_threads(long, machine(long), own) == 2
    assert round_threads(short, machine(short), own) == round_threads(long, machine(long), other) == 1


def test_a_crowd_takes_longer():
    links = replace(cluster(2), crowd=1.5)
    assert links.crowding(1) == 1.0
    assert links.crowding(2) == 1.5
    assert spreading(net(batch=32, shards=2), "numpy", links) == 0.75


# -- steps that workers share --


def lines(letter=1e-3, letter_byte=1e-9):
    return replace(cluster(4), letter=letter, letter_byte=letter_byte)


@pytest.mark.parametrize("lanes", [2, 3, 7, 256])
def test_bytes_of_a_sum_are_those_that_a_group_sends(lanes):
    """With slices a worker's link carries an array about twice, however many there are; else once for each other worker."""
    small, large = SLICED // 2, 4 * SLICED
    assert traffic(small, lanes) == (1, (lanes - 1) * small)
    exchanges, moved = traffic(large, lanes)
    assert exchanges == (1 if lanes == 2 else 2)
    assert moved <= 2 * large
    assert worth_slices(np.zeros(large, np.uint8), lanes) == (exchanges == 2)


def test_a_slow_wire_is_what_an_exchange_takes():
    wire = Wire(rate=1e8, delay=2e-3)
    seconds = gang_seconds(40_000_000, 4, lines(), wire)
    assert seconds == pytest.approx(60e6 * 8 * WITH_HEADERS / 1e8, rel=0.01)
    assert gang_seconds(0, 2, lines(), wire) == pytest.approx(3e-3)
    assert gang_seconds(0, 4, lines(), wire) == pytest.approx(4e-3)


@given(st.integers(0, 10**9), st.integers(2, 256), st.floats(1e6, 1e11), st.floats(0, 1e-2), st.floats(1.0, 8.0))
def test_no_better_wire_takes_longer(size, lanes, rate, delay, crowd):
    seconds = gang_seconds(size, lanes, lines(), Wire(rate, delay), crowd)
    assert gang_seconds(size, lanes, lines(), Wire(2 * rate, delay / 2), crowd) <= seconds
    assert gang_seconds(size, lanes, lines()) <= seconds
    if traffic(size, lanes)[0] == traffic(2 * size, lanes)[0]:  # not where slices begin: each adds up less then
        assert sum_seconds(size, lanes, lines()) <= sum_seconds(2 * size, lanes, lines()) * (1 + 1e-9)


def test_auto_counts_what_travels_with_slices():
    case, links = net(hidden=1000, batch=4096, shards=8), replace(lines(), workers=8)
    exchange = gang_seconds(4 * case.work.params, 8, links) + sum_seconds(4 * case.work.params, 8, links)
    assert step_seconds(case, "collective", machine(case), links) > exchange
    assert collective_seconds(case, 0.0, links) >= exchange
    assert collective_seconds(case, 0.0, replace(links, workers=1)) == math.inf


# -- plans --


def test_shards_and_kernel_follow_from_the_work_alone():
    """They fix the bits; neither a clock nor who is there is asked."""
    assert [choose_shards("auto", None, 4096, work, "numba") for work in (1e5, 1e7, 3e7, 5e8, 1e10)] == [1, 1, 2, 4, 8]
    assert [choose_shards("auto", None, 4096, work, "numpy") for work in (1e5, 1e7, 5e8, 1e10)] == [1, 1, 4, 8]
    assert choose_shards("auto", None, 3, 1e10, "numba") == 3
    found = [choose_shards("auto", None, batch, 1e10, "numba") for batch in (8192, 8193, 32_768, 10**6)]
    assert found == [8, 16, 32, 1024]
    assert choose_shards("auto", None, 10**6, 5e8, "numba") == 4
    assert choose_kernel("auto", "auto", "") == ("numba", "compiled")
    assert choose_kernel("auto", "node", "")[0] == choose_kernel("numpy", "auto", "")[0] == "numpy"


def test_a_grain_that_is_asked_for_stays():
    assert choose_grain("shard", {"round": 1e-3, "collective": 1.0}) == ("shard", "asked for")
    assert choose_grain("auto", {})[0] == "round"
    assert "0.50 ms" in choose_grain("auto", {"round": 5e-4, "collective": 1.0})[1]


@pytest.mark.parametrize("seconds", [1e-9, 1e-4, 0.1, 10.0])
def test_rounds_last_long_enough(seconds):
    plan = make_plan(("round", "auto"), 2, ("numba", "compiled"), seconds, 400)
    assert plan.steps_per_task == steps_per_round(seconds) >= 1
    assert plan.steps_per_window == ROUNDS_PER_WINDOW * plan.steps_per_task
    assert seconds > 0.25 or plan.steps_per_task * max(seconds, 1e-6) == pytest.approx(0.25, rel=0.5)


def test_bits_are_promised_with_one_blas_thread():
    assert make_plan(("round", "auto"), 2, ("numba", ""), 1e-3, 400).blas_threads == 1


@given(nets, places, st.integers(1, 10_000))
def test_jobs_at_each_grain(case, links, samples):
    times = machine(case, "numpy")
    for grain, shards in (("shard", 1), ("sample", samples), ("node", 1)):
        assert job_seconds(case.work.levels, samples, shards, shards, grain, times, links) > 0


# -- times --


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-9, 1.0)), min_size=1, max_size=4))
def test_what_lies_between_measured_sizes(points):
    curve = tuple(zip(sorted({n for n, _ in points}), sorted(s for _, s in points)))
    assert all(between(curve, n) == pytest.approx(s) for n, s in curve)
    values = [between(curve, n) for n in range(0, 2 * curve[-1][0], max(1, curve[-1][0] // 50))]
    assert values == pytest.approx(sorted(values))


def test_a_step_is_made_of_its_update_and_its_shards():
    times = Times("numpy", ((1, 3.0), (10, 12.0)), more=1.0)
    assert times.update == 2.0
    assert times.gradient(1) == times.calls == 1.0
    assert times.gradient(19) == 19.0
    assert replace(times, kernel="numba").calls == 0.0


@pytest.mark.parametrize(
    ("shared", "grain"), [(0.8, "collective"), (0.99 * SURE, "collective"), (1.01 * SURE, "round"), (1.0, "round")]
)
def test_sharing_must_promise_more_than_predictions_are_sure_of(shared, grain):
    assert choose_grain("auto", {"round": 1.0, "shard": 0.1, "collective": shared})[0] == grain

"""Measuring machines and executors: a bounded number of short probes, kept, and never wrong in sign."""

import json
import math

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.optim import AdamRule
from flowgrad.scheduler.costs import calibrate
from flowgrad.scheduler.costs import links as measure
from flowgrad.scheduler.costs.links import links_of, rates_of, task_links
from flowgrad.scheduler.costs.rates import INPUTS, OUTPUTS, SAMPLES, Rates
from flowgrad.scheduler.executors import LocalExecutor, Lost, Worker
from flowgrad.scheduler.training.trainer import shortest_epoch


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWGRAD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made_up(monkeypatch):
    """Let measuring give made-up rates; returns the list of what was measured."""
    asked = []

    def measured(kernel, dtype):
        asked.append((kernel, dtype))
        grid = np.ones((len(SAMPLES), len(OUTPUTS), len(INPUTS))).tolist()
        curve = ((1.0, 1e-9),)
        return Rates(kernel, dtype, 1e-6, 1e-6, {"value": grid}, curve, len(asked) * 1e-9, 1e-9, curve, curve)

    monkeypatch.setattr(calibrate, "measure_rates", measured)
    return asked


def check(rates):
    numbers = [rates.start, rates.call, rates.function, rates.reduction]
    numbers += [y for curve in (rates.moving, rates.taking, rates.updating) for _, y in curve]
    numbers += [np.min(grid) for grid in rates.products.values()]
    assert set(rates.products) == {"value", "input", "matrix"}
    assert all(0 <= n < math.inf for n in numbers)
    assert min(np.min(grid) for grid in rates.products.values()) > 0
    assert min(y for curve in (rates.moving, rates.taking, rates.updating) for _, y in curve) > 0
    assert 1e7 < rates.peak() < 1e14


def count_calls(monkeypatch):
    """Count what is timed; each is called a fixed number of times."""
    found = []
    fastest = calibrate._fastest

    def counting(runs):
        runs = list(runs)
        found.extend(runs)
        return fastest(runs)

    monkeypatch.setattr(calibrate, "_fastest", counting)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_is_measured_by_a_bounded_number_of_probes(monkeypatch, dtype):
    timed = count_calls(monkeypatch)
    check(calibrate.measure_rates("numpy", dtype))
    shapes = 3 * (1 + len(SAMPLES) * len(OUTPUTS) * len(INPUTS))
    assert shapes < len(timed) < shapes + 30


def test_compiled_kernels_are_measured_by_a_bounded_number_of_probes(monkeypatch):
    pytest.importorskip("numba")
    timed = count_calls(monkeypatch)
    check(calibrate.measure_rates("numba", "float32"))
    assert len(timed) < 3 * (1 + len(SAMPLES) * len(OUTPUTS) * len(INPUTS)) + 30


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_compiled_probe_does_what_is_timed(dtype):
    """Machine code that leaves work out would tell of a faster machine."""
    pytest.importorskip("numba")
    from flowgrad.scheduler.costs.numba_probe import compiled_work

    run = compiled_work(dtype, times=3, entries=5, params=7)
    _, x, y, one, product, w, g, v, s, _ = run.args
    expected, state = w.copy(), {"v": v.copy(), "s": s.copy()}
    for _ in range(3):
        expected, state = AdamRule().update(expected, g, {**state, "t": np.array([1])})
    product[:] = 0
    run()
    np.testing.assert_allclose(y, np.tanh(np.tanh(x)), rtol=1e-6)
    assert product == one @ one
    np.testing.assert_allclose(w, expected, rtol=1e-6)
    np.testing.assert_allclose(s, state["s"], rtol=1e-6)


def test_a_probe_is_what_its_name_says():
    work = {kind: calibrate.Probe(kind, "float32", 2).work for kind in ("loops", "functions", "reductions", "rows")}
    assert work["functions"].functions == 4 * 64
    assert work["loops"].functions == work["rows"].functions == 0
    assert work["reductions"].reductions > work["loops"].reductions
    assert work["rows"].taken == 1024 > work["loops"].taken
    assert work["rows"].moved(1) - 1024 < work["loops"].moved(1)


def test_rates_are_kept_on_disk(cache, made_up):
    first = calibrate.rates_here("numpy", "float32")
    assert calibrate.rates_here("numpy", "float32") == first
    assert made_up == [("numpy", "float32")]
    calibrate.rates_here("numpy", "float64")
    calibrate.rates_here("numba", "float32")
    assert len(made_up) == len(list(cache.glob("rates-*.json"))) == 3
    again = calibrate.rates_here("numpy", "float32", again=True)
    assert again != first
    assert calibrate.rates_here("numpy", "float32") == again


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '{"kernel": "numpy"}', "\x00\xff"])
def test_a_spoilt_file_is_measured_again(cache, made_up, text):
    wanted = calibrate.rates_here("numpy", "float32")
    (path,) = cache.glob("rates-*.json")
    path.write_text(text)
    found = calibrate.rates_here("numpy", "float32")
    assert len(made_up) == 2
    assert found["start"] == wanted["start"]
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))


def test_another_machine_is_another_file(cache, made_up, monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    calibrate.rates_here("numpy", "float32")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    calibrate.rates_here("numpy", "float32")
    assert len(list(cache.glob("rates-*.json"))) == 2


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, made_up, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOWGRAD_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert calibrate.rates_here("numpy", "float32")
    assert calibrate.rates_here("numpy", "float32")
    assert len(made_up) == 2


def test_an_executor_is_asked_once(cache, made_up, monkeypatch):
    executor = LocalExecutor(threads=True)
    assert rates_of(executor, "numpy", "float32") is rates_of(executor, "numpy", "float32")
    assert rates_of(executor, "numpy", "float32", again=True).function > 1e-9
    assert len(made_up) == 2
    assert task_links(executor) is task_links(executor)
    monkeypatch.setattr(measure, "run_now", None)  # nothing runs any more
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


@pytest.mark.distributed
def test_workers_measure_themselves(client):
    check(rates_of(fg.Engine(client).executor, "numpy", "float64"))


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
    executor = Vanishing(times=measure.ATTEMPTS - 1)
    assert measure.task_links(executor).workers == 2
    assert executor.waited_for[:2] == [["w4", "stays"], ["w3", "stays"]]  # none is waited for in vain
    with pytest.raises(Lost, match="went away"):
        measure.task_links(Vanishing(times=measure.ATTEMPTS))

"""What is known of trainings that tell of themselves: pure, and bounded."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrad.scheduler.dashboard import state
from flowgrad.scheduler.dashboard.state import KINDS, POINTS, RUNS, Board, Losses, Series


def begun(board, run="a", client="c", now=0.0, **about):
    board.take(run, client, [("begin", {"plan": {"grain": "round", "shards": 1}, "steps": 100, **about})], now)
    return board.runs[run]


def steps(step, seconds=1.0, losses=(), **more):
    told = {"step": step, "epoch": 1, "samples": step * 32, "seconds": seconds, "first": 2.0, "losses": losses}
    return ("steps", {**told, **more})


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 200))
def test_losses_keep_their_length_and_their_sum(sizes, times):
    losses, first, total = Losses(), 1, 0.0
    for n in sizes * times:
        losses.add(first, n, float(n), -1.0, 1.0 * n)
        first, total = first + n, total + n * n
    columns = losses.columns()
    assert len(columns["step"]) <= POINTS
    assert columns["step"] == sorted(columns["step"])
    assert math.isclose(sum(b[0] for b in losses.buckets.values()), total)
    assert max(columns["most"]) == max(sizes)
    assert set(columns["least"]) == {-1.0}


@given(st.integers(1, 5000))
def test_a_series_keeps_its_length_its_first_and_its_last(n):
    series = Series()
    for k in range(n):
        series.add(float(k))
    rows = series.columns(["k"])["k"]
    assert len(rows) <= POINTS
    assert (rows[0], rows[-1]) == (0.0, n - 1.0)
    assert rows == sorted(set(rows))


def test_runs_that_are_over_are_forgotten_before_others():
    board = Board()
    begun(board, "training")
    for k in range(2 * RUNS):
        begun(board, f"r{k}", f"c{k}")
        board.take(f"r{k}", f"c{k}", [("end", {"status": "done"})], 1.0)
    assert len(board.runs) == RUNS
    assert "training" in board.runs
    assert f"r{2 * RUNS - 1}" in board.runs
    assert [run.number for run in board.runs.values()] == sorted(run.number for run in board.runs.values())
    for k in range(2 * RUNS):
        begun(board, f"t{k}", f"c{k}")
    assert len(board.runs) == RUNS  # whether they are over or not


def test_of_a_run_that_was_forgotten_nothing_is_taken():
    board = Board()
    board.take("a", "c", [steps(5)], 0.0)
    assert not board.runs


def test_a_run_whose_client_goes_away_is_over():
    board = Board()
    begun(board, "a"), begun(board, "b"), begun(board, "c", "other")
    board.take("b", "c", [steps(100)], 1.0)
    assert board.of("c").run == "b"
    board.left("c")
    assert [run.status for run in board.runs.values()] == ["gone", "done", "training"]
    assert board.of("c") is None
    assert board.latest().run == "c"


def test_a_run_begins_once_and_comes_back_with_its_connection():
    board = Board()
    run = begun(board)
    board.take("a", "c", [steps(7)], 1.0)
    assert begun(board) is run
    board.left("c")
    assert run.status == "gone"
    board.take("a", "c", [steps(8)], 2.0)
    assert (run.status, run.step) == ("training", 8)


def test_the_end_says_why():
    board = Board()
    run = begun(board)
    board.take("a", "c", [("end", {"status": "stopped", "cause": "the loss became nan"})], 1.0)
    assert (run.status, run.cause) == ("stopped", "the loss became nan")
    board.left("c")
    assert run.status == "stopped"


def test_a_run_that_is_not_heard_of_is_silent():
    run = begun(Board(), now=100.0)
    assert run.silent(105.0) == 0.0
    assert run.silent(100.0 + 2 * state.SILENT) == 2 * state.SILENT


def test_rates_are_of_a_second_at_least():
    board = Board()
    run = begun(board)
    for k in range(1, 21):
        board.take("a", "c", [steps(10 * k, seconds=0.25 * k)], k)
    assert 0 < len(run.rates.rows) <= 5
    assert run.rate == pytest.approx(10 * 32 / 0.25)


def test_the_time_of_a_step_is_all_of_its_time():
    board = Board()
    run = begun(board)
    seats = [{"address": w, "threads": 1, "first": k, "stop": k + 1} for k, w in enumerate("xy")]
    seats.append({"address": "z", "threads": 1, "first": None, "stop": None})
    board.take("a", "c", [steps(10, seats=seats)], 10.0)
    for worker in "xy":
        run.ran("collective-1", "collective", worker, {"compute": 2.0, "exchange": 0.5})
    run.ran("update-1", "update", "x", {"compute": 0.4, "transfer": 0.2})
    board.take("a", "c", [steps(20, seconds=2.0)], 10.0 + 2 * state.BIN)
    (point,) = run.times.rows
    spent = dict(zip(KINDS, point[1:]))
    assert spent == pytest.approx(
        {"compute": 150.0, "exchange": 60.0, "update": 20.0, "evaluation": 0.0, "waiting": 170.0}
    )
    assert run.busy == pytest.approx({"x": 1.9 / 4, "y": 1.5 / 4})
    assert run.key == "collective-1"


def test_the_loss_is_a_mean_of_an_epoch():
    board = Board()
    run = begun(board, steps=40, epochs=4)
    assert math.isnan(run.loss[0])
    board.take("a", "c", [steps(6, losses=[[1, 4, 2.0, 1.0, 3.0], [5, 2, 1.0, 1.0, 1.0]])], 1.0)
    assert run.loss == pytest.approx((10.0 / 6, 6))
    board.take("a", "c", [steps(26, losses=[[k, 4, 1.0 * k, 0.0, 99.0] for k in range(7, 27, 4)])], 2.0)
    assert run.loss == pytest.approx(
        ((15 + 19 + 23) / 3, 12)
    )  # three rows, for two have fewer than the ten steps of an epoch
    assert run.first_loss == 2.0


def test_a_worker_that_goes_away_is_named_with_what_was_lost():
    board = Board()
    run, other = begun(board, "a"), begun(board, "b")
    seats = [
        {"address": f"tcp://{w}", "name": w, "threads": 1, "first": k, "stop": k} for k, w in enumerate(["w1", "w2"])
    ]
    seats.append({"address": "tcp://w3", "name": "w3", "threads": 1, "first": None, "stop": None})
    board.take("a", "c", [steps(10, seats=seats)], 1.0)
    for w in ("w3", "w1"):  # the first had no part in it
        board.worker_left(f"tcp://{w}")
    board.take(
        "a", "c", [("recovery", {"step": 10, "cause": "a key"}), ("recovery", {"step": 12, "cause": "else"})], 2.0
    )
    assert [r["workers"] for r in run.recoveries] == [["w1 · tcp://w1"], []]
    assert not other.gone


def test_tasks_of_nodes_are_bounded(monkeypatch):
    monkeypatch.setattr(state, "TASKS", 2)
    run = begun(Board())
    for k in range(5):
        for token in "ab":
            run.ran_node(("dot-1", f"h{k}", token), 1.0)
    assert run.tasks == {("dot-1", f"h{k}"): [("dot-1", f"h{k}", "b"), 2, 2.0] for k in range(2)}


def test_epochs_and_failures_are_bounded():
    board = Board()
    run = begun(board)
    for k in range(5 * POINTS):
        epoch = {"epoch": k, "loss": 1.0, "validation_loss": abs(k - 6.0) if k % 2 else None}
        board.take("a", "c", [("epoch", epoch), ("recovery", {"step": k})], 1.0)
    assert len(run.epochs) <= POINTS + 1
    assert run.epochs[0]["epoch"] == 0
    assert run.epochs[-1]["epoch"] == 5 * POINTS - 1
    assert run.epochs[1]["epoch"] == 5  # the best one
    assert len(run.recoveries) == state.RECOVERIES

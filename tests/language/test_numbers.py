"""Single numbers that a user gives: whatever is no such number is refused with what it is for."""

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.inputs import integer, real


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers(value):
    assert type(integer(value, "n")) is int
    assert integer(value, "n") == 3


@pytest.mark.parametrize("value", [0, -1, 1.0, True, np.True_, "3", None, [3], np.array([3]), 3 + 0j])
def test_what_is_no_whole_number(value):
    with pytest.raises(fg.FlowgradError, match=r"^n must be an integer from 1 on, not "):
        integer(value, "n")


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5)])
def test_finite_numbers(value):
    assert type(real(value, "x")) is float
    assert real(value, "x", 0.5) == 0.5
    with pytest.raises(fg.FlowgradError, match=r"^x must be a number above 0\.5, not "):
        real(value, "x", 0.5, above=True)


@pytest.mark.parametrize("value", [float("nan"), np.inf, True, np.False_, "1", None, 1j, np.ones(1)])
def test_what_is_no_finite_number(value):
    with pytest.raises(fg.FlowgradError, match=r"^x must be a finite number, not "):
        real(value, "x")


def square():
    with fg.Graph() as graph:
        w = fg.Variable(1, [2.0])
        return fg.Adam(graph, w * w), w


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: fg.EarlyStopping("loss", min_delta=True), "min_delta must be a number from 0 on, not True"),
        (lambda: fg.Checkpoints("x", every_seconds=True), "every_seconds must be a number above 0, not True"),
        (lambda: fg.Trainer(square()[0], seed=-1), "seed must be an integer from 0 on, not -1"),
        (lambda: fg.Trainer(square()[0], "threads"), r"is an Engine, not 'threads': give fg.Engine\('threads'\)"),
        (lambda: fg.Trainer(square()[0], callbacks=fg.EarlyStopping()), r"write \[EarlyStopping\(...\)\]"),
        (
            lambda: fg.Trainer(square()[0], callbacks=[fg.EarlyStopping]),
            "EarlyStopping is a class: write EarlyStopping",
        ),
        (lambda: fg.Graph(seed=-1), "seed must be an integer from 0 on, not -1"),
        (lambda: fg.Adam(*square()[0].graph.nodes), "the first argument of Adam is a Graph"),
        (lambda: fg.Engine("sync", shards=True), "shards must be an integer from 1 on, not True"),
        (lambda: fg.Engine("sync").jacobian(square()[1], 5), "derivatives are by nodes; 5 is not one"),
        (lambda: fg.Engine("sync").gradient(square()[0].target, wrt=5), "derivatives are by nodes; 5 is not one"),
    ],
)
def test_settings_that_are_none(make, told):
    with pytest.raises(fg.FlowgradError, match=told):
        make()


def test_settings_as_numpy_gives_them():
    assert fg.EarlyStopping("loss", patience=np.int64(3), min_delta=np.float32(0.5)).min_delta == 0.5
    assert fg.Checkpoints("x", every_seconds=np.float32(2)).keep == 3
    assert fg.Trainer(square()[0], fg.Engine("sync"), seed=np.int64(1)).evaluate({})["loss"] == 4.0


def test_by_no_nodes_at_all_nothing_is_lost():
    with fg.Graph():
        w = fg.Variable(2, [0.5, 1.0])
        result = fg.Exp(fg.Tanh(w))
    engine = fg.Engine("sync")
    engine.jacobian(result, w)
    held = engine.cache_info().values
    assert held
    assert engine.jacobian(result, []) == {}
    assert engine.cache_info().values == held


@pytest.mark.parametrize("value", [np.array([1 + 2j]), np.ma.array([1.0], mask=[True]), [10**400], None, [None], "1"])
def test_values_that_are_no_real_numbers(value):
    with fg.Graph():
        w = fg.Variable(1, [2.0])
    with pytest.raises(fg.FlowgradError, match=r"masked or complex|is not an array of numbers"):
        w.set_value(value)
    with pytest.raises(fg.FlowgradError, match="x must be a finite number"):
        real(10**400, "x")
    assert w.value.tolist() == [2.0]


def test_a_value_beyond_double_precision():
    with fg.Graph():
        w, x = fg.Variable(2, [1.0, 2.0], name="w"), fg.Variable(2, trainable=False, name="x")
    large = np.array([1.0, "1e400"], np.longdouble)
    if np.isinf(large[1]):
        pytest.skip("long double is double here")
    with pytest.raises(
        fg.FlowgradError, match=r"'w' \(dim 2\) is too large: entry 1 is 1e\+400, and float64 holds up to"
    ):
        w.set_value(large)
    with pytest.raises(fg.FlowgradError, match=r"'x' holds 1e\+400 at sample 0, more than float64 can: scale it"):
        fg.Engine("sync").forward(fg.Dot(w, x), {x: large[None]})
    w.set_value(large[[0, 0]])
    assert w.value.tolist() == [1.0, 1.0]

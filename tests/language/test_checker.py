"""The gradient checker: silent on right rules, loud on one that is wrong by 0.1 %."""

import numpy as np
import pytest
import strategies
from hypothesis import given
from models import Cube

import flowgrad as fg
from flowgrad.errors import GradientError

FACTOR = 1.001


class CubeWrong(Cube):
    """``a³`` with a derivative that is 0.1 % too large."""

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(FACTOR * 3 * a**2)


class ProductWrong(fg.Op):
    """``a b``; only the derivative by `b` is wrong."""

    @staticmethod
    def apply(a, b):
        return a * b

    @staticmethod
    def jacobian(slot, y, a, b):
        return fg.Diagonal(FACTOR * a if slot else b)


class LastEntryWrong(fg.Op):
    """``a²``; only the last entry of the derivative is wrong."""

    @staticmethod
    def apply(a):
        return a * a

    @staticmethod
    def jacobian(slot, y, a):
        d = 2 * a
        d[:, -1] *= FACTOR
        return fg.Diagonal(d)


def deep(op):
    """Put one `op` in the middle of a graph of right rules."""
    with fg.Graph():
        x = fg.Variable(3, [0.7, -1.1, 0.4], name="x")
        w = fg.Variable(3, [1.0, 0.5, -0.8], name="w")
        middle = op(fg.Tanh(x), name="middle")
        return fg.Sum(fg.Logistic(middle * w)), x, w


@given(strategies.graphs())
def test_right_rules_pass(made):
    made.set_sample(0)
    assert fg.check_gradients(made.result, rtol=1e-4, atol=1e-5) < 1e-4
    assert fg.check_gradients(made.loss, wrt=made.parameters, rtol=1e-4, atol=1e-5) < 1e-4


def test_a_right_rule_of_a_user_passes():
    node, *_ = deep(Cube)
    assert fg.check_gradients(node) < 1e-7


def test_a_rule_wrong_by_a_tenth_of_a_percent_is_caught():
    node, *_ = deep(CubeWrong)
    with pytest.raises(GradientError) as error:
        fg.check_gradients(node)
    message = str(error.value)
    assert "'middle'" in message
    assert "slot 0" in message
    numbers = numbers_in(message)
    assert abs(numbers[-2] / numbers[-1] - FACTOR) < 1e-5


def numbers_in(message):
    found = []
    for word in message.replace(",", " ").split():
        try:
            found.append(float(word))
        except ValueError:
            continue
    return found


def test_the_wrong_slot_is_named():
    with fg.Graph():
        a, b = fg.Variable(2, [1.0, 2.0], name="a"), fg.Variable(2, [3.0, 4.0], name="b")
        node = ProductWrong(a, b, name="product")
    with pytest.raises(GradientError, match=r"'product'.*slot 1.*'b'"):
        fg.check_gradients(node)


def test_one_wrong_entry_is_enough():
    with fg.Graph():
        node = LastEntryWrong(fg.Variable(4, [3.0, 2.0, 1.0, 1.0]))
    with pytest.raises(GradientError, match=r"\[3, 3\]"):
        fg.check_gradients(node)


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e3])
def test_the_error_is_relative(scale):
    with fg.Graph():
        x = fg.Variable(1, [scale])
        right, wrong = x * x, LastEntryWrong(x)
    assert fg.check_gradients(right, atol=0.0) < 1e-7
    with pytest.raises(GradientError):
        fg.check_gradients(wrong, atol=0.0)


def test_rtol_decides():
    node, *_ = deep(CubeWrong)
    worst = fg.check_gradients(node, rtol=0.01)
    assert 1e-4 < worst < 2e-3


def test_not_a_number_does_not_pass():
    class Nan(Cube):
        @staticmethod
        def jacobian(slot, y, a):
            return fg.Diagonal(np.full_like(a, np.nan))

    with fg.Graph():
        node = Nan(fg.Variable(2, [1.0, 2.0]))
    with pytest.raises(GradientError):
        fg.check_gradients(node)


def test_values_are_left_as_they_were():
    for op, fails in ((Cube, False), (CubeWrong, True)):
        node, x, w = deep(op)
        before = x.value.copy(), w.value.copy(), node.forward().copy()
        if fails:
            with pytest.raises(GradientError):
                fg.check_gradients(node)
        else:
            fg.check_gradients(node)
        for array, now in zip(before, (x.value, w.value, node.forward())):
            np.testing.assert_array_equal(now, array)


class Elementwise(fg.Op):
    """Cubes; what is stated for compiled kernels is set by tests."""

    formula = "a * a * a + by"
    slopes = ("3 * a * a",)

    @staticmethod
    def shape(a, *, by):
        return a

    @staticmethod
    def apply(a, *, by):
        return a**3 + by

    @staticmethod
    def jacobian(slot, y, a, *, by):
        return fg.Diagonal(3 * a**2)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("formula", "a * a", r"formula of Elementwise .*, entry \[0, 1\]: formula says 4, the rule says 7.75"),
        ("slopes", ("2 * a * a",), r"slopes\[0\] of Elementwise .* says 8, the rule says 12"),
        ("formula", "a * to", r"the formula '.*to' of Elementwise .* failed: NameError: name 'to' is not defined"),
        ("formula", "a *", "is no expression"),
    ],
)
def test_what_is_compiled_is_compared_with_the_rules(monkeypatch, name, text, told):
    with fg.Graph():
        y = Elementwise(fg.Variable(2, [-0.5, 2.0]), by=-0.25)
    assert fg.check_gradients(y) < 1e-8
    monkeypatch.setattr(Elementwise, name, text)
    with pytest.raises(GradientError, match=told):
        fg.check_gradients(y)


class Rowwise(fg.Op):
    """A weighted sum; what is stated for compiled kernels is wrong by `FACTOR`."""

    kinds = (fg.Outer,)
    uses = ((),)
    wrong = "nothing"

    @staticmethod
    def shape(a):
        return 1

    @staticmethod
    def apply(a):
        return a @ np.arange(1.0, a.shape[1] + 1)[:, None]

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Outer(np.arange(1.0, 4.0)[None])

    @staticmethod
    def row_value(y, a):
        y[0] = 0.0
        for j in range(a.shape[0]):
            y[0] += (j + 1 + (Rowwise.wrong == "row_value")) * a[j]

    @staticmethod
    def row_factor(slot, f):
        for j in range(f.shape[0]):
            f[j] = j + 1 + (Rowwise.wrong == "row_factor")

    @staticmethod
    def row_both(y, f, a):
        Rowwise.row_value(y, a)
        Rowwise.row_factor(0, f)
        f[0] += Rowwise.wrong == "row_both"


@pytest.mark.parametrize("wrong", ["nothing", "row_value", "row_factor", "row_both"])
def test_rows_that_are_compiled_are_compared_too(monkeypatch, wrong):
    with fg.Graph():
        y = Rowwise(fg.Variable(3, [1.0, 2.0, 3.0]))
    monkeypatch.setattr(Rowwise, "wrong", wrong)
    if wrong == "nothing":
        assert fg.check_gradients(y) < 1e-8
        return
    with pytest.raises(GradientError, match=f"{wrong}.* of Rowwise"):
        fg.check_gradients(y)


def test_values_that_uses_leaves_out_are_missed():
    class Short(fg.Op):
        uses = ((),)

        @staticmethod
        def apply(a):
            return a * a

        @staticmethod
        def jacobian(slot, y, a):
            return fg.Diagonal(2 * a)

    with fg.Graph():
        y = Short(fg.Variable(1, [3.0]))
    with pytest.raises(fg.FlowgradError, match=r"jacobian of Short .* its class's `uses` leaves out values"):
        fg.check_gradients(y)


def test_what_can_be_differentiated_by():
    with fg.Graph():
        x = fg.Variable(2, [1.0, 2.0])
        inner = fg.Exp(x)
        y = fg.Sum(inner)
    assert fg.check_gradients(y, x) == fg.check_gradients(y, [x]) < 1e-8
    for wrt in (inner, [inner], 3):
        with pytest.raises(fg.FlowgradError, match="check_gradients differentiates by variables"):
            fg.check_gradients(y, wrt)

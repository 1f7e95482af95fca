"""Ops that mix samples, draw random numbers, change operands or return what is no value are named: by the checker, and in use."""

import time

import numpy as np
import pytest

import flowgrad as fg
from flowgrad import samples
from flowgrad.errors import GradientError


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A machine that is busy elsewhere would end the check early."""
    monkeypatch.setattr(samples, "SECONDS", 60.0)


class Smooth(fg.Op):
    """The identity by its two rules; those below state one of them otherwise."""

    @staticmethod
    def apply(a):
        return a + 0.0

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(np.ones_like(a))


def unit(keep):
    """Return an op that divides by the norm, of each sample where dims are kept, else of all samples together."""
    how = {"axis": 1, "keepdims": True} if keep else {}

    class Unit(fg.Op):
        kinds = (fg.Dense,)

        @staticmethod
        def apply(a):
            return a / np.linalg.norm(a, **how)

        @staticmethod
        def jacobian(slot, y, a):
            n = np.linalg.norm(a, axis=1)[:, None, None]
            return fg.Dense(np.eye(a.shape[1]) / n - a[:, :, None] * a[:, None, :] / n**3)

    return Unit


def centred():
    class Centred(Smooth):
        @staticmethod
        def apply(a):
            return a - a.mean(axis=0)

    return Centred


def dropout():
    class Dropout(Smooth):
        @staticmethod
        def apply(a):
            return a * np.random.default_rng().uniform(size=a.shape)

    return Dropout


def clipping():
    class Clipping(Smooth):
        @staticmethod
        def apply(a):
            a *= 0.5
            return a + 0.0

    return Clipping


def one_at_a_time():
    class OneAtATime(Smooth):
        @staticmethod
        def apply(a):
            return a * float(a.reshape(3)[0])

    return OneAtATime


def summed():
    class Summed(Smooth):
        @staticmethod
        def apply(a):
            return a.reshape(-1)[None]

    return Summed


def slope():
    class Slope(Smooth):
        @staticmethod
        def jacobian(slot, y, a):
            return fg.Diagonal(np.ones_like(a) * (1 + a.std(axis=0)))

    return Slope


def at_once():
    class AtOnce(Smooth):
        @staticmethod
        def both(a):
            return a + a.std(axis=0), fg.Diagonal(np.ones_like(a))

    return AtOnce


WRONG = [
    (
        lambda: unit(False),
        r"apply of Unit 'wrong'.* mixes samples: sample \d, entry \d is among \d .*, alone .*; axis 0 is",
    ),
    (centred, r"apply of Centred 'wrong'.* mixes samples"),
    (
        dropout,
        r"apply of Dropout 'wrong'.* something else when it is called again: .* now .*, before .*; draw random numbers",
    ),
    (clipping, r"apply of Clipping 'wrong'.* changes its operand 0: .* is now .*, it was .*; write into a copy"),
    (one_at_a_time, r"apply of OneAtATime 'wrong'.* works for one sample, but failed for \d: ValueError: .*; axis 0"),
    (
        summed,
        r"apply of Summed 'wrong'.* failed for \d: ShapeError: gave shape \(1, \d+\), it must be \(\d, 3\); axis 0",
    ),
    (slope, r"jacobian by slot 0 of Slope 'wrong'.* mixes samples"),
    (at_once, r"both of AtOnce 'wrong'.* mixes samples"),
]
USES = {
    "forward": lambda engine, y, x, w, loss: engine.forward(y, {x: np.ones((5, 3))}),
    "gradient": lambda engine, y, x, w, loss: engine.gradient(loss, {x: np.ones((5, 3))}),
    "jacobian": lambda engine, y, x, w, loss: engine.jacobian(y, w, {x: np.ones((5, 3))}),
    "fit": lambda engine, y, x, w, loss: fg.Trainer(fg.Adam(w.graph, loss, batch_size=2), engine).fit(
        {x: np.ones((5, 3))}, 1
    ),
}


def graph(op):
    with fg.Graph():
        x, w = fg.Variable(3, [1.0, -2.0, 0.5], trainable=False), fg.Variable(3, [0.5, 1.0, 2.0])
        y = op(w * x, name="wrong")
        return y, x, w, fg.Sum(y)


@pytest.mark.parametrize(("op", "told"), WRONG, ids=[told.split("'")[0].split()[-1] for _, told in WRONG])
def test_the_checker_and_the_first_use_name_it(op, told):
    loss = graph(op())[-1]
    with pytest.raises(GradientError, match=told) as error:
        fg.check_gradients(loss)
    assert "\n" not in str(error.value)
    for use in USES.values():
        made = graph(op())
        for _ in range(2):  # and is so the second time
            with pytest.raises(GradientError, match=told) as error:
                use(fg.Engine("sync"), *made)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("use", USES)
def test_right_ops_are_used_as_ever(use):
    made = graph(unit(True))
    USES[use](fg.Engine("sync"), *made)
    assert fg.check_gradients(made[-1]) < 1e-7


def test_an_operand_that_all_samples_share_is_tried_too():
    class Joined(fg.Op):
        """The product, but by pairs of samples: right only where both operands have as many."""

        @staticmethod
        def apply(a, b):
            return np.array([p * q for p, q in zip(a, b)])

        @staticmethod
        def jacobian(slot, y, a, b):
            return fg.Diagonal(a if slot else b)

    with fg.Graph():
        y = Joined(fg.Variable(2, [1.0, 2.0]), fg.Variable(2, [3.0, 4.0]))
    with pytest.raises(
        GradientError, match=r"apply of Joined .* mixes samples|gave shape \(1, 2\), it must be \(3, 2\)"
    ):
        fg.check_gradients(y)


def counting(seconds=0.0):
    class Counting(Smooth):
        calls = 0

        @staticmethod
        def apply(a):
            Counting.calls += 1
            time.sleep(seconds)
            return a + 0.0

    return Counting


def calls_of(op, dim):
    """Return how often an op's value was computed when it was asked for once."""
    with fg.Graph():
        x = fg.Variable(dim, trainable=False)
        y = op(x)
    before = op.calls
    fg.Engine("sync").forward(y, {x: np.ones((2, dim))})
    return op.calls - before


def test_a_class_is_tried_once_and_only_if_it_is_cheap(monkeypatch):
    small, slow, large = counting(), counting(0.002), counting()
    assert calls_of(small, 3) > 1
    assert calls_of(small, 3) == 1
    assert [calls_of(large, samples.ENTRIES + 1) for _ in range(2)] == [1, 1]
    monkeypatch.setattr(samples, "SECONDS", 0.001)
    assert [calls_of(slow, 3) for _ in range(2)] == [2, 1]


def test_what_is_for_some_numbers_only_is_tried_with_those():
    class Root(fg.Op):
        @staticmethod
        def apply(a):
            assert (a > 0).all()
            return np.sqrt(a)

        @staticmethod
        def jacobian(slot, y, a):
            return fg.Diagonal(0.5 / y)

    class Roots(Root):
        @staticmethod
        def apply(a):
            assert (a > 0).all()
            return np.sqrt(a) + a.std(axis=0)

    for op in (Root, Roots):
        with fg.Graph():
            x = fg.Variable(2, trainable=False)
            y = op(x)
        if op is Root:
            assert fg.Engine("sync").forward(y, {x: np.ones((3, 2))}).tolist() == [[1.0, 1.0]] * 3
            continue
        with pytest.raises(GradientError, match=r"apply of Roots .* mixes samples"):
            fg.Engine("sync").forward(y, {x: np.ones((3, 2))})


def test_not_a_number_is_as_good_as_another_where_it_comes_each_time():
    class Arcsine(Smooth):
        @staticmethod
        def apply(a):
            return np.arcsin(a)

        @staticmethod
        def jacobian(slot, y, a):
            return fg.Diagonal(1 / np.sqrt(1 - a * a))

    with fg.Graph():
        x = fg.Variable(3, trainable=False)
        y = Arcsine(x)
    assert fg.Engine("sync").forward(y, {x: np.zeros((2, 3))}).tolist() == [[0.0] * 3] * 2


def odd(where, give):
    """Return an op whose value, local Jacobian or its factor is what `give` makes of the right one."""

    class Odd(fg.Op):
        @staticmethod
        def apply(a):
            return give(3.0 * a) if where == "value" else 3.0 * a

        @staticmethod
        def jacobian(slot, y, a):
            slope = np.full_like(a, 3.0)
            if where == "jacobian":
                return give(slope)
            return fg.Diagonal(give(slope) if where == "factor" else slope)

    return Odd


RETURNED = {
    "list": lambda a: a.tolist(),
    "int": lambda a: np.rint(a).astype(int),
    "float32": lambda a: a.astype("f4"),
    "matrix": lambda a: np.matrix(a),
    "None": lambda a: None,
    "text": lambda a: "3",
    "object": lambda a: a.astype(object),
    "complex": lambda a: a + 0j,
    "masked": lambda a: np.ma.masked_array(a, a > 0),
    "wide": lambda a: np.hstack([a, a]),
    "samples": lambda a: np.vstack([a, a]),
}
RIGHT = ("list", "int", "float32", "matrix")
RUN = {
    "interpreter": lambda y, w, x: w.backward(y),
    "gradient": lambda y, w, x: fg.Engine("sync").gradient(y, {x: np.ones((5, 3))}),
    "node by node": lambda y, w, x: fg.Engine("sync", grain="node").gradient(y, {x: np.ones((5, 3))}),
    "jacobian": lambda y, w, x: fg.Engine("sync").jacobian(y, w, {x: np.ones((5, 3))}),
    "forward mode": lambda y, w, x: fg.Engine("sync").jacobian(y, w, {x: np.ones((5, 3))}, mode="forward"),
    "norms": lambda y, w, x: fg.Engine("sync").per_sample_gradients(y, {x: np.ones((5, 3))}).norms(),
    "fit": lambda y, w, x: fg.Trainer(fg.Adam(y.graph, y, batch_size=2), fg.Engine("sync")).fit(
        {x: np.ones((5, 3))}, 1
    ),
    "check_gradients": lambda y, w, x: fg.check_gradients(y),
}


@pytest.mark.parametrize("run", RUN)
@pytest.mark.parametrize(
    ("where", "given"),
    [(w, g) for w in ("value", "factor", "jacobian") for g in RETURNED if w != "jacobian" or g not in RIGHT],
)
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_what_rules_return_is_taken_or_named(where, given, run):
    with fg.Graph():
        x, w = fg.Variable(3, [1.0, -2.0, 4.0], trainable=False), fg.Variable(3, [1.0, 1.0, 2.0])
        y = fg.Sum(odd(where, RETURNED[given])(w * x, name="odd"))
    if run == "check_gradients" and where == "value" and given in ("int", "float32"):
        with pytest.raises(GradientError, match=r"'odd'.* differences of (int64|float32) \(return float64 values"):
            RUN[run](y, w, x)
        return
    if given in RIGHT:
        RUN[run](y, w, x)
        return
    with pytest.raises(fg.FlowgradError, match=r"Odd 'odd'.* (gave|None for a factor)") as error:
        RUN[run](y, w, x)
    told = str(error.value)
    assert "\n" not in told
    assert "broadcast" not in told
    assert "must" in told or "None for a factor: Diagonal(d) is empty" in told


def test_what_a_kind_of_ones_own_pulls_is_taken_or_named():
    class Tripled(fg.LocalJacobian):
        wide = False

        def pull(self, g, out=None):
            return np.concatenate([g, g], axis=2) if Tripled.wide else (3.0 * g).tolist()

    class Odd(fg.Op):
        kinds = (Tripled,)

        @staticmethod
        def apply(a):
            return 3.0 * a

        @staticmethod
        def jacobian(slot, y, a):
            return Tripled()

    with fg.Graph():
        x, w = fg.Variable(3, [1.0, -2.0, 4.0], trainable=False), fg.Variable(3, [1.0, 1.0, 2.0])
        y = fg.Sum(Odd(w * x, name="odd"))
    for run in RUN:
        RUN[run](y, w, x)
    Tripled.wide = True
    for run in RUN:
        if run != "forward mode":
            with pytest.raises(
                fg.FlowgradError, match=r"Odd 'odd'.* gives shape \(\d, \d, 6\), it must give \(\d, \d, 3\)"
            ):
                RUN[run](y, w, x)

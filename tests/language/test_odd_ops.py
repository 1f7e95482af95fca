"""Ops of a user that are right but odd: of another precision, decorated, inherited; and what machine code makes of them."""

import functools

import numpy as np
import pytest

import flowgrad as fg


class Wide(fg.Op):
    """An op whose rules are in double precision whatever comes."""

    @staticmethod
    def apply(a):
        return a * np.float64(2.0)

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(np.sqrt(np.full(a.shape, 4.0)))


@pytest.mark.parametrize("grain", ["shard", "node"])
def test_results_have_the_precision_of_the_feeds(grain):
    with fg.Graph():
        x, w = fg.Variable(4, trainable=False), fg.Variable(12, np.ones(12))
        out = Wide(fg.Tanh(fg.MatVec(w, x)))
        loss = fg.Sum(out)
    feeds = {x: np.ones((5, 4), np.float32)}
    fed_matrix = {**feeds, w: np.ones((5, 12), np.float32)}
    e = fg.Engine("sync", grain=grain)
    found = e.per_sample_gradients(loss, feeds)
    results = {
        "forward": e.forward(out, feeds),
        "gradient": e.gradient(loss, feeds)[w],
        "norms": found.norms(),
        "array": found.array(),
        "forward mode": e.jacobian(out, x, feeds, mode="forward"),
        "reverse mode": e.jacobian(out, x, feeds, mode="reverse"),
        "a matrix per sample": e.jacobian(out, x, fed_matrix, mode="reverse"),
        "hvp": e.hvp(loss, {w: np.ones(12)}, feeds)[w],
        "jvp": e.jvp(loss, {w: np.ones(12)}, feeds),
        "vjp": e.vjp(out, np.ones(3), feeds)[w],
    }
    assert {name: a.dtype for name, a in results.items() if a.dtype != np.float32} == {}


def doubling(rule):
    """A decorator that gives a rule one of its operands."""

    @functools.wraps(rule)
    def wrapped(*values, **attrs):
        return rule(*values, by=2.0, **attrs)

    return wrapped


class Decorated(fg.Op):
    @staticmethod
    def shape(a):
        return a

    @staticmethod
    @doubling
    def apply(a, by):
        return a * by

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(2.0)


class Twice(fg.Tanh):
    """States rules anew, but not what belongs to them: machine code of the class above would be of another function."""

    @staticmethod
    def apply(a):
        return 2 * np.tanh(a)

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(2 - y * y / 2)


class Shortened(fg.Op):
    uses = ((0,),)

    @staticmethod
    def apply(a):
        return np.exp(a)

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(y)


@pytest.mark.filterwarnings("ignore:.* does not depend on")
def test_rules_that_are_decorated_inherited_or_miss_a_value():
    with fg.Graph() as graph:
        x = fg.Variable(2, trainable=False)
        loss = fg.Sum(Twice(Decorated(fg.Variable(2, [0.5, -0.25]) * x)))
        short = Shortened(fg.Variable(1, [1.0]))
    feeds = {x: np.ones((4, 2))}
    assert Twice.formula is None
    assert Twice.slopes == ()
    plans = []
    for kernel in ("auto", "numpy"):
        weights = graph.nodes[1]
        weights.set_value([0.5, -0.25])
        fg.Trainer(fg.Adam(graph, loss, batch_size=2), fg.Engine("sync", kernel=kernel)).fit(feeds, epochs=1)
        plans.append(weights.value.tolist())
    assert plans[0] == plans[1]
    with pytest.raises(fg.FlowgradError, match=r"jacobian of Shortened .* has None for a factor: its class's `uses`"):
        graph.nodes[-2].backward(short)


@pytest.mark.parametrize(("dtype", "at"), [("float32", -20.0), ("float64", -40.0), ("float64", 3.0)])
def test_a_small_probability_is_not_lost_in_machine_code(dtype, at):
    pytest.importorskip("numba")
    losses = []
    for kernel in ("numpy", "numba"):
        with fg.Graph() as graph:
            x, w = fg.Variable(1, trainable=False), fg.Variable(1, [at])
            loss = -fg.Log(fg.Logistic(w * x))
        engine = fg.Engine("sync", kernel=kernel, dtype=dtype)
        trainer = fg.Trainer(fg.GradientDescent(graph, loss, 1e-6, batch_size=2), engine)
        losses.append(trainer.fit({x: np.ones((4, 1))}, epochs=1).epochs[-1]["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)

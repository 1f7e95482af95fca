"""What cannot train is said, with the node, and not blamed on the learning rate."""

import warnings
from itertools import pairwise

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.scheduler.steps import vanished


def perceptron(*sizes, scale):
    rng = np.random.default_rng(0)
    with fg.Graph(seed=0) as graph:
        x, label = (
            fg.Variable(sizes[0], trainable=False, name="x"),
            fg.Variable(sizes[-1], trainable=False, name="label"),
        )
        a = x
        for k, (m, n) in enumerate(pairwise(sizes)):
            a = fg.MatVec(fg.Variable(m * n, rng.normal(0, scale, m * n), name=f"w{k}"), a) + fg.Variable(n, True)
            a = fg.ReLU(a) if k < len(sizes) - 2 else a
        loss = fg.CrossEntropyWithSoftMax(a, label)
    samples = rng.normal(size=(400, sizes[0])).astype(np.float32)
    return graph, loss, {x: samples, label: samples[:, : sizes[-1]].argmax(axis=1)}


def trainer_of(graph, loss, where="sync", **settings):
    return fg.Trainer(fg.GradientDescent(graph, loss, 0.01, batch_size=40), fg.Engine(where, **settings))


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_gradients_that_vanish_are_told_once_with_the_layer(executor, kernel):
    graph, loss, feeds = perceptron(20, 30, 30, 30, 5, scale=0.001)
    trainer = trainer_of(graph, loss, executor, kernel=kernel)
    with pytest.warns(UserWarning, match=r"vanished in the first epoch: that of 'w0' is .* learn nothing") as told:
        trainer.fit(feeds, epochs=2)
    assert sum("vanished" in str(w.message) for w in told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit(feeds, epochs=1)


def test_a_net_that_begins_well_is_left_in_peace(recwarn):
    graph, loss, feeds = perceptron(20, 30, 30, 30, 5, scale=0.3)
    trainer_of(graph, loss).fit(feeds, epochs=2)
    assert not [w for w in recwarn if "vanished" in str(w.message)]


@pytest.mark.parametrize("target", [1.0, 0.0])
def test_a_net_of_zeros_is_told_and_one_that_has_learnt_all_is_not(recwarn, target):
    with fg.Graph() as graph:
        x, label = fg.Variable(3, trainable=False), fg.Variable(1, trainable=False)
        hidden = fg.Tanh(fg.MatVec(fg.Variable(12, np.zeros(12)), x))
        loss = fg.MeanSquaredError(fg.Dot(fg.Variable(4, np.zeros(4)), hidden), label)
    trainer_of(graph, loss).fit({x: np.ones((80, 3)), label: np.full(80, target)}, epochs=1)
    told = [str(w.message) for w in recwarn if "gradients" in str(w.message)]
    assert len(told) == (target != 0.0)
    assert all("all gradients are 0" in text for text in told)


@pytest.mark.parametrize(
    ("gradients", "told"),
    [
        ([[1e-9] * 3, [1.0]], [0]),
        ([[0.0] * 3, [1.0]], [0]),
        ([[1e-9], [1.0] * 3], []),  # one unit that rests
        ([[0.0] * 3, [0.0]], [0, 1]),
        ([[1e-3] * 3, [1.0]], []),
        ([], []),
    ],
)
def test_what_counts_as_vanished(gradients, told):
    with fg.Graph():
        variables = [fg.Variable(len(g)) for g in gradients]
    ends = np.cumsum([0, *map(len, gradients)])
    places = dict(zip(variables, pairwise(ends)))
    flat = np.concatenate([np.zeros(0), *gradients])
    assert list(vanished(flat, places)) == [variables[k] for k in told]


CALLS = ("fit", "forward", "gradient", "evaluate")


def of_value(executor, which, value):
    """Calls on a net one parameter or constant of which has this value."""
    with fg.Graph() as graph:
        x = fg.Variable(2, trainable=False, name="x")
        w = fg.Variable(2, [value if which == "w" else 1.0, 1.0], name="w")
        c = fg.Variable(2, [value if which == "c" else 1.0, 0.0], trainable=False, name="c")
        loss = fg.Dot(w * c, x)
    feeds, engine = {x: np.ones((4, 2), np.float32)}, fg.Engine(executor, dtype="float32")
    trainer = fg.Trainer(fg.GradientDescent(graph, loss, 0.01, batch_size=2), engine)
    calls = [
        lambda: trainer.fit(feeds, epochs=1),
        lambda: engine.forward(loss, feeds),
        lambda: engine.gradient(loss, feeds),
        lambda: trainer.evaluate(feeds),
    ]
    return dict(zip(CALLS, calls))


@pytest.mark.parametrize("which", ["w", "c"])
@pytest.mark.parametrize("call", CALLS)
def test_a_value_beyond_single_precision_is_named(executor, which, call):
    told = rf"Variable '{which}'.* 1e\+39, which float32 does not hold .*float64"
    with pytest.raises(fg.FlowgradError, match=told):
        of_value(executor, which, 1e39)[call]()
    told = rf"Variable '{which}'.* 1e-60, which float32 takes for 0 \(it holds 1.4e-45 and more\): .*float64"
    with pytest.warns(UserWarning, match=told):
        of_value(executor, which, 1e-60)[call]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_value(executor, which, 0.0)[call]()

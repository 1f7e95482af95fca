"""Losses against their definitions in NumPy."""

import numpy as np
import pytest
from refusal import refused

import flowgrad as fg
from flowgrad.errors import GraphError

A, B = np.array([0.7, -2.5, 0.2]), np.array([0.1, 1.5, -0.3])
P, Q = np.array([0.2, 0.5, 0.3]), np.array([0.6, 0.3, 0.1])
SIGNS, HOT = np.array([1.0, -1.0, 1.0]), np.array([0.0, 1.0, 0.0])


def log_softmax(a):
    return a - np.log(np.exp(a).sum())


def binary(a, y):
    p = 1 / (1 + np.exp(-a))
    return np.mean(-y * np.log(p) - (1 - y) * np.log(1 - p))


CASES = {
    "categorical_cross_entropy": ((A, HOT), {}, -log_softmax(A)[1]),
    "categorical_cross_entropy, smoothed": ((A, HOT), {"smoothing": 0.1}, -(0.9 * HOT + 0.1 / 3) @ log_softmax(A)),
    "binary_cross_entropy": ((A, HOT), {}, binary(A, HOT)),
    "binary_cross_entropy, smoothed": ((A, HOT), {"smoothing": 0.2}, binary(A, 0.8 * HOT + 0.1)),
    "mean_squared_error": ((A, B), {}, np.mean((A - B) ** 2)),
    "mean_absolute_error": ((A, B), {}, np.mean(np.abs(A - B))),
    "huber": ((A, B), {}, np.mean([0.18, 3.5, 0.125])),
    "huber, delta": ((A, B), {"delta": 5.0}, np.mean((A - B) ** 2 / 2)),
    "hinge": ((A, SIGNS), {}, np.maximum(0, 1 - A * SIGNS).mean()),
    "perceptron_loss": ((A, -SIGNS), {}, np.maximum(0, A * SIGNS).mean()),
    "kullback_leibler": ((P, Q), {}, (P * np.log(P / Q)).sum()),
    "poisson": ((Q, np.array([0.0, 2.0, 5.0])), {}, np.mean(Q - [0, 2, 5] * np.log(Q))),
    "l1": ((A, B), {"scale": 0.5}, 0.5 * (np.abs(A).sum() + np.abs(B).sum())),
    "l2": ((A, B), {"scale": 0.5}, 0.5 * ((A**2).sum() + (B**2).sum())),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_derivatives(case):
    values, more, expected = CASES[case]
    with fg.Graph():
        loss = getattr(fg.losses, case.partition(",")[0])(*(fg.Variable(3, v) for v in values), **more, name="loss")
    np.testing.assert_allclose(loss.forward(), [expected], rtol=1e-13)
    assert loss.name == "loss"
    assert fg.check_gradients(loss) < 1e-6


def test_where_a_probability_is_zero():
    with fg.Graph():
        p, q = fg.Variable(2, [1.0, 0.0]), fg.Variable(2, [0.25, 0.75])
        loss = fg.losses.kullback_leibler(p, q)
    np.testing.assert_allclose(loss.forward(), [np.log(4)], rtol=1e-14)
    assert q.backward(loss).tolist() == [[-4.0, 0.0]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("penalty", [False, True])
def test_accuracy_follows_from_what_the_loss_is_made_of(smoothing, penalty):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(64, 5))
    y = X[:, :3].argmax(axis=1)
    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(5, trainable=False), fg.Variable(3, trainable=False)
        logits = fg.layers.dense(x, 3, name="o")
        loss = fg.losses.categorical_cross_entropy(logits, label, smoothing)
        if penalty:
            loss = loss + fg.losses.l2(graph["o.W"], scale=1e-4)
    trainer = fg.Trainer(fg.Adam(graph, loss, learning_rate=0.05, batch_size=16), fg.Engine("sync"))
    history = trainer.fit({x: X, label: y}, epochs=20)
    guess = trainer.predict(logits, {x: X}).argmax(axis=1)
    found = trainer.evaluate({x: X, label: y})
    assert found["accuracy"] == (guess == y).mean() > 0.9
    assert history.epochs[-1]["loss"] < 0.9


@pytest.mark.parametrize("smoothing", [-0.1, 1, "a", np.nan])
def test_a_smoothing_that_is_none(smoothing):
    with fg.Graph() as graph:
        a, y = fg.Variable(2, [1.0, 2.0]), fg.Variable(2, [1.0, 0.0])
        with refused(GraphError, "smoothing", graph=graph):
            fg.losses.categorical_cross_entropy(a, y, smoothing)
        with refused(GraphError, "l1"):
            fg.losses.l1()

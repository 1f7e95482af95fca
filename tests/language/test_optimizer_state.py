"""The state of an optimizer: whose it is, what becomes of it, and what it loses or keeps in single precision."""

import warnings

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.errors import GraphError


@pytest.mark.parametrize("kind", [fg.GradientDescent, fg.Momentum, fg.Adam])
def test_variables_that_come_later_begin_with_no_state(kind):
    """Two models in one graph do not disturb each other, whoever takes the first step."""

    def model():
        w = fg.Variable(2, [1.0, -2.0])
        return w, fg.Dot(w, w)

    def steps(optimizer, times):
        for _ in range(times):
            optimizer.one_step()

    with fg.Graph() as alone:
        w, loss = model()
    reference = kind(alone, loss, 0.1, batch_size=2)
    steps(reference, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # neither loss depends on all variables
        with fg.Graph() as graph:
            first, loss = model()
            optimizer = kind(graph, loss, 0.1, batch_size=2)
            steps(optimizer, 3)
            second, other = model()
            steps(optimizer, 1)
            with_other = kind(graph, other, 0.1, batch_size=2)
            steps(with_other, 8)
            steps(optimizer, 2)
            steps(optimizer, 2)
    assert first.value.tolist() == second.value.tolist() == w.value.tolist()


def test_variables_that_are_not_trained_for_a_sample_miss_its_gradient():
    with fg.Graph() as graph:
        x, w = fg.Variable(1, trainable=False), [fg.Variable(1, [1.0]), fg.Variable(1, [1.0])]
        loss = x * w[0] + x * w[1]
    optimizer = fg.GradientDescent(graph, loss, learning_rate=3.0, batch_size=3)
    for value, trained in ((1.0, True), (10.0, False), (100.0, True)):
        x.set_value(value)
        w[0].trainable = trained
        optimizer.one_step()
    assert [v.value.tolist() for v in w] == [[1.0 - 101.0], [1.0 - 111.0]]


def test_what_is_trained_follows_the_graph():
    with fg.Graph() as graph:
        w, k = fg.Variable(2, [1.0, 2.0]), fg.Variable(1, [0.0])
        optimizer = fg.GradientDescent(graph, fg.Sum(w * k), 0.1)
    assert optimizer.variables() == [w, k]
    w.trainable = False
    assert optimizer.variables() == [k]
    with graph:
        fg.Embedding(table := fg.Variable((2, 1), True), k)
    w.trainable = True
    assert optimizer.variables() == [w, table]
    assert optimizer.variables({w}) == [table]


def test_a_state_of_other_variables_is_refused():
    with fg.Graph() as graph:
        w = fg.Variable(2, [1.0, 2.0])
        loss = fg.Dot(w, w)
    optimizer = fg.Adam(graph, loss, batch_size=1)
    optimizer.state = optimizer.rule.init(np.zeros(5))
    with pytest.raises(
        GraphError, match=r"5 entries \('v'\), the trainable variables have 2: set optimizer.state = None"
    ):
        optimizer.one_step()


def test_a_state_that_is_set_is_for_the_variables_of_now():
    with fg.Graph() as graph:
        a = fg.Variable(1, [1.0])
        loss = a * a
    optimizer = fg.Momentum(graph, loss, 0.1, batch_size=1)
    optimizer.one_step()
    with graph:
        fg.Variable(1, [1.0])
    assert optimizer.state_now()["v"].tolist() == [2.0, 0.0]
    optimizer.state = {"v": np.array([5.0, 7.0]), "t": np.array([1])}
    assert optimizer.state_now()["v"].tolist() == [5.0, 7.0]
    optimizer.state = {"v": np.ones(4), "t": np.array([1])}
    with pytest.raises(GraphError, match="4 entries"):
        optimizer.state_now()


@pytest.mark.parametrize("beta_2", [0.99, 0.9999, 0.99999999])
def test_bias_is_corrected_in_double_precision(beta_2):
    pytest.importorskip("numba")
    weights = {}
    for kernel, dtype in (("numpy", "float64"), ("numpy", "float32"), ("numba", "float32")):
        with fg.Graph() as graph:
            x, w = fg.Variable(3, trainable=False), fg.Variable(3, [0.5, -0.5, 0.25])
            loss = fg.Dot(w, x)
        optimizer = fg.Adam(graph, loss, 0.01, beta_2=beta_2, bias_correction=True, batch_size=4)
        engine = fg.Engine("sync", kernel=kernel, dtype=dtype)
        fg.Trainer(optimizer, engine).fit({x: np.random.default_rng(0).random((12, 3))}, epochs=2)
        weights[kernel, dtype] = w.value - [0.5, -0.5, 0.25]
    for moved in weights.values():
        np.testing.assert_allclose(moved, weights["numpy", "float64"], rtol=2e-5)


def test_a_state_of_another_rule_is_refused():
    with fg.Graph() as graph:
        w = fg.Variable(1, [2.0])
        loss = w * w
    optimizer = fg.GradientDescent(graph, loss, 0.1, batch_size=1)
    optimizer.one_step()
    optimizer.rule = fg.optim.AdamRule(0.1)
    with pytest.raises(GraphError, match=r"another rule's, it has no 'v', 's': set optimizer.state = None"):
        optimizer.one_step()


@pytest.mark.filterwarnings("ignore:overflow")
def test_weights_that_the_last_update_loses_are_told():
    with fg.Graph() as graph:
        x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 2.0])
        loss = fg.Dot(w, x)
    trainer = fg.Trainer(fg.GradientDescent(graph, loss, 1e308, batch_size=4), fg.Engine("sync"))
    with pytest.raises(fg.FlowgradError, match="the weights became inf or nan in epoch 1"):
        trainer.fit({x: np.full((4, 2), 100.0)}, epochs=1)
    assert w.value.tolist() == [1.0, 2.0]

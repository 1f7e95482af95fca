"""The state of an optimizer: whose it is, what becomes of it, and what it loses or keeps in single precision."""

import warnings

import numpy as np
import pytest
from refusal import refused

import flowgrad as fg
from flowgrad.errors import FlowgradError, GraphError


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


# -- what is refused, and what is told once --


@pytest.mark.parametrize("value", [1e200, -1e200])
def test_a_loss_that_is_not_finite_changes_nothing(value):
    with fg.Graph() as graph:
        x, w = fg.Variable(1, [value], trainable=False, name="x"), fg.Variable(1, [1.0])
        loss = (w * x) * (w * x)
    optimizer = fg.Momentum(graph, loss, 0.1, batch_size=2)
    with np.errstate(all="ignore"), refused(FlowgradError, "the loss", "inf", "learning rate"):
        optimizer.one_step()
    x.set_value([1.0])  # and it counts for nothing
    assert optimizer.one_step() == 1.0
    assert w.value.tolist() == [1.0]
    optimizer.one_step()
    assert w.value.tolist() == [0.8]


def test_an_update_that_is_not_finite_changes_nothing():
    with fg.Graph() as graph:
        w = fg.Variable(1, [1e155])
        optimizer = fg.GradientDescent(graph, w * (w * 1e-155), 1e160, batch_size=1)
        for _ in range(2):
            optimizer.learning_rate = 1e308
            with np.errstate(all="ignore"), refused(FlowgradError, "update", "learning rate"):
                optimizer.one_step()
            assert (optimizer.state, w.value.tolist()) == (None, [1e155])
        optimizer.learning_rate = 2.5e154
        optimizer.one_step()
    assert w.value.tolist() == [5e154]


def test_nothing_is_trained_while_variables_have_averages():
    with fg.Graph() as graph:
        w = fg.Variable(1, [2.0])
        loss = w * w
    optimizer, other = fg.GradientDescent(graph, loss, 0.25, batch_size=1, ema=0.5), fg.Adam(graph, loss, batch_size=1)
    optimizer.one_step()
    with optimizer.averaged():
        with optimizer.averaged():
            pass
        for each in (optimizer, other):
            with refused(GraphError, "averages", "outside", graph=graph):
                each.one_step()
            with refused(GraphError, "averages", "outside", graph=graph):
                fg.Trainer(each, fg.Engine("sync")).fit({})
    optimizer.one_step()
    fg.Trainer(other, fg.Engine("sync")).fit({}, epochs=1)


def told(loss, feeds, **settings):
    """Return what `one_step` and `fit` warn of, each called twice; values that are not fed are set."""
    for n in loss.graph.nodes:
        if isinstance(n, fg.Variable) and n.value is None:
            n.set_value(np.eye(n.dim)[0])
    messages = []
    optimizer = fg.GradientDescent(loss.graph, loss, batch_size=1, **settings)
    trainer = fg.Trainer(optimizer, fg.Engine("sync"))
    for call in (optimizer.one_step, lambda: trainer.fit(feeds, epochs=1)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call()
            if call == optimizer.one_step:
                call()
        messages.append([str(w.message) for w in found])
    assert all("\n" not in text for each in messages for text in each)
    return messages


def classifier(trainable=False):
    graph = fg.Graph(seed=0)
    with graph:
        x = fg.Variable(2, trainable=trainable, name="x")
        label = fg.Variable(3, trainable=trainable, name="label")
        return x, label, fg.layers.dense(x, 3, name="logits"), {"x": np.ones((4, 2)), "label": [0, 1, 2, 0]}


LOSSES = {
    "cross entropy": (lambda scores, label: fg.CrossEntropyWithSoftMax(scores, label), fg.SoftMax),
    "smoothed": (lambda scores, label: fg.losses.categorical_cross_entropy(scores, label, 0.1), fg.SoftMax),
    "binary": (lambda scores, label: fg.losses.binary_cross_entropy(scores, label), fg.Logistic),
    "squares": (lambda scores, label: fg.losses.mean_squared_error(scores, label), None),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_labels_that_would_be_trained_are_told(kind):
    make, _ = LOSSES[kind]
    _, label, logits, feeds = classifier(trainable=True)
    with logits.graph:
        once, fitted = told(make(logits, label), feeds)
    assert fitted == []  # what is fed is not trained
    if kind != "smoothed":  # a node, which may be meant
        assert len(once) == 1
        assert "'label'" in once[0]
        assert "trainable=False" in once[0]


@pytest.mark.parametrize("kind", ["cross entropy", "smoothed", "binary"])
@pytest.mark.parametrize("trainable", [False, True])
def test_operands_of_a_cross_entropy_that_look_swapped_or_computed_twice_are_told(kind, trainable):
    make, probabilities = LOSSES[kind]
    _, label, logits, feeds = classifier(trainable)
    with logits.graph:
        for text in told(make(label, logits), feeds):
            assert len(text) == 1
            assert "other way round" in text[0]
    _, label, logits, feeds = classifier()
    with logits.graph:
        for text in told(make(probabilities(logits), label), feeds):
            assert len(text) == 1
            assert "give it the logits, Add 'logits'" in text[0]


@pytest.mark.parametrize("kind", LOSSES)
def test_of_what_is_right_nothing_is_told(kind):
    _, label, logits, feeds = classifier()
    with logits.graph:
        loss = LOSSES[kind][0](logits, label)
        learnt = fg.Variable(2, [0.0, 0.0])  # where labels stand, but what is beside it is given
        loss = loss + fg.MeanSquaredError(fg.Constant([1.0, 2.0]), learnt)
        assert told(loss, feeds) == [[], []]


@pytest.mark.parametrize("settings", [{"freeze": ["logits"]}, {"learning_rates": {"logits": 0}}])
def test_training_of_nothing_is_told(settings):
    _, label, logits, feeds = classifier()
    with logits.graph:
        for text in told(fg.CrossEntropyWithSoftMax(logits, label), feeds, **settings):
            assert len(text) == 1
            assert "nothing is trained" in text[0]

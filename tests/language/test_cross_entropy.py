"""Cross entropies are exact for every gap of logits, by each way to run: interpreter, NumPy kernel, compiled kernel."""

import mirror
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowgrad as fg
from flowgrad.errors import ShapeError

KERNELS = ("interpreter", "numpy", "numba")
EPS = {"float32": 1.2e-7, "float64": 2.3e-16}
GAPS = (-1e4, -100.0, -40.0, -20.0, -1.0, 0.0, 1.0, 20.0, 40.0, 88.8, 100.0, 1e4)


def loss_and_gradients(op, logits, labels, kernel, dtype="float64"):
    """Return losses ``(N,)`` and gradients ``(N, dim)`` by logits and labels, of each sample."""
    samples, dim = logits.shape
    with fg.Graph():
        a, y = fg.Variable(dim, trainable=False), fg.Variable(dim, trainable=False)
        loss = getattr(fg, op)(a, y)
    if kernel == "interpreter":
        found = []
        for i in range(samples):
            a.set_value(logits[i])
            y.set_value(labels[i])
            found.append((loss.forward()[0], a.backward(loss)[0], y.backward(loss)[0]))
        return tuple(map(np.array, zip(*found)))
    feeds = {a: logits.astype(dtype), y: labels.astype(dtype)}
    engine = fg.Engine("sync", kernel=kernel)
    jacobians = engine.jacobian(loss, [a, y], feeds)
    losses = engine.forward(loss, feeds)
    assert losses.dtype == jacobians[a].dtype == dtype
    return losses[:, 0], jacobians[a][:, 0], jacobians[y][:, 0]


def close(actual, desired, dtype, units=8):
    np.testing.assert_allclose(actual, desired, rtol=units * EPS[dtype], atol=0 if dtype == "float64" else 1e-37)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_exact_for_every_gap(kernel, dtype):
    gaps = np.array(GAPS)
    logits = np.stack([np.zeros(len(gaps)), gaps], axis=1)
    labels = np.tile([1.0, 0.0], (len(gaps), 1))
    precision = "float64" if kernel == "interpreter" else dtype
    gaps = gaps.astype(precision).astype(float)
    with np.errstate(under="ignore"):
        losses, by_logits, by_labels = loss_and_gradients("CrossEntropyWithSoftMax", logits, labels, kernel, dtype)
        close(losses, np.logaddexp(0.0, gaps), precision)
        close(by_labels, np.stack([np.logaddexp(0.0, gaps), np.logaddexp(0.0, -gaps)], axis=1), precision)
        p = np.exp(-np.logaddexp(0.0, -gaps))
        close(by_logits, np.stack([-p, p], axis=1), precision, 300)  # as many units are lost in the exponential of 300


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_logistic_loss_is_exact_for_every_logit(kernel, dtype):
    gaps = np.array([*GAPS, *GAPS])[:, None]
    labels = np.repeat([0.0, 1.0], len(GAPS))[:, None]
    precision = "float64" if kernel == "interpreter" else dtype
    gaps = gaps.astype(precision).astype(float)
    with np.errstate(under="ignore"):
        losses, by_logits, by_labels = loss_and_gradients("LogisticCrossEntropy", gaps, labels, kernel, dtype)
        close(losses, np.logaddexp(0.0, np.where(labels, -gaps, gaps))[:, 0], precision)
        p = np.exp(-np.logaddexp(0.0, np.where(labels, gaps, -gaps)))
        close(by_logits, np.where(labels, -p, p), precision, 300)
    close(by_labels, -gaps, precision)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("total", [1.0, 3.5, 0.0])
def test_labels_may_be_soft_and_sum_to_anything(kernel, total):
    rng = np.random.default_rng(0)
    logits, labels = rng.uniform(-30, 30, (6, 5)), rng.dirichlet(np.ones(5), 6) * total
    if not total:
        labels = rng.choice([-1.0, 1.0], (6, 5)) * [1, 1, 1, 1, 0]
        labels[:, 4] = -labels.sum(axis=1)
    losses, by_logits, by_labels = loss_and_gradients("CrossEntropyWithSoftMax", logits, labels, kernel)
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    np.testing.assert_allclose(losses, -(labels * logs).sum(axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(by_logits, np.exp(logs) * labels.sum(axis=1, keepdims=True) - labels, atol=1e-14)
    np.testing.assert_allclose(by_labels, -logs, rtol=1e-13, atol=1e-13)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=5), st.integers(0, 4), st.sampled_from(sorted(EPS))
)
def test_a_right_answer_never_pays(logits, label, dtype):
    logits, labels = np.array([logits]), np.eye(len(logits))[[label % len(logits)]]
    for kernel in KERNELS:
        losses, _, by_labels = loss_and_gradients("CrossEntropyWithSoftMax", logits, labels, kernel, dtype)
        assert losses[0] >= 0
        assert by_labels.min() >= 0


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_a_class_that_is_ruled_out_costs_nothing(kernel):
    """Its logit is minus infinity, its label 0."""
    with fg.Graph() as graph:
        mask, y = fg.Variable(3, trainable=False), fg.Variable(3, trainable=False)
        w = fg.Variable(3, [1.0, 2.0, 3.0])
        loss = fg.CrossEntropyWithSoftMax(w + fg.Log(mask), y)
    feeds = {mask: [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], y: np.eye(3)[[0, 1]]}
    rows = [np.logaddexp(0, 1), np.logaddexp.reduce([1.0, 2.0, 3.0]) - 2]
    with np.errstate(divide="ignore"):
        found = fg.Trainer(fg.Adam(graph, loss, batch_size=2), fg.Engine("sync", kernel=kernel)).evaluate(feeds)
    assert found["loss"] == pytest.approx(np.mean(rows), rel=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("gap", [0.0, 3.0, 12.0, 95.0])
def test_second_derivatives_and_per_sample_gradients(kernel, dtype, gap):
    with fg.Graph():
        x, y = fg.Variable(2, trainable=False), fg.Variable(2, trainable=False)
        a = fg.Variable(2, [0.0, gap])
        loss = fg.CrossEntropyWithSoftMax(a * x, y)
    samples = np.array([[1.0, 1.0], [1.0, 0.5]], dtype)
    feeds = {x: samples, y: np.array([[1.0, 0.0], [0.25, 1.5]], dtype)}
    engine = fg.Engine("sync", kernel=kernel)
    d = np.array([1.0, -0.5])
    p = mirror.FUNCTIONS["SoftMax"](np.array([0.0, gap]) * samples)
    weight = feeds[y].sum(axis=1, keepdims=True)
    moved = d * samples
    expected = (samples * weight * p * (moved - moved[:, ::-1]) * p[:, ::-1]).mean(axis=0)
    np.testing.assert_allclose(engine.hvp(loss, {a: d}, feeds)[a], expected, rtol=100 * EPS[dtype])
    gradients = samples * (p * weight - feeds[y])
    per_sample = engine.per_sample_gradients(loss, feeds)
    np.testing.assert_allclose(per_sample.array(), gradients, atol=4 * EPS[dtype])
    np.testing.assert_allclose(per_sample.norms(), np.linalg.norm(gradients, axis=1), rtol=8 * EPS[dtype])
    np.testing.assert_allclose(engine.jvp(loss, {a: d}, feeds)[:, 0], (gradients * d).sum(axis=1), atol=4 * EPS[dtype])


@pytest.mark.parametrize("gap", [10.0, 20.0, 50.0, 1000.0, -1000.0])
def test_value_and_jacobian_belong_together(gap):
    with fg.Graph():
        a, y = fg.Variable(2, [0.0, gap]), fg.Variable(2, [1.0, 0.0], trainable=False)
        logit, label = fg.Variable(1, [gap]), fg.Variable(1, [1.0], trainable=False)
        nodes = [fg.CrossEntropyWithSoftMax(a, y), fg.LogisticCrossEntropy(logit, label), fg.LogSoftMax(a)]
    for node in nodes:
        assert fg.check_gradients(node) < 1e-7


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_the_logarithm_of_a_small_probability_is_kept(kernel, dtype):
    with fg.Graph():
        a = fg.Variable(3, trainable=False)
        y = fg.LogSoftMax(a)
    logits = np.array([[1e4, -1e4, 0.0], [0.0, -20.0, -200.0], [5.0, 5.0, 5.0]], dtype)
    engine = fg.Engine("sync", kernel=kernel)
    expected = np.array([[0.0, -2e4, -1e4], [-2.0611536e-9, -20.0, -200.0], [-np.log(3)] * 3])
    np.testing.assert_allclose(engine.forward(y, {a: logits}), expected, rtol=1e-6)
    p = np.array([[1.0, 0.0, 0.0], [1.0, 2.0611536e-9, 0.0], [1 / 3] * 3])
    jacobian = np.eye(3) - p[:, None]
    for mode in ("forward", "reverse"):
        found = engine.jacobian(y, a, {a: logits}, mode=mode)
        np.testing.assert_allclose(found, jacobian, atol=4 * EPS["float32"])


def test_one_logit_is_refused_with_what_to_use():
    with fg.Graph() as graph:
        x, y = fg.Variable(3, trainable=False), fg.Variable(1, trainable=False, name="y")
        logit = fg.Dot(fg.Variable(3, [1.0, 2.0, 3.0]), x)
        with pytest.raises(
            ShapeError, match=r"^CrossEntropyWithSoftMax\(.*'y' \(dim 1\)\): .*use LogisticCross"
        ) as told:
            fg.CrossEntropyWithSoftMax(logit, y)
        loss = fg.LogisticCrossEntropy(logit, y)
    assert "\n" not in str(told.value)
    samples = np.random.default_rng(0).normal(size=(64, 3))
    feeds = {x: samples, y: (samples[:, 0] > 0).astype(int)}
    trainer = fg.Trainer(fg.Adam(graph, loss, 0.1, batch_size=16), fg.Engine("sync"))
    before = trainer.evaluate(feeds)["loss"]
    trainer.fit(feeds, epochs=20)
    assert trainer.evaluate(feeds)["loss"] < 0.3 * before


def test_rules_of_one_class_are_those_of_a_constant():
    """No node has them, but a rule knows nothing of nodes."""
    op = fg.CrossEntropyWithSoftMax
    a, y = np.array([[3.0], [-1e4]]), np.array([[1.0], [0.5]])
    assert op.apply(a, y).tolist() == [[0.0], [0.0]]
    assert [op.jacobian(slot, None, a, y).dense(1).tolist() for slot in (0, 1)] == [[[[0.0]], [[0.0]]]] * 2

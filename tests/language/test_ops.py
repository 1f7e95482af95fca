"""Every op by itself: value, local Jacobian by slot, and what large numbers and repeated parents do to it."""

import mirror
import numpy as np
import pytest

import flowgrad as fg

N = 5


def near(rng, n, d):
    return rng.uniform(-1.5, 1.5, (n, d))


def positive(rng, n, d):
    return rng.uniform(0.5, 2.0, (n, d))


def off_zero(rng, n, d):
    return rng.uniform(0.1, 1.5, (n, d)) * rng.choice([-1.0, 1.0], (n, d))


def one_hot(rng, n, d):
    return np.eye(d)[rng.integers(0, d, n)]


# op: dims of the parents, further arguments, how to draw the value of each parent
CASES = {
    "Add": ((3, 3), (), near),
    "Subtract": ((3, 3), (), near),
    "Multiply": ((3, 3), (), near),
    "Scale": ((3,), (-2.5,), near),
    "Negative": ((3,), (), near),
    "Exp": ((3,), (), near),
    "Log": ((3,), (), positive),
    "Reciprocal": ((3,), (), off_zero),
    "Logistic": ((3,), (), near),
    "Tanh": ((3,), (), near),
    "ReLU": ((4,), (), off_zero),
    "Dot": ((4, 4), (), near),
    "RowDot": ((6, 6), (2,), near),
    "MatVec": ((6, 3), (), near),
    "BatchMatVec": ((6, 9), (3,), near),
    "Vectorize": ((2, 1, 3), (), near),
    "Slice": ((5,), (1, 4), near),
    "Gather": ((4,), ([2, 0, 2],), near),
    "Sum": ((4,), (), near),
    "SoftMax": ((4,), (), near),
    "LogSoftMax": ((4,), (), near),
    "CrossEntropyWithSoftMax": ((4, 4), (), near),
    "LogisticCrossEntropy": ((4, 4), (), near),
    "MeanSquaredError": ((4, 4), (), near),
}
SLOTS = [(name, slot) for name, case in CASES.items() for slot in range(len(case[0]))]


def build(name, values):
    """Return the node of op `name` on variables that hold the first sample of `values`."""
    with fg.Graph(seed=0):
        variables = [fg.Variable(v.shape[1], v[0]) for v in values]
        return getattr(fg, name)(*variables, *CASES[name][1])


def draw(name, batched=None, seed=0):
    """Return a value per parent: (N, dim) where `batched`, (1, dim) elsewhere."""
    dims, _, sample = CASES[name]
    rng = np.random.default_rng(seed)
    batched = batched or (True,) * len(dims)
    return [sample(rng, N if b else 1, d) for d, b in zip(dims, batched)]


def sharing(name):
    """All ways in which parents can be batched or shared."""
    arity = len(CASES[name][0])
    return [tuple(bool(bits >> i & 1) for i in range(arity)) for bits in range(2**arity)]


def rules(name, values):
    node = build(name, values)
    op = type(node)
    y = op.apply(*values, **node.attrs)
    return node, op, y


def test_every_public_op_has_a_case():
    public = [getattr(fg, name) for name in fg.__all__]
    ops = {
        op.__name__
        for op in public
        if isinstance(op, type) and issubclass(op, fg.Op) and op not in (fg.Op, fg.Elementwise)
    }
    assert ops == set(CASES) == set(mirror.FUNCTIONS)


@pytest.mark.parametrize("name", CASES)
def test_forward_of_a_node(name):
    values = draw(name)
    node = build(name, values)
    expected = mirror.apply(node, [v[:1] for v in values])
    assert node.dim == expected.shape[1]
    assert node.forward().shape == (node.dim,)
    np.testing.assert_allclose(node.forward(), expected[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_values_of_a_batch(name):
    for batched in sharing(name):
        values = draw(name, batched)
        node, _, y = rules(name, values)
        assert y.shape == (N if any(batched) else 1, node.dim)
        np.testing.assert_allclose(y, mirror.apply(node, values), rtol=1e-13, atol=1e-14, err_msg=str(batched))


@pytest.mark.parametrize(("name", "slot"), SLOTS)
def test_local_jacobian_of_a_node(name, slot):
    values = draw(name, seed=1)
    node = build(name, values)
    dense = node.local_jacobian(slot).dense(node.dim)
    expected = mirror.central_differences(lambda *v: mirror.apply(node, v), [v[:1] for v in values], slot)
    np.testing.assert_allclose(np.broadcast_to(dense, expected.shape), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("name", "slot"), SLOTS)
def test_pull_and_pull_sum_of_a_batch(name, slot):
    """Against central differences, for every way in which parents and cotangent can be shared."""
    rng = np.random.default_rng(2)
    for batched in sharing(name):
        values = draw(name, batched, seed=3)
        node, op, y = rules(name, values)
        jacobian = op.jacobian(slot, y, *values, **node.attrs)
        assert isinstance(jacobian, op.kind(slot))
        full = [np.broadcast_to(v, (N, v.shape[1])) for v in values]
        dense = mirror.central_differences(lambda *v, n=node: mirror.apply(n, v), full, slot)
        g = rng.normal(size=(2, N, node.dim))
        pulled = np.einsum("vno,noi->vni", g, dense)
        np.testing.assert_allclose(jacobian.pull(g), pulled, rtol=1e-8, atol=1e-8, err_msg=str(batched))
        np.testing.assert_allclose(
            jacobian.pull_sum(g),
            pulled.sum(axis=1, keepdims=True),
            rtol=1e-8,
            atol=1e-8,
            err_msg=str(batched),
        )
        one = np.broadcast_to(jacobian.pull(g[:, :1]), pulled.shape)
        np.testing.assert_allclose(
            one,
            np.einsum("vo,noi->vni", g[:, 0], dense),
            rtol=1e-8,
            atol=1e-8,
            err_msg=f"shared cotangent, {batched}",
        )


@pytest.mark.parametrize(("name", "slot"), SLOTS)
def test_a_factor_needs_only_the_values_it_declares(name, slot):
    values = draw(name)
    node, op, y = rules(name, values)
    needs = op.needs(slot, len(values))
    some = [v if i in needs else None for i, v in enumerate(values)]
    g = np.random.default_rng(0).normal(size=(1, N, node.dim))
    sparing = op.jacobian(slot, y if -1 in needs else None, *some, **node.attrs).pull(g)
    np.testing.assert_array_equal(sparing, op.jacobian(slot, y, *values, **node.attrs).pull(g))


@pytest.mark.parametrize("name", CASES)
def test_inputs_and_cotangents_are_not_changed(name):
    values = draw(name)
    copies = [v.copy() for v in values]
    node, op, y = rules(name, values)
    before = y.copy()
    g = np.random.default_rng(0).normal(size=(2, N, node.dim))
    g_before = g.copy()
    for slot in range(len(values)):
        jacobian = op.jacobian(slot, y, *values, **node.attrs)
        jacobian.pull(g)
        jacobian.pull_sum(g)
    for value, copy in zip([*values, y, g], [*copies, before, g_before]):
        np.testing.assert_array_equal(value, copy)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(name, dtype):
    values = [v.astype(dtype) for v in draw(name)]
    node, op, y = rules(name, values)
    assert y.dtype == dtype
    g = np.ones((1, N, node.dim), dtype)
    for slot in range(len(values)):
        jacobian = op.jacobian(slot, y, *values, **node.attrs)
        assert jacobian.pull(g).dtype == dtype
        assert jacobian.pull_sum(g).dtype == dtype


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if len(set(c[0])) == 1 and len(c[0]) == 2])
def test_the_same_parent_in_both_slots(name):
    value = draw(name)[0]
    with fg.Graph(seed=0):
        x = fg.Variable(value.shape[1], value[0])
        node = getattr(fg, name)(x, x, *CASES[name][1])
    expected = mirror.jacobian(node, x, {x: value[:1]})[0]
    np.testing.assert_allclose(x.backward(node), expected, rtol=1e-7, atol=1e-7)


def test_soft_max_survives_large_logits():
    with fg.Graph():
        x = fg.Variable(3, [1e4, 1e4 - 1.0, -1e4])
        p = fg.SoftMax(x)
    e = np.exp(-1.0)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(p.forward(), [1 / (1 + e), e / (1 + e), 0.0], rtol=1e-12)
        assert np.isfinite(x.backward(p)).all()


@pytest.mark.parametrize("correct", [0, 1])
def test_cross_entropy_survives_large_logits(correct):
    with fg.Graph():
        x = fg.Variable(2, [1e4, -1e4])
        y = fg.Variable(2, np.eye(2)[correct], trainable=False)
        loss = fg.CrossEntropyWithSoftMax(x, y)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(loss.forward(), [(0.0, 2e4)[correct]], rtol=0)
        np.testing.assert_allclose(x.backward(loss), [np.array([1.0, 0.0]) - np.eye(2)[correct]], atol=1e-12)
        np.testing.assert_allclose(y.backward(loss), [[0.0, 2e4]], rtol=0)


def test_cross_entropy_with_labels_that_do_not_sum_to_one():
    with fg.Graph():
        x = fg.Variable(3, [0.1, -0.4, 0.7])
        y = fg.Variable(3, [0.5, 2.0, 0.25], trainable=False)
        loss = fg.CrossEntropyWithSoftMax(x, y)
    p = mirror.FUNCTIONS["SoftMax"](x.value[None])[0]
    np.testing.assert_allclose(x.backward(loss), [p * y.value.sum() - y.value], rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logistic_does_not_overflow(dtype):
    a = np.array([[-1e4, -100.0, 0.0, 100.0, 1e4]], dtype)
    with np.errstate(all="raise", under="ignore"):
        y = fg.Logistic.apply(a)
        slope = fg.Logistic.jacobian(0, y, a).pull(np.ones((1, 1, 5), dtype))
    assert y[0, [0, 2, 4]].tolist() == [0.0, 0.5, 1.0]
    assert slope[0, 0, 2] == 0.25
    assert np.abs(slope[0, 0, [0, 4]]).max() == 0.0


def test_relu_at_zero_has_derivative_zero():
    with fg.Graph():
        x = fg.Variable(3, [-1.0, 0.0, 1.0])
        y = fg.ReLU(x)
    assert x.backward(y).tolist() == np.diag([0.0, 0.0, 1.0]).tolist()


def test_operators_build_the_ops_they_stand_for():
    with fg.Graph():
        a, b = fg.Variable(4, [1.0, 2.0, 3.0, 4.0]), fg.Variable(4, [4.0, 3.0, 2.0, -1.0])
        built = {
            fg.Add: a + b,
            fg.Subtract: a - b,
            fg.Multiply: a * b,
            fg.Negative: -a,
            fg.Dot: a @ b,
            fg.Slice: a[1:3],
            fg.Scale: 2 * a,
        }
    x, y = a.value, b.value
    expected = [x + y, x - y, x * y, -x, [x @ y], x[1:3], 2 * x]
    for (op, node), value in zip(built.items(), expected):
        assert type(node) is op
        assert node.forward().tolist() == list(value)
    with a.graph:
        assert a[:2].forward().tolist() == [1.0, 2.0]
        assert a[-2:].forward().tolist() == [3.0, 4.0]
        assert a[-1].forward().tolist() == [4.0]
        assert (a * 3.0).forward().tolist() == [3.0, 6.0, 9.0, 12.0]


@pytest.mark.parametrize("key", [np.array([0, 1]), [0, 1], 1.0, True, None, "a"])
def test_a_node_is_indexed_by_a_range_or_a_position(key):
    with fg.Graph():
        x = fg.Variable(4, [1.0, 2.0, 3.0, 4.0])
        assert [n.forward().tolist() for n in (x[1:3], x[-1], x[np.int64(0)])] == [[2.0, 3.0], [4.0], [1.0]]
        with pytest.raises(
            fg.errors.ShapeError, match=r"takes a range such as \[2:5\] or a position, not .*; fg.Gather"
        ):
            x[key]

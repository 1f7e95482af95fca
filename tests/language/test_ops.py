"""Every op by itself: value, local Jacobian by slot, and what large numbers and repeated parents do to it."""

import math
import re

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


def rows(rng, n, d):
    return rng.integers(0, 4, (n, d)).astype(float)


# op: dims or shapes of the parents, further arguments, how to draw the value of each parent, or of one after the other
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
    "LeakyReLU": ((4,), (0.2,), off_zero),
    "Softplus": ((4,), (), near),
    "SiLU": ((4,), (), near),
    "GELU": ((4,), (), near),
    "Step": ((4,), (), off_zero),
    "Sqrt": ((3,), (), positive),
    "Abs": ((4,), (), off_zero),
    "Power": ((3,), (2.5,), positive),
    "Maximum": ((4, 4), (), near),
    "Minimum": ((4, 4), (), near),
    "Mean": ((4,), (), near),
    "MatMul": (((2, 3), (3, 2)), (), near),
    "OuterProduct": ((2, 3), (), near),
    "Concat": (((2, 3), (2, 1)), (1,), near),
    "Transpose": (((2, 3, 2),), ((1, 0, 2),), near),
    "Broadcast": (((3, 1),), ((2, 3, 2),), near),
    "Reshape": ((6,), ((2, 3),), near),
    "Dot": ((4, 4), (), near),
    "RowDot": ((6, 6), (2,), near),
    "MatVec": ((6, 3), (), near),
    "BatchMatVec": ((6, 9), (3,), near),
    "Vectorize": ((2, 1, 3), (), near),
    "Slice": ((5,), (1, 4), near),
    "Gather": ((4,), ([2, 0, 2],), near),
    "Sum": ((4,), (), near),
    "Max": ((4,), (), near),
    "Embedding": (((4, 3), 2), (), (near, rows)),
    "Huber": ((4,), (0.7,), near),
    "KullbackLeibler": ((4, 4), (), positive),
    "Conv2D": (((4, 1, 2, 3), (2, 4, 5)), ((2, 1), "same", 2), near),
    "MaxPool2D": (((2, 3, 4),), (2, 1), near),
    "AveragePool2D": (((2, 5, 4),), ((2, 3),), near),
    "Standardize": (((2, 3),), (), near),
    "StopGradient": ((4,), (), near),
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
        variables = [fg.Variable(shape, v[0]) for shape, v in zip(CASES[name][0], values)]
        return made(name, *variables)


def made(name, *variables):
    more = {"axis": CASES[name][1][0]} if name == "Concat" else {}
    return getattr(fg, name)(*variables, *(() if more else CASES[name][1]), **more)


def draw(name, batched=None, seed=0):
    """Return a value per parent: (N, dim) where `batched`, (1, dim) elsewhere."""
    dims, _, sample = CASES[name]
    rng = np.random.default_rng(seed)
    batched = batched or (True,) * len(dims)
    samples = sample if isinstance(sample, tuple) else [sample] * len(dims)
    sizes = [math.prod(d) if isinstance(d, tuple) else d for d in dims]
    return [f(rng, N if b else 1, size) for f, size, b in zip(samples, sizes, batched)]


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
    assert (
        ops - {"Dropout", "Noise"} == set(CASES) == set(mirror.FUNCTIONS)
    )  # these have tests of their own: test_random


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
    expected = expected * (name != "StopGradient")
    np.testing.assert_allclose(np.broadcast_to(dense, expected.shape), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("name", "slot"), SLOTS)
def test_what_the_interpreter_takes_without_a_look(name, slot):
    node = build(name, draw(name))
    value, local = node.forward(), node.local_jacobian(slot)
    pulled = local.pull(np.ones((2, 1, node.dim)))
    for array, shape in ((value, (node.dim,)), (pulled, (2, 1, node.parents[slot].dim))):
        assert (type(array), array.dtype, array.shape) == (np.ndarray, np.float64, shape)
    assert not node._value.flags.writeable
    assert isinstance(local, type(node).kind(slot))
    assert all(factor is not None for factor in vars(local).values())


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
        dense = dense * (name != "StopGradient")
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
    if name in ("Maximum", "Minimum"):
        pytest.skip("has no derivative where both are equal; see below")
    value = draw(name)[0]
    with fg.Graph(seed=0):
        x = fg.Variable(CASES[name][0][0], value[0])
        node = made(name, x, x)
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
        assert a[::2].forward().tolist() == [1.0, 3.0]
        assert a[[3, 0]].forward().tolist() == [4.0, 1.0]


@pytest.mark.parametrize("op", [fg.Maximum, fg.Minimum])
def test_of_two_equal_entries_each_has_half_of_the_derivative(op):
    with fg.Graph():
        a, b = fg.Variable(2, [1.0, 2.0]), fg.Variable(2, [1.0, 5.0])
        y = op(a, b)
    assert np.diag(a.backward(y))[0] == np.diag(b.backward(y))[0] == 0.5


@pytest.mark.parametrize("op", [fg.SoftMax, fg.LogSoftMax, fg.Standardize])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_along_any_axis(op, axis):
    value = np.random.default_rng(0).normal(size=(2, 3, 4))
    with fg.Graph():
        y = op(fg.Variable((2, 3, 4), value), axis=axis, name="y")
    last = np.moveaxis(value, axis, -1)
    expected = np.moveaxis(
        mirror.FUNCTIONS[op.__name__](last.reshape(-1, last.shape[-1])).reshape(last.shape), -1, axis
    )
    np.testing.assert_allclose(y.forward(), expected.ravel(), rtol=1e-13)
    assert y.shape == (2, 3, 4)
    assert fg.check_gradients(y) < 1e-5


def test_there_is_no_such_axis():
    with fg.Graph(), pytest.raises(fg.errors.ShapeError, match="there is no axis 2"):
        fg.SoftMax(fg.Variable((2, 3)), axis=2)


def test_layer_and_group_norm():
    value = np.random.default_rng(0).normal(size=(4, 3, 2))
    with fg.Graph():
        a = fg.Variable((4, 3, 2), value)
        gain, shift = fg.Variable(2, [2.0, 3.0]), fg.Variable(2, [0.5, 1.0])
        layer = fg.LayerNorm(a, gain, shift)
        each, more = fg.Variable(4, [1.0, 2.0, 3.0, 4.0]), fg.Variable(4, [0.0, 1.0, 0.0, 2.0])
        group = fg.GroupNorm(a, 2, each, more)
    plain = (value - value.mean(2, keepdims=True)) / np.sqrt(value.var(2, keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer.forward(), (plain * [2.0, 3.0] + [0.5, 1.0]).ravel(), rtol=1e-12)
    halves = value.reshape(2, -1)
    plain = (halves - halves.mean(1, keepdims=True)) / np.sqrt(halves.var(1, keepdims=True) + 1e-5)
    expected = plain.reshape(4, 6) * each.value[:, None] + more.value[:, None]
    np.testing.assert_allclose(group.forward(), expected.ravel(), rtol=1e-12)
    assert fg.check_gradients(layer) < 1e-6
    assert fg.check_gradients(group) < 1e-6


def test_gelu_is_the_exact_one():
    x = np.concatenate([np.linspace(-40, 40, 4001), np.linspace(-1, 1, 4001)])
    with fg.Graph():
        y = fg.GELU(fg.Variable(len(x), x))
    exact = np.array([t * 0.5 * math.erfc(-t / math.sqrt(2)) for t in x])
    np.testing.assert_allclose(y.forward(), exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("key", [1.0, True, None, "a", 4, [5], object()])
def test_a_node_is_indexed_by_ranges_and_positions(key):
    with fg.Graph() as graph:
        x = fg.Variable(4, [1.0, 2.0, 3.0, 4.0], name="x")
        assert [n.forward().tolist() for n in (x[1:3], x[-1], x[np.int64(0)])] == [[2.0, 3.0], [4.0], [1.0]]
        nodes = graph.nodes
        with pytest.raises(fg.errors.ShapeError, match="'x'"):
            x[key]
    assert graph.nodes == nodes


def test_an_embedding_picks_rows_and_its_index_takes_integers_alone():
    with fg.Graph():
        table, k = fg.Variable((3, 2), [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], name="table"), fg.Variable(2, name="k")
        y, one = fg.Embedding(table, k, name="y"), fg.Embedding(table, fg.Variable(1, [1], name="one"))
        smaller = fg.Variable((2, 4), True)
    assert (y.shape, one.shape) == ((2, 2), (1, 2))
    k.set_value([2, 0])
    assert (y.forward().tolist(), one.forward().tolist()) == ([4.0, 5.0, 0.0, 1.0], [2.0, 3.0])
    assert k.backward(y).tolist() == np.zeros((4, 2)).tolist()
    assert table.backward(y).sum(axis=0).tolist() == [1, 1, 0, 0, 1, 1]
    said = "'k' (dim 2) picks rows of a table: it must hold integers from 0 to 2, entry 1 is"
    for value in (3, -1, 0.5):
        with pytest.raises(fg.errors.FeedError, match=re.escape(f"the value for Variable {said} {value}")):
            k.set_value([0, value])
    assert y.forward().tolist() == [4.0, 5.0, 0.0, 1.0]
    with y.graph, pytest.raises(fg.errors.FeedError, match=r"'k' .* integers from 0 to 1, entry 0 is 2"):
        fg.Embedding(smaller, k)
    assert k.below == 3
    with y.graph:
        fg.Embedding(smaller, one.parents[1])
    assert one.parents[1].below == 2


def test_what_an_embedding_refuses():
    with fg.Graph():
        k = fg.Variable(2, name="k")
        with pytest.raises(fg.errors.ShapeError, match=re.escape("must have the axes (rows, dim), not 6")):
            fg.Embedding(fg.Variable(6), k)
        with pytest.raises(
            fg.errors.GraphError, match="the index must be a variable, which is fed integers, not Slice"
        ):
            fg.Embedding(fg.Variable((3, 2)), k[:1])
        with pytest.raises(fg.errors.ShapeError, match="has 16,777,217 rows; up to 16,777,216 can be told apart"):
            fg.Embedding(fg.Variable((2**24 + 1, 1)), k)


def test_what_picks_rows_is_not_trained():
    with fg.Graph(seed=0) as graph:
        k = fg.Variable(1, [1], name="k")
        loss = fg.Sum(fg.Embedding(fg.Variable((2, 3), True, name="table"), k))
        optimizer = fg.Adam(graph, loss, weight_decay=0.5, batch_size=1)
    assert [v.name for v in optimizer.variables()] == ["table"]
    optimizer.one_step()
    assert k.value.tolist() == [1.0]

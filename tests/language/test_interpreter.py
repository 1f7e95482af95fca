"""The reference interpreter: what it computes, what it keeps, what it resets."""

import contextlib
import re

import mirror
import numpy as np
import pytest
import strategies
from hypothesis import given, settings

import flowgrad as fg
from flowgrad.errors import GraphError, NodeFailed, ShapeError
from flowgrad.graph import jacobians_of


class Counting(fg.Op):
    """The identity; counts how often its value is computed."""

    kinds = (fg.Identity,)
    calls = 0

    @staticmethod
    def apply(a):
        Counting.calls += 1
        return a

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Identity()


@pytest.fixture
def calls():
    """Return a function that gives the number of evaluations since it was last asked."""
    Counting.calls = 0

    def since():
        count, Counting.calls = Counting.calls, 0
        return count

    return since


@pytest.fixture
def two_branches():
    """``a -> left``, ``b -> right``, both into ``top``."""
    with fg.Graph(seed=0):
        a, b = fg.Variable(2, [1.0, 2.0], name="a"), fg.Variable(2, [3.0, 4.0], name="b")
        left, right = Counting(a), Counting(b)
        top = Counting(left * right)
    return a, b, left, right, top


# -- random graphs --


@settings(max_examples=100)
@given(strategies.graphs())
def test_random_graphs_agree_with_numpy_and_central_differences(made):
    for i in range(made.samples):
        made.set_sample(i)
        sample = {v: a[i : i + 1] if v in made.feeds else a for v, a in made.variables.items()}
        for node in (made.result, made.loss):
            np.testing.assert_allclose(node.forward(), mirror.evaluate(node, sample)[0], rtol=1e-10, atol=1e-10)
            for variable in sample:
                strategies.close(variable.backward(node), mirror.jacobian(node, variable, sample)[0])


@given(strategies.graphs())
def test_order_of_questions_does_not_matter(made):
    made.set_sample(0)
    last_first = {v: v.backward(made.loss) for v in reversed(made.variables)}
    made.graph.reset_value()
    for variable, jacobian in last_first.items():
        np.testing.assert_array_equal(variable.backward(made.loss), jacobian)
    for node in made.graph.nodes:
        assert node.backward(made.loss).shape == (made.loss.dim, node.dim)


@given(strategies.graphs())
def test_a_walk_that_is_kept_gives_the_same_bits(made):
    """All variables at once, sample by sample, beside each of them alone."""
    everything = tuple(made.variables)
    for i in [*range(made.samples), 0]:
        made.set_sample(i)
        together = jacobians_of(made.loss, everything)
        made.graph.reset_value()
        for variable, jacobian in zip(reversed(everything), reversed(together)):
            assert variable.backward(made.loss).tobytes() == jacobian.tobytes()
        made.graph.clear_jacobian()


# -- laziness --


def test_building_computes_nothing(two_branches, calls):
    assert calls() == 0
    assert [node.value is None for node in two_branches] == [False, False, True, True, True]


def test_forward_computes_only_what_is_missing(two_branches, calls):
    _a, _b, left, right, top = two_branches
    left.forward()
    assert calls() == 1
    assert right.value is None
    top.forward()
    assert calls() == 2
    top.forward()
    assert calls() == 0


def test_set_value_resets_exactly_what_is_downstream(two_branches, calls):
    a, b, left, right, top = two_branches
    assert top.forward().tolist() == [3.0, 8.0]
    calls()
    a.set_value([5.0, 6.0])
    assert left.value is None
    assert top.value is None
    assert right.value.tolist() == b.value.tolist() == [3.0, 4.0]
    assert top.forward().tolist() == [15.0, 24.0]
    assert calls() == 2


def test_a_walk_that_is_kept_finds_what_else_is_missing(two_branches, calls):
    a, b, left, _right, top = two_branches
    for variables, computed in [([], 3), ([a], 2), ([a], 2), ([b], 2), ([a, b], 3), ([a], 2), ([], 0)]:
        for variable in variables:
            variable.set_value(variable.value + 1.0)
        assert top.forward().tolist() == (a.value * b.value).tolist()
        assert b.backward(top).tolist() == np.diag(a.value).tolist()
        assert calls() == computed
    a.set_value([7.0, 8.0])
    left.forward()
    calls()
    top.forward()
    assert calls() == 1


def test_reset_value_of_a_node_resets_it_and_its_descendants(two_branches):
    a, _b, left, right, top = two_branches
    top.forward()
    left.reset_value()
    assert (left.value, top.value) == (None, None)
    assert right.value is not None
    assert a.value.tolist() == [1.0, 2.0]


def test_reset_value_of_the_graph_keeps_what_was_set(two_branches, calls):
    a, b, *computed = two_branches
    a.backward(computed[-1])
    calls()
    a.graph.reset_value()
    assert all(node.value is None for node in computed)
    assert a.value is not None
    assert b.value is not None
    computed[-1].forward()
    assert calls() == 3


def test_set_value_copies():
    with fg.Graph():
        x = fg.Variable(2)
        y = fg.Negative(x)
    array = np.array([1.0, 2.0])
    x.set_value(array)
    array[:] = 9.0
    assert y.forward().tolist() == [-1.0, -2.0]


@pytest.mark.parametrize("give", [lambda n: n.value, lambda n: n.forward(), lambda n: n.backward(n)])
def test_what_is_handed_out_cannot_change_the_graph(give):
    with fg.Graph():
        x = fg.Variable(2, [1.0, 2.0])
        y = fg.Exp(x)
        z = fg.Slice(y, 0, 2)
    z.forward()
    for node in (x, y, z):
        before = give(node).copy()
        with contextlib.suppress(ValueError):  # read-only is one way to keep the promise
            give(node)[...] = 7.0
        np.testing.assert_array_equal(give(node), before)


def test_set_value_takes_columns_and_numbers():
    with fg.Graph():
        x, s = fg.Variable(2), fg.Variable(1)
    x.set_value(np.array([[1.0], [2.0]]))
    s.set_value(3)
    assert x.value.tolist() == [1.0, 2.0]
    assert s.value.tolist() == [3.0]


# -- Jacobians --


class CountingPull(fg.Op):
    """The identity; counts how often its local Jacobian is asked for."""

    kinds = (fg.Identity,)
    calls = 0

    @staticmethod
    def apply(a):
        return a

    @staticmethod
    def jacobian(slot, y, a):
        CountingPull.calls += 1
        return fg.Identity()


def test_backward_is_cached_until_cleared():
    with fg.Graph() as graph:
        x = fg.Variable(2, [1.0, 2.0])
        y = CountingPull(x)
        z = y * y
    CountingPull.calls = 0
    first = x.backward(z)
    assert first.tolist() == [[2.0, 0.0], [0.0, 4.0]]
    assert CountingPull.calls == 1
    x.backward(z)
    y.backward(z)
    assert CountingPull.calls == 1
    x.clear_jacobian()
    assert x.backward(z).tolist() == first.tolist()
    assert CountingPull.calls == 2
    graph.clear_jacobian()
    assert z.value is not None
    x.backward(z)
    assert CountingPull.calls == 3


def test_a_new_value_makes_a_new_jacobian():
    with fg.Graph():
        x, other = fg.Variable(1, [3.0]), fg.Variable(1, [1.0])
        y = x * x
        z = other * other
    assert x.backward(y).tolist() == [[6.0]]
    assert other.backward(z).tolist() == [[2.0]]
    x.set_value([5.0])
    assert x.backward(y).tolist() == [[10.0]]
    assert other.backward(z).tolist() == [[2.0]]


def test_nodes_added_after_backward_are_seen():
    with fg.Graph():
        x = fg.Variable(1, [3.0])
        y = x * x
        assert x.backward(y).tolist() == [[6.0]]
        z = y * x
    assert x.backward(z).tolist() == [[27.0]]


class Late(fg.Op):
    """The identity; what it gives is wrong from the second sample on."""

    kinds = (fg.Dense,)
    uses = ((0,),)

    @staticmethod
    def apply(a):
        return a if a[0, 0] < 9 else a[0]

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Dense(np.eye(2)[None]) if a[0, 0] < 2 else fg.Dense(np.ones((1, 2, 3)))


def test_ops_of_ones_own_are_checked_at_every_sample():
    with fg.Graph() as graph:
        x = fg.Variable(2, [1.0, 2.0])
        loss = fg.Sum(Late(x, name="late"))
    optimizer = fg.GradientDescent(graph, loss, 0.1, batch_size=9)
    assert optimizer.one_step() == 3.0
    for wrong in (5.0, 9.0):
        x.set_value([wrong, 2.0])
        with pytest.raises(ShapeError, match="of Late 'late'"):
            optimizer.one_step()
    x.set_value([1.0, 3.0])
    assert optimizer.one_step() == 4.0


@pytest.mark.parametrize(("value", "told"), [(-1.0, "apply of Sqrt 'root'"), (0.0, "jacobian of Sqrt 'root'")])
def test_what_fails_on_a_walk_that_is_kept_is_named(value, told):
    with fg.Graph() as graph:
        x = fg.Variable(2, [1.0, 4.0])
        loss = fg.Dot(fg.Variable(2, [3.0, 5.0]), fg.Sqrt(x, name="root"))
    x.backward(loss)
    x.set_value([value, 4.0])
    for _ in range(2):
        with np.errstate(all="raise"), pytest.raises(NodeFailed, match=rf"{told} \(dim 2\) failed: FloatingPointError"):
            x.backward(loss)
    x.set_value([0.25, 4.0])
    assert x.backward(loss).tolist() == [[3.0, 1.25]]
    assert [node.name for node in graph.saved(loss)] == [loss.name, "root", x.name]


class Writing(fg.Identity):
    """Writes into what it is given."""

    def pull(self, g, out=None):
        g *= 2
        return g


class Doubling(fg.Op):
    kinds = (Writing,)

    @staticmethod
    def apply(a):
        return 2 * a

    @staticmethod
    def jacobian(slot, y, a):
        return Writing()


def test_a_pull_of_ones_own_cannot_change_what_is_cached():
    with fg.Graph():
        x = fg.Variable(2, [1.0, 2.0])
        y = fg.Negative(Doubling(x, name="own"))
    with pytest.raises(ShapeError, match=r"jacobian of Doubling 'own' \(dim 2\) by slot 0"):
        x.backward(y)
    assert x.children[0].backward(y).tolist() == (-np.eye(2)).tolist()


def test_jacobian_of_what_does_not_depend_is_zero():
    with fg.Graph():
        x, other = fg.Variable(2, [1.0, 2.0]), fg.Variable(3, [1.0, 2.0, 3.0])
        y = fg.Exp(x)
    assert other.backward(y).tolist() == np.zeros((2, 3)).tolist()
    with pytest.warns(UserWarning, match=r"it is the other way round.*is variable0\.backward\(exp2\)"):
        assert y.backward(x).tolist() == np.zeros((2, 2)).tolist()
    assert y.backward(y).tolist() == np.eye(2).tolist()


@pytest.mark.parametrize("copies", [2, 3])
def test_one_parent_in_several_slots(copies):
    with fg.Graph():
        x = fg.Variable(2, [1.5, -2.0])
        y = fg.Vectorize(*[x] * copies)
        s = fg.Add(x, x)
        d = fg.Dot(x, x)
        z = fg.Subtract(x, x)
    assert x.backward(y).tolist() == np.vstack([np.eye(2)] * copies).tolist()
    assert x.backward(s).tolist() == (2 * np.eye(2)).tolist()
    assert x.backward(d).tolist() == [[3.0, -4.0]]
    assert x.backward(z).tolist() == np.zeros((2, 2)).tolist()
    assert y.parents == (x,) * copies
    assert x.children == (y, s, d, z)


def test_local_jacobian_refuses_a_slot_that_is_not_there():
    with fg.Graph():
        x = fg.Variable(2, [1.0, 2.0], name="x")
        y = fg.Exp(x, name="y")
    for node, slot in [(y, 1), (y, -1), (x, 0)]:
        with pytest.raises(GraphError, match=rf"'{node.name}'.*{slot}"):
            node.local_jacobian(slot)


def test_local_jacobians_by_parents():
    with fg.Graph():
        x, w = fg.Variable(2, [1.5, -2.0], name="x"), fg.Variable(6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], name="w")
        e = fg.Exp(x, name="e")
        y, square, join = fg.MatVec(w, e, name="y"), fg.Multiply(x, x), fg.Concat(e, x, e)
    assert y.local_jacobian_by(e).tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    np.testing.assert_array_equal(y.local_jacobian_by(w), w.backward(y))  # the only way
    np.testing.assert_array_equal(y.local_jacobian_by(e) @ e.local_jacobian_by(x), x.backward(y))
    assert square.local_jacobian_by(x).tolist() == [[3.0, 0.0], [0.0, -4.0]]  # in two slots
    eye = np.eye(2)
    assert join.local_jacobian_by(x).tolist() == np.vstack([0 * eye, eye, 0 * eye]).tolist()  # not by way of e
    x.set_value([0.0, 0.0])
    assert e.local_jacobian_by(x).tolist() == eye.tolist()
    assert square.local_jacobian_by(x).tolist() == (0 * eye).tolist()


def test_local_jacobians_by_what_is_no_parent_are_refused():
    with fg.Graph():
        x, w = fg.Variable(2, name="x"), fg.Variable(2, [1.0, 2.0], name="w")
        y = fg.Exp(x + w, name="y")
    reads = "Exp 'y' (dim 2), which reads Add 'add2' (dim 2): by a node further back, write node.backward(y)"
    for other in (x, y, 0, "x", None):
        with pytest.raises(GraphError, match=f"^{re.escape(f'{other!r} is no parent of {reads}')}$"):
            y.local_jacobian_by(other)
    with pytest.raises(GraphError, match=r"Variable 'w' .* is no parent of Variable 'x' .*, which reads nothing"):
        x.local_jacobian_by(w)
    with pytest.raises(GraphError, match=r"needs variable 'x' .*, which has no value"):
        y.local_jacobian_by(y.parents[0])


@pytest.mark.slow
def test_a_chain_of_100_000_nodes():
    length = 100_000
    with fg.Graph() as graph:
        x = fg.Variable(2, [1.0, -2.0])
        node = x
        for i in range(length):
            node = fg.Negative(node) if i % 2 else fg.Scale(node, 1.0)
    assert len(graph.nodes) == length + 1
    assert node.forward().tolist() == [1.0, -2.0]
    assert x.backward(node).tolist() == np.eye(2).tolist()
    x.set_value([3.0, 4.0])
    assert node.value is None


def test_a_wide_fan_in():
    with fg.Graph():
        x = fg.Variable(1, [2.0])
        y = fg.Sum(fg.Vectorize(*[x] * 5000))
    assert y.forward().tolist() == [10_000.0]
    assert x.backward(y).tolist() == [[5000.0]]

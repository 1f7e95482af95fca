"""Graphs: scoping, names and edges, initial values."""

import re
import sys
import threading

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.errors import GraphError, ShapeError


def test_scoping():
    outer, inner = fg.Graph(), fg.Graph()
    with outer:
        a = fg.Variable(1, [1.0])
        with inner:
            b = fg.Variable(1, [2.0])
            with outer:
                c = a + a
        d = fg.Variable(1, [3.0])
    before = len(fg.default_graph.nodes)
    e = fg.Variable(1, [4.0])
    assert outer.nodes == (a, c, d)
    assert inner.nodes == (b,)
    assert fg.default_graph.nodes[before:] == (e,)
    assert [node.graph for node in (a, b, c, d, e)] == [outer, inner, outer, outer, fg.default_graph]


def test_scope_is_left_after_an_error():
    with pytest.raises(ShapeError), fg.Graph():
        fg.Variable(2) + fg.Variable(3)
    assert fg.Variable(1).graph is fg.default_graph


def test_the_same_graph_can_be_opened_again():
    graph = fg.Graph()
    with graph, graph:
        x = fg.Variable(1, [2.0])
    with graph:
        y = x * x
    assert graph.nodes == (x, y)


def test_scopes_of_threads_are_separate():
    made = []

    def build():
        with fg.Graph() as graph:
            made.append((graph, fg.Variable(1)))

    with fg.Graph() as mine:
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
    ((graph, node),) = made
    assert graph.nodes == (node,)
    assert mine.nodes == ()


def test_nodes_are_described_by_name_parents_and_children():
    with fg.Graph():
        x = fg.Variable(2, name="x")
        y = fg.Add(x, x, name="twice")
    assert (x.name, y.name) == ("x", "twice")
    assert (x.parents, x.children, y.parents, y.children) == ((), (y,), (x, x), ())
    assert "twice" in repr(y)
    assert "2" in repr(y)


def test_a_failed_node_leaves_no_trace():
    with fg.Graph() as graph:
        x, y = fg.Variable(2), fg.Variable(3)
        with pytest.raises(ShapeError):
            fg.Add(x, y)
        with pytest.raises(ShapeError):
            fg.Slice(x, 1, 5)
        with pytest.raises(ShapeError):
            fg.Variable(2, [1.0, 2.0, 3.0])
    assert graph.nodes == (x, y)
    assert x.children == y.children == ()


def test_initial_values_come_from_the_seed():
    def draws(seed):
        with fg.Graph(seed=seed):
            return [fg.Variable(500, True).value for _ in range(2)]

    first, again, other = draws(1), draws(1), draws(2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, other)
    pooled = np.concatenate(first + other)
    assert abs(pooled.std() / 0.001 - 1) < 0.1
    assert abs(pooled.mean()) < 1e-4


def test_variables_know_whether_they_are_trained():
    with fg.Graph():
        assert fg.Variable(1).trainable
        assert not fg.Variable(1, trainable=False).trainable
        assert fg.Variable(1).value is None
        assert fg.Variable(1, False).value is None


def test_division_and_sums():
    with fg.Graph():
        x, y = fg.Variable(2, [1.0, 2.0]), fg.Variable(2, [4.0, 5.0])
        results = [x / y, x / 2, 2 / x, np.float64(3.0) / x, sum([x, y]), x + y]
    expected = [[0.25, 0.4], [0.5, 1.0], [2.0, 1.0], [3.0, 1.5], [5.0, 7.0], [5.0, 7.0]]
    assert [r.forward().tolist() for r in results] == expected


@pytest.mark.parametrize("index", [1, [[0], [1]], [0.5], "01", [True]])
def test_an_index_that_is_no_list_of_positions(index):
    with fg.Graph():
        x = fg.Variable(2, [1.0, 2.0])
        with pytest.raises(fg.FlowgradError, match="the index is a list of positions, not "):
            fg.Gather(x, index)


def test_local_jacobians_tell_what_they_are():
    with fg.Graph():
        x, w = fg.Variable(2, [1.0, 2.0]), fg.Variable(4, [1.0, 2.0, 3.0, 4.0])
        nodes = [fg.Exp(x), fg.MatVec(w, x), x + x, x[0:1]]
    assert [repr(n.local_jacobian(0)) for n in nodes] == [
        "<Diagonal d (1, 2)>",
        "<Outer row (1, 2)>",
        "<Identity>",
        "<Selection in_dim=2, rows=slice(None, None, None), cols=slice(0, 1, None)>",
    ]
    assert nodes[1].local_jacobian(1).dense().tolist() == [[[1.0, 2.0], [3.0, 4.0]]]
    assert nodes[2].local_jacobian(0).dense().tolist() == [np.eye(2).tolist()]
    with pytest.raises(ValueError, match="<Identity>: give dense"):
        fg.Identity().dense()
    for kind, shape in ((fg.Dense, "(N, out, in)"), (fg.Outer, "(N, n)")):
        with pytest.raises(ValueError, match=re.escape(f"is {shape}, N == 1 for all samples, not (3,)")):
            kind(np.ones(3))


def test_threads_build_in_one_graph():
    with fg.Graph() as graph:
        x = fg.Variable(2, [1.0, 2.0])
    start = threading.Barrier(8)

    def build():
        start.wait()
        with graph:
            for _ in range(200):
                y = fg.Variable(2, [1.0, 2.0]) * x
                assert y.graph is graph

    threads = [threading.Thread(target=build) for _ in range(8)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert [n.index for n in graph.nodes] == list(range(1 + 8 * 400))
    assert len(x.children) == 1600
    assert all(p.index < n.index for n in graph.nodes for p in n.parents)


def test_threads_build_while_another_one_computes():
    with fg.Graph() as graph:
        x = fg.Variable(2, [1.0, 2.0])
        y = fg.Exp(x) * x
    done = threading.Event()

    def build():
        while not done.is_set() and len(graph.nodes) < 20_000:
            fg.Negative(x) * y

    threads = [threading.Thread(target=build) for _ in range(2)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for k in range(100):
            value = np.array([k / 100, 1.0])
            x.set_value(value)
            np.testing.assert_array_equal(y.forward(), np.exp(value) * value)
            np.testing.assert_array_equal(x.backward(y), np.diag(np.exp(value) * value + np.exp(value)))
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)


def test_a_thread_begins_outside_of_every_scope_but_operands_tell_their_graph():
    made = {}

    def build():
        made["free"] = fg.Variable(2)
        made["node"] = x * x
        with pytest.raises(GraphError, match="which every thread opens for itself"):
            made["free"] * x

    with fg.Graph() as graph:
        x = fg.Variable(2)
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
    assert (made["free"].graph, made["node"].graph) == (fg.default_graph, graph)


def test_scopes_of_one_graph_may_overlap():
    graph, inner, outer = fg.Graph(), threading.Event(), threading.Event()

    def build():
        with graph:
            inner.set()
            outer.wait(10)

    thread = threading.Thread(target=build)
    with graph:
        thread.start()
        inner.wait(10)
    outer.set()
    thread.join()
    assert fg.Variable(1).graph is fg.default_graph

"""Graphs: scoping, names and edges, initial values."""

import threading

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.errors import ShapeError


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

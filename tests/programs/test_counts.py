"""Counts of work: operations from kinds and shapes, checked against counting by hand."""

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.scheduler.feeds.check import check_feeds
from flowgrad.scheduler.programs.counts import counts_of
from flowgrad.scheduler.steps.step import compile_step


def program_of(build, samples=4):
    """Return the program of a training step; `build` gives inputs, their dims by variable, and the loss."""
    with fg.Graph(seed=0) as graph:
        feeds, loss = build()
    arrays = {v: np.ones((samples, v.dim)) for v in feeds}
    checked = check_feeds(graph, arrays)
    params = [v for v in graph.nodes if isinstance(v, fg.Variable) and v.trainable and v not in arrays]
    return compile_step(loss, checked, params, "shard").program


def layer(x, units):
    return fg.Vectorize(*(fg.Add(fg.Dot(fg.Variable(x.dim, True), x), fg.Variable(1, True)) for _ in range(units)))


def two_layers():
    x, label = fg.Variable(12, trainable=False), fg.Variable(3, trainable=False)
    return [x, label], fg.CrossEntropyWithSoftMax(layer(fg.Tanh(layer(x, 5)), 3), label)


def test_matrix_products_of_a_net():
    counts = counts_of(program_of(two_layers))
    assert counts.products == 2 * (2 * 5 * 12 + 3 * 3 * 5)
    assert counts.params == 5 * 13 + 3 * 6
    assert counts.products < counts.each


def test_products_and_operations_agree():
    """Nearly all operations of a wide net are in its matrix products."""

    def wide():
        x, label = fg.Variable(100, trainable=False), fg.Variable(3, trainable=False)
        return [x, label], fg.CrossEntropyWithSoftMax(layer(fg.ReLU(layer(x, 80)), 3), label)

    counts = counts_of(program_of(wide))
    assert 32 * counts.products == pytest.approx(counts.flops(32), rel=0.1)


def test_what_is_shared_by_all_samples_is_done_once():
    def build():
        x, w = fg.Variable(6, trainable=False), fg.Variable(6, True)
        return [x], fg.Sum(x * fg.Exp(w))

    counts = counts_of(program_of(build))
    assert counts.fixed > 0
    assert counts.products == 0
    assert counts.flops(5) == counts.fixed + 5 * counts.each


def test_levels_are_those_of_the_longest_way():
    def deep():
        x = fg.Variable(4, trainable=False)
        value = x
        for _ in range(30):
            value = fg.Tanh(layer(value, 4))
        return [x], fg.Sum(value)

    counts = counts_of(program_of(deep))
    assert counts.products == (3 * 30 - 1) * 2 * 4 * 4  # the input's own cotangent is not wanted
    assert counts.levels > 60

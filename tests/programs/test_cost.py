"""Counts of work: operations and bytes from kinds and shapes, checked against counting by hand."""

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.scheduler.feeds.check import check_feeds
from flowgrad.scheduler.programs.counts import Loop, Product, flops, work_of
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
    work = work_of(program_of(two_layers))
    assert work.products == {
        Product("value", 5, 12): 1,
        Product("value", 3, 5): 1,
        Product("input", 3, 5): 1,
        Product("matrix", 3, 5): 1,
        Product("matrix", 5, 12): 1,
    }
    assert work.product_flops(10) == 10 * 2 * (2 * 5 * 12 + 3 * 3 * 5)
    assert work.params == 5 * 13 + 3 * 6
    assert work.taken == 12 + 3


def test_products_and_operations_agree():
    """Nearly all operations of a wide net are in its matrix products."""

    def wide():
        x, label = fg.Variable(100, trainable=False), fg.Variable(3, trainable=False)
        return [x, label], fg.CrossEntropyWithSoftMax(layer(fg.ReLU(layer(x, 80)), 3), label)

    program = program_of(wide)
    fixed, each = flops(program)
    assert work_of(program).product_flops(32) == pytest.approx(fixed + 32 * each, rel=0.1)


def test_functions_are_those_that_take_long():
    def functions(op):
        def build():
            x = fg.Variable(7, trainable=False)
            return [x], fg.Sum(op(x * fg.Variable(7, True)))

        return work_of(program_of(build)).functions

    assert functions(fg.Tanh) == functions(fg.Logistic) == functions(fg.Exp) == 7
    assert functions(fg.ReLU) == functions(fg.Reciprocal) == 0


class Sine(fg.Op):
    """An op of a user's."""

    kinds = (fg.Diagonal,)

    @staticmethod
    def apply(a):
        return np.sin(a)

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(np.cos(a))


def test_an_op_of_ones_own_is_counted():
    def build():
        x = fg.Variable(7, trainable=False)
        return [x], fg.Sum(Sine(x * fg.Variable(7, True)))

    assert work_of(program_of(build)).functions == 14


def test_loops_read_and_write():
    def build():
        x = fg.Variable(6, trainable=False)
        return [x], fg.Sum(x * fg.Variable(6, True))

    work = work_of(program_of(build))
    assert work.loops[Loop(18, 6)] >= 1  # the product reads two vectors and writes one
    assert work.once == 0
    assert work.moved(5) - work.moved(4) == work.moved(1) - work.moved(0) > 18


def test_work_grows_with_the_graph_only():
    """A chain of layers of one shape is counted, not listed."""

    def deep():
        x = fg.Variable(4, trainable=False)
        value = x
        for _ in range(30):
            value = fg.Tanh(layer(value, 4))
        return [x], fg.Sum(value)

    work = work_of(program_of(deep))
    assert work.products[Product("value", 4, 4)] == 30
    assert len(work.products) + len(work.loops) < 12
    assert work.levels > 60

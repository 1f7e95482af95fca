"""Functions and ops that have one name are told apart: in keys, in machine code, in files."""

import importlib
import sys

import numpy as np
import pytest

import flowgrad as fg


class Applied(fg.Op):
    """``f(a)``, with the function and its derivative as attributes."""

    def __init__(self, a, f, df):
        super().__init__(a, f=f, df=df)

    @staticmethod
    def shape(a, *, f, df):
        return a

    @staticmethod
    def apply(a, *, f, df):
        return f(a)

    @staticmethod
    def jacobian(slot, y, a, *, f, df):
        return fg.Diagonal(df(a))


class Power:
    """Functions that are methods: their names are the same for every object."""

    def __init__(self, n):
        self.n = n

    def value(self, a):
        return a**self.n

    def slope(self, a):
        return self.n * a ** (self.n - 1)


@pytest.mark.parametrize("grain", ["shard", "node"])
def test_functions_of_one_name_are_told_apart(grain):
    engine = fg.Engine("sync", grain=grain)
    given = [(lambda a: a * a, lambda a: 2 * a), (lambda a: 3 * a, lambda a: 3 + 0 * a)]
    given += [(Power(n).value, Power(n).slope) for n in (2, 3)]
    with fg.Graph():
        x = fg.Variable(2, trainable=False)
        results = [fg.Exp(Applied(x, *pair)) for pair in given]
    feeds = {x: [[0.5, 1.0], [0.25, 0.75]]}
    a = np.array(feeds[x])
    for (f, df), result in zip(given, results):
        expected = np.exp(f(a))[..., None] * df(a)[..., None] * np.eye(2)
        np.testing.assert_allclose(engine.jacobian(result, x, feeds), expected)
    for (f, _), value in zip(given, engine.forward(results, feeds)):
        np.testing.assert_allclose(value, np.exp(f(a)))


MODULE = """
import numpy as np
import flowgrad as fg


class Same(fg.Op):
    kinds = (fg.Outer,)
    uses = ((0,),)

    @staticmethod
    def shape(a):
        return 1

    @staticmethod
    def apply(a):
        return {function}(a).sum(axis=1, keepdims=True)

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Outer({slope}(a))

    @staticmethod
    def row_value(y, a):
        y[0] = 0
        for j in range(a.shape[0]):
            y[0] += {function}(a[j])

    @staticmethod
    def row_factor(slot, f, a):
        for j in range(a.shape[0]):
            f[j] = {slope}(a[j])
"""


@pytest.fixture
def two_modules(tmp_path, monkeypatch):
    """Two modules with an op of the same name."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, function, slope in (("first_same", "np.exp", "np.exp"), ("second_same", "np.sin", "np.cos")):
        (tmp_path / f"{name}.py").write_text(MODULE.format(function=function, slope=slope))
    yield tuple(importlib.import_module(name).Same for name in ("first_same", "second_same"))
    for name in ("first_same", "second_same"):
        del sys.modules[name]


def trained(kernel, *ops):
    with fg.Graph(seed=0) as graph:
        x, w = fg.Variable(3, trainable=False), fg.Variable(3, [0.1, 0.2, 0.3])
        parts = [op(w * x) for op in ops]
        loss = fg.Sum(fg.Vectorize(*parts))
    feeds = {x: np.random.default_rng(0).random((12, 3))}
    history = fg.Trainer(fg.Adam(graph, loss, batch_size=4), fg.Engine("sync", kernel=kernel)).fit(feeds, epochs=2)
    return w.value, history


def test_ops_of_one_name_are_compiled_apart(two_modules):
    pytest.importorskip("numba")
    expected, _ = trained("numpy", *two_modules)
    found, history = trained("numba", *two_modules)
    assert history.plan["kernel"] == "numba"
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_an_op_that_was_edited_is_compiled_anew(tmp_path, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    weights = []
    for function, slope in (("np.exp", "np.exp"), ("np.sinh", "np.cosh")):
        (tmp_path / "edited_same.py").write_text(MODULE.format(function=function, slope=slope))
        sys.modules.pop("edited_same", None)
        op = importlib.import_module("edited_same").Same
        weights.append(trained("numba", op)[0])
        np.testing.assert_allclose(weights[-1], trained("numpy", op)[0], rtol=1e-12)
    assert (weights[0] != weights[1]).any()


OF_CONSTANTS = """
import numpy as np
from numba import njit
import flowgrad as fg

FACTORS = ({factor}, 2.0)
ARRAY = np.array([{factor}])


@njit
def of_numba():
    return {factor}


class Same(fg.Op):
    kinds = (fg.Outer,)
    uses = ((0,),)

    @staticmethod
    def shape(a):
        return 1

    @staticmethod
    def apply(a):
        return {read} * (a * a).sum(axis=1, keepdims=True)

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Outer(2 * {read} * a)

    @staticmethod
    def row_value(y, a):
        y[0] = 0
        for j in range(a.shape[0]):
            y[0] += {read} * a[j] * a[j]

    @staticmethod
    def row_factor(slot, f, a):
        for j in range(a.shape[0]):
            f[j] = 2 * {read} * a[j]
"""


@pytest.mark.parametrize("read", ["FACTORS[0]", "ARRAY[0]", "of_numba()"])
def test_what_an_op_of_a_module_reads_is_in_its_machine_code(tmp_path, monkeypatch, read):
    pytest.importorskip("numba")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for factor in ("0.5", "1.5"):
        (tmp_path / "reading_same.py").write_text(OF_CONSTANTS.format(factor=factor, read=read))
        sys.modules.pop("reading_same", None)
        op = importlib.import_module("reading_same").Same
        found, history = trained("numba", op)
        assert history.plan["kernel"] == "numba"
        np.testing.assert_allclose(found, trained("numpy", op)[0], rtol=1e-12)


def test_a_file_tells_ops_of_one_name_apart(two_modules, tmp_path):
    def own():
        class Dot(two_modules[0]):
            pass

        return Dot

    ops = [*two_modules, own(), fg.Sum]
    with fg.Graph() as graph:
        x = fg.Variable(2, [1.0, 2.0])
        results = [op(x) for op in ops]
    fg.save(tmp_path / "model", graph)
    loaded = fg.load(tmp_path / "model").graph
    assert [type(loaded.nodes[r.index]) for r in results] == ops


def test_an_op_whose_name_another_one_has_now_is_refused(tmp_path):
    def defined():
        class Again(fg.Op):
            @staticmethod
            def apply(a):
                return a

        return Again

    first, last = defined(), defined()
    for op in (first, last):
        with fg.Graph() as graph:
            op(fg.Variable(1, [1.0]))
        if op is first:
            with pytest.raises(
                fg.FlowgradError, match=r"another class is called .*Again now, and would be taken for it"
            ):
                fg.save(tmp_path / "model", graph)
        else:
            fg.save(tmp_path / "model", graph)
    assert type(fg.load(tmp_path / "model").graph.nodes[1]) is last

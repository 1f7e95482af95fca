"""What is computed alike has one key, and nothing else has it: whatever tells two values apart is in their keys."""

import dataclasses
import gc
import math
import os
import subprocess
import sys
from functools import partial

import dask
import numpy as np
import oracles
import pytest
from dask.utils import key_split

import flowgrad as fg
from flowgrad.reads import code_token
from flowgrad.scheduler.tasks.keys import token


class Mean(fg.Op):
    """Of any number of operands; its factor reads none of them."""

    uses = ((),)

    @staticmethod
    def apply(*values):
        return sum(values) / len(values)

    @staticmethod
    def jacobian(slot, y, *values):
        return fg.Diagonal(1 / len(values))


class Times(fg.Op):
    """The operand times a number that some object holds."""

    @staticmethod
    def shape(a, *, by):
        return a

    @staticmethod
    def apply(a, *, by):
        return a * by.value

    @staticmethod
    def jacobian(slot, y, a, *, by):
        return fg.Diagonal(by.value)


@dataclasses.dataclass(frozen=True)
class Hidden:
    value: float = dataclasses.field(repr=False)


class Plain:
    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize("grain", ["auto", "node"])
def test_the_number_of_operands_is_in_a_key(grain):
    with fg.Graph():
        x, y, z = (fg.Variable(1, [0.1 * k]) for k in range(3))
        p, q, r = map(fg.Exp, (x, y, z))
        two, three = Mean(p, q), Mean(p, q, r)
        both = fg.Sum(two + three)
    engine = fg.Engine("sync", grain=grain)
    for result in (two, three, both):
        np.testing.assert_allclose(engine.jacobian(result, x, mode="reverse")[0], x.backward(result))
        np.testing.assert_allclose(engine.jacobian(result, x, mode="forward")[0], x.backward(result))
    np.testing.assert_allclose(engine.gradient(both, wrt=x)[x], x.backward(both)[0])


@pytest.mark.parametrize("kind", [Hidden, Plain])
def test_objects_of_one_text_are_told_apart(kind):
    engine = fg.Engine("sync")
    for k in range(40):
        with fg.Graph():
            x = fg.Variable(1, [0.0])
            results = [fg.Tanh(Times(fg.Exp(x), by=kind(value))) for value in (0.1, 0.2 + k)]
        for result in results:
            np.testing.assert_allclose(engine.jacobian(result, x, mode="reverse")[0], x.backward(result))
        del x, results, result
        gc.collect()  # another object may get the address of one that is gone


def test_equal_objects_share_a_key():
    assert token(Hidden(1.0)) == token(Hidden(1.0)) != token(Hidden(2.0))
    plain = Plain(1.0)
    assert token(plain) == token(plain) != token(Plain(1.0))
    assert len({token(value) for value in (1, 1.0, True, "1", np.float32(1), None, (1,), [1])}) == 8


@pytest.mark.parametrize("grain", ["auto", "node"])
def test_a_value_that_is_kept_is_found_whatever_the_node_is_called(grain):
    executor = oracles.Counting()
    engine, a = fg.Engine(executor, grain=grain), np.random.default_rng(0).random((5, 3))
    found = []
    with fg.Graph():
        x = fg.Variable(3, trainable=False)
        results = {name: fg.Tanh(fg.Exp(x, name=name)) for name in ("one", "other")}
    for name, result in results.items():
        found.append(engine.jacobian(result, x, {x: a}, mode="reverse"))
        ran = [key for key in executor.take() if key_split(key) == "exp"]
        assert [key[1] for key in ran] == (["one"] if name == "one" else [])
    np.testing.assert_array_equal(*found)


def test_alike_nodes_of_a_derivative_are_one_task():
    executor = oracles.Counting()
    with fg.Graph():
        x = fg.Variable(3, [0.1, 0.2, 0.3])
        parts = [fg.Tanh(fg.Exp(x, name=name)) for name in ("b", "a")]
        result = fg.Sum(parts[0] * parts[1])
    for grain in ("auto", "node"):
        found = fg.Engine(executor, grain=grain, cache_bytes=0).jacobian(result, x, mode="reverse")
        np.testing.assert_allclose(found[0], x.backward(result))
        assert len([key for key in executor.take() if key_split(key) == "exp"]) == 1


def test_lazy_jacobians_of_other_nodes_have_other_names():
    rng = np.random.default_rng(0)
    with fg.Graph():
        x = fg.Variable(4, trainable=False)
        w, v = fg.Variable(20, rng.normal(size=20)), fg.Variable(15, rng.normal(size=15))
        h = fg.Tanh(fg.MatVec(w, x))
        rows = fg.MatVec(v, h)
        results = [fg.Exp(h), fg.Logistic(h), rows[0:1], rows[1:2]]
    feeds = {x: rng.normal(size=(100, 4))}
    engine = fg.Engine("sync")
    for wrt in (x, w):
        lazy = [engine.jacobian(r, wrt, feeds, memory_budget=3000) for r in results]
        assert len({a.name for a in lazy}) == len(lazy)
        again = engine.jacobian(results[0], wrt, feeds, memory_budget=3000)
        assert again.__dask_keys__() == lazy[0].__dask_keys__()
        for found, result in zip(dask.compute(*lazy, scheduler="sync"), results):
            np.testing.assert_allclose(found, engine.jacobian(result, wrt, feeds))


LIMIT = 1.0


def limited(a):
    return min(a, LIMIT)


def test_constants_of_a_module_are_in_the_code(monkeypatch):
    before = code_token(limited)
    assert code_token(limited) == before
    monkeypatch.setitem(globals(), "LIMIT", 2.0)
    assert code_token(limited) != before


class Called:
    """An object of a user that can be called."""

    def __init__(self, by):
        self.by = by

    def __call__(self, a):
        return a * self.by

    def method(self, a):
        return a + self.by


def closing_over(by):
    return lambda a: a * by


def with_default(by):
    return lambda a, by=by: a * by


def nested(by):
    return lambda a: [inner(a) for inner in (lambda b: b * by,)]


MAKERS = [
    closing_over,
    with_default,
    nested,
    lambda by: partial(max, by),
    lambda by: partial(closing_over(by)),
    lambda by: partial(np.multiply, key=by),
    Called,
    lambda by: Called(by).method,
    lambda by: closing_over(Called(by)),
    lambda by: closing_over([{"a": (by,)}]),
    lambda by: with_default(np.array([by])),
    lambda by: closing_over(fg.StepDecay(1.0, int(by))),
]


@pytest.mark.parametrize("make", MAKERS)
def test_what_functions_hold_is_in_their_code(make):
    assert code_token(make(2.0)) == code_token(make(2.0)) != code_token(make(3.0))


def test_other_functions_and_what_cannot_be_told():
    functions = [
        lambda a: a,
        lambda a: a + 1,
        lambda a: a + 2,
        math.sqrt,
        math.exp,
        partial(math.exp),
        object().__str__,
    ]
    functions += [make(2.0) for make in MAKERS]
    assert len({code_token(f) for f in functions}) == len(functions)
    round_trip = []
    round_trip.append(round_trip)
    assert code_token(closing_over(round_trip)) == code_token(closing_over(round_trip))

    def itself(a):
        return itself(a - 1)

    assert code_token(itself) == code_token(itself)
    assert code_token(closing_over(object())) == code_token(closing_over(object()))


def of_a_set(a):
    return a in {"one", "two", "three"}


def test_code_has_one_token_in_every_process():
    told = {
        subprocess.run(
            [sys.executable, "-c", "import test_keys; print(test_keys.code_token(test_keys.of_a_set))"],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


@pytest.mark.parametrize(
    "thing", [np.exp, len, str.upper, np.ndarray.sum, np.float32, dask.compute, range(3), slice(1), {1}]
)
def test_whatever_it_is_it_has_a_token(thing):
    assert token(thing) == token(thing) != token([thing])


class Turned(fg.Op):
    """Turns the vector around where `way` is True itself, and not just equal to it."""

    kinds = (fg.Selection,)

    @staticmethod
    def shape(a, *, way):
        return a

    @staticmethod
    def apply(a, *, way):
        return a[:, ::-1] if way is True else a

    @staticmethod
    def jacobian(slot, y, a, *, way):
        n = a.shape[1]
        return fg.Selection(n, cols=np.arange(n)[::-1] if way is True else slice(None))


@pytest.mark.parametrize("grain", ["auto", "node", "sample"])
def test_attributes_that_are_equal_but_not_the_same(grain):
    with fg.Graph():
        x = fg.Variable(2, [1.0, 2.0])
        turned = fg.Vectorize(Turned(x, way=1), Turned(x, way=True))
        flat = fg.Exp(turned)
        y = fg.Vectorize(turned, fg.Reciprocal(x * 0.0), fg.Reciprocal(x * -0.0))
    with np.errstate(divide="ignore"):
        engine = fg.Engine("sync", grain=grain)
        np.testing.assert_array_equal(engine.forward(y)[0], y.forward())
        np.testing.assert_allclose(engine.jacobian(flat, x, mode="reverse")[0], x.backward(flat))
    assert len({token(s) for s in (frozenset([1]), frozenset([True]), frozenset([1, 2]), frozenset(["1"]))}) == 4
    assert token(frozenset("abc")) == token(frozenset("cab"))

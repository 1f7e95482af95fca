"""Compiled kernels: the generated text against the interpreter and NumPy, and machine code against both."""

import re
from unittest import mock

import numpy as np
import pytest
import reference
import strategies
from hypothesis import given, settings

import flowgrad as fg
from flowgrad.scheduler.feeds.check import check_feeds
from flowgrad.scheduler.kernels import numba_values as codegen_values
from flowgrad.scheduler.kernels.numba_kernel import _bytes, _in_threads, why_not_compiled
from flowgrad.scheduler.kernels.numba_loops import Unsupported
from flowgrad.scheduler.kernels.numba_module import round_text
from flowgrad.scheduler.kernels.numba_text import generate
from flowgrad.scheduler.programs.compile import flat_values
from flowgrad.scheduler.programs.work import add_gradients
from flowgrad.scheduler.steps.step import compile_step
from flowgrad.scheduler.steps.work import shard_step
from flowgrad.scheduler.tasks.tree import FAN_IN, reduce_tree

numba = pytest.importorskip("numba")

RULES = (fg.GradientDescent, fg.Momentum, fg.AdaGrad, fg.RMSProp, fg.Adam)


def plain(step, rule, dtype=np.float64):
    """Run the generated text as plain Python: what it says is tested, without waiting for a compiler."""
    source = generate(step.program, step.names[0] if step.names else None)
    text = round_text(source, step.program, type(rule), np.dtype(dtype))
    text = text.replace("from numba import njit", "njit = lambda **k: lambda f: f")
    text = "\n".join(line for line in text.splitlines() if "numba_native import" not in line)
    names = {"copy_row": lambda target, i, source, k: target.__setitem__(i, source[k])}
    exec(compile(text, "generated", "exec"), names)
    return names


def test_neurons_and_matrices_are_the_same_machine_code():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 4)), rng.normal(size=6), rng.normal(size=(3, 6)), rng.normal(size=3)

    def neurons(x, w, b):
        rows, biases = [fg.Variable(x.dim, row) for row in w], [fg.Variable(1, [value]) for value in b]
        return fg.Vectorize(*(fg.Add(fg.Dot(row, x), bias) for row, bias in zip(rows, biases)))

    def matrix(x, w, b):
        return fg.Add(fg.MatVec(fg.Variable(w.size, w.ravel()), x), fg.Variable(b.size, b))

    texts = []
    for dense in (neurons, matrix):
        with fg.Graph() as graph:
            x, label = fg.Variable(4, trainable=False), fg.Variable(3, trainable=False)
            logits = dense(fg.ReLU(dense(x, *weights[:2])), *weights[2:])
            loss = fg.CrossEntropyWithSoftMax(logits, label)
        feeds = check_feeds(graph, {x: np.ones((5, 4)), label: np.eye(3)[[0, 1, 2, 0, 1]]}, np.float32)
        trained = [v for v in graph.nodes if isinstance(v, fg.Variable) and v.trainable]
        step = compile_step(loss, feeds, trained, "shard")
        source = generate(step.program, step.names[0])
        texts.append(round_text(source, step.program, fg.optim.AdamRule, np.dtype(np.float32)))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("large", [0, codegen_values.LARGE_MATRIX])
@settings(max_examples=60)
@given(made=strategies.graphs(samples=3))
def test_the_text_says_what_numpy_does(large, made):
    feeds = check_feeds(made.graph, made.feeds, np.float64)
    step = compile_step(made.loss, feeds, made.parameters, "shard")
    rule = fg.Adam(made.graph, made.loss).rule
    try:
        with mock.patch.object(codegen_values, "LARGE_MATRIX", large):
            text = plain(step, rule)
    except Unsupported:
        return
    w = flat_values(step.program, made.graph, "param", np.float64)[0]
    const = flat_values(step.program, made.graph, "const", np.float64) if step.program.size("const") else None
    fed = [feeds.arrays[made.graph.nodes[k]] for k in step.fed]
    rows = np.array([2, 0])
    expected = shard_step(step, {"w": w}, const, fed, rows, 5)
    grad = np.full(len(w), np.nan)
    loss = text["shard"](rows, 5, np.zeros(0) if const is None else const[0], w, grad, *map(_bytes, fed))
    np.testing.assert_allclose(grad, expected[0], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(loss, expected[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("make", RULES)
@pytest.mark.parametrize("correct", [False, True])
def test_compiled_updates_are_the_pure_rules(make, correct):
    if correct and make is not fg.Adam:
        pytest.skip("only Adam corrects its bias")
    with fg.Graph() as graph:
        v = fg.Variable(300, np.linspace(-1, 1, 300))
        loss = fg.Dot(v, v)
    rule = make(graph, loss, **({"bias_correction": True} if correct else {})).rule
    rng = np.random.default_rng(0)
    w = rng.normal(size=300)
    state = rule.init(w)
    loop = numba.njit(error_model="numpy")(type(rule).loop)
    fast, none = {"w": w.copy(), **{k: a.copy() for k, a in state.items()}}, np.zeros(0)
    for t in range(1, 5):
        g = rng.normal(size=300)
        w, state = rule.update(w, g, state)
        constants = np.array(rule.constants(t))
        loop(fast["w"], g, fast.get("v", none), fast.get("s", none), t, constants)
        np.testing.assert_allclose(fast["w"], w, rtol=1e-13)
        for slot in rule.slots:
            np.testing.assert_allclose(fast[slot], state[slot], rtol=1e-13)


@pytest.mark.parametrize("shards", [1, 2, 7, FAN_IN, FAN_IN + 1, 3 * FAN_IN + 2, FAN_IN**2 + 5])
def test_the_tree_sum_adds_in_the_order_of_the_tree(shards):
    from flowgrad.scheduler.kernels.numba_native import tree_sum

    shares = np.random.default_rng(shards).normal(size=(shards, 5))
    expected = reduce_tree([(s, 0.0) for s in shares], add_gradients)[0]
    tree_sum(shares, shards, 0, 5)
    assert shares[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_rows_are_copied_from_any_address(offset):
    from flowgrad.scheduler.kernels.numba_native import copy_row

    given = np.random.default_rng(0).normal(size=(5, 7))
    lying = np.zeros(given.nbytes + offset, np.uint8)[offset:]
    lying[:] = given.view(np.uint8).ravel()
    taken = np.zeros((2, 56), np.uint8)

    @numba.njit
    def take(target, source):
        copy_row(target, 1, source, 3)

    take(taken, lying.reshape(5, 56))
    assert taken[1].tobytes() == given[3].tobytes()
    assert not taken[0].any()


@pytest.mark.parametrize("grain", ["round", "shard"])
def test_a_reference_case(shared, grain):
    case = reference.build(shared, "mlp_logistic_Adam")
    engine = fg.Engine("threads", dtype="float64", grain=grain, shards=2, kernel="numba")
    history = fg.Trainer(case.optimizer, engine, shuffle=False).fit(case.feeds, epochs=1)
    assert history.plan["kernel"] == "numba"
    assert re.search(r"kernel numba: (compiled|loaded) in \d+\.\d s", history.plan["reason"])
    for name, variable in case.trainable.items():
        reference.close(variable.value, case.expected[f"after/{case.updates}/{name}"], name)


def test_threads_and_grains_give_the_same_bits():
    def train(where, grain):
        with fg.Graph(seed=1) as graph:
            x, label = fg.Variable(20, trainable=False), fg.Variable(3, trainable=False)
            hidden = fg.Tanh(fg.Vectorize(*[fg.Dot(fg.Variable(20, True), x) + fg.Variable(1, True) for _ in range(9)]))
            logits = fg.Vectorize(*[fg.Dot(fg.Variable(9, True), hidden) for _ in range(3)])
            loss = fg.CrossEntropyWithSoftMax(logits, label)
        rng = np.random.default_rng(0)
        feeds = {x: rng.normal(size=(100, 20)).astype("f4"), label: rng.integers(0, 3, 100)}
        engine = fg.Engine(where, grain=grain, shards=3, kernel="numba")
        fg.Trainer(fg.Adam(graph, loss, batch_size=16), engine).fit(feeds, epochs=3)
        return b"".join(v.value.tobytes() for v in graph.nodes if not v.parents and v.trainable)

    first = train("sync", "round")
    assert train("threads", "round") == first
    assert train("threads", "shard") == first


def test_what_has_no_compiled_form_is_said():
    class Cube(fg.Op):
        @staticmethod
        def apply(a):
            return a**3

        @staticmethod
        def jacobian(slot, y, a):
            return fg.Diagonal(3 * a * a)

    with fg.Graph() as graph:
        x = fg.Variable(2, trainable=False)
        loss = fg.Sum(Cube(x * fg.Variable(2, True)))
    feeds = check_feeds(graph, {x: np.ones((4, 2))})
    step = compile_step(loss, feeds, [graph.nodes[1]], "shard")
    assert "Cube" in why_not_compiled(step.program, step.names)
    with pytest.raises(fg.errors.GraphError, match="Cube"):
        fg.Trainer(fg.Adam(graph, loss, batch_size=2), fg.Engine("sync", kernel="numba")).fit({x: np.ones((4, 2))})


def test_an_error_in_one_thread_ends_them_all():
    def work(k):
        if k == 1:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        _in_threads(work, 2, np.zeros(2, np.int64))


def test_a_step_is_not_compiled_where_that_does_not_pay():
    with fg.Graph() as graph:
        x = fg.Variable(2, trainable=False)
        loss = fg.Dot(x, fg.Variable(2, True))
    history = fg.Trainer(fg.Adam(graph, loss, batch_size=2), fg.Engine("sync")).fit({x: np.ones((4, 2))}, epochs=1)
    assert history.plan["kernel"] == "numpy"
    assert "does not pay" in history.plan["reason"]


class Clamp(fg.Elementwise):
    """Entries between two numbers, which are attributes."""

    formula = "minimum(maximum(a, low), high)"
    slopes = ("where(low < a, where(a < high, 1, 0), 0)",)

    def __init__(self, a, low, high):
        super().__init__(a, low=low, high=high)


@pytest.mark.parametrize("low", [-0.25, np.float32(-0.25), -float("inf"), np.int64(-1), "-1"])
def test_attributes_in_formulas(low):
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(2, trainable=False)
        loss = fg.Sum(Clamp(x * fg.Variable(2, [0.5, -0.5]), low, float("inf")))
    feeds = {x: np.random.default_rng(0).normal(size=(8, 2))}
    step = compile_step(loss, check_feeds(graph, feeds), [graph.nodes[1]], "shard")
    if isinstance(low, str):
        assert "whose formula" in why_not_compiled(step.program, step.names)
        return
    assert not why_not_compiled(step.program, step.names)
    graph.nodes[0].set_value([0.7, 1.3])
    assert fg.check_gradients(loss) < 1e-8
    grad = np.empty(2)
    shard = plain(step, fg.Adam(graph, loss).rule)["shard"]
    shard(np.arange(8), 8, np.zeros(0), np.array([0.5, -0.5]), grad, _bytes(feeds[x]))
    np.testing.assert_allclose(grad, fg.Engine("sync").gradient(loss, feeds)[graph.nodes[1]])


class Broadcast(fg.Op):
    """Its operands are not equally long, so its formula is of no use."""

    formula = "a * b"
    slopes = ("b",)

    @staticmethod
    def shape(a, b):
        return a

    @staticmethod
    def apply(a, b):
        return a * b

    @staticmethod
    def jacobian(slot, y, a, b):
        return fg.Diagonal(np.broadcast_to(b, a.shape))


def test_formulas_of_operands_that_are_not_equally_long():
    with fg.Graph() as graph:
        x, w = fg.Variable(3, trainable=False), fg.Variable(3, np.ones(3))
        loss = fg.Sum(Broadcast(x * w, fg.Variable(1, [2.0], trainable=False)))
    step = compile_step(loss, check_feeds(graph, {x: np.ones((2, 3))}), [w], "shard")
    assert "are not as long as its value" in why_not_compiled(step.program, step.names)

"""Compiled kernels: tables of instructions against NumPy on random graphs, and each loop against what it stands for."""

import ctypes
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import reference
import strategies
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from models import Cube

import flowgrad as fg
from flowgrad.files import OPTIMIZERS
from flowgrad.formulas import FUNCTIONS, formula
from flowgrad.scheduler.feeds.check import check_feeds
from flowgrad.scheduler.kernels import compiled_round, kernel_of
from flowgrad.scheduler.programs.compile import compile_gradient, flat_values
from flowgrad.scheduler.steps.step import compile_step, row_tables
from flowgrad.scheduler.steps.work import run_round, shard_step
from flowgrad.scheduler.tasks.tree import FAN_IN, reduce_tree

numba = pytest.importorskip("numba")
pytest.importorskip("scipy")

from flowgrad.scheduler.kernels import numba_compile, numba_kernel, numba_library, table  # noqa: E402
from flowgrad.scheduler.kernels.numba_kernel import CompiledProgram  # noqa: E402

RULES = OPTIMIZERS.values()


class Setting:
    """A step of a graph, compiled and not, with what it reads."""

    def __init__(self, loss, feeds, rule=None, dtype=np.float64):
        graph = loss.graph
        checked = check_feeds(graph, feeds, dtype)
        params = [v for v in graph.nodes if isinstance(v, fg.Variable) and v.trainable and v not in checked.arrays]
        rule = rule or fg.optim.GradientDescentRule(1.0)
        self.step = replace(compile_step(loss, checked, params, "shard"), rule=rule)
        program = self.step.program
        w = flat_values(program, graph, "param", dtype)[0]
        self.state = {"w": w, **rule.init(w)}
        self.const = flat_values(program, graph, "const", dtype) if program.size("const") else None
        self.feeds = [checked.arrays[graph.nodes[k]] for k in self.step.fed]
        self.compiled = numba_kernel.CompiledRound(program, self.step.names, rule, np.dtype(dtype), False)

    def run(self, steps, threads=1):
        return self.compiled.run(self.state, self.const, self.feeds, steps, threads)

    def expected(self, steps):
        return run_round(self.step, (self.state, []), self.const, self.feeds, steps, 1)


def same(got, expected, rtol=1e-9, atol=1e-11):
    for name, array in expected[0].items():
        np.testing.assert_allclose(got[0][name], array, rtol=rtol, atol=atol, err_msg=name)
    np.testing.assert_allclose(got[1], expected[1], rtol=rtol, atol=atol)


STEPS = [[np.array([2, 0]), np.array([1])], [np.array([1, 2, 0])]]


@settings(max_examples=100)
@given(made=strategies.graphs(samples=3))
def test_rounds_are_those_of_numpy(made):
    if not made.parameters:
        return
    here = Setting(made.loss, made.feeds)
    assert not here.compiled.rounds.calls  # every public op has kernels
    got = here.run(STEPS)
    same(got, here.expected(STEPS))
    assert here.run(STEPS, 2)[0]["w"].tobytes() == got[0]["w"].tobytes()
    gradient, loss = here.compiled.gradient(here.state, here.const, here.feeds, STEPS[0][0], 3)
    expected = shard_step(here.step, here.state, here.const, here.feeds, STEPS[0][0], 3)
    same(({"w": gradient}, [loss]), ({"w": expected[0]}, [expected[1]]))


@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("grain", ["shard", "node"])
@settings(max_examples=60)
@given(made=strategies.graphs(samples=3))
def test_programs_are_those_of_numpy(dtype, grain, made):
    feeds = check_feeds(made.graph, made.feeds, np.dtype(dtype))
    program, _ = compile_gradient(made.result, feeds.arrays, [*made.parameters, *made.feeds], grain)
    inputs = []
    for i in program.inputs:
        if i.role == "feed":
            inputs.append(feeds.arrays[made.graph.nodes[i.node]])
        elif i.role == "seed":
            type_ = program.types[i.var]
            inputs.append(np.repeat(np.eye(type_.dim, dtype=dtype)[:, None], 3 if type_.batched else 1, axis=1))
        else:
            inputs.append(flat_values(program, made.graph, i.role, np.dtype(dtype)))
    compiled = CompiledProgram(program)
    got, expected = compiled(inputs), kernel_of(program)(inputs)
    shared = compiled([x[:, :1] if i.role == "seed" else x for i, x in zip(program.inputs, inputs)])
    rtol, atol = (1e-9, 1e-11) if dtype == "f8" else (2e-3, 1e-4)
    for name, array in got.items():
        np.testing.assert_allclose(array, np.broadcast_to(expected[name], array.shape), rtol=rtol, atol=atol)
        assert shared[name].tobytes() == array.tobytes()  # one seed for all samples, or one for each


def test_a_wrong_kernel_is_found(monkeypatch):
    """The tests above would see a slope that is slightly wrong."""
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(2, trainable=False)
        loss = fg.Sum(fg.Tanh(x * fg.Variable(2, True)))
    del graph
    feeds = {x: np.random.default_rng(0).normal(size=(3, 2))}
    right = Setting(loss, feeds)
    expected = right.expected(STEPS)
    monkeypatch.setattr(fg.Tanh, "slopes", ("1.0 - y * y * 1.0001",))
    with pytest.raises(AssertionError):
        same(Setting(loss, feeds).run(STEPS), expected)


EXACT = {
    "exp(a)": np.exp, "log(abs(a))": lambda a: np.log(abs(a)), "tanh(a)": np.tanh, "expm1(a)": np.expm1,
    "log1p(abs(a))": lambda a: np.log1p(abs(a)), "sinh(a)": np.sinh, "cosh(a)": np.cosh, "sqrt(abs(a))": lambda a: np.sqrt(abs(a)),
    "where(a >= 0, 1, exp(-abs(a))) / (1 + exp(-abs(a)))": lambda a: 1 / (1 + np.exp(-a)),
}  # fmt: skip


def numbers(dtype):
    rng = np.random.default_rng(0)
    most = 700 if dtype == "f8" else 88
    wide = [rng.normal(0, s, 20_000) for s in (0.1, 1, 10)] + [rng.uniform(-most, most, 20_000)]
    small = 10.0 ** rng.uniform(-30, 0, 20_000) * rng.choice([-1, 1], 20_000)
    return np.concatenate([*wide, small, [0.0, -0.0, np.inf, -np.inf, np.nan, 1000, -1000] * 3]).astype(dtype)


def loop(text, a):
    (address,) = numba_library.addresses_of([table.Kernel(text, ("a",), ())], a.dtype)
    out = np.empty_like(a)
    call(address, out, a)
    return out


def call(address, out, *operands):
    places = [x.ctypes.data for x in (out, *operands, *[out] * (6 - len(operands)))]
    ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 7, ctypes.c_int64)(int(address))(*places, len(out))


@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("text", EXACT)
def test_functions_are_right_to_the_last_bits(text, dtype):
    a = numbers(dtype)
    got = loop(text, a)
    with np.errstate(all="ignore"):
        by_numpy = EXACT[text](a)
    normal = np.isfinite(by_numpy) & (abs(by_numpy) > np.finfo(dtype).tiny)
    units = abs(got[normal] - by_numpy[normal]) / np.spacing(abs(by_numpy[normal]))
    # The logistic function is made of NumPy's own steps, which are wrong by up to 2 units themselves.
    assert units.max() <= (4 if dtype == "f4" else 3 if "where" in text else 2)
    np.testing.assert_array_equal(got[~np.isfinite(by_numpy)], by_numpy[~np.isfinite(by_numpy)])


@st.composite
def formulas(draw, depth=3):
    """A formula of a and b."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(["a", "b", "2", "0.5", "(-a)", "a**3"]))
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(set(FUNCTIONS) - {"log", "log1p", "sqrt"})))
        operands = [draw(formulas(depth - 1)) for _ in range(FUNCTIONS[name][1])]
        if name == "where":
            operands[0] += " > 0"
        return f"{name}({', '.join(operands)})"
    return f"({draw(formulas(depth - 1))} {draw(st.sampled_from('+-*'))} {draw(formulas(depth - 1))})"


@settings(max_examples=5, phases=[Phase.generate])
@given(texts=st.lists(formulas(), min_size=20, max_size=30))
def test_formulas_are_those_of_numpy(texts):
    a, b = (np.random.default_rng(k).uniform(0.1, 3.0, 50) * np.sign(np.sin(np.arange(50) * (k + 1))) for k in (1, 2))
    kernels = [table.Kernel(text, ("a", "b")) for text in texts]
    names = {numba_library.symbol_of(kernel, "float64"): kernel for kernel in kernels}
    places = numba_library.places_of(numba_compile.object_of(names, np.dtype("f8")), names)
    scope = {name: function for name, (function, _) in FUNCTIONS.items()}
    for text, kernel in zip(texts, kernels):
        out = np.empty(50)
        call(places[kernel], out, a, b)
        with np.errstate(all="ignore"):
            # Where the last digits of an operand are many digits of the result, nobody is right.
            near = [
                eval(formula(text, 2).numpy(), {**scope, "a": a * x, "b": b * x}) for x in (1, 1 + 1e-14, 1 - 1e-14)
            ]
            expected, more, less = (np.broadcast_to(np.asarray(x, float), 50) for x in near)
            allowed = 1e-11 * abs(expected) + 1e-13 + 10 * (abs(more - expected) + abs(less - expected))
        right = (abs(out - expected) <= allowed) | (out == expected) | (np.isnan(out) & np.isnan(expected))
        assert np.all(right | ~np.isfinite(allowed)), text


def test_what_is_not_a_number_goes_through_as_in_numpy():
    a = np.array([np.nan, 1.0, -1.0, 0.0])
    np.testing.assert_array_equal(loop("maximum(a, 0)", a), np.maximum(a, 0))
    np.testing.assert_array_equal(loop("minimum(a, 0)", a), np.minimum(a, 0))
    np.testing.assert_array_equal(loop("sign(a)", a), np.sign(a))


@pytest.mark.parametrize("make", RULES)
@pytest.mark.parametrize(
    "more", [{}, {"clip_norm": 0.1}, {"weight_decay": 0.3}, {"clip_norm": 0.1, "weight_decay": 0.3}]
)
def test_updates_are_those_of_the_rules(make, more):
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(300, trainable=False)
        loss = fg.Dot(x, fg.Variable(300, True))
    rule = make(graph, loss, learning_rate=0.1, **more).rule
    here = Setting(loss, {x: np.random.default_rng(0).normal(size=(3, 300))}, rule)
    same(here.run(STEPS), here.expected(STEPS), rtol=1e-12)
    gradient = np.linspace(-1, 1, 300)
    one, expected = here.compiled.update(here.state, gradient), rule.update(here.state["w"], gradient, here.state)
    np.testing.assert_allclose(one["w"], expected[0], rtol=1e-12)


@pytest.mark.parametrize("shards", [1, 2, 7, FAN_IN, FAN_IN + 1, 9, 17, 2 * FAN_IN**3 + 3])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_are_added_in_the_order_of_the_tree(shards, threads):
    with fg.Graph(seed=0):
        x, w = fg.Variable(70, trainable=False), fg.Variable(70, np.zeros(70))
        loss = fg.Dot(x, w)
    feeds = {x: np.random.default_rng(shards).normal(size=(shards, 70)).astype("f4")}
    here = Setting(loss, feeds, dtype=np.float32)
    state, _ = here.run([[np.array([k]) for k in range(shards)]], threads)
    shares = [np.float32(1 / shards) * row for row in feeds[x]]
    assert (-state["w"]).tobytes() == reduce_tree(shares, lambda group: sum(group[1:], group[0])).tobytes()


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_rows_are_taken_from_any_address(offset):
    with fg.Graph(seed=0):
        x = fg.Variable(7, trainable=False)
        loss = fg.Dot(x, fg.Variable(7, True))
    rows = np.random.default_rng(0).normal(size=(5, 7))
    here = Setting(loss, {x: rows})
    lying = np.zeros(rows.nbytes + offset, np.uint8)[offset:]
    lying[:] = rows.view(np.uint8).ravel()
    expected = here.run(STEPS)
    here.feeds = [lying.view(np.float64).reshape(5, 7)]
    same(here.run(STEPS), expected, 0, 0)


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


class Square(fg.Op):
    """An op that states what it does to a sample's vector."""

    @staticmethod
    def apply(a):
        return a * a

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(2 * a)

    @staticmethod
    def row_value(y, a):
        for j in range(a.shape[0]):
            y[j] = a[j] * a[j]


def test_what_has_no_compiled_form_is_called_in_python_and_the_rest_is_compiled():
    with fg.Graph(seed=0):
        x = fg.Variable(2, trainable=False)
        loss = fg.Sum(Square(Cube(x * fg.Variable(2, True))))
    here = Setting(loss, {x: np.random.default_rng(0).normal(size=(4, 2))})
    called = [f"{i.verb} {i.op.__name__}" for i, _, _ in here.compiled.rounds.calls]
    assert called == ["apply Cube", "pull Square", "pull Cube"]
    same(here.run(STEPS), here.expected(STEPS))
    same(here.run(STEPS, 2), here.expected(STEPS))


@pytest.mark.parametrize("op", [fg.SoftMax, fg.LogSoftMax, fg.Standardize])
def test_rows_that_are_laid_beside_others_are_compiled(op):
    with fg.Graph(seed=0):
        x, w, v = fg.Variable(4, trainable=False), fg.Variable(4, ("normal", 1.0)), fg.Variable(2, ("normal", 1.0))
        loss = fg.Sum(fg.Tanh(fg.Vectorize(v, op((w * x).reshape(2, 2)), x)))
    here = Setting(loss, {x: np.random.default_rng(0).normal(size=(3, 4))})
    assert not here.compiled.rounds.calls
    same(here.run(STEPS), here.expected(STEPS))


@settings(max_examples=40)
@given(
    rows=st.integers(1, 6),
    dim=st.integers(1, 4),
    steps=st.integers(1, 4),
    twice=st.booleans(),
    dtype=st.sampled_from("fd"),
)
def test_rows_of_a_table_and_what_is_added_to_them(rows, dim, steps, twice, dtype):
    rng = np.random.default_rng(rows + 10 * dim + 100 * steps)
    with fg.Graph(seed=0):
        w, k = fg.Variable((rows, dim), ("normal", 1.0)), fg.Variable(steps, trainable=False)
        picked = fg.Embedding(w, k)
        scaled = (
            picked * fg.Embedding(w, fg.Variable(steps, rng.integers(0, rows, steps))) if twice else fg.Tanh(picked)
        )
        loss = fg.MeanSquaredError(scaled.reshape(steps * dim), fg.Variable(steps * dim, ("normal", 1.0)))
    here = Setting(loss, {k: rng.integers(0, rows, (3, steps))}, dtype=np.dtype(dtype))
    assert not here.compiled.rounds.calls
    got = here.run(STEPS)
    same(got, here.expected(STEPS), *((1e-9, 1e-11) if dtype == "d" else (2e-3, 1e-4)))
    assert here.run(STEPS, 2)[0]["w"].tobytes() == got[0]["w"].tobytes()


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("dim", [1, 3, 64, 200])
def test_rows_of_a_table_in_many_shards_and_by_any_number_of_threads(dim, lazy):
    """More shards than are kept side by side, so that their gradients are folded, and zeros are written between."""
    rng = np.random.default_rng(dim)
    with fg.Graph(seed=0):
        before, w, k = (
            fg.Variable(7, ("normal", 1.0)),
            fg.Variable((90, dim), ("normal", 1.0)),
            fg.Variable(2, trainable=False),
        )
        loss = fg.Dot(fg.Sum(fg.Tanh(fg.Embedding(w, k))), fg.Sum(before * before)) * fg.Variable(1, [0.1])
    rule = fg.optim.AdamRule(0.1, weight_decay=0.1, clip_norm=0.5, lazy_rows=lazy)
    here = Setting(loss, {k: rng.integers(0, 90, (30, 2))}, rule, np.dtype("f"))
    tables = row_tables(here.step, loss, 22)
    steps = [[rng.integers(0, 30, 1 + (s == 3)) for s in range(n)] for n in (21, 1, 9, 16)]
    ends = []
    for step in (replace(here.step, tables=tables), here.step)[: 2 - lazy]:
        step = step.by("numba")
        ends += [run_round(step, (here.state, []), here.const, here.feeds, steps, n) for n in (1, 2, 3, 5)]
    assert len(tables) == 1
    assert len({b"".join(array.tobytes() for array in state.values()) for state, _ in ends}) == 1
    assert [losses for _, losses in ends] == [ends[0][1]] * len(ends)
    step = replace(here.step, tables=tables)
    same(ends[0], run_round(step, (here.state, []), here.const, here.feeds, steps, 1), 2e-3, 1e-4)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_a_summed_gradient_is_no_table_for_each_sample(kernel):
    samples, rows, dim = 64, 3000, 5
    with fg.Graph(seed=0):
        w, k = fg.Variable((rows, dim), True), fg.Variable(2, trainable=False)
        loss = fg.Sum(fg.Tanh(fg.Embedding(w, k)))
    feeds = {k: np.random.default_rng(0).integers(0, rows, (samples, 2))}
    engine = fg.Engine("sync", kernel=kernel)
    engine.gradient(loss, feeds)
    checked = check_feeds(loss.graph, feeds)
    program, _ = compile_gradient(loss, checked.arrays, [w], "shard")
    slots = table.Assembler(program).write().slots
    assert max(s.type.dim for s in slots if s.type.batched) == 2 * dim
    tracemalloc.start()
    engine.gradient(loss, feeds)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < samples * rows * dim  # bytes, and numbers are of eight of them


def test_ops_of_functions_and_scripts_are_compiled_too():
    class Local(fg.Elementwise):
        formula = "c * a * a"
        slopes = ("2 * c * a",)

    class Row(fg.Op):
        kinds = (fg.Outer,)
        shape = staticmethod(lambda *dims: 1)
        apply = staticmethod(lambda a: (a * a).sum(axis=1, keepdims=True))
        jacobian = staticmethod(lambda slot, y, a: fg.Outer(2 * a))

        @staticmethod
        def row_value(y, a):
            y[0] = 0
            for j in range(a.shape[0]):
                y[0] += a[j] * a[j]

        @staticmethod
        def row_factor(slot, f, y, a):
            for j in range(a.shape[0]):
                f[j] = 2 * a[j]

    with fg.Graph(seed=0):
        x = fg.Variable(2, trainable=False)
        loss = Row(Local(x * fg.Variable(2, True), c=0.7))
    here = Setting(loss, {x: np.random.default_rng(0).normal(size=(4, 2))})
    assert not here.compiled.rounds.calls
    same(here.run(STEPS), here.expected(STEPS))


def test_a_function_that_makes_arrays_gives_them_back():
    def value(y, a):
        room = np.zeros(1000)
        for k in range(1000):
            room[k] = a[0]
        y[0] = room.sum()

    (address,) = numba_library.addresses_of([table.row_kernel(value, 2)], "float64")
    y, a = np.zeros(1), np.full(1, 2.0)
    run = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 10)(address)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20_000):
        run(y.ctypes.data, a.ctypes.data, 0, 0, 0, 1, 1, 0, 0, 0)
    assert y[0] == 2000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; all of them are 160 MB


def test_machine_code_that_was_cut_off_is_made_again(monkeypatch, tmp_path):
    monkeypatch.setenv("FLOWGRAD_CACHE_DIR", str(tmp_path))
    kernel = table.Kernel("a + 12345", ("a",))
    a = np.arange(3.0)
    for damage in (None, lambda text: text[: len(text) // 2], lambda text: b"", lambda text: text[:-1] + b"x"):
        for file in tmp_path.rglob("*.o"):
            file.write_bytes(damage(file.read_bytes()))
        out = np.zeros(3)
        call(numba_library._load([kernel], "float64")[kernel], out, a)
        assert out.tolist() == [12345, 12346, 12347]
        assert len(list(tmp_path.rglob("*.o"))) == 1


@pytest.mark.slow
def test_kernels_that_other_processes_compiled_do_not_meet(tmp_path):
    """Names within machine code count from one in every process: two objects may have functions of one name."""
    script = """
import sys, numpy as np, flowgrad as fg
for name, dtype in [word.split(":") for word in sys.argv[1:]]:
    with fg.Graph():
        x = fg.Variable(3, trainable=False)
        y = getattr(fg, name)(*[x] * (1 + ("E" in name)))
    feeds = {x: np.array([[1.0, 2.0, 4.0]])}
    found, wanted = (fg.Engine("sync", dtype=dtype, kernel=k).forward(y, feeds) for k in ("numba", "numpy"))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
"""
    environment = os.environ | {"FLOWGRAD_CACHE_DIR": str(tmp_path)}

    def run(*several):
        processes = [subprocess.Popen([sys.executable, "-c", script, *which], env=environment) for which in several]
        assert [process.wait(120) for process in processes] == [0] * len(several)

    run(["Tanh:f8", "Tanh:f4"])  # what every process needs is there
    every = ["MeanSquaredError:f8", "Sum:f4"]
    run(*([one] for one in every))
    run(every, every[::-1])


def test_an_error_in_python_ends_all_threads_and_names_the_node():
    class Broken(Cube):
        @staticmethod
        def apply(a):
            raise ValueError("no")

    with fg.Graph(seed=0):
        x = fg.Variable(2, trainable=False)
        loss = fg.Sum(Broken(x * fg.Variable(2, True), name="here"))
    here = Setting(loss, {x: np.ones((4, 2))})
    with pytest.raises(fg.errors.FlowgradError, match="Broken 'here' failed: ValueError: no"):
        here.run(STEPS, 2)


def test_a_signal_ends_a_round_at_once():
    with fg.Graph(seed=0):
        x = fg.Variable(50, trainable=False)
        loss = fg.Sum(fg.Tanh(x * fg.Variable(50, True)))
    here = Setting(loss, {x: np.ones((100, 50))})
    steps = [[np.arange(100)]] * 200_000
    timer = threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT))

    def run():
        timer.start()
        here.run(steps)

    with pytest.raises(KeyboardInterrupt):
        run()
    timer.join()


class Clamp(fg.Elementwise):
    """Entries between two numbers, which are attributes."""

    formula = "minimum(maximum(a, low), high)"
    slopes = ("where(low < a, where(a < high, 1, 0), 0)",)

    def __init__(self, a, low, high):
        super().__init__(a, low=low, high=high)


@pytest.mark.parametrize("low", [-0.25, np.float32(-0.25), -float("inf"), np.int64(-1)])
def test_attributes_in_formulas(low):
    with fg.Graph(seed=0):
        x = fg.Variable(2, trainable=False)
        loss = fg.Sum(Clamp(x * fg.Variable(2, [0.5, -0.5]), low, float("inf")))
    here = Setting(loss, {x: np.random.default_rng(0).normal(size=(8, 2))})
    assert not here.compiled.rounds.calls
    same(here.run(STEPS), here.expected(STEPS))


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


def test_formulas_of_operands_that_are_not_equally_long_are_left_to_python():
    with fg.Graph():
        x, w = fg.Variable(3, trainable=False), fg.Variable(3, np.ones(3))
        loss = fg.Sum(Broadcast(x * w, fg.Variable(1, [2.0], trainable=False)))
    here = Setting(loss, {x: np.arange(9.0).reshape(3, 3)})
    assert len(here.compiled.rounds.calls) == 2
    same(here.run(STEPS), here.expected(STEPS))


@pytest.mark.parametrize("samples", [1, 12])
def test_a_large_matrix_times_a_vector_that_all_samples_share(samples):
    rng = np.random.default_rng(0)
    with fg.Graph():
        x = fg.Variable(64, trainable=False)
        W, shared = fg.Variable(64 * 64, rng.normal(size=64 * 64)), fg.Variable(64, rng.normal(size=64))
        loss = fg.Sum(fg.Tanh(fg.MatVec(W, shared)) * x)
    feeds = {x: rng.normal(size=(samples, 64))}
    found, expected = (fg.Engine("sync", kernel=kernel).gradient(loss, feeds) for kernel in ("numba", "numpy"))
    for v in (W, shared):
        np.testing.assert_allclose(found[v], expected[v], rtol=1e-10, atol=1e-12)


def test_a_table_is_made_once_and_steps_of_few_samples_use_it():
    with fg.Graph(seed=0):
        x = fg.Variable(3, trainable=False)
        loss = fg.Dot(x, fg.Variable(3, True))
    here = Setting(loss, {x: np.arange(30.0).reshape(10, 3)})
    for steps in ([[np.arange(7)], [np.arange(3)]], [[np.arange(2), np.arange(5)], [np.array([9])]]):
        same(here.run(steps), here.expected(steps))
    made = (here.step.program, here.step.names, here.step.rule, np.dtype("f8"), False)
    assert compiled_round(*made) is compiled_round(*made)

"""The NumPy kernel: buffers that are used again change no result, wherever and however often it runs."""

from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import strategies
from hypothesis import given, settings

import flowgrad as fg
from flowgrad.errors import NodeFailed
from flowgrad.files import OPTIMIZERS
from flowgrad.ops import linear
from flowgrad.optim import WORK
from flowgrad.scheduler.feeds.check import check_feeds
from flowgrad.scheduler.kernels.numpy_kernel import Kernel, run_instr
from flowgrad.scheduler.programs.compile import flat_values
from flowgrad.scheduler.programs.work import mean_seed
from flowgrad.scheduler.steps import work as scratch
from flowgrad.scheduler.steps.step import arrange, compile_step
from flowgrad.scheduler.steps.work import shard_step


def prepared(made):
    feeds = check_feeds(made.graph, made.feeds, np.float64)
    step = compile_step(made.loss, feeds, made.parameters, "shard")
    state = {"w": flat_values(step.program, made.graph, "param", np.float64)[0]}
    const = flat_values(step.program, made.graph, "const", np.float64) if step.program.size("const") else None
    fed = [feeds.arrays[made.graph.nodes[k]] for k in step.fed]
    return step, state, const, fed


def one_by_one(program, inputs):
    """Run instruction by instruction, every value in an array of its own."""
    env = dict(zip((i.var for i in program.inputs), inputs))
    for i in program.instrs:
        env[i.out] = run_instr(i, *(env[a] for a in i.args))
    return {name: env[var] for name, var in program.outputs.items()}


@settings(max_examples=60)
@given(made=strategies.graphs(samples=5))
def test_buffers_hold_what_single_instructions_give(made):
    step, state, const, fed = prepared(made)
    kernel = Kernel(step.program)
    with mock.patch("flowgrad.scheduler.kernels.numpy_kernel.LARGE", 0):
        large = Kernel(step.program)
    kept = []
    for rows in ([0, 1, 2], [4], [3, 1, 0], [2, 2, 4, 0, 1]):
        inputs = arrange(step.program, state, const, [f[rows] for f in fed])
        like = np.empty((len(rows) if step.program.types[step.program.inputs[-1].var].batched else 1, 0))
        inputs.append(mean_seed(like, len(rows), 5))
        found = kernel(inputs)
        expected = one_by_one(step.program, inputs)
        assert found.keys() == expected.keys()
        for name, array in large(inputs).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-12, atol=1e-13)
        kept += [(found[name], expected[name], found[name].tobytes()) for name in found]
    for array, expected, before in kept:
        assert array.tobytes() == before, "a later call wrote into an earlier result"
        np.testing.assert_allclose(array, expected, rtol=1e-12, atol=1e-13)


def test_calls_side_by_side_do_not_share_buffers():
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(40, trainable=False)
        loss = fg.Sum(fg.Tanh(fg.MatVec(fg.Variable(40 * 30, np.linspace(-1, 1, 1200)), fg.Tanh(x))))
    data = np.random.default_rng(0).normal(size=(64, 200, 40))
    feeds = check_feeds(graph, {x: data[0]}, np.float64)
    step = compile_step(loss, feeds, [graph.nodes[1]], "shard")
    state = {"w": flat_values(step.program, graph, "param", np.float64)[0]}

    def run(k):
        return shard_step(step, state, None, [data[k]], np.arange(200), 200)[0].tobytes()

    expected = [run(k) for k in range(64)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(64))) == expected


@pytest.mark.parametrize("make", OPTIMIZERS.values())
def test_updates_in_place_and_in_pieces_are_the_pure_rule(make):
    with fg.Graph() as graph:
        v = fg.Variable(2, [1.0, 2.0])
        loss = fg.Dot(v, v)
    rule, rng = make(graph, loss).rule, np.random.default_rng(0)
    w, work = rng.normal(size=1000).astype("f4"), np.full((WORK, 300), np.nan, "f4")
    state = rule.init(w)
    fast = {"w": w.copy(), **{k: v.copy() for k, v in state.items()}}
    for _ in range(3):
        g = rng.normal(size=w.size).astype("f4")
        w, state = rule.update(w, g, state)
        rule.update_in_place(fast["w"], g, fast, work)
    assert fast["w"].tobytes() == w.tobytes()
    assert all(fast[slot].tobytes() == state[slot].tobytes() for slot in state)


def test_threads_over_shards_give_the_same_bits():
    with fg.Graph(seed=0) as graph:
        x, y = fg.Variable(30, trainable=False), fg.Variable(1, trainable=False)
        hidden = fg.ReLU(fg.MatVec(fg.Variable(30 * 20, True), x))
        loss = fg.MeanSquaredError(fg.Dot(fg.Variable(20, True), hidden), y)
    rng = np.random.default_rng(0)
    feeds = {x: rng.normal(size=(96, 30)), y: rng.normal(size=(96, 1))}

    def train(where, least):
        graph.reset_value()
        for k, v in enumerate(v for v in graph.nodes if isinstance(v, fg.Variable) and v.trainable):
            v.set_value(np.random.default_rng(k).normal(size=v.dim))
        engine = fg.Engine(where, grain="round", shards=5, kernel="numpy")
        with mock.patch.object(scratch, "THREAD_FLOPS", least):
            fg.Trainer(fg.Adam(graph, loss, batch_size=32), engine).fit(feeds, epochs=2)
        return b"".join(v.value.tobytes() for v in graph.nodes if isinstance(v, fg.Variable) and v.trainable)

    assert train("threads", 0) == train("threads", np.inf) == train("sync", 0)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_products_of_few_samples_may_be_turned(samples):
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(1, 12)), rng.normal(size=(samples, 4))
    plain = fg.MatVec.apply(w, x, n=4)
    with mock.patch.object(linear, "LARGE_MATRIX", 0):
        out = np.full((samples, 3), np.nan)
        np.testing.assert_allclose(fg.MatVec.apply(w, x, n=4), plain, rtol=1e-13)
        np.testing.assert_allclose(fg.MatVec.apply(w, x, out, n=4), plain, rtol=1e-13)
        np.testing.assert_allclose(out, plain, rtol=1e-13)


def test_the_instruction_that_failed_is_named():
    class Halves(fg.Op):
        @staticmethod
        def apply(a):
            return a[:, ::2]

        @staticmethod
        def jacobian(slot, y, a):
            return fg.Diagonal(1.0)

    with fg.Graph() as graph:
        x = fg.Variable(4, trainable=False)
        y = fg.Tanh(Halves(fg.Tanh(x), name="half"))
    with pytest.raises(NodeFailed, match=r"apply of Halves 'half' failed.*\(3, 2\).*\(3, 4\)"):
        fg.Engine("sync").forward(y, {x: np.ones((3, 4))})
    assert len(graph.nodes) == 4


@pytest.mark.parametrize("samples", [(5, 5), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value_and_jacobian_at_once_have_the_bits_of_one_by_one(samples, dtype):
    ops = [op for op in vars(fg.ops).values() if isinstance(op, type) and issubclass(op, fg.Op) and op.both is not None]
    assert fg.CrossEntropyWithSoftMax in ops
    rng = np.random.default_rng(0)
    for op in ops:
        values = [rng.normal(size=(n, 6)).astype(dtype) for n in samples]
        value, local = op.both(*values)
        assert value.tobytes() == op.apply(*values).tobytes()
        cotangent = rng.normal(size=(2, 5, op.shape(6, 6))).astype(dtype)
        assert local.pull(cotangent).tobytes() == op.jacobian(0, value, *values).pull(cotangent).tobytes()


class Twice(fg.Op):
    """Its rule for both gives something else, so that one sees which rule ran."""

    @staticmethod
    def apply(a):
        return 2 * a

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(np.full_like(a, 2.0))

    @staticmethod
    def both(a):
        return a[:, 1:] if a[0, 0] < 0 else 3 * a, fg.Diagonal(np.full_like(a, 3.0))


def test_a_users_rule_for_both_is_used_and_its_shape_looked_at():
    with fg.Graph():
        w = fg.Variable(2, [1.0, 1.0])
        x = fg.Variable(2, trainable=False)
        twice = Twice(w * x, name="twice")
        loss = fg.Sum(twice)
    optimizer = fg.GradientDescent(loss.graph, loss, 0.01, batch_size=1)
    trainer = fg.Trainer(optimizer, fg.Engine("sync", kernel="numpy"))
    assert fg.Engine("sync").forward(twice, {x: [[1.0, 2.0]]}).tolist() == [[2.0, 4.0]]
    trainer.fit({x: np.array([[1.0, 2.0]])}, epochs=1)
    assert w.value.tolist() == [1 - 0.03, 1 - 0.06]
    w.set_value([-1.0, 1.0])
    with pytest.raises(NodeFailed, match=r"'twice'.*gave shape \(1, 1\), it must be \(1, 2\)"):
        trainer.fit({x: np.array([[1.0, 2.0]])}, epochs=1)

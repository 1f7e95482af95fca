"""Each pass alone: it changes the program, never a value or a derivative."""

import numpy as np
import pytest
import strategies
from hypothesis import given

import flowgrad as fg
from flowgrad.autodiff import differentiate
from flowgrad.errors import GraphError
from flowgrad.program import Program, trace, verify
from flowgrad.scheduler.kernels.numpy_kernel import Kernel
from flowgrad.scheduler.programs.compile import common, flat_values, prune
from flowgrad.scheduler.programs.fuse import fuse, pack


def run(program, made, seed=None):
    """Return the outputs of a program for the feeds of a random graph, derivatives by variable."""
    nodes = made.graph.nodes
    inputs = []
    for i in program.inputs:
        if i.role == "feed":
            inputs.append(made.feeds[nodes[i.node]].astype(float))
        elif i.role == "seed":
            inputs.append(seed)
        else:
            inputs.append(flat_values(program, made.graph, i.role, np.float64))
    found = Kernel(program)(inputs)
    values = {"value": found["0"]}
    if "d0" in found:
        for index, (role, start, stop) in program.layout.items():
            if role == "param":
                values[index] = found["d0"][:, :, start:stop]
    return values


def backward(program):
    flat = [i.var for i in program.inputs if i.role == "param"]
    return verify(differentiate(program, program.outputs["0"], flat))


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-8, atol=1e-10)


def seed_of(program, samples):
    type_ = program.types[program.inputs[-1].var]
    return np.full((1, samples if type_.batched else 1, 1), 0.5)


@given(made=strategies.graphs(samples=3))
def test_fused_programs_have_the_same_values_and_derivatives(made):
    traced = verify(trace([made.loss], made.feeds, made.parameters))
    one, other = backward(verify(pack(traced))), backward(verify(fuse(traced)))
    same(run(one, made, seed_of(one, 3)), run(other, made, seed_of(other, 3)))


@given(made=strategies.graphs(samples=3))
def test_fusing_before_and_after_differentiation_gives_the_same(made):
    traced = verify(trace([made.loss], made.feeds, made.parameters))
    singly = [i for i in traced.inputs if i.role == "param"]
    program = verify(differentiate(traced, traced.outputs["0"], [i.var for i in singly]))
    after = verify(fuse(program))
    before = backward(verify(fuse(traced)))
    seed = seed_of(before, 3)
    expected = run(before, made, seed)
    inputs = [
        made.feeds[made.graph.nodes[i.node]].astype(float) if i.role == "feed"
        else seed if i.role == "seed" else flat_values(after, made.graph, i.role, np.float64)
        for i in after.inputs
    ]  # fmt: skip
    found = Kernel(after)(inputs)
    np.testing.assert_allclose(found["0"], expected["value"], rtol=1e-8, atol=1e-10)
    for k, i in enumerate(singly):
        if f"d{k}" in found:
            np.testing.assert_allclose(found[f"d{k}"], expected[i.node], rtol=1e-8, atol=1e-10)
        else:  # zero, and so it is where programs have no derivative of it either
            assert not np.any(expected.get(i.node, 0.0))


@pytest.mark.parametrize("change", [common, prune])
@given(made=strategies.graphs(samples=2))
def test_common_subexpressions_and_dead_code(change, made):
    program = backward(pack(verify(trace([made.loss], made.feeds, made.parameters))))
    changed = verify(change(program))
    assert len(changed.instrs) <= len(program.instrs)
    same(run(program, made, seed_of(program, 2)), run(changed, made, seed_of(program, 2)))


@given(made=strategies.graphs(samples=2))
def test_a_layout_is_kept(made):
    traced = trace([made.loss], made.feeds, made.parameters)
    layout = fuse(traced).layout
    params = {k: v for k, v in layout.items() if v[0] == "param"}
    kept = verify(pack(traced, layout)).layout
    assert {k: v for k, v in kept.items() if v[0] == "param"} == params


def test_equal_nodes_are_computed_once():
    with fg.Graph():
        x, w = fg.Variable(3, trainable=False), fg.Variable(3, True)
        loss = fg.Dot(w, x) + fg.Dot(w, x)
    program = fuse(trace([loss], [x], [w]))
    assert [i.op.__name__ for i in program.instrs].count("Dot") == 1


def test_the_main_graph_becomes_two_matrix_products():
    with fg.Graph() as graph:
        x = fg.Variable(784, trainable=False)
        hidden = fg.ReLU(fg.Vectorize(*[fg.Dot(fg.Variable(784, True), x) + fg.Variable(1, True) for _ in range(90)]))
        out = fg.Vectorize(*[fg.Dot(fg.Variable(90, True), hidden) + fg.Variable(1, True) for _ in range(10)])
    program = fuse(trace([out], [x], [v for v in graph.nodes if isinstance(v, fg.Variable) and v is not x]))
    names = [i.op.__name__ for i in program.instrs]
    assert sorted(set(names)) == ["Add", "MatVec", "ReLU", "Slice"]
    assert names.count("MatVec") == 2
    assert "MatVec" in program.pretty()


@pytest.mark.parametrize("way", ["matrix", "units"])
def test_shared_weights_become_one_product_too(way):
    with fg.Graph() as graph:
        xs = [fg.Variable(5, trainable=False) for _ in range(4)]
        if way == "matrix":
            w, b = fg.Variable(15, True), fg.Variable(3, True)
            cells = [fg.MatVec(w, x) + b for x in xs]
        else:
            units = [(fg.Variable(5, True), fg.Variable(1, True)) for _ in range(3)]
            cells = [fg.Vectorize(*(fg.Dot(w, x) + b for w, b in units)) for x in xs]
        out = fg.Tanh(fg.Vectorize(*cells))
    parameters = [v for v in graph.nodes if isinstance(v, fg.Variable) and v.trainable]
    names = [i.op.__name__ for i in fuse(trace([out], xs, parameters)).instrs]
    assert names.count("BatchMatVec") == 1, names
    assert "MatVec" not in names
    assert names.count("Add") == names.count("Tanh") == 1


def test_unrolled_cells_share_their_layout():
    with fg.Graph():
        xs = [fg.Variable(4, trainable=False) for _ in range(3)]
        ws = [fg.Variable(7, True) for _ in range(3)]
        state = fg.Variable(3, np.zeros(3), trainable=False)
        for x in xs:
            joined = fg.Vectorize(x, state)
            state = fg.Tanh(fg.Vectorize(*[fg.Dot(w, joined) for w in ws]))
    program = fuse(trace([state], xs, ws))
    names = [i.op.__name__ for i in program.instrs]
    assert names.count("MatVec") == names.count("Tanh") == 3
    assert "Gather" not in names, "every step reads the matrix where it lies"


def test_a_program_that_is_wrong_is_named():
    with fg.Graph():
        x = fg.Variable(3)
        y = fg.Exp(fg.Exp(x))
    program = trace([y], [x], [])
    backwards = Program(program.types, program.inputs, program.instrs[::-1], program.outputs)
    with pytest.raises(GraphError, match="not known yet"):
        verify(backwards)
    twice = Program(program.types, program.inputs, program.instrs + program.instrs[:1], program.outputs)
    with pytest.raises(GraphError, match="assigned twice"):
        verify(twice)
    other = (program.types[0], program.types[1]._replace(dim=4), program.types[2])
    with pytest.raises(GraphError, match="has type"):
        verify(Program(other, program.inputs, program.instrs, program.outputs))


@pytest.mark.parametrize("grain", ["node", "sample", "shard", "round"])
def test_what_is_cut_out_of_a_mixture_and_the_same_for_all_samples(grain):
    with fg.Graph():
        x, w = fg.Variable(1, trainable=False), fg.Variable(2, [3.0, 5.0])
        mixed = fg.Vectorize(x, w)
        result = fg.Sum(mixed[1:3]) * fg.Sum(mixed)
        unread = fg.Sum(mixed[1:3])
    engine = fg.Engine("sync", grain=grain)
    feeds = {x: [[1.0], [2.0]]}
    assert engine.forward([result, unread], feeds)[0].tolist() == [[72.0], [80.0]]
    assert engine.forward(unread, feeds).tolist() == [[8.0], [8.0]]
    assert engine.gradient(result, feeds)[w].tolist() == [17.5, 17.5]
    assert engine.jacobian(result, [x, w], feeds)[x].tolist() == [[[8.0]], [[8.0]]]
    assert engine.per_sample_gradients(result, feeds).array(w).tolist() == [[17.0, 17.0], [18.0, 18.0]]

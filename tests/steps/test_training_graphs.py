"""One update of graphs of every shape, at every grain and with every kernel, against the interpreter."""

import numpy as np
import pytest
import reference
import strategies
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import flowgrad as fg

pytestmark = pytest.mark.filterwarnings("ignore:.* does not depend on", "ignore:.* is trained towards")
GRAINS = ("node", "sample", "shard", "round")
RATE = 0.01


def mean_gradient(loss, feeds, parameters):
    """Return the mean gradient by the interpreter, sample by sample."""
    samples = len(next(iter(feeds.values())))
    total = [np.zeros(v.dim) for v in parameters]
    for i in range(samples):
        for x, array in feeds.items():
            x.set_value(array[i])
        for k, v in enumerate(parameters):
            total[k] += v.backward(loss)[0]
    return [g / samples for g in total]


def updates_right(graph, loss, feeds, **settings):
    """Make one update with the trainer and compare with gradient descent by the interpreter."""
    parameters = [v for v in graph.nodes if isinstance(v, fg.Variable) and v.trainable]
    expected = [v.value - RATE * g for v, g in zip(parameters, mean_gradient(loss, feeds, parameters))]
    samples = len(next(iter(feeds.values())))
    optimizer = fg.GradientDescent(graph, loss, RATE, batch_size=samples)
    history = fg.Trainer(optimizer, fg.Engine("sync", **settings), shuffle=False).fit(feeds, epochs=1)
    for v, value in zip(parameters, expected):
        np.testing.assert_allclose(v.value, value, rtol=1e-9, atol=1e-9, err_msg=str(v))
    return history


@settings(max_examples=60)
@given(made=strategies.graphs(), grain=st.sampled_from(GRAINS), shards=st.sampled_from([1, 2, 3]))
def test_random_graphs(made, grain, shards):
    labels = [
        n.parents[1] for n in made.graph.nodes if isinstance(n, (fg.CrossEntropyWithSoftMax, fg.LogisticCrossEntropy))
    ]
    assume(made.feeds.keys().isdisjoint(labels))  # they may be no labels, which is refused
    updates_right(
        made.graph, made.loss, made.feeds, grain=grain, shards=None if grain == "sample" else shards, kernel="numpy"
    )


def shared_sum(p):
    return (p["a"] + p["b"]) + p["x"]


def shared_sum_twice(p):
    return ((p["a"] + p["b"]) + (p["b"] + p["a"])) + p["x"]


def shared_sum_of_three(p):
    return ((p["a"] + p["b"]) + p["c"]) + p["x"]


def shared_difference(p):
    return (p["a"] - p["b"]) - p["x"]


def shared_soft_max(p):
    return fg.Sum(fg.SoftMax(p["w"]) * p["z"]) + fg.Dot(fg.SoftMax(p["v"]) + p["z"], p["z"])


def shared_vectors(p):
    return fg.Dot((p["w"] + p["v"]) + p["z"], p["z"])


def weight_decay(p):
    return fg.Dot(p["w"], p["z"]) + fg.Scale(fg.Dot(p["w"], p["w"]), 0.1)


def the_same_parent_twice(p):
    return fg.Dot(p["z"] + p["w"], p["z"] + p["w"]) + (p["a"] + p["a"])


def slices(p):
    return fg.Dot(p["w"][0:2] + p["w"][1:3], p["z"][1:3]) + fg.Dot(p["w"], p["w"])


def sharing_units(p):
    units = [fg.Dot(p["w"], p["z"]) + p["a"], fg.Dot(p["v"], p["z"]) + p["a"], fg.Dot(p["w"], p["v"]) + p["b"]]
    return fg.Sum(fg.Tanh(fg.Vectorize(*units, units[0])))


CASES = (
    shared_sum,
    shared_sum_twice,
    shared_sum_of_three,
    shared_difference,
    shared_soft_max,
    shared_vectors,
    weight_decay,
    the_same_parent_twice,
    slices,
    sharing_units,
)


def check(build, **settings):
    with fg.Graph(seed=0) as graph:
        p = {"x": fg.Variable(1, trainable=False, name="x"), "z": fg.Variable(3, trainable=False, name="z")}
        for name, value in (("a", 0.5), ("b", -1.5), ("c", 2.0)):
            p[name] = fg.Variable(1, [value], name=name)
        p["w"] = fg.Variable(3, [0.2, -0.7, 1.1], name="w")
        p["v"] = fg.Variable(3, [-0.3, 0.4, 0.9], name="v")
        loss = build(p)
    rng = np.random.default_rng(3)
    feeds = {p["x"]: rng.normal(size=(5, 1)), p["z"]: rng.normal(size=(5, 3))}
    return updates_right(graph, loss, feeds, shards=2, **settings)


@pytest.mark.parametrize("grain", ["node", "shard", "round"])
@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_shared_and_repeated_operands(build, grain):
    check(build, grain=grain, kernel="numpy")


# A compiler takes seconds for each; the first is the one that hypothesis found.
@pytest.mark.parametrize(
    "build",
    [pytest.param(b, marks=[] if b is shared_sum else pytest.mark.slow, id=b.__name__) for b in CASES],
)
def test_shared_and_repeated_operands_with_compiled_kernels(build):
    pytest.importorskip("numba")
    assert check(build, grain="round", kernel="numba").plan["kernel"] == "numba"


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in reference.NAMES if not n.startswith("shared_patches")])
@pytest.mark.parametrize("grain", ["shard", "round"])
def test_reference_cases_with_compiled_kernels(shared, name, grain):
    pytest.importorskip("numba")
    case = reference.build(shared, name)
    engine = fg.Engine("threads", dtype="float64", grain=grain, shards=2, kernel="numba")
    history = fg.Trainer(case.optimizer, engine, shuffle=False).fit(case.feeds, epochs=1)
    assert history.plan["kernel"] == "numba"
    reference.close([loss for _, loss in history.steps], case.batch_losses(), "losses")
    for key, variable in case.trainable.items():
        reference.close(variable.value, case.expected[f"after/{case.updates}/{key}"], key)

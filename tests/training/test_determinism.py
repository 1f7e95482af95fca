"""The same plan gives the same bits, wherever and on however many workers it runs."""

import numpy as np
import pytest
from conftest import local_cluster
from dask.system import CPU_COUNT
from distributed import Client

import flowgrad as fg
from flowgrad.scheduler.costs import plan
from flowgrad.scheduler.executors.cluster import local_cluster as own_cluster
from flowgrad.scheduler.feeds.placement import Placement

SHARDS = (1, 2, 5)
DTYPES = ("float32", "float64")


@pytest.fixture(scope="module")
def lonely():
    """A client of a cluster with a single worker."""
    with local_cluster(1) as cluster, Client(cluster, set_as_default=False) as client:
        yield client


def train(where, grain, shards, dtype, epochs=2, kernel="auto"):
    """Train 300 inputs, 33 hidden units and 7 classes on 100 samples in batches of 32; return every bit."""
    rng = np.random.default_rng(11)
    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(300, trainable=False), fg.Variable(7, trainable=False)
        units = [fg.Add(fg.Dot(fg.Variable(300, rng.normal(0, 0.1, 300)), x), fg.Variable(1, True)) for _ in range(33)]
        w = fg.Variable(7 * 33, rng.normal(0, 0.3, 7 * 33))
        loss = fg.CrossEntropyWithSoftMax(fg.MatVec(w, fg.ReLU(fg.Vectorize(*units))), label)
    feeds = {x: rng.random((100, 300)).astype(dtype), label: rng.integers(0, 7, 100)}
    engine = fg.Engine(where, grain=grain, shards=shards, kernel=kernel)
    trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=32), engine, seed=3)
    history = trainer.fit(feeds, epochs=epochs)
    values = b"".join(v.value.tobytes() for v in graph.nodes if isinstance(v, fg.Variable) and v.trainable)
    return values, history.steps, trainer.evaluate(feeds)


@pytest.fixture(scope="module")
def expected():
    """Return what a plan gives on the synchronous scheduler; computed once per plan."""
    known = {}

    def of(grain, shards, dtype):
        if (grain, shards, dtype) not in known:
            known[grain, shards, dtype] = train("sync", grain, shards, dtype)
        return known[grain, shards, dtype]

    return of


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", SHARDS)
def test_shard_and_round_do_the_same_arithmetic(expected, shards, dtype):
    assert expected("round", shards, dtype) == expected("shard", shards, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("grain", ["shard", "round"])
def test_executors_give_the_same_bits(executor, expected, grain, shards, dtype):
    assert train(executor, grain, shards, dtype) == expected(grain, shards, dtype)


@pytest.mark.parametrize("grain", ["node", "sample"])
def test_fine_grains_give_the_same_bits_too(executor, grain):
    assert train(executor, grain, None, "float32", 1) == train("sync", grain, None, "float32", 1)


@pytest.mark.distributed
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("grain", ["shard", "round"])
def test_one_worker_gives_the_bits_of_two(lonely, expected, grain, shards):
    assert train(lonely, grain, shards, "float32") == expected(grain, shards, "float32")


@pytest.fixture(scope="module")
def own():
    """A client of a cluster of our own."""
    with own_cluster(2, 1, dashboard=False) as client:
        yield client


@pytest.mark.distributed
@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_rounds_over_the_threads_of_all_workers_give_the_same_bits(own, monkeypatch, kernel):
    if kernel == "numba":
        pytest.importorskip("numba")
    seen = []

    def lanes(placement, workers, shards, single, alone):
        seen.append(alone)
        return give(placement, workers, shards, single, alone)

    give = Placement.lanes
    expected = train("sync", "round", 4, "float32", kernel=kernel)
    monkeypatch.setattr(plan, "LONG_STEP", 0.0)
    monkeypatch.setattr(Placement, "lanes", lanes)
    assert train(own, "round", 4, "float32", kernel=kernel) == expected
    assert set(seen) == {min(2, CPU_COUNT)}


def test_the_comparison_sees_other_bits(expected):
    """Shards are part of the arithmetic, so the tests above could fail."""
    assert len({expected("shard", shards, "float32")[0] for shards in SHARDS}) > 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [1, 3, 20])
def test_gradients_have_the_same_bits(executor, shards, dtype):
    rng = np.random.default_rng(2)
    with fg.Graph(seed=0):
        x = fg.Variable(301, trainable=False)
        w = fg.Variable(301 * 17, rng.normal(size=301 * 17))
        y = fg.Tanh(fg.MatVec(w, x))
        loss = fg.Sum(y)
    feeds = {x: rng.normal(size=(97, 301)).astype(dtype)}

    def bits(where):
        engine = fg.Engine(where, grain="shard", shards=shards)
        arrays = [engine.forward(y, feeds), engine.gradient(loss, feeds)[w], engine.jacobian(y, x, feeds)]
        return [a.tobytes() for a in arrays]

    assert bits(executor) == bits("sync")

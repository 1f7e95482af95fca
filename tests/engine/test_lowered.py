"""`Lowered` as a dask collection, and what its task graph shows."""

import graphlib
import pickle
import re
from collections import Counter
from pathlib import Path

import dask
import numpy as np
import pytest
from dask.utils import key_split
from distributed.utils import key_split_group

import flowgrad as fg


class Counting(fg.Op):
    """The square; counts how often its value is computed in this process."""

    calls = 0

    @staticmethod
    def apply(a):
        Counting.calls += 1
        return a * a

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(2 * a)


class Counted:
    """``sum (w x)²`` for 6 samples."""

    def __init__(self):
        with fg.Graph(seed=0) as self.graph:
            self.x = fg.Variable(3, trainable=False, name="x")
            self.w = fg.Variable(3, [1.0, -2.0, 0.5], name="w")
            self.square = Counting(self.w * self.x)
            self.loss = fg.Sum(self.square)
        self.images = np.arange(18.0).reshape(6, 3) / 10
        self.feeds = {self.x: self.images}
        self.values = (self.images * self.w.value) ** 2
        self.gradient = (2 * self.images**2 * self.w.value).mean(axis=0)
        fg.Engine("sync").lower(self.loss, self.feeds)  # the first engine that uses an op of one's own tries it
        Counting.calls = 0


@pytest.fixture
def counted():
    return Counted()


@pytest.fixture(params=["node", "sample", "shard", "round"])
def grain(request):
    return request.param


def test_lowering_computes_nothing(counted, grain):
    engine = fg.Engine("sync", grain=grain)
    lowered = [engine.lower(counted.loss, counted.feeds), engine.lower(counted.loss, counted.feeds, gradient=True)]
    for one in lowered:
        assert dask.is_dask_collection(one)
    assert Counting.calls == 0


@pytest.mark.filterwarnings("error")
def test_dask_does_not_warn_about_the_collection(counted):
    fg.Engine("sync").lower(counted.loss, counted.feeds).compute(scheduler="sync")


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_compute(counted, grain, scheduler):
    engine = fg.Engine("sync")
    one = engine.lower(counted.square, counted.feeds, grain=grain)
    many = engine.lower([counted.square, counted.loss], counted.feeds, grain=grain)
    gradient = engine.lower(counted.loss, counted.feeds, gradient=True, grain=grain)
    a, (b, c), d, rest = dask.compute(one, many, gradient, dask.delayed(sum)([1, 2]), scheduler=scheduler)
    np.testing.assert_allclose(a, counted.values, rtol=1e-14)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(c[:, 0], counted.values.sum(axis=1), rtol=1e-14)
    assert list(d) == [counted.w]
    np.testing.assert_allclose(d[counted.w], counted.gradient, rtol=1e-14)
    assert rest == 3
    np.testing.assert_array_equal(one.compute(scheduler=scheduler), a)


def test_compute_agrees_with_the_engine_bit_by_bit(counted, executor, grain):
    engine = fg.Engine(executor, grain=grain, shards=2)
    lowered = engine.lower(counted.loss, counted.feeds, gradient=True)
    (value,) = dask.compute(lowered, scheduler="sync")
    assert value[counted.w].tobytes() == engine.gradient(counted.loss, counted.feeds)[counted.w].tobytes()


def test_persist(counted, grain):
    lowered = fg.Engine("sync").lower(counted.square, counted.feeds, grain=grain)
    kept = lowered.persist(scheduler="sync")
    assert dask.is_dask_collection(kept)
    assert Counting.calls > 0
    Counting.calls = 0
    np.testing.assert_allclose(kept.compute(scheduler="sync"), counted.values, rtol=1e-14)
    assert Counting.calls == 0


@pytest.mark.distributed
def test_a_client_computes_and_persists(counted, client, grain):
    lowered = fg.Engine(client, grain=grain).lower(counted.square, counted.feeds)
    np.testing.assert_allclose(client.compute(lowered).result(), counted.values, rtol=1e-14)
    kept = client.persist(lowered)
    np.testing.assert_allclose(client.compute(kept).result(), counted.values, rtol=1e-14)
    with client.as_current():
        np.testing.assert_allclose(dask.compute(lowered.persist())[0], counted.values, rtol=1e-14)


@pytest.mark.parametrize("name", ["tasks.png", "tasks.svg"])
def test_visualize_writes_a_picture(counted, tmp_path, name):
    lowered = fg.Engine("sync").lower(counted.loss, counted.feeds, gradient=True, grain="node")
    lowered.visualize(str(tmp_path / name))
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG") if name.endswith("png") else b"<svg" in content
    assert len(content) > 1000
    assert Counting.calls == 0


def test_notebooks_show_what_will_run(counted, grain, monkeypatch):
    engine = fg.Engine("sync")
    lowered = engine.lower(counted.loss, counted.feeds, gradient=True, grain=grain)
    text = lowered._repr_html_()
    assert f'<td style="text-align: left">{lowered.job.grain}</td>' in text
    assert text.count('class="card ') > 0
    assert Counting.calls == 0
    monkeypatch.setattr("flowgrad.scheduler.engine.lowered.MOST_SHOWN", 0)
    assert "svg" not in lowered._repr_html_()
    assert "sync" in engine._repr_html_()
    assert "sync" in pickle.loads(pickle.dumps(engine))._repr_html_()
    assert "float64" in engine.jacobian(counted.loss, counted.w, counted.feeds, compute=False)._repr_html_()


def test_pictures_of_tasks_name_nodes_feeds_and_parameters(counted, tmp_path):
    lowered = fg.Engine("sync").lower(counted.loss, counted.feeds, gradient=True, grain="node")
    text = Path(lowered.visualize(str(tmp_path / "tasks.svg"), fold=0)).read_text()
    for name in ("x", "w", counted.square.name, counted.loss.name, f"{counted.loss.name} by {counted.square.name}"):
        assert f"<!-- {name} -->" in text or f">{name}<" in text, name


# -- keys --


def keys(counted, **changes):
    engine = fg.Engine("sync", grain=changes.pop("grain", "node"))
    return set(engine.lower(counted.loss, {**counted.feeds, **changes.pop("feeds", {})}).__dask_graph__())


def test_equal_work_has_equal_keys(counted, grain):
    assert keys(counted, grain=grain) == keys(counted, grain=grain) == keys(Counted(), grain=grain)


def test_what_changes_has_other_keys(counted, grain):
    before = keys(counted, grain=grain)
    result = fg.Engine("sync", grain=grain).lower(counted.loss, counted.feeds).__dask_keys__()
    counted.w.set_value([1.0, -2.0, 0.6])
    after = fg.Engine("sync", grain=grain).lower(counted.loss, counted.feeds).__dask_keys__()
    assert not set(result) & set(after)
    counted.w.set_value([1.0, -2.0, 0.5])
    assert keys(counted, grain=grain) == before
    assert keys(counted, grain=grain, feeds={counted.x: counted.images + 1}) != before


def test_a_changed_feed_leaves_the_rest_of_the_keys(counted):
    """What does not read the feed keeps its key, so a scheduler that has it need not compute it again."""
    with counted.graph:
        loss = counted.loss + fg.Sum(fg.Exp(counted.w))
    engine = fg.Engine("sync", grain="node")
    before = set(engine.lower(loss, counted.feeds).__dask_graph__())
    after = set(engine.lower(loss, {counted.x: counted.images + 1}).__dask_graph__())
    assert {key_split(k) for k in before & after} >= {"exp"}
    assert {key_split(k) for k in before - after} >= {"multiply", "counting", "add"}


# -- the main graph --


@pytest.fixture(scope="module")
def main_graph():
    """784 inputs, 90 hidden units and 10 outputs, one Dot per neuron; one mini-batch of 32."""
    rng = np.random.default_rng(0)
    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(784, trainable=False), fg.Variable(10, trainable=False)

        def units(a, k):
            return fg.Vectorize(*[fg.Add(fg.Dot(fg.Variable(a.dim, True), a), fg.Variable(1, True)) for _ in range(k)])

        logits = units(fg.ReLU(units(x, 90)), 10)
        loss = fg.CrossEntropyWithSoftMax(logits, label)
    return graph, loss, {x: rng.random((32, 784)), label: rng.integers(0, 10, 32)}


def by_prefix(graph):
    return Counter(key_split(key) for key in graph)


def ancestors(graph, key):
    found, stack = set(), [key]
    while stack:
        for parent in graph[stack.pop()].dependencies:
            if parent not in found:
                found.add(parent)
                stack.append(parent)
    return found


def test_grain_node_gives_every_node_a_task(main_graph):
    graph, loss, feeds = main_graph
    tasks = fg.Engine("sync", grain="node").lower(loss, feeds).__dask_graph__()
    assert all(hasattr(task, "dependencies") for task in tasks.values())
    counts = by_prefix(tasks)
    ops = Counter(type(n).__name__.lower() for n in graph.nodes if n.parents)
    assert ops == {"dot": 100, "add": 100, "vectorize": 2, "relu": 1, "crossentropywithsoftmax": 1}
    assert {name: counts[name] for name in ops} == ops


def test_the_dots_of_a_layer_wait_for_nothing_but_their_operands(main_graph):
    _, loss, feeds = main_graph
    tasks = fg.Engine("sync", grain="node").lower(loss, feeds, gradient=True).__dask_graph__()
    levels = Counter()
    for key in tasks:
        if key_split(key) == "dot":
            upstream = {key_split(k) for k in ancestors(tasks, key)}
            assert not any(prefix.startswith("pull") for prefix in upstream)
            levels["dot" in upstream] += 1
    assert levels == {False: 90, True: 10}


def test_grain_node_gives_every_edge_a_backward_task(main_graph):
    graph, loss, feeds = main_graph
    tasks = fg.Engine("sync", grain="node").lower(loss, feeds, gradient=True).__dask_graph__()
    active = {n for n in graph.nodes if isinstance(n, fg.Variable) and n.trainable}
    edges = Counter()
    for node in graph.nodes:
        for parent in node.parents:
            if parent in active:
                active.add(node)
                edges[type(node).__name__.lower()] += 1
    assert edges["dot"] == 110  # 100 by the weights, 10 by the hidden layer; the input is not trained
    counts = {p: n for p, n in by_prefix(tasks).items() if p.startswith("pull")}
    assert counts == {f"pull-{name}": n for name, n in edges.items()}


@pytest.mark.parametrize("gradient", [False, True])
def test_grain_sample_gives_every_sample_a_task(main_graph, gradient):
    _, loss, feeds = main_graph
    tasks = fg.Engine("sync", grain="sample").lower(loss, feeds, gradient=gradient).__dask_graph__()
    counts = by_prefix(tasks)
    assert counts["gradient" if gradient else "forward"] == 32
    assert "dot" not in counts
    assert (counts["reduce"] > 0) is gradient


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_grain_shard_gives_every_shard_a_task(main_graph, shards):
    _, loss, feeds = main_graph
    engine = fg.Engine("sync", grain="shard", shards=shards)
    lowered = engine.lower(loss, feeds, gradient=True)
    counts = by_prefix(lowered.__dask_graph__())
    assert counts["gradient"] == shards
    assert (counts["reduce"] > 0) is (shards > 1)
    assert len(lowered.__dask_graph__()) < 10 + 5 * shards


def test_keys_are_readable(main_graph):
    _, loss, feeds = main_graph
    for grain in ("node", "sample", "shard"):
        for key in fg.Engine("sync", grain=grain).lower(loss, feeds, gradient=True).__dask_graph__():
            parts = (key,) if isinstance(key, str) else key
            assert re.fullmatch(r"[a-z]+(-[a-z]+)*-[0-9a-f]{8,}", parts[0]), key
            assert key_split(key) != parts[0]
            assert all(map(str, parts))
            assert isinstance(key, str) or re.fullmatch("[0-9a-f]{16}", parts[2]), key


def test_keys_name_the_nodes_and_edges_of_the_graph():
    with fg.Graph():
        x = fg.Variable(3, trainable=False, name="x")
        units = []
        for k in range(4):
            with fg.scope(f"h{k}"):
                w, b = fg.Variable(3, [1.0, k, 2.0], name="w"), fg.Variable(1, [0.5], name="b")
                units.append(fg.Tanh(fg.Add(fg.Dot(w, x, name="dot"), b, name="sum"), name="out"))
        loss = fg.Sum(fg.Vectorize(*units, units[0], name="all"), name="loss")
    tasks = fg.Engine("sync", grain="node").lower(loss, {x: [[1.0, 2.0, 3.0]]}, gradient=True).__dask_graph__()
    names = {(key_split(key), key[1]) for key in tasks if isinstance(key, tuple)}
    assert {("feed", "x"), ("slice", "h3.w"), ("dot", "h3.dot"), ("add", "h3.sum"), ("tanh", "h3.out")} <= names
    back = [("sum", "loss by all"), ("vectorize", "all by h3.out"), ("tanh", "h3.out by h3.sum")]
    back += [("add", "h3.sum by h3.b"), ("add", "h3.sum by h3.dot"), ("dot", "h3.dot by h3.w")]
    assert {(f"pull-{op}", name) for op, name in back} <= names
    assert {("scatter", "h0.w .. h3.b"), ("cotangent", "h0.out")} <= names
    assert ("add", "h0.out") not in names  # which would be the value of an `Add`


def test_a_level_is_one_group_and_groups_have_no_cycles(main_graph):
    _, loss, feeds = main_graph
    tasks = fg.Engine("sync", grain="node").lower(loss, feeds, gradient=True).__dask_graph__()
    groups = Counter(map(key_split_group, tasks))
    assert sorted(n for group, n in groups.items() if group.startswith("dot-")) == [10, 90]
    assert sorted(n for group, n in groups.items() if group.startswith("pull-dot-")) == [10, 10, 90]
    reads = {}
    for key, task in tasks.items():
        group = key_split_group(key)
        reads.setdefault(group, set()).update(map(key_split_group, task.dependencies))
    assert len(list(graphlib.TopologicalSorter(reads).static_order())) == len(groups)


def test_nodes_of_one_expression_are_one_task_called_by_the_first():
    with fg.Graph():
        x = fg.Variable(2, trainable=False)
        result = fg.Exp(x, name="first") * fg.Exp(x, name="second")
    lowered = fg.Engine("sync", grain="node").lower(result, {x: [[1.0, 2.0]]})
    assert [key[1] for key in lowered.__dask_graph__() if key_split(key) == "exp"] == ["first"]
    np.testing.assert_allclose(lowered.compute(), np.exp([[2.0, 4.0]]))


def test_explain_tells_grain_tasks_and_samples(main_graph):
    _, loss, feeds = main_graph
    for grain, shards in (("node", 1), ("sample", 32), ("shard", 3)):
        engine = fg.Engine("sync", grain=grain, shards=None if grain == "sample" else shards)
        told = engine.lower(loss, feeds, gradient=True).explain()
        assert grain in told
        assert re.search(r"\b32\b", told)
        assert re.search(rf"\b{shards}\b", told)

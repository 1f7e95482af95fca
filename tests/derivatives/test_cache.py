"""What is cached: counted by the tasks that run, on threads and on workers."""

import gc
import time
import warnings
import weakref
from types import SimpleNamespace

import dask.array as da
import numpy as np
import oracles
import pytest
import strategies
from conftest import local_cluster
from dask.utils import key_split
from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Model
from oracles import same
from test_jacobians import Net

import flowgrad as fg
from flowgrad.errors import ClusterError
from flowgrad.scheduler.feeds.memory import REMEMBERED, RememberedFeeds
from flowgrad.scheduler.tasks.daskgraph import Load
from flowgrad.scheduler.tasks.keys import token


class CountTasks(SchedulerPlugin):
    """Remembers the keys of the tasks that finished in the scheduler's process, which is this one."""

    name = "flowgrad-count"

    def __init__(self):
        self.ran = []

    def transition(self, key, start, finish, *args, **kwargs):
        if start == "processing" and finish == "memory":
            self.ran.append(key)

    def take(self):
        ran, self.ran = self.ran, []
        return [key for key in ran if key_split(key) not in ("value", "feed", "seed")]


@pytest.fixture(params=["threads", pytest.param("distributed", marks=pytest.mark.distributed)])
def counted(request):
    """An engine and a function that returns the keys of the tasks since the last time."""
    if request.param == "threads":
        executor = oracles.Counting()
        yield fg.Engine(executor), executor.take
        return
    client = request.getfixturevalue("client")
    plugin = CountTasks()
    scheduler = client.cluster.scheduler
    forgotten(scheduler)
    scheduler.add_plugin(plugin)
    engine = fg.Engine(client)
    yield engine, plugin.take
    engine.clear_cache()
    scheduler.remove_plugin(plugin.name)


def forgotten(scheduler):
    """Wait until the tasks of earlier tests are forgotten: keys name content, so one that lives on is not run again."""
    gc.collect()
    end = time.monotonic() + 120
    while scheduler.tasks:
        assert time.monotonic() < end, f"these tasks are still held: {list(scheduler.tasks)[:5]}"
        time.sleep(0.01)


def prefixes(keys):
    return sorted(map(key_split, keys))


def test_the_same_request_again_runs_the_last_task_only(counted):
    engine, take = counted
    net = Net()
    first = engine.jacobian(net.probabilities, net.x, net.feeds)
    assert len(take()) > 5
    again = engine.jacobian(net.probabilities, net.x, {net.x: net.feeds[net.x].copy()})
    assert prefixes(take()) in (["jacobian"], [])  # a cluster may still know the last one
    np.testing.assert_array_equal(first, again)


def test_a_second_node_upstream_computes_only_what_is_new(counted):
    engine, take = counted
    net = Net()
    last_layer = [v for v in net.parameters if v.dim == 5]
    engine.jacobian(net.probabilities, last_layer, net.feeds)
    first = prefixes(take())
    assert {"matvec", "tanh", "softmax", "pull-softmax"} <= set(first)
    engine.jacobian(net.probabilities, net.x, net.feeds)
    second = prefixes(take())
    assert second == ["jacobian", "pull-matvec", "pull-tanh"]  # the last task pulls through the first layer
    engine.per_sample_gradients(net.probabilities[0:1], net.feeds).norms()  # other cotangents, the same values
    assert not {"matvec", "tanh", "softmax"} & set(prefixes(take()))


def test_after_set_value_only_what_lies_downstream_is_computed(counted):
    engine, take = counted
    net = Net()
    engine.jacobian(net.probabilities, net.x, net.feeds)
    before = prefixes(take())
    assert before.count("matvec") == 2
    w = next(v for v in net.parameters if v.dim == 5)  # of the last layer
    w.set_value(w.value + 0.1)
    found = engine.jacobian(net.probabilities, net.x, net.feeds)
    after = prefixes(take())
    assert after.count("matvec") == 1
    assert "tanh" not in after
    same(found, fg.Engine("sync").jacobian(net.probabilities, net.x, net.feeds))
    w.set_value(w.value - 0.1)


@settings(max_examples=60)
@given(made=strategies.graphs(), grain=st.sampled_from(["auto", "node"]), shards=st.integers(1, 3), data=st.data())
def test_whatever_is_kept_the_numbers_are_those_without_a_cache(made, grain, shards, data):
    kept, bare = (fg.Engine("sync", grain=grain, shards=shards, cache_bytes=n) for n in (1 << 20, 0))
    nodes = made.graph.nodes[: made.result.index + 1]
    for _ in range(4):
        feeds = dict(made.feeds)
        for v, other in zip(feeds, data.draw(st.permutations(list(feeds)))):
            if (v.dim, v.below) == (other.dim, other.below):
                feeds[v] = made.feeds[other][:: data.draw(st.sampled_from([1, -1]))]
        if data.draw(st.booleans()):
            parameter = data.draw(st.sampled_from(made.parameters))
            parameter.set_value(parameter.value[::-1].copy())
        result = data.draw(st.sampled_from([made.result, *nodes[-3:]]))
        wrt = data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3, unique=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of nodes that the result does not depend on
            for node, found in kept.jacobian(result, wrt, feeds).items():
                same(found, bare.jacobian(result, node, feeds))


def test_the_same_expression_of_other_nodes_is_not_computed_again(counted):
    engine, take = counted
    a, b = np.random.default_rng(0).random((2, 5, 3))
    with fg.Graph():
        x, y = fg.Variable(3, trainable=False), fg.Variable(3, trainable=False)
        one, again, other = (fg.Tanh(p * fg.Exp(q)) for p, q in ((x, y), (x, y), (y, x)))

    def ran(result, feeds):
        engine.jacobian(result, x, feeds)
        return {"exp", "multiply", "tanh"} & set(prefixes(take()))

    every = {"exp", "multiply", "tanh"}
    assert ran(one, {x: a, y: b}) == every
    assert ran(again, {x: a, y: b}) == set()
    assert ran(other, {x: a, y: b}) == every
    # Feeds for workers are known by their content, whatever they are fed to.
    assert ran(other, {x: b, y: a}) == (set() if engine.executor.remote else every)


def test_expressions_that_differ_in_which_feed_stands_where(counted):
    engine, _ = counted
    a, b = np.random.default_rng(0).random((2, 5, 3))
    with fg.Graph():
        x, y = fg.Variable(3, trainable=False), fg.Variable(3, trainable=False)
        results = [fg.Tanh(p * q * fg.Exp(r)) for p in (x, y) for q in (x, y) for r in (x, y) if x in (p, q, r)]
    for result in results:
        alone = fg.Engine("sync", cache_bytes=0).jacobian(result, x, {x: a, y: b})
        same(engine.jacobian(result, x, {x: a, y: b}), alone)


def test_the_cache_holds_no_feeds(counted):
    engine, _ = counted
    net = Net()
    for k in range(2 * REMEMBERED):
        engine.jacobian(net.logits, net.x, {net.x: net.feeds[net.x] + k})
    gc.collect()
    alive = [o for o in gc.get_objects() if type(o) is RememberedFeeds and net.x in o.arrays]
    assert len(alive) <= REMEMBERED


def test_a_feed_that_was_changed_in_place_is_another_feed(counted):
    engine, _ = counted
    net = Net()
    feeds = {net.x: net.feeds[net.x].copy()}
    for _ in range(3):
        same(engine.jacobian(net.logits, net.x, feeds), fg.Engine("sync").jacobian(net.logits, net.x, feeds))
        feeds[net.x][2, 1] += 0.5


def test_what_nobody_can_ask_for_again_is_dropped():
    net = Net()
    engine = fg.Engine("sync")
    x = net.feeds[net.x].copy()
    engine.jacobian(net.logits, net.x, {net.x: x})
    first = engine.cache_info()
    x[0, 0] = -1
    engine.jacobian(net.logits, net.x, {net.x: x})
    second = engine.cache_info()
    assert second.values < 2 * first.values  # what depends on no feed serves all
    for k in range(3 * REMEMBERED):
        x[0, 0] = k
        engine.jacobian(net.logits, net.x, {net.x: x})
    now = engine.cache_info()
    assert now.values == first.values + (REMEMBERED - 1) * (second.values - first.values)
    assert now.bytes == first.bytes + (REMEMBERED - 1) * (second.bytes - first.bytes)
    x[0, 0] = 2 * REMEMBERED  # one of those that are remembered
    engine.jacobian(net.logits, net.x, {net.x: x})
    assert engine.cache_info().misses == now.misses


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda a: a[:, ::-1][:, ::-1], lambda a: a.astype(np.float32)])
def test_feeds_of_any_layout_are_compared_by_content(layout):
    net = Net()
    engine = fg.Engine("sync")
    feeds = {net.x: layout(net.feeds[net.x].copy())}
    before = engine.jacobian(net.logits, net.x, feeds)
    again = engine.jacobian(net.logits, net.x, {net.x: layout(net.feeds[net.x].copy())})
    np.testing.assert_array_equal(before, again)
    feeds[net.x][0, 0] = 9.0
    changed = engine.jacobian(net.logits, net.x, feeds)
    assert (changed[0] != before[0]).any()
    np.testing.assert_array_equal(changed[1:], before[1:])


def test_feeds_are_checked_anew_when_a_table_picks_by_them():
    with fg.Graph(seed=0):
        k = fg.Variable(1, trainable=False, name="k")
        y = k * fg.Variable(1, [2.0])
    engine, feeds = fg.Engine("sync"), {k: np.array([0, 4])}
    engine.jacobian(y, y.parents[1], feeds)
    with k.graph:
        rows = fg.Embedding(fg.Variable((4, 2), True), k)
    with pytest.raises(fg.errors.FeedError, match=r"sample 1 of the feed for 'k' holds 4, but .* rows 0 to 3"):
        engine.jacobian(rows, rows.parents[0], feeds)


def test_results_are_the_callers_own(counted):
    engine, _ = counted
    net = Net()
    wrt = [net.x, net.hidden, *net.parameters, net.probabilities]
    first = engine.jacobian(net.probabilities, wrt, net.feeds)
    kept = {node: a.copy() for node, a in first.items()}
    for array in first.values():
        array += 1.0
    for node, array in engine.jacobian(net.probabilities, wrt, net.feeds).items():
        np.testing.assert_array_equal(array, kept[node])


def test_it_counts_and_is_bounded(counted):
    engine, _ = counted
    net = Net()
    engine.jacobian(net.probabilities, net.x, net.feeds)
    info = engine.cache_info()
    assert info.misses > 0
    assert 0 < info.bytes <= info.limit
    assert info.values > 0
    engine.jacobian(net.probabilities, net.x, net.feeds)
    assert engine.cache_info().hits > info.hits
    assert engine.cache_info().misses == info.misses
    engine.clear_cache()
    assert engine.cache_info()[:3] == (0, 0, 0)
    engine.session.cache.limit = engine.session.memory.limit = 1000
    for samples in (1, 3, 7):
        engine.jacobian(net.probabilities, net.x, {net.x: net.feeds[net.x][:samples]})
        assert engine.cache_info().bytes <= 1000
    engine.session.cache.limit = engine.session.memory.limit = 256 << 20


def test_the_least_recently_used_goes_first():
    net = Net()
    executor = oracles.Counting()
    engine = fg.Engine(executor)
    a, b = ({net.x: net.feeds[net.x] + k} for k in range(2))
    engine.jacobian(net.logits, net.x, a)
    engine.session.cache.limit = engine.cache_info().bytes  # room for one of them
    engine.jacobian(net.logits, net.x, b)
    executor.take()
    engine.jacobian(net.logits, net.x, b)
    assert prefixes(executor.take()) == ["jacobian"]
    engine.jacobian(net.logits, net.x, a)
    assert len(executor.take()) > 1


def test_nothing_is_kept_if_nothing_may_be():
    net = Net()
    executor = oracles.Counting()
    engine = fg.Engine(executor, cache_bytes=0)
    first = engine.jacobian(net.logits, net.x, net.feeds)
    ran = len(executor.take())
    np.testing.assert_array_equal(engine.jacobian(net.logits, net.x, net.feeds), first)
    assert len(executor.take()) == ran
    assert engine.cache_info().values == 0
    assert not executor._held
    with pytest.raises(fg.FlowgradError, match="cache_bytes"):
        fg.Engine("sync", cache_bytes=-1)


@pytest.mark.distributed
def test_values_stay_on_the_workers_and_leave_them(client):
    net = Net()
    engine = fg.Engine(client)
    future = engine.jacobian(net.logits, net.x, net.feeds, compute=False)
    assert type(future).__name__ == "Future"
    same(future.result(), fg.Engine("sync").jacobian(net.logits, net.x, net.feeds))
    held = {handle.key for handle, *_ in engine.session.cache.held.values()}
    assert held
    assert held <= {key for keys in client.has_what().values() for key in keys}
    engine.clear_cache()
    assert not engine.session.cache.held


@pytest.mark.slow
@pytest.mark.distributed
def test_values_lost_with_their_workers_are_computed_again():
    net = Net(samples=30_000)  # the feed is placed on a worker
    with local_cluster(1) as cluster, Client(cluster, set_as_default=False) as client:
        engine = fg.Engine(client)
        first = engine.jacobian(net.logits, net.x, net.feeds)
        assert engine.cache_info().values > 0
        client.restart()
        np.testing.assert_array_equal(engine.jacobian(net.logits, net.x, net.feeds), first)
        found = engine.per_sample_gradients(net.logits[0:1], net.feeds)
        client.restart()
        same(found.norms(), fg.Engine("sync").per_sample_gradients(net.logits[0:1], net.feeds).norms())
        net.parameters[0].set_value(net.parameters[0].value + 1)
        client.restart()
        with pytest.raises(ClusterError, match="have changed since: call per_sample_gradients again"):
            found.norms()


class Holder:
    """Something of the user's that a task is told by: nobody can know what it holds."""

    def __call__(self):
        return 1


def test_no_object_of_the_users_is_kept_alive_by_its_key():
    thing = Holder()
    assert token(thing) == token(thing) != token(Holder())
    gone = weakref.ref(thing)
    del thing
    gc.collect()
    assert gone() is None


def test_a_dask_array_dies_after_fit():
    model = Model()
    others = {id(o) for o in gc.get_objects() if type(o) is Load}
    feeds = {v: da.from_array(np.asarray(a), chunks=4) for v, a in model.feeds.items()}
    lazy = {v: a.map_blocks(lambda block: block) for v, a in feeds.items()}  # chunks that have to be computed
    gone = [weakref.ref(a) for a in (*feeds.values(), *lazy.values())]
    fg.Trainer(model.optimizer, fg.Engine("threads")).fit(lazy, epochs=1)
    chunks = [o for o in gc.get_objects() if type(o) is Load and id(o) not in others]
    del feeds, lazy
    watched = [weakref.ref(o) for o in chunks]
    del chunks
    gc.collect()
    assert not [ref() for ref in (*gone, *watched) if ref() is not None]


class Settings:
    """What a rule reads as an attribute of a class, and of an object in that."""

    rate, inner = 1.0, SimpleNamespace(rate=1.0)


TABLE, TABLES = np.ones(1), SimpleNamespace(first=np.ones(1))
SCALES = {"all": [1.0]}


def scale():
    return Scaled.scale * TABLE[0] * TABLES.first[0] * SCALES["all"][0] * Settings.rate * Settings.inner.rate


class Scaled(fg.Op):
    """The product with a number that may change, and is told through a function."""

    scale = 1.0
    calls = 0

    @staticmethod
    def apply(a):
        Scaled.calls += 1  # what rules write themselves is nothing that they read
        return a * scale()

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(np.full_like(a, scale()))


def local_op():
    factor = {"now": 1.0}

    class Local(fg.Op):
        @staticmethod
        def apply(a):
            return a * factor["now"]

        @staticmethod
        def jacobian(slot, y, a):
            return fg.Diagonal(np.full_like(a, factor["now"]))

    return Local, factor


LOCAL, FACTOR = local_op()


class Walked(fg.Op):
    """A loss for compiled kernels that reads a constant of its module."""

    uses = ((),)
    kinds = (fg.Outer,)

    @staticmethod
    def shape(a):
        return 1

    @staticmethod
    def apply(a):
        return a.sum(axis=1, keepdims=True) * WALKED

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Outer(np.full((1, 2), WALKED))

    @staticmethod
    def row_value(y, a):
        y[0] = (a[0] + a[1]) * WALKED


WALKED = 1.0


@pytest.mark.parametrize(
    ("op", "change"),
    [
        (Scaled, lambda m: m.setattr(Scaled, "scale", 3.0)),
        (Scaled, lambda m: m.setitem(globals(), "TABLE", np.full(1, 3.0))),
        (Scaled, lambda m: m.setattr(TABLES, "first", np.full(1, 3.0))),
        (Scaled, lambda m: m.setitem(SCALES, "all", [3.0])),
        (Scaled, lambda m: m.setattr(Settings, "rate", 3.0)),
        (Scaled, lambda m: m.setattr(Settings.inner, "rate", 3.0)),
        (Scaled, lambda m: m.setitem(globals(), "scale", lambda: 3.0)),
        (LOCAL, lambda m: m.setitem(FACTOR, "now", 3.0)),
    ],
)
@pytest.mark.parametrize("grain", ["shard", "node"])
def test_rules_that_read_something_else_now_give_one_answer_in_all_calls(op, change, grain, monkeypatch):
    with fg.Graph():
        w = fg.Variable(2, [1.0, 2.0])
        y = op(w)
        loss = fg.Sum(y * y)
    engine = fg.Engine("sync", grain=grain)

    def answers():
        return [
            engine.gradient(loss)[w],
            engine.vjp(loss, [1.0])[w],
            engine.jacobian(loss, w)[0, 0],
            engine.per_sample_gradients(loss).array(w)[0],
            w.backward(loss)[0],
            2 * y.forward() * engine.jvp(y, {w: np.ones(2)})[0],
            engine.hvp(loss, {w: w.value})[w],
        ]

    np.testing.assert_allclose(answers(), [[2.0, 4.0]] * 7)
    misses = engine.cache_info().misses
    np.testing.assert_allclose(answers(), [[2.0, 4.0]] * 7)
    assert engine.cache_info().misses == misses
    change(monkeypatch)
    np.testing.assert_allclose(answers(), [[18.0, 36.0]] * 7)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_kernels_are_made_anew_for_rules_that_read_something_else(kernel, monkeypatch):
    with fg.Graph():
        w = fg.Variable(2, [1.0, 2.0])
        y = Walked(w)
    engine = fg.Engine("sync", kernel=kernel)
    for value in (1.0, 3.0):
        monkeypatch.setitem(globals(), "WALKED", value)
        found = [engine.forward(y)[0, 0], *engine.gradient(y)[w], *engine.vjp(y, [1.0])[w]]
        np.testing.assert_allclose(found, [3 * value, *[value] * 4])

"""Engines and trainers are pickled by where they run; what they keep stays."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import cloudpickle
import dask.array as da
import numpy as np
import pytest
from conftest import ROOT, local_cluster
from dask.tokenize import tokenize
from distributed import Client, LocalCluster, get_client
from models import Model

import flowgrad as fg
from flowgrad.data import load_mnist
from flowgrad.errors import ClusterError, FeedError
from flowgrad.scheduler.derivatives import PerSampleGradients
from flowgrad.scheduler.executors import LocalExecutor

SETTINGS = {"dtype": np.float32, "grain": "shard", "shards": 2, "kernel": "numpy", "cache_bytes": 1 << 20}


def again(thing):
    return pickle.loads(pickle.dumps(thing))


def net():
    with fg.Graph():
        x = fg.Variable(3, trainable=False)
        y = fg.Dot(fg.Variable(3, [1.0, 2.0, 3.0]), x)
    return x, y, {x: np.ones((4, 3))}


class Noted(fg.Engine):
    """May have attributes of its own."""


def settings(engine):
    session = engine.session
    return {name: getattr(engine, name) for name in ("dtype", "grain", "shards", "kernel")} | {
        "cache_bytes": session.cache.limit
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("where", ["sync", "threads", None])
def test_by_name(where, protocol):
    x, y, feeds = net()
    engine = Noted(where, **SETTINGS)
    expected = engine.jacobian(y, x, feeds)
    engine.note = "mine"
    twin = pickle.loads(pickle.dumps(engine, protocol))
    assert twin.executor.name == engine.executor.name
    assert settings(twin) == settings(engine) == SETTINGS
    assert twin.note == "mine"
    assert twin.cache_info().bytes == 0
    assert twin.jacobian(y, x, feeds).tobytes() == expected.tobytes()
    assert settings(again(again(twin))) == SETTINGS  # one that was not used on the way


def test_none_is_the_client_that_is_there_then(cluster):
    data = pickle.dumps(fg.Engine())
    with Client(cluster):
        assert pickle.loads(data).executor.name.startswith("distributed")
    assert pickle.loads(data).executor.name == "threads"


class Counting(LocalExecutor):
    """Counts its submissions."""

    def __init__(self, start):
        super().__init__(threads=False)
        self.count = start

    def submit(self, *args, **kwargs):
        self.count += 1
        return super().submit(*args, **kwargs)


def test_an_executor_of_ones_own():
    _, y, feeds = net()
    engine = fg.Engine(Counting(4), grain="node")
    engine.forward(y, feeds)
    twin = again(engine)
    assert twin.forward(y, feeds).tolist() == engine.forward(y, feeds).tolist()
    assert (twin.executor.count, engine.executor.count) == (6, 6)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_runs_where_the_engine_does(copied):
    _, y, feeds = net()
    with (
        LocalCluster(1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as c,
    ):
        engine = fg.Engine(c, **SETTINGS)
        twin = copied(engine)
        assert twin.executor.client is c
        assert twin.session is not engine.session
        assert settings(twin) == SETTINGS
        assert twin.forward(y, feeds).tolist() == [[6.0]] * 4
        with pytest.raises(
            ClusterError, match=r"inproc://.*\) cannot be pickled: no other process can reach its"
        ) as told:
            pickle.dumps(engine)
        assert "\n" not in str(told.value)


@pytest.mark.distributed
def test_on_a_cluster_by_its_address(client):
    _, y, feeds = net()
    for engine in (fg.Engine(client, **SETTINGS), fg.Engine(client.scheduler.address, **SETTINGS)):
        twin = again(engine)
        assert settings(twin) == SETTINGS
        assert twin.executor.client.scheduler.address == client.scheduler.address
        assert twin.forward(y, feeds).tolist() == [[6.0]] * 4


def score(engine, graph_and_nodes):
    x, y = graph_and_nodes
    return engine.forward(y, {x: np.ones((4, 3))}).tolist(), engine.executor.name


@pytest.mark.distributed
def test_in_another_process(client):
    x, y, _ = net()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for engine in (fg.Engine(client), fg.Engine("sync")):
            values, name = pool.submit(score, engine, [x, y]).result(timeout=60)
            assert values == [[6.0]] * 4
            assert name == engine.executor.name


@pytest.mark.distributed
def test_as_arguments_of_tasks(client):
    x, y, _ = net()
    for where in ("sync", "threads"):
        engine = fg.Engine(where)
        future = client.submit(score, engine, [x, y], pure=False)
        assert future.result(timeout=60) == ([[6.0]] * 4, where)


@pytest.mark.distributed
def test_the_client_of_a_task_is_taken(client):
    def name(engine):
        return engine.executor.name, engine.executor.client is get_client()

    found = client.submit(name, fg.Engine(client), pure=False).result(timeout=60)
    assert found == (f"distributed ({client.scheduler.address})", True)


@pytest.mark.distributed
def test_nobody_there_is_told_in_one_line():
    with local_cluster(0) as cluster, Client(cluster, set_as_default=False) as c:
        data = pickle.dumps(fg.Engine(c))
    code = f"""
import pickle
from flowgrad.scheduler.executors import distributed
engine = pickle.loads({data!r})
real = distributed.reach
distributed.reach = lambda where, timeout: real(where, 0.5)
try:
    engine.executor
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.startswith("ClusterError no dask scheduler answers at tcp://127.0.0.1:"), done.stderr
    assert done.stdout.count("\n") == 1


# -- trainers --


def test_a_trainer_goes_on_elsewhere():
    first, whole = Model("Adam"), Model("Adam")
    trainer = fg.Trainer(first.optimizer, fg.Engine("sync"), seed=3, callbacks=[fg.Callback()])
    trainer.fit(first.feeds, epochs=2)
    expected = fg.Trainer(whole.optimizer, fg.Engine("sync"), seed=3)
    expected.fit(whole.feeds, epochs=4)
    for way in (again, copy.deepcopy, lambda t: pickle.loads(cloudpickle.dumps(t))):
        twin = way(trainer)
        assert twin.settings.optimizer is twin.optimizer
        assert twin.settings.engine is twin.engine
        assert twin.fingerprint() == trainer.fingerprint()
        nodes = twin.optimizer.graph.nodes
        twin.fit({nodes[v.index]: a for v, a in first.feeds.items()}, epochs=2)
        assert twin.fingerprint() == expected.fingerprint()


class Sending(fg.Callback):
    """Sends its trainer, and so itself, in the middle of a training."""

    def on_epoch(self, record):
        self.sent = [*getattr(self, "sent", []), pickle.dumps(self.trainer)]


def test_a_trainer_in_its_own_callback():
    model, sending = Model("Adam"), Sending()
    sending.trainer = fg.Trainer(model.optimizer, fg.Engine("sync"), callbacks=[sending])
    sending.trainer.fit(model.feeds, epochs=3)
    twin = pickle.loads(sending.sent[1])
    expected = Model("Adam")
    fg.Trainer(expected.optimizer, fg.Engine("sync")).fit(expected.feeds, epochs=2)
    assert twin.fingerprint() == fg.Trainer(expected.optimizer, fg.Engine("sync")).fingerprint()
    assert twin.settings.callbacks.callbacks[0].trainer is twin


# -- what calls give --


class Asked(fg.Callback):
    """A callback of a user."""


def given(model):
    """What public calls give, by name."""
    engine, loss, x, feeds = fg.Engine("sync"), model.loss, model.x, model.feeds
    history = fg.Trainer(model.optimizer, engine).fit(feeds, epochs=1, validation=feeds)
    x.set_value(feeds[x][0])
    model.label.set_value([1.0, 0.0, 0.0])
    chunked = {v: da.from_array(a, chunks=(4, *a.shape[1:])) for v, a in feeds.items()}
    return {
        "lowered values": engine.lower(loss, feeds),
        "lowered values of several": engine.lower([loss, *loss.parents], feeds),
        "lowered gradient": engine.lower(loss, feeds, gradient=True),
        "lowered nodes": engine.lower(loss, feeds, gradient=True, grain="node"),
        "persisted": engine.lower(loss, feeds, gradient=True).persist(),
        "future": engine.jacobian(loss, x, feeds, compute=False),
        "futures": engine.jacobian(loss, [x, loss], feeds, compute=False),
        "lazy Jacobian": engine.jacobian(loss, x, feeds, memory_budget=2000),
        "per-sample gradients": engine.per_sample_gradients(loss, feeds),
        "per-sample gradients of chunks": engine.per_sample_gradients(loss, chunked),
        "cache": engine.cache_info(),
        "history": history,
        "steps": history.steps,
        "answer": fg.STOP | fg.KEEP,
        "callback": Asked(),
        "early stopping": fg.EarlyStopping("loss"),
        "checkpoints": fg.Checkpoints("x"),
        "schedule": fg.WarmUp(3, fg.CosineDecay(0.1, 100)),
        "private": fg.Adam(loss.graph, loss, per_sample_clip=1.0),
        "rule": model.optimizer.rule,
        "data": load_mnist().head(3, 3),
        "local Jacobian": loss.local_jacobian(0),
        "error": FeedError("on purpose"),
    }


def values_of(thing):
    """What it holds or computes, to be compared."""
    if isinstance(thing, dict):
        return [values_of(part) for part in thing.values()]
    if hasattr(thing, "result"):
        return thing.result().tolist()
    if isinstance(thing, PerSampleGradients):
        return thing.array().tolist(), thing.norms().tolist(), [v.tolist() for v in thing.mean().values()]
    if hasattr(thing, "compute"):
        return values_of(thing.compute())
    if isinstance(thing, (list, tuple)):
        return [values_of(part) for part in thing]
    return repr(vars(thing)) if isinstance(thing, fg.Callback) else repr(thing)


def test_what_calls_give_is_pickled():
    for name, thing in given(Model("Adam")).items():
        expected = values_of(thing)
        for way in (again, copy.deepcopy, lambda t: pickle.loads(cloudpickle.dumps(t))):
            assert values_of(way(thing)) == expected, name


@pytest.mark.distributed
def test_factors_on_a_cluster_are_not(client):
    _, y, feeds = net()
    gradients = fg.Engine(client).per_sample_gradients(y, feeds)
    with pytest.raises(fg.FlowgradError, match=r"by 1 nodes, 3 entries> cannot be pickled: its factors lie on dist"):
        pickle.dumps(gradients)


# -- what tasks get and give --


def trained(optimizer, feeds):
    nodes = optimizer.graph.nodes
    trainer = fg.Trainer(optimizer, fg.Engine("sync"))
    trainer.fit({nodes[k]: a for k, a in feeds.items()}, epochs=2)
    return optimizer


@pytest.mark.distributed
def test_optimizers_go_to_tasks_and_come_back(client):
    model = Model("Adam")
    feeds = {v.index: a for v, a in model.feeds.items()}
    futures = [client.submit(trained, model.optimizer, feeds, pure=False) for _ in range(2)]
    first, second = client.gather(futures)
    expected = trained(Model("Adam").optimizer, feeds)
    prints = [fg.Trainer(o, fg.Engine("sync")).fingerprint() for o in (first, second, expected)]
    assert prints[0] == prints[1] == prints[2]
    assert not model.optimizer.epochs


@pytest.mark.distributed
def test_a_task_of_a_graph_is_another_one_when_a_value_was_set(client):
    """dask names tasks by what they are given: what was computed does not count, what was set does."""
    with fg.Graph():
        w = fg.Variable(2, [1.0, 2.0])
        y = fg.Exp(w)
    tokens = [tokenize(y)]
    y.forward()
    y.backward(y)
    tokens.append(tokenize(y))
    w.set_value([0.0, 0.0])
    tokens.append(tokenize(y))
    assert tokens[0] == tokens[1] != tokens[2]
    futures = []
    for value in (1.0, 0.0):
        w.set_value([value, value])
        futures.append(client.submit(lambda node: node.forward(), y))
    assert [f.result(timeout=60)[0] for f in futures] == [np.e, 1.0]

"""Clients and clusters that are closed, empty, or not the only place where something lies."""

import gc
import os
import threading
import weakref

import dask.array as da
import numpy as np
import pytest
from conftest import local_cluster
from distributed import Client, LocalCluster
from faults import wait_for

import flowgrad as fg
from flowgrad.errors import ClusterError, NodeFailed
from flowgrad.scheduler.executors import distributed, recovery
from flowgrad.scheduler.tasks import Task

pytestmark = pytest.mark.distributed


@pytest.fixture
def net():
    with fg.Graph():
        x = fg.Variable(3, trainable=False)
        loss = fg.Dot(fg.Variable(3, [1.0, 2.0, 3.0]), x)
    return loss, {x: np.random.default_rng(0).random((4, 3))}


def test_a_closed_client_is_told(net):
    loss, feeds = net
    with local_cluster(1) as cluster:
        client = Client(cluster, set_as_default=False)
        engine = fg.Engine(client)
        gradients, lowered = engine.per_sample_gradients(loss, feeds), engine.lower(loss, feeds)
        client.close()
        trainer = fg.Trainer(fg.Adam(loss.graph, loss, batch_size=2), engine)
        for call in (
            lambda: engine.forward(loss, feeds),
            lambda: engine.jacobian(loss, loss.parents[0], feeds),
            lambda: engine.per_sample_gradients(loss, feeds),
            gradients.norms,
            lowered.explain,
            lambda: trainer.fit(feeds, epochs=1),
        ):
            with pytest.raises(ClusterError, match="is closed: make an Engine with one that is not"):
                call()
        with pytest.raises(ClusterError, match="is not running any more: make a new one"):
            fg.Engine(client)
    with pytest.raises(ClusterError, match="is not running any more: make a new one"):
        fg.Engine(cluster)


@pytest.mark.slow
def test_a_cluster_without_workers_is_told(net, monkeypatch):
    loss, feeds = net
    monkeypatch.setattr(distributed, "WORKERS_SECONDS", 0.25)
    monkeypatch.setattr(distributed, "POLL_SECONDS", 0.1)
    with local_cluster(0) as cluster, Client(cluster, set_as_default=False) as client:
        engine = fg.Engine(client)
        for call in (engine.forward, engine.gradient, lambda *args: engine.jacobian(args[0], loss.parents[0], args[1])):
            with pytest.raises(ClusterError, match=r"no worker has been there for 0\.25 s on .*: start workers"):
                call(loss, feeds)


def own_clients(cluster):
    return [key for key in distributed._own_clients if key[1] == cluster.scheduler_address]


@pytest.mark.parametrize("of", [lambda cluster: cluster, lambda cluster: cluster.scheduler_address])
def test_clients_that_nobody_gave_go_with_the_last_engine(cluster, net, of):
    loss, feeds = net
    engines = [fg.Engine(of(cluster)), fg.Engine(of(cluster), dtype="float32")]
    expected = engines[0].forward(loss, feeds)
    engines.pop(0)
    gc.collect()
    assert engines[0].forward(loss, feeds).shape == expected.shape
    future = engines[0].jacobian(loss, loss.parents[0], feeds, compute=False)
    engines.clear()
    gc.collect()
    again = fg.Engine("sync").jacobian(loss, loss.parents[0], feeds)
    np.testing.assert_allclose(future.result(), again, rtol=1e-6)  # it is of the client
    assert own_clients(cluster)
    del future
    engines = [fg.Engine(of(cluster))]
    assert len(own_clients(cluster)) == 1
    np.testing.assert_array_equal(engines[0].forward(loss, feeds), expected)
    engines.clear()
    wait_for(lambda: gc.collect() >= 0 and not own_clients(cluster))


@pytest.mark.parametrize("address", [False, True])
def test_clients_of_clusters_that_are_gone_go_too(net, address):
    loss, feeds = net
    gc.collect()
    before = threading.active_count()
    clusters = []
    for _ in range(3):
        with LocalCluster(n_workers=1, processes=False, dashboard_address=None, protocol="tcp") as cluster:
            fg.Engine(cluster.scheduler_address if address else cluster).forward(loss, feeds)
        clusters.append(cluster)
    wait_for(lambda: gc.collect() >= 0 and not any(map(own_clients, clusters)))
    wait_for(lambda: threading.active_count() <= before + 2)  # not two for each


def test_a_client_whose_loop_has_ended_goes_too(cluster, net):
    loss, feeds = net
    engine = fg.Engine(cluster.scheduler_address)
    future = engine.jacobian(loss, loss.parents[0], feeds, compute=False)
    (mine,) = own_clients(cluster)
    client = distributed._own_clients[mine][0]
    client._loop_runner.stop()
    assert client.futures
    there = weakref.ref(client)
    del engine, future, client  # which the loop does not hear
    wait_for(lambda: gc.collect() >= 0 and there() is None)
    assert not own_clients(cluster)


def test_gradients_here_and_on_workers_are_multiplied(client, net):
    loss, feeds = net
    here, there = (fg.Engine(where).per_sample_gradients(loss, feeds) for where in ("threads", client))
    expected = here.gram()
    for found in (here.dot(there), there.dot(here), here.dot(there, compute=False).compute(scheduler=client)):
        np.testing.assert_allclose(found, expected)


class Broken(fg.Op):
    """Fails wherever it runs."""

    @staticmethod
    def apply(a):
        raise ZeroDivisionError("on purpose")


@pytest.mark.distributed
def test_what_fails_leaves_nothing_on_the_scheduler(client):
    with fg.Graph():
        x = fg.Variable(2, trainable=False)
        y = Broken(fg.Exp(x))
    engine = fg.Engine(client, cache_bytes=0)
    feeds = {x: np.ones((3, 2))}
    for call in (engine.forward, lambda *args: engine.jacobian(args[0], x, args[1])):
        with pytest.raises(fg.FlowgradError, match="on purpose"):
            call(y, feeds)
    wait_for(lambda: gc.collect() >= 0 and not client.cluster.scheduler.tasks)


class Unsent(Exception):
    """As errors of databases have it: what it holds cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


def unsent():
    raise Unsent("no answer")


class Asking(fg.Op):
    """Fails on workers, where there are many samples."""

    @staticmethod
    def apply(a):
        return unsent() if len(a) > 4 else a.copy()

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(np.ones_like(a))


class Dying(fg.Op):
    """Takes its worker with it, but not the process of the client."""

    def __init__(self, a):
        super().__init__(a, here=os.getpid())

    @staticmethod
    def shape(a, *, here):
        return a

    @staticmethod
    def apply(a, *, here):
        if os.getpid() != here:
            os._exit(1)  # as a segmentation fault does, and the system where memory is short
        return a.copy()

    @staticmethod
    def jacobian(slot, y, a, *, here):
        return fg.Diagonal(np.ones_like(a))


def calls_of(op, client):
    """Return every call of a net with an op in it, and of the same in chunks."""
    with fg.Graph() as graph:
        x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 1.0])
        loss = fg.Sum(op(x) * w)
    engine, feeds = fg.Engine(client), {x: np.ones((40, 2))}
    chunks = {x: da.ones((40, 2), chunks=(20, 2))}
    trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=20), engine)
    return {
        "forward": lambda: engine.forward(loss, feeds),
        "gradient": lambda: engine.gradient(loss, feeds),
        "jacobian": lambda: engine.jacobian(loss, w, feeds),
        "lazy": lambda: engine.jacobian(loss, w, feeds, memory_budget=600).compute(scheduler=client),
        "per sample": lambda: engine.per_sample_gradients(loss, feeds).norms(),
        "chunks": lambda: engine.per_sample_gradients(loss, chunks).norms(),
        "evaluate": lambda: trainer.evaluate(feeds),
        "fit": lambda: trainer.fit(feeds, epochs=1),
    }


@pytest.mark.parametrize("call", ["forward", "gradient", "jacobian", "lazy", "per sample", "chunks", "evaluate"])
def test_an_error_that_cannot_be_sent_is_told(client, call):
    with pytest.raises(NodeFailed, match=r"of Asking 'asking2' failed: Unsent: no answer"):
        calls_of(Asking, client)[call]()


def test_an_error_that_is_no_rules_and_cannot_be_sent_is_told(client):
    executor = fg.Engine(client).executor
    with pytest.raises(fg.FlowgradError, match="a task raised Unsent, which cannot be pickled: no answer"):
        executor.run({"unsent": Task(unsent, ())}, ["unsent"])


@pytest.mark.parametrize("call", ["forward", "chunks", "evaluate", "fit"])
def test_a_task_that_workers_die_of_is_told(hurt, call, monkeypatch):
    monkeypatch.setattr(hurt.cluster.scheduler, "allowed_failures", 0)  # each takes a second for a worker to come back
    monkeypatch.setattr(recovery, "MAX_DEATHS", 1)
    monkeypatch.setattr(recovery, "MAX_KILLS", 1)
    with pytest.raises(ClusterError, match=r"workers died again and again while they ran .*: it may need more memory"):
        calls_of(Dying, hurt)[call]()

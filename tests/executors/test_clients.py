"""Clients and clusters that are closed, empty, or not the only place where something lies."""

import gc

import numpy as np
import pytest
from conftest import local_cluster
from distributed import Client
from faults import wait_for

import flowgrad as fg
from flowgrad.errors import ClusterError
from flowgrad.scheduler.executors import distributed

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


def test_a_cluster_without_workers_is_told(net, monkeypatch):
    loss, feeds = net
    monkeypatch.setattr(distributed, "WORKERS_SECONDS", 0.25)
    monkeypatch.setattr(distributed, "POLL_SECONDS", 0.1)
    with local_cluster(0) as cluster, Client(cluster, set_as_default=False) as client:
        engine = fg.Engine(client)
        for call in (engine.forward, engine.gradient, lambda *args: engine.jacobian(args[0], loss.parents[0], args[1])):
            with pytest.raises(ClusterError, match=r"no worker has been there for 0\.25 s on .*: start workers"):
                call(loss, feeds)


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

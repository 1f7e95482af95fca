"""Graphs, nodes and optimizers are pickled and copied: whole, flat, and with what a graph promises."""

import copy
import pickle
import subprocess
import sys
import threading

import cloudpickle
import numpy as np
import pytest
import strategies
from hypothesis import given
from models import Model

import flowgrad as fg
from flowgrad.errors import GraphError, ShapeError
from flowgrad.files import OPTIMIZERS


class Shifted(fg.Op):
    """An op of a user: with an attribute, and things of its own in `__dict__` and a slot."""

    __slots__ = ("spare",)

    def __init__(self, a, by, **more):
        super().__init__(a, by=by, **more)
        self.source, self.spare = a, [by]

    @staticmethod
    def apply(a, *, by):
        return a + by

    @staticmethod
    def jacobian(slot, y, a, *, by):
        return fg.Diagonal(np.ones_like(a))


def by(protocol, library=pickle):
    return lambda thing: pickle.loads(library.dumps(thing, protocol=protocol))


WAYS = {
    **{f"protocol {p}": by(p) for p in range(pickle.HIGHEST_PROTOCOL + 1)},
    "cloudpickle": by(None, cloudpickle),
    "deepcopy": copy.deepcopy,
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.fixture
def made():
    with fg.Graph(seed=5) as graph:
        w = fg.Variable(4, True, name="w")
        x = fg.Variable(2, [1.0, -2.0], trainable=False, name="x")
        fg.Variable(3, name="without a value")
        h = Shifted(fg.Tanh(fg.MatVec(w, x)), (0.5, 1.5), name="h")
        loss = fg.Sum(h * fg.Gather(h, [1, 0]) + h)
    return graph, w, x, h, loss


def same(a, b):
    """Whether two graphs tell the same, and no node is in both."""
    assert [type(n) for n in a.nodes] == [type(n) for n in b.nodes]
    assert not set(a.nodes) & set(b.nodes)
    for mine, other in zip(a.nodes, b.nodes):
        assert (mine.name, mine.dim, mine.attrs, mine.index) == (other.name, other.dim, other.attrs, other.index)
        assert [p.index for p in mine.parents] == [p.index for p in other.parents]
        assert [(c.index, slot) for c, slot in mine._edges] == [(c.index, slot) for c, slot in other._edges]
        assert {n.graph for n in (*other.parents, *other.children, other)} == {b}
        if isinstance(mine, fg.Variable):
            assert mine.trainable == other.trainable
            assert (mine.value is None) == (other.value is None)
            assert mine.value is None or mine.value.tobytes() == other.value.tobytes()


@ways
def test_a_graph_comes_back_with_what_it_promises(made, way):
    graph, w, _, h, loss = made
    expected = w.backward(loss)
    twin = way(graph)
    same(graph, twin)
    assert all(n.value is None for n in twin.nodes if n.parents)
    assert not twin._jacobians
    v, other = twin.nodes[w.index], twin.nodes[loss.index]
    assert v.backward(other).tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        v.value[0] = 5.0
    with pytest.raises(ValueError, match="read-only"):
        other.value[0] = 5.0
    before = w.value.copy()
    v.set_value(np.ones(4))  # resets what is downstream of it, there alone
    assert other.value is None
    assert loss.value is not None
    assert w.value.tobytes() == before.tobytes()
    mine, theirs = twin.nodes[h.index], h
    assert mine.source is twin.nodes[theirs.source.index]
    assert mine.spare == theirs.spare
    with graph:
        drawn = fg.Variable(3, True).value
    with twin:
        assert fg.Variable(3, True).value.tobytes() == drawn.tobytes()
    assert (twin.seed, len(twin.nodes)) == (graph.seed, len(graph.nodes))
    assert fg.Engine("sync").forward(other).tolist() == other.forward()[None].tolist()


@given(made=strategies.graphs())
def test_random_graphs(made):
    twins = [pickle.loads(pickle.dumps(made.graph)), copy.deepcopy(made.graph)]
    for twin in twins:
        same(made.graph, twin)
    made.set_sample(0)
    for twin in twins:
        for variable, array in made.feeds.items():
            twin.nodes[variable.index].set_value(array[0])
        assert twin.nodes[made.loss.index].forward().tobytes() == made.loss.forward().tobytes()


@ways
def test_a_node_brings_its_graph_and_nodes_share_it(made, way):
    graph, w, x, h, loss = made
    twin = way(loss)
    same(graph, twin.graph)
    assert twin is twin.graph.nodes[loss.index]
    found = way({"nodes": [h, w], h: x, "graph": graph})
    assert found["graph"].nodes[h.index] is found["nodes"][0]
    assert found[found["nodes"][0]] is found["graph"].nodes[x.index]
    assert found["nodes"][1] is found["graph"].nodes[w.index]


@ways
def test_within_its_with(way):
    with fg.Graph() as graph:
        w = fg.Variable(2, [1.0, 2.0])
        twin = way(graph)
        loss = w @ w
        same(graph, way(loss).graph)
    assert len(twin.nodes) == 1
    with twin:
        assert fg.Variable(1).graph is twin
    assert fg.Variable(1).graph is fg.default_graph
    assert way(fg.Variable(1)).graph is not fg.default_graph


@ways
def test_what_people_hang_on_a_graph_comes_along(way):
    class_of = type(made_named())
    graph = made_named()
    twin = way(graph)
    assert type(twin) is class_of
    assert twin.loss is twin.nodes[-1]
    assert twin.optimizer.target is twin.loss
    assert twin.optimizer.graph is twin.again is twin


class Named(fg.Graph):
    """A graph with names for its nodes."""


def made_named():
    graph = Named()
    with graph:
        w = fg.Variable(1, [2.0])
        graph.loss = w * w
    graph.optimizer, graph.again = fg.Adam(graph, graph.loss, batch_size=1), graph
    graph.optimizer.one_step()
    return graph


def test_a_shallow_copy_has_nodes_of_its_own(made):
    graph, w, *_ = made
    twin = copy.copy(graph)
    same(graph, twin)
    twin.nodes[w.index].set_value(np.zeros(4))
    assert w.value.any()
    assert twin.rng is not graph.rng
    node = copy.copy(w)
    same(graph, node.graph)
    with pytest.raises(ShapeError):
        node.set_value([1.0])


LONG = """
import copy, pickle, cloudpickle, flowgrad as fg
with fg.Graph() as graph:
    a = fg.Variable(2, [1.0, 2.0])
    for _ in range(100_000):
        a = fg.Negative(a)
    for way in (lambda t: pickle.loads(pickle.dumps(t)), lambda t: pickle.loads(cloudpickle.dumps(t)), copy.deepcopy):
        twin = way(a)
        assert len(twin.graph.nodes) == 100_001 and twin.forward().tolist() == [1.0, 2.0]
print("fine")
"""


def test_a_long_chain():
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


# An op of a script refers to a node of its graph; whoever gets it has neither.
SENDER = """
import sys, cloudpickle, flowgrad as fg
class Times(fg.Elementwise):
    formula = "a * a * a"
    slopes = ("3 * a * a",)
    bends = {(0, 0): "6 * a"}
    def what(self):
        return x, graph
class Plain(fg.Op):
    @staticmethod
    def apply(a):
        return a * SCALE
    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(a * 0 + SCALE)
SCALE = 2.0
with fg.Graph() as graph:
    x = fg.Variable(2, [1.0, 2.0])
    y = Plain(Times(x))
sys.stdout.buffer.write(cloudpickle.dumps([y, x]))
"""


def test_ops_of_a_script_go_by_value():
    done = subprocess.run([sys.executable, "-c", SENDER], capture_output=True, timeout=60)
    assert not done.returncode, done.stderr
    y, x = pickle.loads(done.stdout)
    assert y.forward().tolist() == [2.0, 16.0]
    assert y.parents[0].what() == (x, x.graph)
    for _ in range(2):
        assert fg.Engine("sync").jacobian(y, x).tolist() == [[[6.0, 0.0], [0.0, 24.0]]] == [x.backward(y).tolist()]
        y, x = pickle.loads(cloudpickle.dumps([y, x]))


def test_values_of_a_pickle_lie_in_no_buffer_of_others(made):
    graph = made[0]
    buffers = []
    data = pickle.dumps(graph, protocol=5, buffer_callback=buffers.append)
    memory = [bytearray(b.raw()) for b in buffers]
    twin = pickle.loads(data, buffers=memory)
    for part in memory:
        part[:] = bytes(len(part))
    same(graph, twin)


# -- optimizers --


@ways
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_go_on_with_the_same_bits(made, way, kind):
    graph, *_, loss = made
    optimizer = getattr(fg, kind)(graph, loss, fg.CosineDecay(0.1, 100), batch_size=2, clip_norm=1.0)
    for _ in range(3):  # the second half of a batch is still to come
        optimizer.one_step()
    optimizer.epochs = 4
    twin = way(optimizer)
    same(graph, twin.graph)
    assert twin.target is twin.graph.nodes[loss.index]
    assert twin.epochs == 4
    for _ in range(3):
        assert twin.one_step() == optimizer.one_step()
    same(graph, twin.graph)
    for slot, array in optimizer.state.items():
        assert twin.state[slot].tobytes() == array.tobytes()


@ways
def test_a_shared_graph_of_several_optimizers(made, way):
    graph, *_, loss = made
    noisy = fg.Adam(graph, loss, per_sample_clip=1.0, noise_multiplier=1.0, noise_seed=3)
    first, second, nodes = way([fg.Momentum(graph, loss), noisy, graph.nodes])
    assert first.graph is second.graph is nodes[0].graph
    assert second.privacy == noisy.privacy


def test_a_variable_that_came_later_has_a_state_of_zeros_there_too():
    with fg.Graph() as graph:
        w = fg.Variable(1, [2.0])
        loss = w * w
    optimizer = fg.Adam(graph, loss, batch_size=1)
    optimizer.one_step()
    twin = pickle.loads(pickle.dumps(optimizer))
    for o in (optimizer, twin):
        with o.graph:
            fg.Variable(3, [1.0, 1.0, 1.0])
        with pytest.warns(UserWarning, match="does not depend on 1 trainable"):
            o.one_step()
    assert twin.state_now().keys() == optimizer.state_now().keys()
    assert all(twin.state[k].tobytes() == optimizer.state[k].tobytes() for k in twin.state)


def test_a_shallow_copy_of_an_optimizer_has_a_state_of_its_own(made):
    graph, *_, loss = made
    optimizer = fg.Adam(graph, loss, batch_size=2)
    optimizer.one_step()
    twin = copy.copy(optimizer)
    assert twin.graph is graph
    twin.one_step()
    assert twin.state is not None
    assert optimizer.state is None


def test_a_shallow_copy_of_an_optimizer_adds_up_gradients_of_its_own(made):
    graph, *_, loss = made
    optimizer = fg.GradientDescent(graph, loss, 0.1, batch_size=3)
    optimizer.one_step()
    alone = copy.deepcopy(optimizer)
    copy.copy(optimizer).one_step()
    for _ in range(2):
        assert optimizer.one_step() == alone.one_step()
    assert graph["w"].value.tobytes() == alone.graph["w"].value.tobytes()


class Taking(fg.Callback):
    """Copies in the middle of a training."""

    def __init__(self, optimizer):
        self.optimizer, self.taken = optimizer, []

    def on_epoch(self, record):
        o = self.optimizer
        self.taken += [[way(thing) for thing in (o, o.graph, o.target)] for way in (by(None), copy.deepcopy)]


def test_a_copy_in_a_callback_holds_the_epochs_weights():
    model = Model("Adam")
    taking = Taking(model.optimizer)
    model.fit(epochs=3, callbacks=[taking])
    for k, (optimizer, graph, target) in enumerate(taking.taken):
        expected = Model("Adam")
        expected.fit(epochs=k // 2 + 1)
        for found in (optimizer.graph, graph, target.graph):
            same(expected.graph, found)
            found.nodes[0].set_value(np.zeros(found.nodes[0].dim))  # no training is going on there
        for slot, array in expected.optimizer.state.items():
            assert optimizer.state[slot].tobytes() == array.tobytes()
        assert optimizer._provide is None


def test_a_training_that_fails_leaves_copies_alone():
    model = Model("Adam")

    class Failing(Taking):
        def on_epoch(self, record):
            super().on_epoch(record)
            raise GraphError("on purpose")

    taking = Failing(model.optimizer)
    with pytest.raises(GraphError, match="on purpose"):
        model.fit(epochs=2, callbacks=[taking])
    expected = Model("Adam")
    expected.fit(epochs=1)
    same(expected.graph, taking.taken[0][1])
    with pytest.raises(AssertionError):
        same(model.graph, taking.taken[0][1])


class Told(fg.Op):
    """An op with nodes in an attribute."""

    def __init__(self, a, *others):
        super().__init__(a, others=others)

    @staticmethod
    def apply(a, *, others):
        return a


@ways
def test_nodes_in_attributes(way):
    with fg.Graph():
        x = fg.Variable(1, [1.0])
        y = Told(x, x, fg.Variable(2))
    twin = way(y)
    assert twin.attrs == {"others": (twin.graph.nodes[0], twin.graph.nodes[1])}


def test_while_another_thread_trains():
    model, stop = Model("Adam"), []

    class Until(fg.Callback):
        def on_epoch(self, record):
            return fg.STOP if stop else None

    thread = threading.Thread(target=lambda: model.fit(epochs=100_000, callbacks=[Until()]))
    thread.start()
    try:
        for k in range(200):
            found = (pickle.loads(pickle.dumps(model.optimizer)), copy.deepcopy(model.optimizer))[k % 2]
            found.graph.nodes[0].set_value(np.zeros(3))
            assert found._provide is None
    finally:
        stop.append(True)
        thread.join(60)
    assert not thread.is_alive()
    same(model.graph, copy.deepcopy(model.graph))

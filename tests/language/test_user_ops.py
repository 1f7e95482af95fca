"""Ops that a user defines: in a module, in a function, in a script's ``__main__``; they run on the workers too."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flowgrad as fg

ROOT = Path(__file__).parents[2]
GRAINS = ("node", "sample", "shard", "round")


class Softplus(fg.Op):
    """``log(1 + exp(a))``, defined in a module."""

    @staticmethod
    def apply(a):
        return np.logaddexp(0.0, a)

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(1.0 / (1.0 + np.exp(-a)))


def local_op():
    """Return an op that only this call knows."""

    class Bent(fg.Op):
        @staticmethod
        def apply(a):
            return np.sqrt(a * a + 1.0)

        @staticmethod
        def jacobian(slot, y, a):
            return fg.Diagonal(a / y)

    return Bent


def outer_product():
    """Return an op of two parents with a dense Jacobian, a shape rule and an attribute."""

    class OuterProduct(fg.Op):
        kinds = (fg.Dense,)

        def __init__(self, a, b, scale):
            super().__init__(a, b, scale=scale)

        @staticmethod
        def shape(a, b, *, scale):
            return a * b

        @staticmethod
        def apply(a, b, *, scale):
            return scale * (a[:, :, None] * b[:, None, :]).reshape(max(len(a), len(b)), -1)

        @staticmethod
        def jacobian(slot, y, a, b, *, scale):
            n, p, q = max(len(a), len(b)), a.shape[1], b.shape[1]
            if slot == 0:
                m = np.einsum("nj,ik->nijk", np.broadcast_to(b, (n, q)), np.eye(p)).reshape(n, p * q, p)
            else:
                m = np.einsum("ni,jk->nijk", np.broadcast_to(a, (n, p)), np.eye(q)).reshape(n, p * q, q)
            return fg.Dense(scale * m)

    return OuterProduct


class Model:
    """One hidden layer with the op `act`, 12 samples."""

    def __init__(self, act):
        rng = np.random.default_rng(1)
        with fg.Graph(seed=0) as self.graph:
            self.x = fg.Variable(3, trainable=False)
            self.y = fg.Variable(1, trainable=False)
            self.w = fg.Variable(12, rng.normal(size=12), name="w")
            self.v = fg.Variable(4, rng.normal(size=4), name="v")
            self.loss = fg.MeanSquaredError(fg.Dot(self.v, act(fg.MatVec(self.w, self.x))), self.y)
        self.feeds = {self.x: rng.normal(size=(12, 3)), self.y: rng.normal(size=12)}
        self.optimizer = fg.Adam(self.graph, self.loss, 0.05, batch_size=4)

    def one_steps(self, epochs):
        for _ in range(epochs):
            for i in range(12):
                for variable, array in self.feeds.items():
                    variable.set_value(array[i])
                self.optimizer.one_step()
        return self.w.value, self.v.value


@pytest.mark.parametrize("op", [lambda: Softplus, local_op], ids=["of a module", "of a function"])
@pytest.mark.parametrize("grain", GRAINS)
def test_training(executor, grain, op):
    expected = Model(op()).one_steps(2)
    model = Model(op())
    fg.Trainer(model.optimizer, fg.Engine(executor, grain=grain), shuffle=False).fit(model.feeds, epochs=2)
    for variable, value in zip((model.w, model.v), expected):
        np.testing.assert_allclose(variable.value, value, rtol=1e-10)


@pytest.mark.parametrize("grain", GRAINS)
def test_an_op_with_an_attribute_and_dense_jacobians(executor, grain):
    op = outer_product()
    with fg.Graph():
        x, w = fg.Variable(2, trainable=False), fg.Variable(3, [1.0, -2.0, 0.5])
        small, large = op(x, w, 0.5), op(x, w, 2.0)
        loss = fg.Sum(fg.Vectorize(small, large, op(w, w, 1.0)))
    feeds = {x: np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]])}
    engine = fg.Engine(executor, grain=grain)
    a, b = engine.forward([small, large], feeds)
    np.testing.assert_allclose(4 * a, b, rtol=1e-14)
    np.testing.assert_allclose(b[1], [6.0, -12.0, 3.0, -2.0, 4.0, -1.0], rtol=1e-14)
    gradient = engine.gradient(loss, feeds)[w]
    mean = feeds[x].sum(axis=1).mean()
    np.testing.assert_allclose(gradient, 2.5 * mean + 2 * w.value.sum() * np.ones(3), rtol=1e-12)
    x.set_value(feeds[x][0])
    assert fg.check_gradients(loss) < 1e-6


def test_attributes_stay_what_they_are():
    with fg.Graph():
        y = fg.Scale(fg.Variable(2, [1.0, 2.0]), 2.0)
    before = dict(y.attrs)
    for change in (
        lambda: y.attrs.__setitem__(next(iter(before)), 5.0),
        lambda: y.attrs.update(k=5.0),
        lambda: y.attrs.clear(),
    ):
        with pytest.raises(fg.errors.GraphError, match=r"fixed when it is built, here \{.*2\.0\}: build another node"):
            change()
    with pytest.raises(fg.FlowgradError, match="cannot be set"):
        y.attrs = {}
    for twin in (copy.deepcopy(y), pickle.loads(pickle.dumps(y))):
        assert twin.attrs == y.attrs == before
        with pytest.raises(fg.errors.GraphError):
            twin.attrs.pop("k")


def scaled(factor):
    """Return an op whose code is the same for every factor; only what it closes over differs."""

    class Scaled(fg.Op):
        @staticmethod
        def apply(a):
            return factor * a

        @staticmethod
        def jacobian(slot, y, a):
            return fg.Diagonal(factor)

    return Scaled


def wrapped(function, derivative):
    """Return an op whose value is a ufunc, which has no code of its own."""

    class Wrapped(fg.Op):
        apply = staticmethod(function)

        @staticmethod
        def jacobian(slot, y, a):
            return fg.Diagonal(derivative(a))

    return Wrapped


def defaulted(factor):
    """Return an op that differs from its twins in the default of an argument only."""

    class Defaulted(fg.Op):
        @staticmethod
        def apply(a, k=factor):
            return k * a

        @staticmethod
        def jacobian(slot, y, a, k=factor):
            return fg.Diagonal(k)

    return Defaulted


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize(
    ("make", "functions", "slopes"),
    [
        (lambda: (scaled(2.0), scaled(3.0)), (lambda a: 2 * a, lambda a: 3 * a), (2.0, 3.0)),
        (lambda: (defaulted(2.0), defaulted(3.0)), (lambda a: 2 * a, lambda a: 3 * a), (2.0, 3.0)),
        (lambda: (wrapped(np.sin, np.cos), wrapped(np.exp, np.exp)), (np.sin, np.exp), (np.cos, np.exp)),
    ],
    ids=["closure", "default", "ufunc"],
)
def test_ops_of_one_name_are_told_apart(executor, grain, make, functions, slopes):
    """Keys name what a task does; two ops that look alike must not share a key."""
    first, second = make()
    with fg.Graph():
        x = fg.Variable(2, trainable=False)
        a, b = first(x, name="twin"), second(x, name="other")
    feeds = {x: np.array([[0.5, -1.0], [2.0, 0.1]])}
    engine = fg.Engine(executor, grain=grain)
    together = engine.forward([a, b], feeds)
    apart = [engine.forward(node, feeds) for node in (a, b)]
    jacobians = [engine.jacobian(node, x, feeds) for node in (a, b)]
    for k, (function, slope) in enumerate(zip(functions, slopes)):
        np.testing.assert_allclose(together[k], function(feeds[x]), rtol=1e-14)
        np.testing.assert_allclose(apart[k], function(feeds[x]), rtol=1e-14)
        d = slope(feeds[x]) if callable(slope) else np.full((2, 2), slope)
        np.testing.assert_allclose(jacobians[k], d[:, :, None] * np.eye(2), rtol=1e-14)


@pytest.mark.parametrize("grain", GRAINS)
def test_a_rule_that_fails_names_its_node(executor, grain):
    class Broken(fg.Op):
        @staticmethod
        def apply(a):
            raise ZeroDivisionError("on purpose")

    with fg.Graph():
        x = fg.Variable(2, trainable=False)
        y = Broken(x, name="the broken one")
    with pytest.raises(fg.FlowgradError, match=r"the broken one.*ZeroDivisionError.*on purpose"):
        fg.Engine(executor, grain=grain).forward(y, {x: np.ones((3, 2))})


@pytest.mark.parametrize("grain", GRAINS)
def test_a_rule_that_gives_the_wrong_shape_names_its_node(grain):
    class Short(fg.Op):
        @staticmethod
        def apply(a):
            return a[:, :1]

    with fg.Graph():
        x = fg.Variable(2, [1.0, 2.0], trainable=False)
        y = fg.Sum(Short(x, name="the short one"))
    with pytest.raises(fg.FlowgradError, match="the short one"):
        y.forward()
    with pytest.raises(fg.FlowgradError, match="the short one"):
        fg.Engine("sync", grain=grain).forward(y, {x: np.ones((3, 2))})


SCRIPT = """
import numpy as np
import flowgrad as fg
from distributed import Client, LocalCluster


class Square(fg.Op):
    @staticmethod
    def apply(a):
        return a * a

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(2 * a)


if __name__ == "__main__":
    with fg.Graph(seed=0) as graph:
        x, y = fg.Variable(2, trainable=False), fg.Variable(1, trainable=False)
        w = fg.Variable(2, [0.5, 0.5])
        loss = fg.MeanSquaredError(fg.Dot(Square(w), x), y)
    images = np.random.default_rng(0).normal(size=(40, 2))
    feeds = {x: images, y: images @ [1.0, 4.0]}
    optimizer = fg.GradientDescent(graph, loss, 0.05, batch_size=10)
    with LocalCluster(2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as cluster:
        with Client(cluster) as client:
            for grain, epochs in (("node", 2), ("shard", 6), ("round", 12)):
                fg.Trainer(optimizer, fg.Engine(client, grain=grain)).fit(feeds, epochs=epochs)
    print("trained", *np.abs(w.value).round(3))
"""


@pytest.mark.distributed
def test_an_op_of_a_script_trains_on_workers(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("trained ")[1].split() == ["1.0", "2.0"]

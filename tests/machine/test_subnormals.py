"""Numbers below the smallest normal one are zero while training computes, in every thread of it, and nowhere else."""

import threading

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.scheduler.machine import floats as subnormals
from flowgrad.scheduler.machine.floats import without_subnormals

TINY = np.finfo(np.float32).tiny

pytestmark = pytest.mark.skipif(subnormals._libm is None, reason="this machine has no such switch")


def halved():
    return float((np.full(100, TINY) / np.float32(2)).max())


def test_only_inside():
    flushed = without_subnormals(halved)
    assert halved() > 0
    assert flushed() == 0
    assert halved() > 0
    assert without_subnormals(lambda: (flushed(), halved()))() == (0, 0)
    assert halved() > 0


def test_after_an_error_all_is_as_before():
    @without_subnormals
    def fail():
        raise ValueError(halved())

    with pytest.raises(ValueError, match=r"^0\.0$"):
        fail()
    assert halved() > 0


def test_other_threads_are_left_alone():
    found = {}
    inside, leave = threading.Event(), threading.Event()

    @without_subnormals
    def work():
        inside.set()
        leave.wait(60)
        found["there"] = halved()

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(60)
    found["here"] = halved()
    leave.set()
    thread.join()
    assert found == {"there": 0, "here": TINY / 2}


def test_elsewhere_functions_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(subnormals, "_libm", None)
    assert without_subnormals(halved) is halved


def train(where, grain, kernel):
    """Train on an input that is 0 after the first steps: its mean gradient decays, 0.9 times at a step, for 1,200 steps."""
    with fg.Graph(seed=0) as graph:
        x, y = fg.Variable(3, trainable=False), fg.Variable(1, trainable=False)
        hidden = fg.Tanh(fg.MatVec(fg.Variable(12, np.linspace(-1, 1, 12)), x))
        loss = fg.MeanSquaredError(fg.Dot(fg.Variable(4, [0.5, -0.5, 1.0, 0.2]), hidden), y)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4800, 3)).astype(np.float32)
    features[8:, 1] = 0
    optimizer = fg.Adam(graph, loss, batch_size=4)
    trainer = fg.Trainer(optimizer, fg.Engine(where, grain=grain, kernel=kernel, shards=3), shuffle=False)
    trainer.fit({x: features, y: features[:, :1]}, epochs=1)
    return trainer.fingerprint(), optimizer.state


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_what_decays_ends_at_zero_and_grains_agree(executor, kernel):
    if kernel == "numba":
        pytest.importorskip("numba")
    fingerprint, state = train(executor, "round", kernel)
    mean = np.abs(state["v"])
    assert (mean == 0).sum() == 4
    assert mean[mean > 0].min() >= TINY
    assert train("sync", "round", kernel)[0] == train("sync", "shard", kernel)[0] == fingerprint


def test_without_the_switch_it_would_not(monkeypatch):
    """The test above tests something."""
    monkeypatch.setattr(subnormals._Environment, "mxcsr", property(lambda self: subnormals.FLUSH), raising=False)
    _, state = train("sync", "round", "numpy")
    mean = np.abs(state["v"])
    assert ((mean > 0) & (mean < TINY)).sum() == 4

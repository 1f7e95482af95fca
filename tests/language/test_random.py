"""Dropout and noise: exact distributions, the same bits by NumPy and by compiled loops, nothing drawn outside of training."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowgrad as fg
from flowgrad.ops.random import _quantiles
from flowgrad.scheduler.kernels.compiled import why_not_compiled

KEYS = fg.draw_keys(seed=3, update=5, first=0, count=500)


def drawing(dim=200, rate=0.3):
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(dim, trainable=False, name="x")
        fg.Dropout(x, rate, name="dropped")
        fg.Noise((4, dim // 4), name="noise")
    return graph


def test_quantiles_are_those_of_the_normal_distribution():
    upper = np.array([0, 1, 2, 1000, 2**31 - 1, 2**31, 2**32 - 1, *range(7, 2**32, 2**32 // 997)], np.uint64)
    expected = [NormalDist().inv_cdf((int(k) + 0.5) / 2**32) for k in upper]
    np.testing.assert_allclose(_quantiles(upper << np.uint64(32)), expected, rtol=2e-13, atol=1e-16)


def test_noise_is_standard_normal_and_independent():
    graph = drawing()
    z = np.asarray(fg.Engine("sync").forward(graph["noise"], {"draws": KEYS}))
    assert z.size == 100_000
    assert abs(z.mean()) < 0.015
    assert abs(z.std() - 1) < 0.015
    assert abs((z**4).mean() - 3) < 0.1
    cells = np.histogram(z, [NormalDist().inv_cdf(k / 50) for k in range(1, 50)])[0]
    assert abs(cells - 2000).max() < 5 * np.sqrt(2000)
    for along in (z[1:] * z[:-1], z[:, 1:] * z[:, :-1]):  # neighbours among samples, and among entries
        assert abs(along.mean()) < 0.015


def test_keys_differ_by_seed_update_and_place():
    keys = {tuple(row) for seed in range(4) for update in range(1, 5) for row in fg.draw_keys(seed, update, 0, 64)}
    assert len(keys) == 4 * 4 * 64
    later = fg.draw_keys(3, 5, 100, 400)
    assert later.tobytes() == KEYS[100:].tobytes()
    assert KEYS.astype(np.float32).astype(float).tobytes() == KEYS.tobytes()  # single precision holds them
    assert KEYS.max() < 2**22


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_dropout_drops_a_share_and_divides_the_rest(rate):
    graph = drawing(rate=rate)
    y = np.asarray(fg.Engine("sync").forward(graph["dropped"], {"x": np.ones((500, 200)), "draws": KEYS}))
    dropped = y == 0
    assert abs(dropped.mean() - rate) < 0.01
    np.testing.assert_allclose(y[~dropped], 1 / (1 - rate))


@pytest.mark.skipif(bool(why_not_compiled()), reason="needs a compiler")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("node", ["dropped", "noise"])
def test_numpy_and_compiled_loops_give_the_same_bits(node, dtype):
    graph = drawing()
    feeds = {"draws": KEYS} | ({"x": np.random.default_rng(0).normal(size=(500, 200))} if node == "dropped" else {})
    values = [
        np.asarray(fg.Engine("sync", dtype=dtype, kernel=k).forward(graph[node], feeds)) for k in ("numpy", "numba")
    ]
    assert values[0].any()
    assert values[0].tobytes() == values[1].tobytes()
    for k in (0, 7):  # and so does the interpreter
        for name, array in feeds.items():
            graph[name].set_value(array[k])
        # In single precision it is rounded once more than the interpreter's.
        tolerance = 0 if dtype == "float64" else 2e-7
        np.testing.assert_allclose(values[0][k].ravel(), graph[node].forward(), rtol=tolerance, atol=tolerance)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**31), st.sampled_from(["node", "sample", "shard"]))
def test_values_and_gradients_are_those_of_the_interpreter(dim, samples, seed, grain):
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(dim, trainable=False, name="x")
        w = fg.Variable(dim, "normal", name="w")
        h = fg.Dropout(fg.Tanh(w * x), 0.4)
        loss = fg.Sum(fg.Dropout(h + h * fg.Noise(dim), 0.2))
    rng = np.random.default_rng(seed)
    feeds = {"x": rng.normal(size=(samples, dim)), "draws": fg.draw_keys(seed, 1, 0, samples)}
    engine = fg.Engine("sync", grain=grain)
    values, gradient = engine.forward(loss, feeds), engine.gradient(loss, feeds, wrt=[w])[w]
    (product,) = engine.hvp(loss, {w: np.ones(dim)}, feeds).values()
    total = np.zeros(dim)
    for k in range(samples):
        for name, array in feeds.items():
            graph[name].set_value(array[k])
        np.testing.assert_allclose(values[k], loss.forward(), rtol=1e-12, atol=1e-13)
        total += w.backward(loss)[0]
    np.testing.assert_allclose(gradient, total / samples, rtol=1e-10, atol=1e-13)
    at, ends = w.value, []
    for step in (1e-5, -1e-5):
        w.set_value(at + step)
        ends.append(engine.gradient(loss, feeds, wrt=[w])[w])
    w.set_value(at)
    np.testing.assert_allclose(product, (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-7)
    fg.check_gradients(loss)


def test_nothing_is_drawn_outside_of_training():
    graph = drawing()
    x = np.random.default_rng(0).normal(size=(3, 200))
    engine = fg.Engine("sync")
    assert np.array_equal(engine.forward(graph["dropped"], {"x": x}), x)
    assert not graph["noise"].forward().any()
    assert not graph["draws"].value.any()


def test_what_is_drawn_does_not_depend_on_what_else_is_built():
    def values(*names):
        with fg.Graph() as graph:
            for _ in names:
                fg.Exp(fg.Variable(2, [0.0, 0.0]))
            noise = fg.Noise(5)
        graph["draws"].set_value(KEYS[0])
        return noise.forward()

    assert np.array_equal(values(), values("a", "b"))


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, np.nan, "half", True])
def test_bad_rates_are_refused(rate):
    with fg.Graph(), pytest.raises(fg.FlowgradError, match="Dropout: the rate"):
        fg.Dropout(fg.Variable(3), rate)


@pytest.mark.parametrize("dim", [0, -1, 2.5, (), "a"])
def test_bad_lengths_are_refused(dim):
    with fg.Graph(), pytest.raises(fg.FlowgradError, match="Noise"):
        fg.Noise(dim)


def test_training_gives_keys_itself():
    graph = drawing(8)
    with graph:
        loss = fg.Sum(graph["dropped"] * fg.Variable(8, True))
    feeds = {"x": np.ones((4, 8)), "draws": KEYS[:4]}
    with pytest.raises(fg.errors.FeedError, match="leave it out"):
        fg.Trainer(fg.Adam(graph, loss, batch_size=2), fg.Engine("sync")).fit(feeds, epochs=1)


def test_they_are_saved(tmp_path):
    graph = drawing(8)
    fg.save(tmp_path / "g.safetensors", graph)
    again = fg.load(tmp_path / "g.safetensors")[0]
    for g in (graph, again):
        g["draws"].set_value(KEYS[0])
        g["x"].set_value(np.arange(8.0))
    assert again["dropped"].forward().tobytes() == graph["dropped"].forward().tobytes()
    assert again["noise"].forward().tobytes() == graph["noise"].forward().tobytes()

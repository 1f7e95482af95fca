"""Differentially private steps: clipping, noise, and that both are the same wherever they run."""

import numpy as np
import pytest
from models import GRAINS, Model
from oracles import same

import flowgrad as fg

PRIVATE = {"per_sample_clip": 0.7, "noise_multiplier": 0.5, "noise_seed": 11}
OPTIMIZERS = {
    "GradientDescent": {}, "Momentum": {}, "AdaGrad": {}, "RMSProp": {}, "Adam": {}, "Adam corrected": {"bias_correction": True},
}  # fmt: skip


def model(name="GradientDescent", **settings):
    kind = name.split()[0]
    return Model(kind, **{**OPTIMIZERS.get(name, {}), **PRIVATE, **settings})


def by_hand(m, batches, clip, sigma, seed):
    """Gradient descent with plain NumPy on the interpreter's gradients."""
    for t, rows in enumerate(batches, 1):
        total = np.zeros(12)
        for i in rows:
            _, gradients = m.mean_gradient([i])
            g = np.concatenate(gradients)
            total += g * min(1.0, clip / np.linalg.norm(g))
        noise = np.random.default_rng([seed, t]).standard_normal(12)
        mean = (total + sigma * clip * noise) / 4
        m.w.set_value(m.w.value - 0.1 * mean[:9])
        m.b.set_value(m.b.value - 0.1 * mean[9:])
    return m.w.value, m.b.value


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_a_step_is_what_is_stated(sigma):
    batches = [range(4), range(4, 8), range(8, 10)]  # the last one is divided by 4 too
    expected = by_hand(Model(), batches, 0.7, sigma, 11)
    m = model(noise_multiplier=sigma)
    m.fit(shuffle=False)
    for value, wanted in zip((m.w.value, m.b.value), expected):
        same(value, wanted, 1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_interpreter_takes_the_same_steps(name):
    m, other = model(name, n=8), model(name, n=8)
    m.fit(shuffle=False, epochs=2)
    for _ in range(2):
        for i in range(8):
            other.x.set_value(other.feeds[other.x][i])
            other.label.set_value(np.eye(3)[other.feeds[other.label][i]])
            other.optimizer.one_step()
    same(m.w.value, other.w.value, 1e-12)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_every_grain_and_executor_gives_the_same_bits(executor, kernel):
    bits = set()
    for grain in GRAINS:
        if grain == "sample" or (grain == "node" and kernel == "numba"):
            continue
        m = model("Adam")
        m.fit(executor, grain=grain, shards=2, kernel=kernel)
        bits.add(m.bits())
    reference = model("Adam")
    reference.fit("sync", grain="shard", shards=2, kernel=kernel)
    assert bits == {reference.bits()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_compiled_private_steps_are_what_numpy_takes(name):
    compiled, plain = model(name), model(name)
    history = compiled.fit(epochs=2, kernel="numba")
    plain.fit(epochs=2, kernel="numpy")
    assert history.plan["kernel"] == "numba"
    assert "but for clipping" in history.plan["reason"]
    same(compiled.w.value, plain.w.value, 1e-10)


def test_noise_is_secret_unless_a_seed_is_given(tmp_path):
    a, b = (model(noise_seed=None) for _ in range(2))
    for m in (a, b):
        m.fit(shuffle=False)
    assert a.bits() != b.bits()
    assert "seed" not in repr(a.optimizer.privacy)
    path = tmp_path / "model.safetensors"
    secret = model(noise_seed=123456789)
    fg.save(path, secret.graph, secret.optimizer)
    assert b"123456789" not in path.read_bytes()
    loaded = fg.load(path).optimizer
    assert (loaded.privacy.clip, loaded.privacy.noise_multiplier) == (0.7, 0.5)


def test_resuming_draws_the_same_noise(tmp_path):
    whole, part, rest = model("Adam"), model("Adam"), model("Adam")
    whole.fit(epochs=3)
    part.fit(epochs=1, checkpoint=tmp_path)
    rest.fit(epochs=3, checkpoint=tmp_path, resume=True)
    assert rest.bits() == whole.bits()


@pytest.mark.parametrize(
    "wrong",
    [
        {"per_sample_clip": 0.0},
        {"per_sample_clip": "1"},
        {"noise_multiplier": -1.0},
        {"per_sample_clip": None},
        {"noise_seed": 1.5},
    ],
)
def test_wrong_settings_are_told(wrong):
    with pytest.raises(fg.errors.GraphError, match=next(iter(wrong))):
        model(**wrong)


def test_accumulation_is_refused():
    with fg.Graph() as graph:
        w = fg.Variable(1, [2.0])
        optimizer = fg.Adam(graph, w * w, batch_size=4, per_sample_clip=1.0)
    with pytest.raises(fg.FlowgradError, match="batch_size=12"):
        fg.Trainer(optimizer, fg.Engine("sync"), accumulate=3)


def test_a_sample_whose_squares_are_no_numbers_is_clipped_and_not_lost():
    moved = []
    for step in (True, False):
        with fg.Graph() as graph:
            x, w = fg.Variable(2, [3e200, 4e200], trainable=False), fg.Variable(2, [0.0, 0.0])
            optimizer = fg.GradientDescent(graph, fg.Dot(w, x), 1.0, batch_size=1, per_sample_clip=1.0)
        if step:
            optimizer.one_step()
        else:
            fg.Trainer(optimizer, fg.Engine("sync")).fit({x: [[3e200, 4e200]]}, epochs=1)
        moved.append(w.value)
    for value in moved:
        np.testing.assert_allclose(value, [-0.6, -0.8])

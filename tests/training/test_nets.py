"""The nets of examples/: a few steps at every grain are those of the interpreter, and they learn what they say."""

import importlib
import re

import numpy as np
import pytest
from conftest import ROOT

import flowgrad as fg

SAMPLES, BATCH = 12, 4


TABLES = ("factorization machine", "wide & deep", "DeepFM")
NETS = ("lenet", "first_symbol", "attention", "vae", *(f"tables: {net}" for net in TABLES))


@pytest.fixture
def net(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    return lambda name: importlib.import_module(name)


@pytest.fixture
def build(net):
    """Return what makes the graph of a net, which may be one of several of an example."""

    def of(name):
        example, _, which = name.partition(": ")
        return lambda: net(example).build(*filter(None, [which]))

    return of


def feeds_of(graph):
    rng = np.random.default_rng(0)
    feeds = {"x": rng.uniform(0, 1, (SAMPLES, *graph["x"].shape))}
    for v in graph.nodes:
        if isinstance(v, fg.Variable) and v.below:
            feeds[v.name] = rng.integers(0, v.below, (SAMPLES, v.dim))
    if "label" in graph:
        feeds["label"] = rng.integers(0, max(2, graph["label"].dim), SAMPLES)
    return feeds


def set_sample(graph, feeds, k):
    for name, array in feeds.items():
        v, value = graph[name], array[k]
        v.set_value(np.eye(v.dim)[value] if name == "label" and v.dim > 1 else value)


def parameters(graph):
    return {n.name: n.value.copy() for n in graph.nodes if isinstance(n, fg.Variable) and n.trainable}


def interpreted(graph, feeds):
    optimizer = fg.Adam(graph, graph["loss"], batch_size=BATCH)
    for k in range(SAMPLES):
        set_sample(graph, feeds, k)
        optimizer.one_step()
    return parameters(graph)


def trained(graph, feeds, engine):
    fg.Trainer(fg.Adam(graph, graph["loss"], batch_size=BATCH), engine, shuffle=False).fit(feeds, epochs=1)
    return parameters(graph)


@pytest.mark.parametrize("grain", ["auto", "shard", "sample", "node"])
@pytest.mark.parametrize("name", NETS)
def test_three_steps_are_those_of_the_interpreter(build, name, grain):
    build = build(name)
    feeds = feeds_of(build())
    expected, found = interpreted(build(), feeds), trained(build(), feeds, fg.Engine("sync", grain=grain))
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-9, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", NETS)
def test_three_steps_on_a_cluster(build, name, client):
    build = build(name)
    feeds = feeds_of(build())
    expected, found = (trained(build(), feeds, fg.Engine(where, grain="shard", shards=2)) for where in ("sync", client))
    for key, value in expected.items():
        assert found[key].tobytes() == value.tobytes(), key


@pytest.mark.parametrize("name", NETS)
def test_per_sample_gradients_are_those_of_the_interpreter(build, name):
    graph = build(name)()
    feeds = feeds_of(graph)
    samples = fg.Engine("sync").per_sample_gradients(graph["loss"], feeds)
    squares = np.zeros(SAMPLES)
    for k in range(SAMPLES):
        set_sample(graph, feeds, k)
        for v in (n for n in graph.nodes if isinstance(n, fg.Variable) and n.trainable):
            gradient = v.backward(graph["loss"])[0]
            squares[k] += (gradient**2).sum()
            np.testing.assert_allclose(samples.array(v)[k], gradient, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(samples.norms() ** 2, squares, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accuracy"), [("lenet", 0.988), ("first_symbol", 0.99), ("attention", 0.97)])
def test_they_learn(net, name, accuracy, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    net(name).main()
    said = re.findall(r"accuracy.*? (0\.\d+|1\b)", capsys.readouterr().out)
    assert float(said[-1]) >= accuracy


@pytest.mark.slow
def test_the_autoencoder_learns(net, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    net("vae").main()
    by_pixels, by_codes = (float(word.strip(",")) for word in capsys.readouterr().out.split() if word[0].isdigit())
    assert by_codes < 0.8 * by_pixels
    assert (tmp_path / "vae.png").exists()


@pytest.mark.slow
def test_nets_for_tables_are_better_than_logistic_regression(net, capsys):
    losses = net("tables").main()
    best = min(loss for name, loss in losses.items() if name.startswith("regression"))
    assert len(losses) == 5
    assert max(losses[name] for name in TABLES) < 0.8 * best

"""A watched step: what happened, in an order that can be, and the interpreter's numbers, in one file."""

import base64
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import graphs

import flowgrad as fg
from flowgrad.graph import ancestors
from flowgrad.scheduler.executors import LocalExecutor
from flowgrad.scheduler.watch.numbers import Numbers
from flowgrad.scheduler.watch.run import run_course


def patches():
    with fg.Graph(seed=0) as graph:
        x, w = fg.Variable((3, 3), trainable=False, name="x"), fg.Variable(4, "normal", name="w")
        found = [fg.Dot(w, x[i : i + 2, j : j + 2].reshape(4), name=f"dot{i}{j}") for i in (0, 1) for j in (0, 1)]
        fg.Sum(fg.Tanh(fg.Vectorize(*found)), name="loss")
    return graph


def read(path):
    text = path.read_text()
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S).group(1))


def array(told):
    return np.frombuffer(base64.b64decode(told["data"]), "<f4").reshape(told["shape"])


def causes(graph, events):
    """Check that each event comes after what it needs."""
    valued, left = {n.index for n in graph.nodes if not n.parents}, {}
    for back, index, slots in events:
        for slot in slots if back else ():
            parent = graph.nodes[index].parents[slot].index
            left[parent] = left.get(parent, 0) + 1
    for back, index, slots in events:
        node = graph.nodes[index]
        if not back:
            assert all(p.index in valued for p in node.parents)
            valued.add(index)
            continue
        assert not left.get(index)
        for slot in slots:
            left[node.parents[slot].index] -= 1


def test_the_page_holds_the_numbers_of_the_interpreter(tmp_path):
    graph = patches()
    X = np.random.default_rng(0).normal(size=(3, 9))
    watched = fg.watch(graph["loss"], {"x": X}, tmp_path / "step.html", sample=2)
    assert graph["x"].value is None  # the user's own values stay
    graph["x"].set_value(X[2])
    told = read(watched.path)
    assert told["nodes"].keys() == {str(n.index) for n in graph.nodes}
    for node in graph.nodes:
        seen = told["nodes"][str(node.index)]
        np.testing.assert_allclose(array(seen["value"]), node.forward(), rtol=1e-6)
        np.testing.assert_allclose(array(seen["cotangent"]), node.backward(graph["loss"]), rtol=1e-6)
        for slot, local in enumerate(seen["local"]):
            np.testing.assert_allclose(array(local["dense"]), node.local_jacobian(slot).dense()[0], rtol=1e-6)
    parts = told["nodes"][str(graph["w"].index)]["parts"]
    assert len(parts) == 4  # a shared weight's Jacobian is a sum of four
    np.testing.assert_allclose(sum(array(p["array"]) for p in parts), graph["w"].backward(graph["loss"]), rtol=1e-5)
    causes(graph, [e[:3] for e in told["events"]])
    assert len([e for e in told["events"] if not e[0]]) == len([n for n in graph.nodes if n.parents])
    assert len(watched.path.read_bytes()) < 200_000
    assert "http" not in watched.path.read_text().replace("http://www.w3.org", "")


@settings(max_examples=15, deadline=None)
@given(graphs())
def test_any_graph_can_be_watched(made):
    made.set_sample(0)
    leaves = [v for v in ancestors(made.loss) if v in made.variables and v.below is None]
    values = {v: v.value[None] for v in made.variables}
    course = run_course(LocalExecutor(True, 2), made.loss, values, leaves)
    causes(made.graph, [(e.back, e.node, e.slots) for e in course.events])
    numbers = Numbers(made.loss, values)
    forward = {e.node for e in course.events if not e.back}
    assert forward == {n.index for n in numbers.needed if n.parents}
    for node in numbers.needed:
        seen = numbers.nodes[node.index]
        np.testing.assert_allclose(array(seen["value"]), made.graph.nodes[node.index].forward(), rtol=1e-5, atol=1e-6)


def several_tasks():
    """A graph with ops that programs hold by several others or by none, and a range of a variable."""
    with fg.Graph(seed=0) as graph:
        x = fg.Variable((1, 6, 6), np.linspace(-1, 1, 36), trainable=False, name="x")
        a, b = fg.Variable(1, [1.0], name="a"), fg.Variable(1, [2.0], name="b")
        h = fg.layers.max_pool2d(fg.layers.conv2d(x, 2, 3, activation="relu", name="c"), 2).reshape(18)
        fg.Add(fg.Sum(h), a, fg.Sum(x[0, 0, 1:3]), b * a, name="loss")
    return graph


@pytest.mark.parametrize("make", [patches, several_tasks])
def test_the_order_is_that_of_the_times(make):
    graph = make()
    loss = graph["loss"]
    leaves = [n for n in ancestors(loss) if not n.parents]
    values = {v: np.ones((1, v.dim)) if v.value is None else v.value[None] for v in leaves}
    events = run_course(LocalExecutor(True, 2), loss, values, leaves).events
    causes(graph, [(e.back, e.node, e.slots) for e in events])
    assert [e.end for e in events] == sorted(e.end for e in events)
    assert all(e.end == max(s.end for s in e.spans) for e in events if e.spans)
    # What a node sends begins after the last of what it gets, and every edge is gone once.
    gone = [(e.node, slot) for e in events if e.back for slot in e.slots]
    assert sorted(gone) == sorted((n.index, slot) for n in ancestors(loss) for slot in range(len(n.parents)))
    came = {}
    for e in events:
        if e.back:
            assert all(s.start >= came.get(e.node, 0.0) for s in e.spans)
            for slot in e.slots:
                parent = graph.nodes[e.node].parents[slot].index
                came[parent] = max(e.end, came.get(parent, 0.0))


def test_the_page_speaks_in_words(tmp_path):
    told = read(fg.watch(several_tasks()["loss"], path=tmp_path / "words.html").path)["nodes"].values()
    words = [text for node in told for text in (node["summary"], *(local["text"] for local in node["local"]))]
    assert not [text for text in words if "`" in text or text.startswith("<")]
    told = read(fg.watch(patches()["loss"], {"x": np.ones((1, 9))}, tmp_path / "words.html").path)["nodes"].values()
    assert {"outer product with a row of 4", "diagonal"} <= {local["text"] for node in told for local in node["local"]}


def test_it_runs_where_the_engine_runs(tmp_path, client):
    graph = patches()
    watched = fg.watch(graph["loss"], {"x": np.ones((1, 9))}, tmp_path / "step.html", engine=fg.Engine(client))
    told = read(watched.path)
    causes(graph, [e[:3] for e in told["events"]])
    assert told["lanes"]


def test_of_a_vector_each_entry_has_a_row(tmp_path):
    graph = patches()
    dots = graph["loss"].parents[0]
    told = read(fg.watch(dots, {"x": np.ones((1, 9))}, tmp_path / "v.html").path)
    assert told["nodes"][str(graph["w"].index)]["cotangent"]["shape"] == [4, 4]


def test_what_is_too_large_is_left_out_and_said(tmp_path):
    with fg.Graph(seed=0):
        x = fg.Variable(300, np.ones(300), trainable=False, name="x")
        loss = fg.Sum(fg.layers.dense(x, 300, name="h"))
    watched = fg.watch(loss, path=tmp_path / "large.html")
    assert read(watched.path)["leftOut"][0] > 0
    assert len(watched.path.read_bytes()) < 5_000_000


def test_one_number_that_is_a_whole_diagonal(tmp_path):
    with fg.Graph():
        half = fg.Variable(64, np.ones(64)) * 0.5
        loss = fg.Sum(half)
    (local,) = read(fg.watch(loss, path=tmp_path / "half.html").path)["nodes"][str(half.index)]["local"]
    np.testing.assert_array_equal(array(local["diagonal"]), np.full(64, 0.5))


def test_a_notebook_shows_it(tmp_path):
    watched = fg.watch(patches()["loss"], {"x": np.ones((1, 9))}, tmp_path / "step.html")
    assert watched._repr_html_().startswith("<iframe srcdoc=")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, at: fg.watch("loss", path=at), "the step of a node, not of"),
        (lambda g, at: fg.watch(g["loss"], path=at), "variable 'x' .dim 9. has no value and no feed"),
        (
            lambda g, at: fg.watch(g["loss"], {"x": np.ones((2, 9))}, at, sample=2),
            "there is no sample 2, the feeds have 2",
        ),
        (lambda g, at: fg.watch(g["loss"], {"x": np.ones((2, 9))}, at, sample=-1), "sample must be an integer from 0"),
        (lambda g, at: fg.watch(g["loss"], {"x": np.ones((1, 9))}, at.parent / "no" / "x.html"), "cannot write"),
        (lambda g, at: fg.watch(g["loss"], {"x": np.ones((1, 9))}, at, engine="threads"), "engine is an Engine"),
    ],
)
def test_bad_calls_are_refused_in_one_line(tmp_path, call, message):
    with pytest.raises(fg.FlowgradError, match=message) as caught:
        call(patches(), tmp_path / "step.html")
    assert "\n" not in str(caught.value)


def test_the_command(tmp_path):
    from click.testing import CliRunner

    from flowgrad.cli import main

    out = str(tmp_path / "digit.html")
    done = CliRunner().invoke(main, ["watch", "digits", "--hidden", "5", "--sample", "3", "--out", out])
    assert done.exit_code == 0, done.output
    told, written = done.output.splitlines()[-2:]
    assert re.fullmatch(r"digits, test sample 3: class \d, an untrained net says \d", told)
    assert re.fullmatch(re.escape(out) + r", \d\.\d MB; open it in a browser", written)
    assert told in (tmp_path / "digit.html").read_text()
    assert CliRunner().invoke(main, ["watch", "digits", "--sample", "100000", "--out", out]).exit_code == 2

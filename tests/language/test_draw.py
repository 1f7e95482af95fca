"""Drawing: what is folded, where things lie, and the files."""

from itertools import pairwise

import pytest

import flowgrad as fg
from flowgrad.draw import draw, draw_tasks
from flowgrad.draw.fold import Item, fold, levels
from flowgrad.draw.layout import lay_out
from flowgrad.draw.render import box_size
from flowgrad.errors import DataError, GraphError

pytest.importorskip("matplotlib")
PNG = b"\x89PNG\r\n\x1a\n"


def dense(x, units, name):
    neurons = []
    for i in range(units):
        w, b = fg.Variable(x.dim, True, name=f"{name}w{i}"), fg.Variable(1, True, name=f"{name}b{i}")
        neurons.append(fg.Add(fg.Dot(w, x), b))
    return fg.Vectorize(*neurons)


@pytest.fixture
def softmax_regression():
    with fg.Graph(seed=0) as graph:
        x, label = (fg.Variable(n, trainable=False, name=name) for n, name in ((10, "x"), (3, "label")))
        fg.CrossEntropyWithSoftMax(dense(x, 3, ""), label, name="loss")
    return graph


@pytest.fixture
def main_graph():
    with fg.Graph(seed=0) as graph:
        x, label = (fg.Variable(n, trainable=False, name=name) for n, name in ((784, "x"), (10, "label")))
        logits = dense(fg.ReLU(dense(x, 90, "h")), 10, "o")
        fg.SoftMax(logits)
        fg.CrossEntropyWithSoftMax(logits, label)
    return graph


def items_of(graph):
    return [Item(n, type(n).__name__, f"{n.name} · {n.dim}", "op", n.parents, (type(n), n.dim)) for n in graph.nodes]


def test_levels(softmax_regression):
    found = levels(items_of(softmax_regression))
    by_name = {node.name: level for node, level in found.items()}
    assert by_name["x"] == by_name["w0"] == by_name["w2"] == 0
    assert by_name["b0"] == 1  # right before the Add that reads it
    assert by_name["label"] == 3
    assert by_name["loss"] == 4


def test_many_alike_siblings_are_folded(main_graph):
    boxes, edges = fold(items_of(main_graph), 12)
    many = [(box.title, box.count, box.detail) for box in boxes if box.count > 1]
    assert many == [
        ("Variable", 90, "hw0 … hw89 · 784"),
        ("Variable", 90, "hb0 … hb89 · 1"),
        ("Dot", 90, "dot4 … dot360 · 1"),
        ("Add", 90, "add5 … add361 · 1"),
    ]
    assert sum(box.count for box in boxes) == len(main_graph.nodes)
    collect = next(i for i, box in enumerate(boxes) if box.title == "Vectorize")
    assert boxes[collect].ports == ["0–89"]
    assert [edge.count for edge in edges if edge.target == collect] == [90]
    assert sum(edge.count for edge in edges) == sum(len(node.parents) for node in main_graph.nodes)


def test_siblings_that_differ_are_not_folded():
    with fg.Graph() as graph:
        x = fg.Variable(2, trainable=False, name="x")
        ops = [fg.Exp(x) if i % 2 else fg.Tanh(x) for i in range(16)]
        fg.Vectorize(*ops)
    boxes, _ = fold(items_of(graph), 12)
    assert len(boxes) == len(graph.nodes)
    boxes, _ = fold(items_of(graph), 7)
    assert sorted(box.count for box in boxes) == [1, 1, 8, 8]
    assert [box.ports for box in boxes][-1] == ["8 slots", "8 slots"]


def test_an_operand_used_twice_gets_two_arrows():
    with fg.Graph() as graph:
        x = fg.Variable(2, trainable=False, name="x")
        fg.Dot(x, x)
    boxes, edges = fold(items_of(graph), 12)
    assert boxes[1].ports == ["0", "1"]
    assert [(edge.source, edge.target, edge.port) for edge in edges] == [(0, 1, 0), (0, 1, 1)]


def test_boxes_do_not_overlap_and_arrows_go_right(main_graph):
    boxes, edges = fold(items_of(main_graph), 12)
    sizes = [box_size(box) for box in boxes]
    layout = lay_out(boxes, edges, sizes)
    frames = [(x - w / 2, x + w / 2, y - h / 2, y + h / 2) for (x, y), (w, h) in zip(layout.centres, sizes)]
    for i, a in enumerate(frames):
        assert min(a[0], a[2]) >= -1e-9
        assert a[1] <= layout.width + 1e-9
        assert a[3] <= layout.height + 1e-9
        for b in frames[:i]:
            assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
    for route in layout.routes:
        assert all(end[0] > start[0] for start, end in pairwise(route))


def test_files_are_the_same_every_time(softmax_regression, tmp_path):
    for ending in ("png", "svg", "pdf"):
        first, second = tmp_path / f"first.{ending}", tmp_path / f"second.{ending}"
        assert draw(softmax_regression, first) == first
        softmax_regression.draw(str(second))
        assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "first.png").read_bytes().startswith(PNG)
    assert len(list(tmp_path.iterdir())) == 6  # nothing temporary is left


def test_only_what_targets_need(main_graph, tmp_path):
    hidden = next(node for node in main_graph.nodes if type(node).__name__ == "ReLU")
    draw(main_graph, tmp_path / "all.svg")
    draw(main_graph, tmp_path / "part.svg", targets=hidden)
    draw(main_graph, tmp_path / "parts.svg", targets=[hidden, hidden.parents[0]])
    assert (tmp_path / "part.svg").read_bytes() == (tmp_path / "parts.svg").read_bytes()
    assert len((tmp_path / "part.svg").read_bytes()) < len((tmp_path / "all.svg").read_bytes())


def test_a_chain_and_an_unconnected_node(tmp_path):
    with fg.Graph() as graph:
        fg.Variable(3, name="alone")
        node = fg.Variable(1, trainable=False, name="x")
        for _ in range(40):
            node = fg.Tanh(node)
    draw(graph, tmp_path / "chain.png")
    assert (tmp_path / "chain.png").read_bytes().startswith(PNG)


def test_what_cannot_be_drawn(softmax_regression, tmp_path):
    with pytest.raises(GraphError, match="no nodes to draw"):
        draw(fg.Graph(), tmp_path / "g.png")
    with pytest.raises(DataError, match=r"let the name end in \.png"):
        draw(softmax_regression, tmp_path / "g.jpeg")
    with pytest.raises(DataError, match=r"cannot write .*absent"):
        draw(softmax_regression, tmp_path / "absent" / "g.png")
    with fg.Graph() as other:
        y = fg.Variable(1, True, name="y")
    with pytest.raises(GraphError, match=r"Variable 'y' \(dim 1\) is not a node of the graph to draw"):
        draw(softmax_regression, tmp_path / "g.png", targets=y)
    with other:
        for _ in range(2000):
            y = fg.Tanh(y)
    with pytest.raises(GraphError, match="2001 boxes are too many"):
        draw(other, tmp_path / "g.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(softmax_regression, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(DataError, match=r"pip install 'flowgrad\[viz\]'"):
        draw(softmax_regression, tmp_path / "g.png")


def test_tasks(tmp_path):
    pytest.importorskip("networkx")
    edges = {f"pull-{i}": {"w", f"load-{i}"} for i in range(30)} | {"w": set()}
    edges["reduce"] = {f"pull-{i}" for i in range(30)}
    labels = {key: key.partition("-")[0] for key in edges}
    path = draw_tasks(edges, labels, tmp_path / "tasks.svg")
    again = draw_tasks(dict(reversed(edges.items())), labels, tmp_path / "again.svg")
    assert path.read_bytes() == again.read_bytes()
    with pytest.raises(GraphError, match="cycle"):
        draw_tasks({"a": {"b"}, "b": {"a"}}, {}, tmp_path / "g.svg")
    with pytest.raises(GraphError, match="no tasks"):
        draw_tasks({}, {}, tmp_path / "g.svg")


def test_a_part_of_a_graph_and_constants(tmp_path):
    with fg.Graph() as graph:
        x, w = fg.Variable(2, trainable=False, name="x$^2$"), fg.Variable(2, [1.0, 2.0], name="$w")
        one = fg.Variable(2, [1.0, 1.0], trainable=False, name="one")
        y = x * w + one
        fg.Sum(y)
    text = (tmp_path / "all.svg", tmp_path / "part.svg")
    graph.draw(str(text[0]))
    graph.draw(str(text[1]), targets=y, fold=1)
    assert "6 nodes" in text[0].read_text()
    assert "5 nodes" in text[1].read_text()
    with pytest.raises(GraphError, match="there are no targets to draw"):
        graph.draw(str(text[0]), targets=[])


def test_a_value_that_is_set_makes_no_constant(tmp_path):
    with fg.Graph() as graph:
        x = fg.Variable(2, trainable=False, name="x")
        fg.Exp(x) + 3
    path = tmp_path / "graph.svg"
    graph.draw(str(path))
    before = path.read_bytes()
    assert all(f"<!-- {text} -->" in path.read_text() for text in ("feed variable", "3", "constant"))
    x.set_value([1.0, 2.0])
    graph.draw(str(path))
    assert path.read_bytes() == before

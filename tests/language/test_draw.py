"""Drawing: what is folded, where things lie, and the files."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import graphs

import flowgrad as fg
from flowgrad.draw import Shown, draw, draw_tasks, scene_of, svg_of
from flowgrad.draw.fold import Item, fold, levels
from flowgrad.draw.paint import write
from flowgrad.draw.scene import SHADES, breadth, port_labels
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
    return [
        Item(n, n.name, (type(n).__name__,), "op", n.parents, (type(n), n.dim), (type(n), n.dim)) for n in graph.nodes
    ]


def lstm(steps):
    with fg.Graph(seed=0) as graph:
        x = fg.Variable((steps, 4), trainable=False, name="x")
        fg.Sum(fg.layers.lstm(x, 8, name="lstm"), name="y")
    return graph


def by_title(scene):
    return {card.title: card for card in scene.cards}


def overlap(a, b):
    return abs(a.x - b.x) < (a.width + b.width) / 2 and abs(a.y - b.y) < (a.height + b.height) / 2


def way(arrow):
    """Return points on an arrow, those of each piece."""
    p, t = np.array(arrow.points), np.linspace(0, 1, 60)[:, None]
    return [
        (1 - t) ** 3 * p[k] + 3 * (1 - t) ** 2 * t * p[k + 1] + 3 * (1 - t) * t**2 * p[k + 2] + t**3 * p[k + 3]
        for k in range(0, len(p) - 3, 3)
    ]


def check(graph, scene, ways=None):
    """Everything is there once, nothing covers anything else, and all arrows go on, in one of two ways, but those back."""
    cards = {card.key: card for card in scene.cards}
    card_of = {k: card for card in scene.cards for k in card.nodes}
    assert sorted(k for card in scene.cards for k in card.nodes) == list(range(len(graph.nodes)))
    assert len(cards) == len(scene.cards)
    assert all(card.key == card.nodes[0] and card.count == len(card.nodes) for card in scene.cards)
    edges = {(card_of[p.index].key, card_of[n.index].key) for n in graph.nodes for p in n.parents}
    assert {(arrow.source, arrow.target) for arrow in scene.arrows} == edges
    assert sum(arrow.count for arrow in scene.arrows) == sum(len(n.parents) for n in graph.nodes)
    for i, a in enumerate(scene.cards):
        assert a.width / 2 < a.x < scene.width - a.width / 2
        assert a.height / 2 < a.y < scene.height - a.height / 2
        assert not any(overlap(a, b) for b in scene.cards[:i])
    for arrow in scene.arrows:
        source, target, points = cards[arrow.source], cards[arrow.target], np.array(arrow.points)
        assert len(points) % 3 == 1
        on_way = np.concatenate(way(arrow))
        for card in scene.cards:
            if card not in (source, target):
                apart = np.abs(on_way - (card.x, card.y)) - (card.width / 2, card.height / 2)
                assert apart.max(axis=1).min() > -1.0, (source.title, target.title, card.title)
        if ways is None:
            continue
        low, high = ((c.x, c.width) if ways == "right" else (c.y, c.height) for c in (source, target))
        along = points[:, 0 if ways == "right" else 1]
        np.testing.assert_allclose([along[0], along[-1]], [low[0] + low[1] / 2, high[0] - high[1] / 2])
        assert (np.diff(along) > -1e-6).all() or arrow.back
    for frame in scene.frames:
        inside = [card for card in scene.cards if overlap(card, frame)]
        names = {graph.nodes[k].name for card in inside for k in card.nodes}
        assert all(f"{name}.".startswith(f"{frame.name}.") for name in names), (frame, names)


def test_levels(softmax_regression):
    found = levels(items_of(softmax_regression))
    by_name = {node.name: level for node, level in found.items()}
    assert by_name["x"] == by_name["w0"] == by_name["w2"] == 0
    assert by_name["b0"] == 1  # right before the Add that reads it
    assert by_name["label"] == 3
    assert by_name["loss"] == 4


def test_many_alike_siblings_are_folded(main_graph):
    scene = scene_of(main_graph, fold=12)
    check(main_graph, scene, "right")
    many = [(card.title, card.count, card.lines) for card in scene.cards if card.count > 1]
    assert many == [
        ("hw0…89", 90, ("parameter · 784 each",)),
        ("hb0…89", 90, ("parameter · 1 each",)),
        ("dot…", 90, ("Dot · 1 each",)),
        ("add…", 90, ("Add · 1 each",)),
    ]
    collect = by_title(scene)["vectorize362"]
    assert [(arrow.count, arrow.label) for arrow in scene.arrows if arrow.target == collect.key] == [(90, "0–89")]


def test_what_each_reads_of_its_own_has_a_double_line(main_graph):
    scene = scene_of(main_graph, fold=12)
    title = {card.key: card.title for card in scene.cards}
    assert {(title[a.source], title[a.target]) for a in scene.arrows if a.each} == {
        ("hw0…89", "dot…"),
        ("dot…", "add…"),
        ("hb0…89", "add…"),
    }
    assert svg_of(scene).count('class="inner"') == 3


def test_only_signs_that_occur_are_told(main_graph):
    (told,) = scene_of(main_graph, width=1280).signs
    assert told == "× 90: so many alike · double line: each reads its own · 0, 1: order of operands"
    (told,) = scene_of(lstm(96), width=1280).signs
    assert " · ".join(scene_of(lstm(96), width=600).signs) == told
    assert told.endswith("dashed, t-1: the step before · t = 0: the first step")
    with fg.Graph() as graph:
        fg.Exp(fg.Variable(2, name="x"))
    assert scene_of(graph).signs == ()


def test_piles_are_called_by_what_their_names_have_in_common():
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(2, trainable=False, name="x")
        fg.Vectorize(*[fg.Tanh(fg.Exp(x, name=f"a{k}"), name=f"b{7 * k}") for k in range(20)])
        fg.Vectorize(*[fg.Exp(fg.Tanh(x, name=f"b{7 * k + 1}"), name=f"c{k}") for k in range(20)])
    titles = {card.title for card in scene_of(graph).cards if card.count == 20}
    assert titles == {"a0…19", "b0 …", "b1 …", "c0…19"}  # b… alone would be two piles
    with fg.Graph(seed=0) as graph:
        fg.layers.rnn(fg.Variable((30, 3), trainable=False, name="x"), 4, name="r")
    assert [card.lines[-1] for card in scene_of(graph).cards if card.role == "result"] == ["the last: r, the result"]


def test_pictures_of_many_cards_fold_from_few_siblings_on(main_graph):
    scene = scene_of(main_graph)
    check(main_graph, scene, "right")
    assert len(scene.cards) <= 40 < len(scene_of(main_graph, fold=12).cards)
    assert by_title(scene)["ow0…9"].count == 10


def test_siblings_that_differ_are_not_folded():
    with fg.Graph() as graph:
        x = fg.Variable(2, trainable=False, name="x")
        ops = [fg.Exp(x) if i % 2 else fg.Tanh(x) for i in range(16)]
        fg.Vectorize(*ops)
    boxes, _ = fold(items_of(graph), 12)
    assert len(boxes) == len(graph.nodes)
    boxes, _ = fold(items_of(graph), 7)
    assert sorted(len(box.members) for box in boxes) == [1, 1, 8, 8]
    assert [box.ports for box in boxes][-1] == ["8 slots", "8 slots"]


def test_an_operand_used_twice_gets_two_arrows():
    with fg.Graph() as graph:
        x = fg.Variable(2, trainable=False, name="x")
        fg.Dot(x, x)
    boxes, edges = fold(items_of(graph), 12)
    assert boxes[1].ports == ["0", "1"]
    assert [(edge.source, edge.target, edge.port) for edge in edges] == [(0, 1, 0), (0, 1, 1)]


# -- what repeats --


@pytest.mark.parametrize("direction", ["right", "down"])
def test_steps_that_repeat_are_one_step(direction):
    graph = lstm(96)
    scene = scene_of(graph, direction=direction, width=1280)
    check(graph, scene)
    assert len(scene.cards) < 30
    assert scene.width <= 1280
    assert [frame.title for frame in scene.frames][:2] == ["lstm · 416 trained", "lstm …"][: 1 + (direction == "right")]
    assert "416 trained numbers (lstm 416), drawn as" in scene.caption
    cards = by_title(scene)
    assert cards["lstm.slice6 …"].count == 96
    assert cards["lstm.slice6 …"].lines == ("Slice · 4 each", "row 0…95")
    back = {(arrow.source, arrow.target, arrow.label, arrow.count) for arrow in scene.arrows if arrow.back}
    h, c = cards["lstm.multiply23 …"], cards["lstm.add21 …"]
    assert h.lines == ("Multiply · 8 each", "the last: lstm")
    reads = {cards["lstm.matvec9 …"].key, cards["lstm.multiply17 …"].key}
    assert {(source, label, count) for source, _, label, count in back} == {
        (h.key, "1: t-1", 95),
        (c.key, "1: t-1", 95),
    }
    assert {target for _, target, *_ in back} == reads
    by_key = {card.key: card for card in scene.cards}
    forward = [arrow for arrow in scene.arrows if not arrow.back]
    constants = [card for card in scene.cards if card.role == "constant"]  # the states before the first step
    assert {a.target for a in scene.arrows for one in constants if a.source == one.key} == reads
    ports = port_labels(scene)
    assert {tuple(port.text for port in ports[key]) for key in reads} == {("0", "1: t = 0", "1: t-1")}
    assert all(arrow.each == (min(by_key[k].count for k in (arrow.source, arrow.target)) > 1) for arrow in forward)


def test_a_step_is_opened_by_itself_and_few_steps_together():
    graph = lstm(96)
    folded = by_title(scene_of(graph))["lstm.tanh22 …"]
    scene = scene_of(graph, opened=[folded.nodes[0], folded.nodes[50]])
    check(graph, scene)
    cards = [card for card in scene.cards if set(card.nodes) & set(folded.nodes)]
    assert [card.count for card in cards] == [1, 49, 1, 45]
    short = lstm(6)
    opened = scene_of(short, opened=[by_title(scene_of(short))["lstm.tanh22 …"].key])
    assert {card.count for card in opened.cards} == {1}


def test_neurons_of_a_layer_are_no_steps(main_graph):
    assert not any(arrow.back for arrow in scene_of(main_graph).arrows)


def test_layers_that_read_one_another_are_steps():
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(5, trainable=False, name="x")
        for k in range(20):
            x = fg.layers.dense(x, 5, "tanh", name=f"h{k}")
    scene = scene_of(graph)
    check(graph, scene)
    assert [(card.title, card.count) for card in scene.cards] == [
        ("x", 1),
        ("h0…19.W", 20),
        ("h0…19.matvec…", 20),
        ("h0…19.b", 20),
        ("h0…19.add…", 20),
        ("h0…19", 20),
    ]
    assert len(scene_of(graph, fold=1000).cards) == len(graph.nodes)


def test_parameters_belong_to_steps_whenever_they_were_built():
    with fg.Graph(seed=0) as graph:
        weights = [fg.Variable((3, 3), True, name=f"w{k}") for k in range(9)]
        x = fg.Variable(3, trainable=False, name="x")
        for w in weights:
            x = fg.Tanh(fg.MatVec(w, x))
    scene = scene_of(graph)
    check(graph, scene)
    assert [(card.title, card.count) for card in scene.cards] == [
        ("w0…8", 9),
        ("x", 1),
        ("matvec…", 9),
        ("tanh…", 9),
    ]
    assert by_title(scene_of(graph, opened=[9]))["w0…8"].count == 9  # x is no part of a step
    assert {card.count for card in scene_of(graph, opened=[3]).cards} == {1}
    with fg.Graph(seed=0) as graph:  # its first step makes a parameter of all steps
        fg.layers.gru(fg.Variable((30, 3), trainable=False, name="x"), 4, name="g")
    check(graph, scene_of(graph))
    assert {card.count for card in scene_of(graph).cards} == {1, 30}


@pytest.mark.parametrize("order", [1, -1])
def test_a_second_layer_of_steps_reads_the_first_in_either_order(order):
    with fg.Graph(seed=0) as graph:
        x = fg.Variable((20, 3), trainable=False, name="x")
        y = fg.layers.rnn(x, 4, sequence=True, name="a")
        h = fg.Variable(4, trainable=False, name="h")
        u = fg.Variable((4, 4), True, name="u")
        for t in range(20)[::order]:
            h = fg.Tanh(fg.MatVec(u, h) + y[t])
    scene = scene_of(graph)
    check(graph, scene)
    assert len(scene.cards) < 25
    assert sum(arrow.back for arrow in scene.arrows) == 2


@st.composite
def repeating(draw):
    """Draw a graph of steps, alike but for some, that read themselves, steps before, what is shared, and other runs."""
    with fg.Graph(seed=0) as graph:
        shared = [fg.Variable(2, True, name=f"w{k}") for k in range(draw(st.integers(1, 3)))]
        before = [shared]
        for run in range(draw(st.integers(1, 3))):
            size = draw(st.integers(1, 4))
            places = st.tuples(st.integers(0, 2), st.integers(0, 3))
            step = [(draw(st.integers(0, 2)), draw(places), draw(places)) for _ in range(size)]
            strange = draw(st.lists(st.integers(0, 30), max_size=2))
            for t in range(draw(st.integers(1, 30))):
                with fg.scope(f"r{run}"), fg.scope(f"t{t}"):
                    now = []
                    for kind, *reads in step:
                        of = [[shared, now or before[-1], before[-1]][where] for where, _ in reads]
                        a, b = (those[k % len(those)] for those, (_, k) in zip(of, reads))
                        now.append(
                            fg.Tanh(a)
                            if t in strange
                            else fg.Exp(a)
                            if kind == 0
                            else [fg.Add, fg.Multiply][kind - 1](a, b)
                        )
                before.append(now)
        fg.Vectorize(*[node for node in graph.nodes if not node.children])
    return graph


@given(repeating(), st.sampled_from(["right", "down"]), st.integers(0, 12), st.data())
@settings(max_examples=25, deadline=None)
def test_any_steps(graph, direction, limit, data):
    scene = scene_of(graph, fold=limit, direction=direction)
    check(graph, scene, direction)
    narrow = scene_of(graph, fold=limit, direction=direction, width=700)
    check(graph, narrow)
    assert [card.nodes for card in narrow.cards] == [card.nodes for card in scene.cards]
    one = data.draw(st.integers(0, len(graph.nodes) - 1))
    opened = scene_of(graph, fold=limit, direction=direction, opened=[one])
    check(graph, opened, direction)
    assert next(card for card in opened.cards if one in card.nodes).count == 1


@given(graphs(), st.sampled_from(["right", "down"]))
@settings(max_examples=20, deadline=None)
def test_any_graph(made, direction):
    check(made.graph, scene_of(made.graph, fold=2, direction=direction), direction)


# -- scopes, widths, values --


def test_scopes_are_frames_of_what_is_theirs():
    graph = net()
    for direction in ("right", "down"):
        scene = scene_of(graph, direction=direction)
        check(graph, scene, direction)
        assert [frame.name for frame in scene.frames] == ["a", "b", "b.in"]
        assert [frame.title for frame in scene.frames] == ["a · 57 trained", "b · 112 trained", "b.in · 112 trained"]
        assert scene.caption.endswith("169 trained numbers (a 57, b 112)")
    with graph, fg.scope("a"):  # it goes on after what reads it
        fg.Add(graph["b"], graph["a"], name="again")
    assert "a" not in [frame.name for frame in scene_of(graph).frames]


def net():
    with fg.Graph(seed=0) as graph:
        x = fg.Variable((2, 6, 6), trainable=False, name="x")
        h = fg.layers.conv2d(x, 3, 3, stride=2, activation="relu", name="a")
        h = fg.layers.dense(h, 4, name="b.in")
        with fg.scope("b"):
            h = fg.LeakyReLU(h, 0.25, name="bent")
        fg.Sum(h, name="b")
    return graph


def test_frames_go_on_in_every_row_and_say_so_where_no_arrow_passes(main_graph):
    with fg.Graph(seed=0) as graph, fg.scope("s"):
        x = y = fg.Variable(3, True, name="x")
        for k in range(9):
            y = fg.Tanh(y, name=f"long_name_of_a_node{k}")
        fg.Add(x, y, name="sum")
    scene = scene_of(graph, width=700)
    check(graph, scene)
    assert [frame.title for frame in scene.frames] == ["s · 3 trained", *["s …"] * (len(scene.frames) - 1)]
    assert len(scene.frames) > 2
    points = np.concatenate([points for arrow in scene.arrows for points in way(arrow)])
    for frame in scene.frames:
        right, y = frame.start + breadth(frame.title, 11), frame.y - frame.height / 2
        assert frame.x - frame.width / 2 < frame.start < right < frame.x + frame.width / 2
        assert not (
            (np.abs(points - (0, y + 9)) < (np.inf, 5))[:, 1] & (frame.start < points[:, 0]) & (points[:, 0] < right)
        ).any()
    with fg.Graph() as graph:
        for k in range(7):
            fg.Variable(2, True, name=f"w{k}")
    assert scene_of(graph).caption == "7 nodes, 14 trained numbers"  # of more than a few a line would tell nothing


def test_cards_tell_attributes_that_matter():
    lines = {card.title: card.lines for card in scene_of(net()).cards}
    assert lines["a.W"] == ("parameter · 3 x 2 x 3 x 3",)
    assert lines["a.conv2d2"] == ("Conv2D · 3 x 3 x 3", "stride 2, padding 0 x 1")
    assert lines["b.bent"][1] == "slope 0.25"
    with fg.Graph() as graph:
        x = fg.Variable((3, 4), [1.0] * 12, name="x")
        fg.Concat(fg.Transpose(x, (1, 0)), fg.Transpose(x), axis=1)
        fg.Dropout(x, 0.25)
        x[1:3] * 2.0
        fg.Exp(x[1])
    told = [card.lines[1] for card in scene_of(graph).cards if len(card.lines) > 1]
    assert told == ["order 1 x 0", "axis 1", "rate 0.25", "[4:12]", "by 2", "row 1"]


def test_variables_say_what_they_are():
    with fg.Graph(seed=0) as graph:
        x, w = fg.Variable((3, 6, 6), trainable=False, name="x"), fg.Variable((3, 6, 6), "he", name="w")
        fg.BatchNorm(x * w, name="n") + 1.0
    told = {card.title: card.lines[0] for card in scene_of(graph).cards if card.role not in ("op", "result")}
    assert told["x"] == "feed · 3 x 6 x 6"
    assert told["w"] == "parameter · 3 x 6 x 6"
    assert told["n.mean"] == "measured · 3"
    assert told["1"].startswith("constant · ")


def crossings(scene):
    """Count where arrows of different cards cross."""
    ways = [(arrow.source, np.concatenate([piece[::12] for piece in way(arrow)])) for arrow in scene.arrows]

    def side(p, q, r):
        return (q - p)[..., 0] * (r - p)[..., 1] - (q - p)[..., 1] * (r - p)[..., 0]

    found = 0
    for k, (one, p) in enumerate(ways):
        for other, q in ways[:k]:
            if one != other:
                a, b, c, d = p[:-1, None], p[1:, None], q[None, :-1], q[None, 1:]
                apart = (side(a, b, c) * side(a, b, d) < -1e-9) & (side(c, d, a) * side(c, d, b) < -1e-9)
                found += int(apart.sum())
    return found


@given(repeating())
@settings(max_examples=10, deadline=None)
def test_what_goes_on_below_crosses_nothing_more(graph):
    scene = scene_of(graph, fold=6)
    assert crossings(scene_of(graph, fold=6, width=700)) <= 1.5 * crossings(scene) + 4


def test_arrows_to_the_next_row_are_nested():
    with fg.Graph(seed=0) as graph:
        chains = [fg.Variable(3, trainable=False, name=f"x{k}") for k in range(4)]
        for _ in range(8):
            chains = [fg.Tanh(chain) for chain in chains]
        fg.Vectorize(*chains)
    scene = scene_of(graph, width=700, fold=1000)
    assert len({round(card.x) for card in scene.cards if card.role == "op"}) < 8
    assert crossings(scene) == 0


@pytest.mark.parametrize("many", [6, 9, 11])
def test_gaps_are_squeezed_rather_than_one_more_row(many):
    with fg.Graph() as graph:
        x = fg.Variable(2, trainable=False, name="x")
        for k in range(many):
            x = fg.Tanh(x, name=f"node_{'n' * k}")
    whole = scene_of(graph).width
    for less in range(1, 60, 7):
        scene = scene_of(graph, width=int(whole) - less)
        assert scene.width <= whole - less
        check(graph, scene, "right")


def test_what_is_wide_goes_on_below(main_graph):
    for direction in ("right", "down"):
        scene = scene_of(main_graph, direction=direction, width=900)
        check(main_graph, scene)
        assert scene.width <= 900
    with pytest.raises(GraphError, match="width must be an integer from 200 on, not 3"):
        scene_of(main_graph, width=3)
    with pytest.raises(GraphError, match="direction must be one of 'right', 'down', not 'left'"):
        scene_of(main_graph, direction="left")


@pytest.mark.parametrize("direction", ["right", "down"])
def test_arrows_pass_beside_what_is_wider(direction):
    with fg.Graph(seed=0) as graph:
        x, w = fg.Variable(9, trainable=False, name="x"), fg.Variable((1, 1, 2, 2), name="a_weight_of_a_long_name")
        dots = [fg.Dot(w, fg.Gather(x, [k, k + 1, k + 3, k + 4])) for k in (0, 1, 3, 4)]
        fg.Vectorize(*[fg.Tanh(dot) for dot in dots])
    check(graph, scene_of(graph, direction=direction), direction)


def test_arrows_from_above_pass_beside_frames():
    with fg.Graph(seed=0) as graph:
        h = fg.Variable(6, trainable=False, name="x")
        for k in range(3):
            h = fg.layers.dense(h, 5, "relu", name=f"h{k}")
    scene = scene_of(graph, width=800)
    check(graph, scene)
    lefts = [frame.x - frame.width / 2 for frame in scene.frames]
    assert len(lefts) == 3
    down = [
        piece[0, 0] for arrow in scene.arrows for piece in way(arrow) if np.ptp(piece[:, 0]) < 1 < np.ptp(piece[:, 1])
    ]
    assert any(abs(x - left) < 20 for x in down for left in lefts)
    assert not any(abs(x - left) < 4 for x in down for left in lefts)


def test_norms_of_values_and_cotangents(softmax_regression, tmp_path):
    graph = softmax_regression
    with pytest.raises(GraphError, match=r"'x' .*has no value"):
        graph.draw(str(tmp_path / "none.svg"), values=True)
    graph["x"].set_value(np.arange(10.0))
    graph["label"].set_value([0.0, 1.0, 0.0])
    text = Path(graph.draw(str(tmp_path / "both.svg"), values=True, result=graph["loss"])).read_text()
    assert (
        f"|y| {np.linalg.norm(np.arange(10.0)):.3g} · |g| {np.linalg.norm(graph['x'].backward(graph['loss'])):.3g}<"
        in text
    )
    assert "norm of cotangent of loss" in text
    assert len(set(re.findall(r'<rect [^>]*style="fill:(#\w{6})"', text))) > 3
    graph.draw(str(tmp_path / "both.png"), values=True, result=graph["loss"])
    with pytest.raises(GraphError, match="result must be a node of the graph to draw"):
        graph.draw(str(tmp_path / "none.svg"), result="loss")


def test_values_that_are_not_finite_are_drawn_dark(tmp_path):
    with fg.Graph() as graph:
        x = fg.Variable(1, [800.0], name="x")
        fg.Exp(x) - fg.Exp(x)
    with np.errstate(all="ignore"):
        text = Path(graph.draw(str(tmp_path / "inf.svg"), values=True)).read_text()
    assert "|y| inf" in text
    assert "|y| nan" in text
    assert f"fill:{SHADES[-1]}" in text


# -- files --


def test_svg_has_an_element_for_each_card_and_arrow(main_graph):
    scene = scene_of(main_graph)
    key = scene.cards[-1].key
    root = ElementTree.fromstring(svg_of(scene, colours={key: "#102030"}, hints={key: "a < b"}))
    groups = {g.get("id"): g for g in root.iter() if g.get("class", "").startswith("card ")}
    assert {name: tuple(map(int, g.get("data-nodes").split())) for name, g in groups.items()} == {
        f"card-{card.key}": card.nodes for card in scene.cards
    }
    arrows = [p for p in root.iter() if p.get("class", "").startswith("arrow")]
    ends = [(int(p.get("data-from")), int(p.get("data-to"))) for p in arrows]
    assert ends == [(arrow.source, arrow.target) for arrow in scene.arrows]
    assert "a < b" in "".join(groups[f"card-{key}"].itertext())
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg_of(scene))]
    assert len(sizes) > 3
    assert min(sizes) >= 9


def test_names_of_any_text(tmp_path):
    with fg.Graph(seed=0) as graph, fg.scope("<\x00&"):
        x = fg.Variable(2, [1.0, 2.0], trainable=False, name='"$\ud800\x1b')
        fg.Sum(fg.Multiply(x, x, name="Ж" * 60), name="]]>")
    for ending in ("svg", "html", "png"):
        graph.draw(str(tmp_path / f"g.{ending}"), values=True, result=graph.nodes[-1])
    ElementTree.parse(tmp_path / "g.svg")
    scene = scene_of(graph)
    assert scene.cards[1].width > 34 * 9


def test_a_page_opens_what_is_folded(main_graph, tmp_path):
    text = Path(main_graph.draw(str(tmp_path / "g.html"))).read_text()
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    opens = json.loads(re.search(r"opens = (\{.*\})", text).group(1))
    folded = [card for card in scene_of(main_graph, width=1280).cards if card.count > 1]
    assert {f"{card.nodes[0]}-{card.nodes[-1]}" for card in folded} <= set(opens)
    for name, place in opens.items():  # piles of piles as well
        inside = re.search(rf'<template id="opened-{place}">(.*?)</template>', text, re.DOTALL).group(1)
        for key in name.split("-"):
            assert f'id="card-{key}" data-nodes="{key}"' in inside
    assert len(opens) > len(folded)


def test_of_a_large_pile_what_is_near_is_opened():
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(2, trainable=False, name="x")
        fg.Vectorize(*(fg.Dot(fg.Variable(2, name=f"w{k}"), x) for k in range(1234)))
    place = {node.name: node.index for node in graph.nodes}
    counts = {}
    for one in ((), ("w34",), ("w34", "w35"), ("w34", "w1233")):
        scene = scene_of(graph, opened=[place[name] for name in one])
        check(graph, scene)
        counts[one] = sorted(Counter(c.count for c in scene.cards if c.title.startswith("w")).items())
    assert counts[()] == [(1234, 1)]
    assert counts["w34",] == counts["w34", "w35"] == [(1, 10), (10, 9), (100, 9), (234, 1)]
    assert counts["w34", "w1233"] == [(1, 14), (10, 12), (100, 11)]


def test_files_are_the_same_every_time(softmax_regression, tmp_path):
    for ending in ("png", "svg", "pdf", "html"):
        first, second = tmp_path / f"first.{ending}", tmp_path / f"second.{ending}"
        assert draw(softmax_regression, first) == first
        softmax_regression.draw(str(second))
        assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "first.png").read_bytes().startswith(PNG)
    assert len(list(tmp_path.iterdir())) == 8  # nothing temporary is left


def test_two_processes_may_write_one_file(tmp_path, monkeypatch):
    path, rename = tmp_path / "g.svg", os.replace

    def after_another(source, target):
        monkeypatch.setattr(os, "replace", rename)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        write(path, b"theirs")
        assert path.read_bytes() == b"theirs"
        rename(source, target)

    monkeypatch.setattr(os, "replace", after_another)
    write(path, b"ours")
    assert path.read_bytes() == b"ours"
    assert list(tmp_path.iterdir()) == [path]


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
        draw(other, tmp_path / "g.png", fold=5000)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(softmax_regression, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(DataError, match=r"pip install 'flowgrad\[viz\]'"):
        draw(softmax_regression, tmp_path / "g.png")
    for name in ("g.svg", "g.html"):
        assert draw(softmax_regression, tmp_path / name).stat().st_size > 1000


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
    assert all(f">{text}<" in path.read_text() for text in ("feed · 2", "3", "constant"))
    x.set_value([1.0, 2.0])
    graph.draw(str(path))
    assert path.read_bytes() == before


# -- notebooks --


def test_notebooks_show_a_graph_and_what_a_node_depends_on(softmax_regression, monkeypatch):
    graph = softmax_regression
    nodes = [n.index for n in graph.nodes]
    assert drawn_in(graph._repr_svg_()) == nodes
    assert drawn_in(graph["loss"]._repr_svg_()) == nodes
    assert drawn_in(graph["x"]._repr_svg_()) == [0]
    assert all(n.value is None for n in graph.nodes if n.parents)  # nothing is computed
    assert fg.Graph()._repr_svg_() is None
    monkeypatch.setattr("flowgrad.draw.MOST_SHOWN", 5)
    assert graph._repr_svg_() is None


def drawn_in(text):
    root = ElementTree.fromstring(text)
    return sorted(int(k) for g in root.iter() for k in (g.get("data-nodes") or "").split())


def test_tables_never_raise_and_say_little():
    class Thing(Shown):
        def __init__(self):
            self.records = [{"epoch": k, "loss": 1 / (k + 1)} for k in range(20)]
            self.array, self.counts, self.name = np.zeros((4, 3)), {"dot": 2}, "<b>"
            self.nothing, self.long, self._private = None, "x" * 1000, "never"

    text = Thing()._repr_html_()
    ElementTree.fromstring(text)
    for told in ("12 before", "4 x 3, float64", "2 dot", "&lt;b&gt;", "<td>0.05</td>", "…"):
        assert told in text
    assert len(text) < 3000
    assert "never" not in text
    Thing.__repr__ = Thing._shows = lambda self: 1 / 0
    assert Thing()._repr_html_() is None

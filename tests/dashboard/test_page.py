"""The page without a cluster: what it shows of a board, what a click opens, and that it is calm where nothing happens."""

import math
import signal
import time

import faults
import numpy as np
import pytest
from bokeh.document import Document

import flowgrad as fg
from flowgrad.draw import scene_of
from flowgrad.draw.scene import LINE, SMALL, TITLE, place_text, port_labels
from flowgrad.scheduler.costs import Plan, idle_workers
from flowgrad.scheduler.dashboard.budget import Budget
from flowgrad.scheduler.dashboard.charts import FLOOR, SOON, floored, span_of
from flowgrad.scheduler.dashboard.graph import kept_of, picture, rows_of, took_of
from flowgrad.scheduler.dashboard.page import Page
from flowgrad.scheduler.dashboard.picture import MARK, Told, place_marks
from flowgrad.scheduler.dashboard.plugin import Dashboard
from flowgrad.scheduler.dashboard.state import Board
from flowgrad.scheduler.dashboard.words import COLOURS, cause_of, learns

PLAN = Plan("round", 1, "numpy", 7, 56, "auto: small steps")
ABOUT = {
    "plan": PLAN.as_dict(),
    "steps": 100,
    "epochs": 2,
    "batch": 32,
    "optimizer": "Adam",
    "script": "train.py",
    "process": 1234,
    "host": "here",
    "began": 0.0,
    "graph": "9 nodes",
}
SEATS = [
    {"address": "tcp://a", "threads": 1, "first": 0, "stop": 1},
    {"address": "tcp://b", "threads": 1, "first": None, "stop": None},
]


class Plugin:
    def __init__(self):
        self.board, self.looked = Board(), 0.0
        self.held = frozenset()

    def kept(self, client):
        return self.held


def net(units=20):
    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(4, trainable=False, name="x"), fg.Variable(3, trainable=False, name="label")
        hidden = fg.layers.dense(x, units, "relu", per_neuron=True)
        loss = fg.CrossEntropyWithSoftMax(fg.layers.dense(hidden, 3), label, name="loss")
    return graph, loss


def told(board, run="a", client="c", loss=None):
    now = time.time()
    rows = [[k, 1, 1.0 / k, 0.5 / k, 2.0 / k] for k in range(1, 51)]
    steps = {"step": 50, "epoch": 1, "samples": 1600, "seconds": 3.0, "first": 1.0, "losses": rows, "seats": SEATS}
    epoch = {"epoch": 1, "step": 50, "validation_loss": 0.3, "validation_accuracy": 0.75}
    norms = {"layers": ["w", "b"], "gradient": [1.0, 2.0], "ratio": [1e-3, 0.0], "seconds": 3.0}
    messages = [("begin", ABOUT), ("steps", steps), ("epoch", epoch), ("norms", norms)]
    messages.append(("recovery", {"step": 40, "again": 8, "cause": "worker <x> went away", "seconds": 2.0}))
    if loss is not None:
        nodes, counted = rows_of(loss)
        messages.append(("graph", {"nodes": nodes, "counted": counted}))
        values = {row[0]: [1.0 + k, 0.5, 10.0] for k, row in enumerate(nodes)}
        messages.append(("values", {"nodes": values, "step": 50}))
    board.take(run, client, messages, now)


def shown(page, condition=lambda page: page.scene is not None):
    """Let the page show what is new, and lay out its picture."""
    page.update()

    def there():
        for callback in page.doc.session_callbacks:
            page.doc.remove_next_tick_callback(callback)
            callback.callback()
        return condition(page)

    faults.wait_for(there, 30)


@pytest.fixture
def page():
    return Page(Plugin(), Document())


def test_before_any_training_it_says_so(page):
    page.update()
    assert "No training yet" in page.head.text
    assert not page.body.visible
    told(page.board)
    page.update()
    assert page.body.visible


def test_it_says_what_runs_where_how_fast_and_whether_it_learns(page):
    told(page.board)
    page.update()
    for text in (
        "training",
        "1 of 2",
        "step 50 of 100",
        "75.00 %",
        "1 of them idle",
        "Adam",
        "train.py",
        "pid 1234 on here",
    ):
        assert text in page.head.text, text
    last = sum(1.0 / k for k in range(1, 51)) / 50
    assert f"<b>{last:.4g}</b><span>mean of the last 50 steps; 1 at the first</span>" in page.head.text
    assert "validation loss 0.3" in page.head.text
    assert "7 steps in a task" in page.words.text
    assert "auto: small steps" in page.words.text
    assert idle_workers(PLAN, 2, 1) in page.words.text
    assert "none of this run" in page.seats.text
    assert "worker &lt;x&gt; went away" in page.lost.text
    assert "<th>workers that went away</th>" in page.lost.text
    assert list(page.charts.loss.data["mean"]) == [1.0 / k for k in range(1, 51)]
    assert list(page.charts.metric_source.data["validation_accuracy"]) == [0.75]
    assert page.charts.layer_source.data["l0"][0] == 1.0
    assert [item.label.value for item in page.charts.layer_legends[0].items] == ["w", "b"]


def at_grain(page, grain, shards=1, seats=SEATS):
    told(page.board)
    run = page.board.runs["a"]
    run.about = {**ABOUT, "plan": {**PLAN.as_dict(), "grain": grain, "shards": shards, "reason": "asked for"}}
    run.grain, run.seats = grain, list(seats)
    page.update()


def test_at_grain_node_all_workers_are_at_work(page):
    at_grain(page, "node")
    assert "all of them take part" in page.head.text
    assert "which dask places on some worker" in page.words.text
    assert "idle" not in page.head.text + page.words.text + page.seats.text
    assert page.seats.text.count('class="bar"') == 2


@pytest.mark.parametrize(("shards", "words"), [(1, "A step is one task, on one worker"), (2, "A step is 4 tasks")])
def test_tasks_of_a_step_at_grain_shard(page, shards, words):
    at_grain(page, "shard", shards, [{**SEATS[0], "first": k, "stop": k + 1} for k in range(shards)])
    assert words in page.words.text


def test_workers_have_names(page):
    at_grain(page, "round", seats=[{**SEATS[0], "name": "w1"}, {**SEATS[1], "name": "tcp://b"}])
    assert "<td>w1 · tcp://a</td>" in page.seats.text
    assert "<td>tcp://b</td>" in page.seats.text


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([2.0], ""),
        ([2.0, math.nan, 1.0], "falls: 1 after epoch 2 is its lowest"),
        ([2.0, 1.0, 1.9], "was lowest after epoch 1, 1, and has risen since, to 1.9"),
        ([9.0, 1.0, 1.2], "was lowest after epoch 1, 1, and has risen since, to 1.2"),
        ([2.0, 1.0, 1.01], "was lowest after epoch 1, 1, and has hardly changed since: 1.01"),
        ([2.0, 3.0], "has not fallen: 3 after epoch 1, 2 after epoch 0"),
    ],
)
def test_whether_it_learns_is_a_sentence(losses, words):
    for name, what in (("validation_loss", "validation loss"), ("loss", "training loss")):
        said = learns([{"epoch": k, name: loss} for k, loss in enumerate(losses)])
        assert said == (f"{what} {words}" if words else "")
    assert (
        learns([{"epoch": 1, "loss": 1.0, "validation_loss": 2.0}, {"epoch": 2, "loss": 0.5, "validation_loss": None}])
        == ""
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), "stopped by Ctrl-C"),
        (SystemExit(128 + signal.SIGTERM), "stopped by SIGTERM"),
        (SystemExit(3), "stopped by sys.exit(3)"),
        (ValueError("two\nlines"), "ValueError: two lines"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_causes_are_words(error, words):
    assert cause_of(error) == words


def test_axes_show_what_matters():
    assert span_of([]) == span_of([[0.1, None]]) == (0.0, 1.0)
    least, most = span_of([[0.1], [0.94], [0.96], [0.97], [math.nan]])
    assert 0.9 < least < 0.94
    assert 0.97 < most < 1.0
    least, most = span_of([[0.5], [0.5]])
    assert least < 0.5 < most
    shown = floored([[1e3, 0.0, math.nan], [math.inf, 1e-30, 2.0]])
    assert np.array_equal(shown, [[1e3, 1e3 * FLOOR, math.nan], [math.nan, 1e3 * FLOOR, 2.0]], equal_nan=True)
    assert np.isnan(floored([[0.0, 0.0]])).all()


def test_norms_are_said_to_come_while_the_page_is_open(page):
    told(page.board)
    page.update()
    assert all(SOON in caption.text for caption in page.charts.norm_captions)
    told(page.board)
    page.update()
    assert not any(SOON in caption.text for caption in page.charts.norm_captions)


def test_large_numbers_can_be_read(page):
    told(page.board)
    page.board.runs["a"].about = {**ABOUT, "epochs": 100_000, "steps": 5_000_000}
    page.update()
    assert "1 of 100,000" in page.head.text
    assert "step 50 of 5,000,000" in page.head.text


def test_several_runs_side_by_side(page):
    told(page.board, "a", "one")
    told(page.board, "b", "two")
    page.update()
    assert page.shown().run == "b"
    assert page.choice.visible
    assert "run 1" in page.runs.text
    assert "run 2" in page.runs.text
    assert len(page.charts.loss.data["mean"]) == len(page.charts.others[0].data_source.data["mean"]) == 50
    assert "<th>script</th>" in page.runs.text
    assert page.choice.options[0] == ("a", "run 1 · train.py · training")
    charts = page.charts
    for place, run in ((1, "b"), (0, "a")):
        page.choice.value = run
        assert page.shown().run == run
        line, _ = charts.metric_lines["validation_accuracy"]
        assert {shown.glyph.line_color for shown in (line, charts.line, charts.held_out)} == {COLOURS[place]}
        assert [other.visible for other in charts.others] == [k != place for k in range(2)]
    assert set(charts.losses.x_range.renderers) == {charts.line, charts.held_out}  # however long the other is


def test_it_is_calm_when_idle(page):
    told(page.board)
    page.update()
    page.board.left("c")
    page.update()
    changes = []
    page.doc.on_change(changes.append)
    for _ in range(5):
        page.update()
    assert not changes


def test_a_click_opens_a_pile_and_a_button_folds_it(page):
    _, loss = net()
    told(page.board, loss=loss)
    shown(page)
    cards = page.picture.cards
    folded = len(cards.data["x"])
    pile = next(k for k, nodes in enumerate(cards.data["nodes"]) if len(nodes) > 1)
    assert "20" in cards.data["count"][pile]
    cards.selected.indices = [pile]
    shown(page, lambda page: len(page.picture.cards.data["x"]) > folded)
    assert page.shut.visible
    assert not cards.selected.indices
    page._fold()
    shown(page, lambda page: len(page.picture.cards.data["x"]) == folded)
    assert not page.shut.visible


def test_colours_follow_numbers_and_are_told(page):
    _, loss = net()
    told(page.board, loss=loss)
    shown(page)
    plain = list(page.picture.cards.data["fill"])
    page.by.value = "value norm"
    assert page.picture.cards.data["fill"] != plain
    assert "after step 50" in page.legend.text
    assert any("|value|" in text for text in page.picture.cards.data["numbers"])


def test_dark_paints_anew(page):
    _, loss = net()
    told(page.board, loss=loss)
    shown(page)
    light = list(page.picture.cards.data["fill"])
    page.probe.tags = [True, 1280]
    shown(page)
    assert page.picture.cards.data["fill"] != light
    assert page.doc.theme._json["attrs"]["Title"]["text_color"] == "#f3f4f6"


@pytest.mark.parametrize("width", [1280, 1920, 2560])
def test_pictures_fit_the_window(page, width):
    _, loss = net()
    told(page.board, loss=loss)
    page.probe.tags = [False, width]
    shown(page)
    assert page.picture.figure.width <= width - 40


def test_rows_make_the_picture_that_the_graph_makes():
    graph, loss = net()
    rows, counted = rows_of(loss)
    scene = picture(rows, counted, 1200, ())
    there = scene_of(graph, loss, width=1200)
    assert [c.title for c in scene.cards] == [c.title for c in there.cards]
    assert [(c.x, c.y, c.width) for c in scene.cards] == [(c.x, c.y, c.width) for c in there.cards]
    assert any(row[7] == "y = a + b" for row in rows)


def test_fills_are_by_the_logarithm_and_forget_what_is_as_good_as_zero():
    _, loss = net()
    rows, counted = rows_of(loss)
    scene = picture(rows, counted, 1200, ())
    values = {row[0]: [10.0 ** (-2 * k), 0.0, 0.0] for k, row in enumerate(rows)}
    told = Told(scene, rows, values, "value norm", "")
    assert told.least >= 1e-6 * told.most * 0.99
    assert set(told.fills) == {card.key for card in scene.cards}
    assert not Told(scene, rows, values, "cotangent norm", "").fills  # all of them zero


def test_labels_have_no_part_in_colours_of_cotangents():
    _, loss = net()
    rows, counted = rows_of(loss)
    scene = picture(rows, counted, 1200, ())
    values = {row[0]: [1.0, 1e9 if row[1] == "label" else 10.0 ** -(k % 9), 1.0] for k, row in enumerate(rows)}
    told = Told(scene, rows, values, "cotangent norm", "")
    fed = {card.key for card in scene.cards if card.role == "feed"}
    assert len(fed) == 2
    assert set(told.fills) == {card.key for card in scene.cards} - fed
    assert told.most <= 1.0
    assert told.clipped == (
        min(told._number(card.nodes, 1) for card in scene.cards if card.key not in fed) < told.least
    )
    assert set(Told(scene, rows, values, "value norm", "").fills) == {card.key for card in scene.cards}


def named(rows, kept):
    return {what: {rows[k][1] for k in places} for what, places in kept.items()}


def test_keys_that_are_held_mark_nodes():
    _, loss = net()
    rows, _ = rows_of(loss)
    dots = {row[1] for row in rows if row[2][0].startswith("Dot")}
    first, last = min(dots, key=lambda name: int(name[10:])), max(dots, key=lambda name: int(name[10:]))
    held = {
        ("dot-1", first),
        ("add-2", "dense1"),
        ("pull-add-3", "dense1 by dense1.b"),
        ("cotangent-4", "dense0"),
        ("jacobian-0", "loss by dense0.w0 .. dense0.w19"),
        ("seed-0", "loss"),
        ("block-5", f"{first} .. {last}"),
        ("relu-6", "of another graph"),
    }
    kept = named(rows, kept_of(rows, held))
    assert kept == {"value": {first, "dense1"}, "Jacobian": {"dense1", "dense0", "loss"}}
    fused = named(rows, kept_of(rows, [("matvec-1", f"20 x Dot {first} .. {last}")]))
    assert fused == {"value": dots, "Jacobian": set()}


@pytest.mark.parametrize("grain", ["node", "shard"])
def test_keys_of_cached_derivatives_are_those_of_nodes(grain):
    graph, loss = net()
    rows, _ = rows_of(loss)
    engine = fg.Engine("sync", grain=grain)
    engine.jacobian(loss, [graph["dense0"]], {graph["x"]: np.ones((2, 4)), graph["label"]: np.ones((2, 3))})
    held = [handle.key[:2] for handle, *_ in engine.session.cache.held.values()]
    kept = named(rows, kept_of(rows, held))
    ops = {row[1] for row in rows if row[4]}
    assert kept["value"] >= {"dense0", "dense1"}
    assert sum(name.startswith("dense0.dot") for name in kept["value"]) == 20
    assert kept["Jacobian"] >= {"loss"}
    assert kept["value"] | kept["Jacobian"] <= ops


def test_what_a_client_keeps_is_looked_at_now_and_then(monkeypatch):
    class Task:
        def __init__(self, key, state="memory"):
            self.key, self.state = key, state

    class Scheduler:
        clients = {
            "c": type("Client", (), {"wants_what": [Task(("dot-1", "a", "7")), Task(("dot-1", "b", "8"), "waiting")]})
        }

    plugin = Dashboard()
    plugin.scheduler, plugin._kept = Scheduler, {}
    others = [Task("update-1"), Task(("random-1", 0, 1))]
    Scheduler.clients["c"].wants_what += others
    assert plugin.kept("c") == {("dot-1", "a")}
    assert plugin.kept("who") == frozenset()
    Scheduler.clients["c"].wants_what.clear()
    assert plugin.kept("c") == {("dot-1", "a")}
    monkeypatch.setattr(plugin._kept["c"][0], "_next", 0.0)
    assert plugin.kept("c") == frozenset()


def test_marks_are_on_cards_in_the_legend_and_in_what_is_told(page):
    _, loss = net()
    told(page.board, loss=loss)
    shown(page)
    before = len(page.picture.badges.data["x"])
    assert "kept" not in page.legend.text
    page.plugin.held = frozenset({("add-1", f"dense0.{k}") for k in range(7)} | {("pull-add-1", "dense1 by dense1.b")})
    page.update()
    assert len(page.picture.badges.data["x"]) == before + 2
    texts = page.picture.texts.data["text"]
    assert "value × 7" in texts
    assert "Jacobian" in texts
    assert "value kept on the cluster of 7. " in page.picture.cards.data["kept"]
    assert "value kept" in page.legend.text
    assert "Jacobian kept" in page.legend.text
    page.plugin.held = frozenset()
    page.update()
    assert "kept" not in page.legend.text


def test_marks_lie_below_all_text_of_their_card():
    _, loss = net()
    scene = picture(*rows_of(loss), 1200, ())
    ports = port_labels(scene)
    size = {"title": TITLE, "line": LINE, "badge": 16.0}
    for card in scene.cards:
        lowest = [text.y + size[text.kind] / 2 for text in place_text(card, ports[card.key])]
        lowest += [port.y + SMALL / 2 for port in ports[card.key]]
        marks = place_marks(card, [("value", card.count), ("Jacobian", card.count)])
        assert all(y - MARK / 2 >= max(lowest) for _, y, *_ in marks)
        assert marks[0][0] + marks[0][2] / 2 < marks[1][0] - marks[1][2] / 2


def test_at_grain_node_times_and_keys_are_those_of_the_tasks_of_a_node(page):
    _, loss = net()
    told(page.board, loss=loss)
    run = page.shown()
    for seconds in (1e-5, 3e-5):
        run.ran_node(("add-1", "dense1", f"value{seconds}"), seconds)
        run.ran_node(("pull-add-1", "dense1 by dense1.b", f"edge{seconds}"), seconds)
        run.ran_node(("pull-add-2", "dense1 by dense1.matvec85", "another"), 4 * seconds)
    took = took_of(run.nodes, run.tasks)
    (k,) = took
    assert run.nodes[k][1] == "dense1"
    assert (took[k].forward, took[k].back) == pytest.approx((20.0, 100.0))
    assert "value3e-05" in took[k].value
    assert [key.split("'")[5] for key in took[k].edges] == ["edge3e-05", "another"]
    shown(page)
    cards = page.picture.cards
    at = list(cards.data["title"]).index("dense1")
    assert "forward" in cards.data["numbers"][at]
    assert "dask" not in cards.data["numbers"][at]  # another grain
    run.grain = "node"
    page.by.value = "time"
    assert "20 µs forward, 100 µs back by dask's tasks" in cards.data["numbers"][at]
    assert cards.data["key"][at].splitlines()[0] == took[k].value
    assert "by dask's tasks" in page.legend.text
    assert "interpreter" not in page.legend.text


def test_a_budget_is_kept():
    budget, spent, now = Budget(0.01, 1.0), 0.0, 0.0
    for _ in range(10_000):
        now += 0.1
        if budget.allows(now):
            budget.spent(now, 0.2)
            spent += 0.2
    assert spent <= 0.012 * now
    assert np.isclose(spent, 0.01 * now, rtol=0.2)

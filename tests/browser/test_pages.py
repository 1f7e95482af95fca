"""Pages as people see them: the report of a training, and the watched step."""

import numpy as np
import pytest
from click.testing import CliRunner

import flowgrad as fg
from flowgrad.cli import main

pytestmark = pytest.mark.browser

# Texts that run out of what they are in, or over one another: boxes by element.
OUTSIDE = """() => [...document.querySelectorAll("h1, h2, p, figure, .tile, .lane, table, pre")]
  .filter(e => !e.closest(".wide")).map(e => e.getBoundingClientRect())
  .filter(r => r.right > document.documentElement.clientWidth + 1).length"""


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    for package in ("rich", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    run = tmp_path_factory.mktemp("report") / "run"
    args = [
        "train",
        "digits",
        "--hidden",
        "6",
        "--epochs",
        "3",
        "--workers",
        "1",
        "-q",
        "--no-dashboard",
        "--out",
        str(run),
    ]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.output
    return run / "report.html"


@pytest.mark.distributed
def test_the_report_shows_everything(report, visit):
    page = visit(report)
    assert page.title() == "digits, 64 - 6 - 10"
    heads = page.locator("h2").all_text_contents()
    assert len(heads) == 10
    for mark in ("lowest: epoch", "highest: epoch"):
        assert page.locator(".curves svg text").filter(has_text=mark).count() == 1
    assert page.locator("details").count() == 2
    ticks = page.evaluate("() => [...document.querySelectorAll('.axis i')].map(i => i.getBoundingClientRect().right)")
    assert len(ticks) > 1
    assert ticks == sorted(ticks)
    assert page.locator(".matrix td").count() == 100
    pictures = page.evaluate("() => [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight])")
    assert pictures == [[True, 8, 8]] * (24 + 6)
    assert page.locator("svg.flowgrad .card").count() >= 10
    assert page.evaluate(OUTSIDE) == 0
    paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    dark = page.evaluate("() => matchMedia('(prefers-color-scheme: dark)').matches")
    assert (paper == "rgb(255, 255, 255)") != dark
    ink = page.evaluate("() => getComputedStyle(document.querySelector('.curves text')).fill")
    assert ink != paper


@pytest.fixture(scope="session")
def watched(tmp_path_factory):
    """A net with a shared weight and neurons that are folded, the page of a step, and what the interpreter knows of it."""
    with fg.Graph(seed=0) as graph:
        x = fg.Variable((3, 3), trainable=False, name="x")
        w = fg.Variable(4, "normal", name="w")
        seen = fg.Vectorize(
            *[fg.Dot(w, x[i : i + 2, j : j + 2].reshape(4)) for i in (0, 1) for j in (0, 1)], name="seen"
        )
        loss = fg.Sum(fg.layers.dense(seen, 20, "tanh", per_neuron=True, name="h"), name="loss")
    x.set_value(np.random.default_rng(0).normal(size=9))
    path = tmp_path_factory.mktemp("watch") / "watch.html"
    fg.watch(loss, path=path)
    return path, graph, loss


def numbers(page, what):
    text = page.locator(f"#{what} [data-numbers]").first.get_attribute("data-numbers")
    return np.array([float(n) for n in text.split()])


def click(page, index):
    """Click on the card that stands for a node."""
    page.locator(f'#picture .card[data-nodes~="{index}"] text.title').first.click()


def test_the_slider_moves_values_and_cotangents_of_the_interpreter(watched, visit):
    path, graph, loss = watched
    page = visit(path)
    w, seen = graph["w"], graph["seen"]
    click(page, w.index)
    np.testing.assert_allclose(numbers(page, "value"), w.value, rtol=1e-5)  # a leaf has its value from the start
    click(page, seen.index)
    assert page.locator("#value").count() == 0
    steps = page.evaluate("() => events.length")
    slider = page.locator("#slider")
    slider.fill(str(steps // 2))
    assert page.locator("#count").text_content() == f"{steps // 2} of {steps}"
    slider.fill(str(steps))
    for node in (w, seen):
        click(page, node.index)
        np.testing.assert_allclose(numbers(page, "value"), np.ravel(node.forward()), rtol=1e-5)
        np.testing.assert_allclose(numbers(page, "cotangent"), np.ravel(node.backward(loss)), rtol=1e-5)
    click(page, w.index)
    parts = page.locator("#panel .sum [data-numbers]")
    assert parts.count() == 4  # one for each window
    total = sum(np.array(part.get_attribute("data-numbers").split(), float) for part in parts.all())
    np.testing.assert_allclose(total, np.ravel(w.backward(loss)), rtol=1e-5)


def names(page, look):
    """Return the names of the nodes of the cards that are marked so."""
    return page.evaluate("look => cards.filter(c => c.g.classList.contains(look)).map(c => c.nodes.map(title))", look)


def test_the_halo_is_on_what_the_panel_is_about(watched, visit):
    page = visit(watched[0])
    count = page.evaluate("() => events.length")
    assert names(page, "chosen") == [["x"]]
    assert page.locator("#panel h2").text_content() == "x"
    for k in (1, 2, 3, count // 2, 5, count, count - 1):
        page.locator("#slider").fill(str(k)) if k > 3 else page.locator("#after").click()
        (chosen,) = names(page, "chosen")
        assert page.locator("#panel h2").text_content() in chosen
        assert names(page, "now") == [chosen]


def test_going_back_marks_sender_and_receiver(watched, visit):
    page = visit(watched[0])
    page.evaluate("() => go(firstBack + 1)")
    assert names(page, "from") == [["loss"]]
    assert names(page, "now") == [["h"]]
    assert page.locator("#picture .arrow.now.backwards").count() == 1
    page.evaluate("() => go(firstBack)")
    assert names(page, "now") == [["loss"]]
    assert page.locator("#picture .arrow.backwards").count() == 0


def test_a_pile_counts_what_has_come(watched, visit):
    page = visit(watched[0])
    line = page.locator("#picture .card.folded").filter(has_text="Dot").locator("text.line").first
    full = line.text_content()
    at = page.evaluate(
        "() => stops.find(s => s && nodes[events[s - 1][1]].op === 'Dot' && nodes[events[s - 1][1]].name.startsWith('h'))"
    )
    page.evaluate("at => go(at)", at)
    assert line.text_content() == "1 of 20"
    assert page.locator("#strip button").count() == 20
    assert page.locator("#strip button.missing").count() == 19
    page.evaluate("() => go(firstBack)")
    assert line.text_content() == full


def test_what_has_not_come_yet_is_listed_in_its_place(watched, visit):
    path, graph, _ = watched
    page = visit(path)
    w = graph["w"]
    click(page, w.index)
    page.evaluate("k => go(arrivals[k][1].at + 1)", w.index)
    told = page.locator("#panel .sum > div:first-child").all_text_contents()
    assert [line.partition(":")[0] for line in told] == [f"from {dot.name}" for dot in graph["seen"].parents]
    assert sum("came with event" in line for line in told) == 2
    assert sum("not yet" in line for line in told) == 2
    assert "the value of" in page.locator("#panel .sum").filter(has_text="came with").first.text_content()


def test_a_square_is_drawn_as_one(visit, tmp_path):
    with fg.Graph(seed=0):
        x = fg.Variable(36, np.arange(36.0), trainable=False, name="x")
        w = fg.Variable(36, "normal", name="w")
        y = fg.Vectorize(w @ x, fg.Sum(x), name="y")
    page = visit(fg.watch(y, path=tmp_path / "square.html").path)
    size = "() => [...document.querySelectorAll('#panel canvas')].map(c => [c.width, c.height])"
    assert page.evaluate(size) == [[6, 6]]
    page.evaluate("() => go(events.length)")
    click(page, w.index)
    assert page.evaluate(size) == [[6, 6]] * 3  # of each entry of y
    assert "entry 1 of y" in page.locator("#cotangent").text_content()


def test_keys_and_buttons_go_to_and_fro(watched, visit):
    page = visit(watched[0])
    stops = page.evaluate("() => stops")
    for stop in stops[1:4]:
        page.locator("#after-layer").click()
        assert page.evaluate("() => position") == stop
    for stop in stops[2::-1]:
        page.locator("body").press("Shift+ArrowLeft")
        assert page.evaluate("() => position") == stop
    for key, count in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("a", 1)):
        page.locator("body").press(key)
        assert page.evaluate("() => position") == count
    page.locator("#before").click()
    assert page.evaluate("() => position") == 0
    page.locator("#play").click()
    page.wait_for_function("position >= 3")
    page.locator("#play").click()
    now = page.evaluate("() => position")
    assert page.evaluate("() => timer") is None
    assert page.locator("#happened").text_content()
    assert now >= 3


def test_a_click_on_a_pile_shows_its_neurons(watched, visit):
    path, graph, loss = watched
    page = visit(path)
    page.evaluate("() => go(events.length)")
    pile = page.locator("#picture .card.folded").filter(has_text="20").first
    nodes = [int(n) for n in pile.get_attribute("data-nodes").split()]
    pile.locator("text.title").click()
    strip = page.locator("#strip button")
    assert strip.count() == len(nodes) == 20
    strip.nth(7).click()
    node = graph.nodes[nodes[7]]
    assert page.locator("#panel h2").text_content() == node.name
    np.testing.assert_allclose(numbers(page, "cotangent"), np.ravel(node.backward(loss)), rtol=1e-5, atol=1e-12)
    page.locator("#before").click()  # what was clicked on stays
    assert page.locator("#panel h2").text_content() == node.name
    page.locator("#follow").click()
    assert page.locator("#follow").count() == 0
    assert page.locator("#panel h2").text_content() != node.name

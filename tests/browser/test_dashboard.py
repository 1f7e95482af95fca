"""The live page in a browser: no errors, curves that move while a training runs, boxes that open by a click."""

import os
import threading
import time
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

import flowgrad as fg
from flowgrad.cli.models import multilayer_perceptron
from flowgrad.data import load
from flowgrad.scheduler.telling import page_address

# Where pictures of the pages are kept, if anywhere.
KEPT = os.environ.get("FLOWGRAD_SCREENSHOTS")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.distributed,
]

MODEL = "Bokeh.documents[0].get_model_by_name('{}')"
# What of the picture is a pile, as its place on the figure.
PILE = """() => {
  const graph = Bokeh.documents[0].get_model_by_name('graph')
  for (const renderer of graph.renderers) {
    const column = name => Array.from(renderer.data_source.get_column(name) ?? [])
    const at = column('nodes').findIndex(nodes => nodes.length > 1)
    if (at >= 0) return [column('x')[at], column('y')[at]]
  }
}"""
HEIGHT = f"() => {MODEL.format('graph')}.height"
STEPS = f"() => Math.max(0, ...{MODEL.format('loss')}.renderers[1].data_source.get_column('step'))"
PAINTED = f"() => window.Bokeh?.documents.length && {MODEL.format('graph')}?.height > 250"


@pytest.fixture(scope="module")
def training():
    """A net that is trained on a cluster with a dashboard until the tests are over; the address of the page, and what keeps
    values there."""
    data = load("mnist", "float32").head(6400, 100)
    model = multilayer_perceptron(784, [90], 10, 0)
    over = threading.Event()
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", memory_limit=0
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        until = fg.Callback()
        until.on_epoch = lambda record: fg.STOP if over.is_set() else time.sleep(0.05)
        trainer = fg.Trainer(fg.Adam(model.graph, model.loss, 0.002), fg.Engine(client, "float32"), callbacks=[until])
        feeds = {model.x: data.x_train, model.label: data.y_train}
        held_out = {model.x: data.x_test, model.label: data.y_test}
        address = page_address(client)
        thread = threading.Thread(target=trainer.fit, args=(feeds, 100_000, held_out))
        thread.start()
        engine, some = fg.Engine(client, "float32"), {v: feed[:8] for v, feed in feeds.items()}
        yield address, lambda: (engine, engine.jacobian(model.loss, [model.graph["h0"]], some))
        over.set()
        thread.join(60)


@pytest.fixture
def opened(training, chromium):
    """A function that opens the page; at the end there must have been no errors."""
    errors, pages = [], []

    def at(width=1280, dark=False):
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(training[0])
        page.wait_for_function(PAINTED, timeout=60_000)
        pages.append(page)
        return page

    yield at
    for page in pages:
        page.close()
    assert not errors


def keep(page, name):
    if KEPT:
        page.screenshot(path=Path(KEPT) / f"{name}.png", full_page=True)


@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (1280, False),
        (2560, True),
        pytest.param(1280, True, marks=pytest.mark.slow),
        pytest.param(2560, False, marks=pytest.mark.slow),
    ],
)
def test_it_loads_fits_and_follows_the_theme(opened, width, dark):
    page = opened(width, dark)
    page.wait_for_timeout(4000)
    keep(page, f"dashboard-{width}{'-dark' if dark else ''}")
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    background = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == dark
    for text in ("samples/s", "validation accuracy", "Lanes over the workers"):
        assert page.get_by_text(text, exact=True).first.is_visible(), text


def test_curves_move_while_a_training_runs(opened):
    page = opened()
    before = page.evaluate(STEPS)
    page.wait_for_function(f"before => ({STEPS})() > before", arg=before, timeout=60_000)


def test_a_click_opens_a_folded_box_and_a_button_folds_it_again(opened):
    page = opened()
    folded = page.evaluate(HEIGHT)
    figure = page.locator(".bk-Figure").last
    figure.scroll_into_view_if_needed()
    box, (x, y) = figure.bounding_box(), page.evaluate(PILE)
    page.mouse.move(box["x"] + x, box["y"] + y)
    hint = page.get_by_text("a click opens them").first
    hint.wait_for(timeout=60_000)
    page.mouse.click(box["x"] + x, box["y"] + y)
    page.wait_for_function(f"folded => ({HEIGHT})() > 1.5 * folded", arg=folded, timeout=60_000)
    hint.wait_for(state="hidden", timeout=60_000)
    page.get_by_text("Fold again").click()
    page.wait_for_function(f"folded => ({HEIGHT})() == folded", arg=folded, timeout=60_000)


def test_colours_by_norms_and_what_is_told_of_a_card(opened):
    page = opened()
    page.locator("select").last.select_option(label="colour by cotangent norm")
    page.get_by_text("cotangent norm of one sample").first.wait_for(timeout=60_000)
    figure = page.locator(".bk-Figure").last
    figure.scroll_into_view_if_needed()
    box, (x, y) = figure.bounding_box(), page.evaluate(PILE)
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.get_by_text("a click opens them").first.wait_for(timeout=60_000)
    keep(page, "dashboard-cotangents")


def test_what_is_kept_on_the_cluster_is_marked(opened, training):
    page = opened()
    engine, _ = training[1]()
    page.get_by_text("value kept on the cluster").first.wait_for(timeout=60_000)
    page.get_by_text("Jacobian kept on the cluster").first.wait_for(timeout=60_000)
    page.locator(".bk-Figure").last.scroll_into_view_if_needed()
    keep(page, "dashboard-kept")
    engine.clear_cache()
    page.get_by_text("kept on the cluster").first.wait_for(state="detached", timeout=60_000)


def test_a_scheduler_that_is_gone_is_said_to_be(chromium):
    page = chromium.new_page()
    said = page.get_by_text("This scheduler has ended")
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        page.goto(page_address(client))
        page.get_by_text("No training yet").wait_for(timeout=60_000)
        assert not said.is_visible()
    said.wait_for(timeout=60_000)
    page.close()

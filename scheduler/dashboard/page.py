"""The page ``/flowgrad``: what a session shows of the board, and how it is added to a dashboard that runs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape
from typing import Any

from bokeh.layouts import column, row
from bokeh.models import Button, CustomJS, Div, Select
from distributed.dashboard.core import BokehApplication, DaskBokehTornado
from distributed.dashboard.scheduler import template_variables
from tornado.ioloop import IOLoop

from flowgrad.draw import Scene
from flowgrad.draw.scene import SHADES
from flowgrad.errors import GraphError

from .charts import Charts
from .graph import kept_of, picture, took_of
from .look import CARD, INPUT, SHEET, TEMPLATE, theme_of
from .picture import BY, KEPT, Picture, Told
from .state import Board, Shown
from .words import PAGE, QUIET, describe, head_of, label_of, lost_of, number, plan_of, seats_of, table_of

# Milliseconds between two looks at the board.
LOOK = 1000
# Seconds after which times of tasks are painted again.
AGAIN = 3.0
# Lays pictures out: the scheduler's loop has other things to do.
_aside = ThreadPoolExecutor(1, thread_name_prefix="flowgrad-page")
PROBE = """
const scheme = window.matchMedia("(prefers-color-scheme: dark)")
const tell = () => { probe.tags = [scheme.matches, window.innerWidth] }
scheme.addEventListener("change", tell)
let waiting = null
window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(tell, 400) })
tell()
"""
# When the connection is lost, and when it is there again.
LOST, BACK = (f'document.getElementById("gone").hidden = {hidden}' for hidden in ("false", "true"))


def add_page(scheduler: Any, plugin: Any) -> str:
    """Add the page to the dashboard of a scheduler and a link to its navigation bar; return why there is none, if so."""
    there = [app for app in scheduler.http_application.applications if isinstance(app, DaskBokehTornado)]
    if not there:
        return f"{QUIET} the scheduler {scheduler.address} serves no dashboard"
    plugin.prefix = prefix = there[0].prefix
    variables = template_variables(scheduler)
    pages = {f"/{PAGE}": partial(_document, plugin)}
    app = BokehApplication(pages, scheduler, prefix=prefix, template_variables=variables)
    scheduler.http_application.add_application(app)
    app.initialize(IOLoop.current())
    app.start()
    if PAGE not in variables["pages"]:
        variables["pages"].insert(1, PAGE)
    return ""


def _document(plugin: Any, scheduler: Any, extra: dict[str, Any], doc: Any) -> None:
    """Fill a document for somebody who opened the page."""
    page = Page(plugin, doc)
    doc.title = "flowgrad"
    doc.template = TEMPLATE
    doc.template_variables.update(extra)
    doc.add_root(page.root)
    doc.js_on_event("document_ready", CustomJS(args={"probe": page.probe}, code=PROBE))
    doc.js_on_event("connection_lost", CustomJS(code=LOST))
    doc.js_on_event("client_reconnected", CustomJS(code=BACK))
    page.update()
    doc.add_periodic_callback(page.update, LOOK)


class Page:
    """What one session shows."""

    def __init__(self, plugin: Any, doc: Any):
        self.plugin, self.doc = plugin, doc
        self.board: Board = plugin.board
        self.dark, self.width = False, 1280
        self.chosen = ""
        self.opened: tuple[int, ...] = ()
        self.kept: frozenset[tuple[str, str]] = frozenset()
        self.scene: Scene | None = None
        self._scene_of: Any = None
        self._seen: Any = None
        self._painted: Any = None
        self.probe = Div(visible=False, tags=[])
        self.probe.on_change("tags", self._probed)
        doc.theme = theme_of(False)
        stretch = {"sizing_mode": "stretch_width", "stylesheets": [SHEET], "margin": 0}
        self.head, self.runs, self.words, self.seats, self.lost = (Div(**stretch) for _ in range(5))
        self.choice = Select(title="", options=[], width=260, visible=False, stylesheets=[INPUT])
        self.choice.on_change("value", self._choose)
        options = [(k, f"colour by {k}") for k in BY]
        self.by = Select(title="", value="kind", options=options, width=190, name="by", stylesheets=[INPUT])
        self.by.on_change("value", self._coloured)
        self.shut = Button(label="Fold again", width=110, visible=False, name="fold", stylesheets=[INPUT])
        self.shut.on_click(self._fold)
        self.legend = Div(**stretch)
        self.picture = Picture()
        self.picture.cards.selected.on_change("indices", self._tapped)
        self.charts = Charts()
        stretched: dict[str, Any] = {"sizing_mode": "stretch_width", "spacing": 10}
        graph = column(
            row(self.by, self.shut, self.legend, sizing_mode="stretch_width"),
            column(
                self.picture.figure,
                sizing_mode="stretch_width",
                stylesheets=[":host {overflow: auto}"],
            ),
            sizing_mode="stretch_width",
            stylesheets=[CARD],
        )
        words = row(self.words, self.seats, **stretched)
        self.body = column(*self.charts.rows, words, self.lost, graph, visible=False, **stretched)
        self.root = column(self.probe, self.choice, self.head, self.runs, self.body, **stretched)

    # -- what the reader does -----------------------------------------------------------------------------------

    def _probed(self, attr: str, old: Any, new: Any) -> None:
        dark, width = bool(new[0]), int(new[1])
        if dark != self.dark:
            self.dark = dark
            self.doc.theme = theme_of(dark)
        self.width, self._seen = width, None
        self.update()

    def _choose(self, attr: str, old: Any, new: Any) -> None:
        latest = self.board.latest()
        self.chosen = "" if latest is not None and latest.run == new else new
        self._fold()
        self._seen = None
        self.update()

    def _tapped(self, attr: str, old: Any, new: Any) -> None:
        if not new:
            return
        nodes = self.picture.cards.data["nodes"][new[-1]]
        self.picture.cards.selected.indices = []
        if len(nodes) > 1:
            self.opened = (*self.opened, nodes[0])
            self._repaint()

    def _coloured(self, attr: str, old: Any, new: Any) -> None:
        self._repaint()

    def _fold(self) -> None:
        self.opened = ()
        self._repaint()

    # -- what is shown ------------------------------------------------------------------------------------------

    def shown(self) -> Shown | None:
        """Return the run that is shown: the one that was chosen, or the latest."""
        return self.board.runs.get(self.chosen) or self.board.latest()

    def update(self) -> None:
        """Show what is new; nothing is sent where nothing is."""
        now = time.time()
        self.plugin.looked = now
        run = self.shown()
        quiet = 0.0 if run is None else run.silent(now)
        self.kept = frozenset() if run is None else self.plugin.kept(run.client)
        seen = (self.board.version, self.dark, self.width, run and run.run, int(quiet), self.kept)
        if seen == self._seen:
            return
        self._seen = seen
        self.head.text = head_of(run, quiet)
        self.body.visible = run is not None
        if run is None:
            return
        self._update_runs(run)
        self.charts.update(list(self.board.runs.values()), run)
        self.words.text, self.seats.text, self.lost.text = plan_of(run), seats_of(run), lost_of(run)
        self.lost.visible = bool(run.recoveries)
        self._draw(run)

    def _update_runs(self, run: Shown) -> None:
        runs = list(self.board.runs.values())
        options = [(r.run, label_of(r)) for r in runs]
        if self.choice.options != options:
            self.choice.options = options
        self.choice.visible = len(runs) > 1
        if self.choice.value != run.run:
            self.choice.value = run.run
        self.runs.text = table_of(runs, run) if len(runs) > 1 else ""
        self.runs.visible = len(runs) > 1

    # -- the graph ----------------------------------------------------------------------------------------------

    def _draw(self, run: Shown) -> None:
        """Have the scene that is wanted, in a thread where it must be laid out, then paint it."""
        if not run.nodes:
            soon = "the graph comes in a moment" if run.status == "training" else "no graph: nobody looked while it ran"
            self.legend.text = f'<span class="faint">{escape(run.counted or soon)}</span>'
            return
        wanted = run.run, self.opened, max(640, self.width - 60) // 40 * 40
        if wanted == self._scene_of:
            if self.scene is not None:
                self._paint(run)
            return
        self._scene_of, self.scene = wanted, None
        laid_out = _aside.submit(picture, run.nodes, run.counted, wanted[2], wanted[1])
        laid_out.add_done_callback(partial(self._laid_out, wanted))

    def _laid_out(self, wanted: Any, found: Any) -> None:
        def show() -> None:
            run = self.shown()
            if run is None or wanted != self._scene_of:
                return
            try:
                self.scene = found.result()
            except GraphError as error:  # too many boxes
                self.opened = self.opened[:-1]
                self._scene_of = None
                self.legend.text = f'<span class="faint">{escape(describe(error))}</span>'
                return
            self._paint(run)

        self.doc.add_next_tick_callback(show)

    def _repaint(self) -> None:
        run = self.shown()
        if run is not None:
            self._draw(run)

    def _paint(self, run: Shown) -> None:
        assert self.scene is not None
        tasks = run.tasks if run.grain == "node" else {}
        # Times of tasks change with each of them.
        changed = (len(tasks), run.seconds // AGAIN) if tasks else ()
        wanted = self._scene_of, self.dark, self.by.value, run.values_step, len(run.values), changed, self.kept
        if wanted == self._painted:
            return
        self._painted = wanted
        took, kept = took_of(run.nodes, tasks), kept_of(run.nodes, self.kept)
        told = Told(self.scene, run.nodes, run.values, self.by.value, run.key, took, kept)
        self.picture.paint(self.scene, run.nodes, told, self.dark)
        self.shut.visible = bool(self.opened)
        self.legend.text = _legend(self.scene, told, self.by.value, run)


def _legend(scene: Scene, told: Told, by: str, run: Shown) -> str:
    """Return what colours and signs mean, and of what the numbers are."""
    signs = "".join(f'<div class="faint">{escape(line)}</div>' for line in scene.signs)
    marks = {what for card in scene.cards for what, _ in told.marks(card.nodes)}
    kept = "".join(
        f'<span class="dot" style="background:{colour}"></span>{what} kept on the cluster &nbsp;'
        for what, colour in KEPT.items()
        if what in marks
    )
    if by == "kind" or not told.fills:
        roles = [
            f'<span class="dot" style="background:{line}"></span>{escape(role)} &nbsp;'
            for role, (_, line) in scene.roles.items()
        ]
        words = "" if by == "kind" else " (numbers come in a moment, while a training runs)"
        return f'{"".join(roles)}{kept}<span class="faint"> · {escape(scene.caption)}{words}</span>{signs}'
    gradient = f"linear-gradient(90deg, {', '.join(SHADES)})"
    bar = f'<span style="display:inline-block;width:140px;height:10px;border-radius:5px;background:{gradient}"></span>'
    unit = " µs" if by == "time" else ""
    what = f"of one sample, by the interpreter{', forward' if by == 'time' else ''}, after step {run.values_step:,}"
    if by == "time" and told.took:
        what = "by dask's tasks, forward and back, on average"
    return (
        f"{'at most ' * told.clipped}{number(told.least)}{unit} {bar} {number(told.most)}{unit} {kept}"
        f'<span class="faint">{by} {what} · {escape(scene.caption)}</span>{signs}'
    )

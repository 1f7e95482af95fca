"""The page ``/flowgrad``: what a session shows of the board, and how it is added to a dashboard that runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape
from typing import Any

import numpy as np
from bokeh.layouts import column, row
from bokeh.models import (
    Button,
    ColumnDataSource,
    CustomJS,
    Div,
    HoverTool,
    Legend,
    LegendItem,
    NumeralTickFormatter,
    Select,
    Span,
)
from bokeh.plotting import figure
from distributed.dashboard.core import BokehApplication, DaskBokehTornado
from distributed.dashboard.scheduler import template_variables
from tornado.ioloop import IOLoop

from flowgrad.draw import Scene
from flowgrad.draw.curves import PLAIN
from flowgrad.draw.scene import SHADES
from flowgrad.errors import GraphError
from flowgrad.inputs import count

from ..costs import Plan, idle_workers
from .graph import kept_of, picture, took_of
from .look import CARD, COLOURS, INPUT, SHEET, TEMPLATE, TIMES, lasting, number, theme_of, tile
from .measure import LAYERS, VALUES_SECONDS
from .picture import BY, KEPT, Picture, Told
from .plugin import PAGE, QUIET, describe
from .state import KINDS, Board, Losses, Shown

# Milliseconds between two looks at the board.
LOOK = 1000
# Epochs up to which each has a mark.
MARKED = 40
# Of legends above a chart: five entries fit beside each other where the window is 1280 pixels wide.
ABOVE = {"orientation": "horizontal", "margin": 0, "spacing": 8}
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
        self._sent: dict[str, Any] = {}
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
        self._make_charts()
        height = {"sizing_mode": "stretch_width", "spacing": 10}
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
        self.root = column(
            self.probe,
            self.choice,
            self.head,
            self.runs,
            row(self._card(self.losses), self._card(self.metrics), self._card(self.rates), **height),
            row(self._card(self.times), self._card(self.gradients), self._card(self.ratios), **height),
            row(self.words, self.seats, **height),
            self.lost,
            graph,
            sizing_mode="stretch_width",
            spacing=10,
        )

    # -- charts -------------------------------------------------------------------------------------------------

    def _chart(self, title: str, x: str, **more: Any) -> Any:
        chart = figure(
            title=title,
            height=230,
            min_width=250,
            sizing_mode="stretch_width",
            tools="",
            toolbar_location=None,
            x_axis_label=x,
            **more,
        )
        chart.x_range.range_padding = 0.02
        return chart

    def _card(self, chart: Any) -> Any:
        return column(chart, sizing_mode="stretch_width", stylesheets=[CARD])

    def _make_charts(self) -> None:
        # Lines come with what they show: bokeh goes through all models of a page for each message that it sends.
        self.losses = self._chart("Loss", "step", name="loss")
        self.loss_sources: list[ColumnDataSource] = []
        self.loss_lines: list[tuple[Any, Any]] = []
        self.validation = _source("step loss")
        look = {"line_width": 1.5, "line_dash": "dashed", "legend_label": "validation"}
        self.held_out = self.losses.line("step", "loss", source=self.validation, **look)
        self.marks = [self.losses.scatter("step", "loss", source=self.validation, size=6)]
        tips = [("step", "@step{0,0}"), ("loss", "@mean{0.0000}"), ("from", "@least{0.0000} to @most{0.0000}")]
        self.loss_hover = HoverTool(tooltips=tips, renderers=[], mode="vline")
        self.losses.add_tools(self.loss_hover)
        self.metrics = self._chart("Metrics", "epoch")
        self.metric_source = _source("epoch")
        self.metric_lines: dict[str, Any] = {}
        self.metrics.add_tools(HoverTool(tooltips=[("epoch", "@epoch"), ("", "$name: $y{0.0000}")]))
        self.losses.xaxis.formatter = NumeralTickFormatter(format="0,0")
        self.rates = self._chart("Samples per second", "seconds")
        self.rate_source = _source("seconds rate")
        self.rates.line("seconds", "rate", source=self.rate_source, line_color="#27ae60", line_width=2)
        self.rates.varea("seconds", 0, "rate", source=self.rate_source, fill_color="#27ae60", fill_alpha=0.12)
        self.rates.add_tools(HoverTool(tooltips=[("", "@rate{0,0} samples/s at @seconds{0} s")], mode="vline"))
        self.rates.yaxis.formatter = NumeralTickFormatter(format="0,0")
        self.rates.y_range.start = 0
        self.times = self._chart("Time of a step, ms", "seconds")
        self.time_source = _source("seconds " + " ".join(KINDS))
        self.times.varea_stack(
            list(KINDS),
            x="seconds",
            source=self.time_source,
            color=[TIMES[k] for k in KINDS],
            alpha=0.85,
            legend_label=list(KINDS),
        )
        self.times.y_range.start = 0
        legend = self.times.legend[0]
        legend.update(**ABOVE)
        self.times.add_layout(legend, "above")
        names = " ".join(f"l{k}" for k in range(2 * LAYERS))
        self.layer_source = _source("seconds " + names)
        self.gradients = self._chart("Norm of the gradient, by layer", "seconds", y_axis_type="log")
        self.ratios = self._chart("Update to weight, by layer", "seconds", y_axis_type="log")
        self.layer_lines: list[Any] = []
        self.layer_legends = [Legend(**ABOVE) for _ in range(2)]
        self.gradients.add_layout(self.layer_legends[0], "above")
        self.ratios.add_layout(self.layer_legends[1], "above")
        self.ratios.add_layout(Span(location=1e-3, dimension="width", line_dash="dotted", line_color="#8d99ae"))
        for chart in (self.gradients, self.ratios):
            chart.add_tools(HoverTool(tooltips=[("", "$name: $y{0.00e+0} at @seconds{0} s")]))

    def _add_losses(self, k: int) -> None:
        data = _source("step mean least most")
        band = self.losses.varea("step", "least", "most", source=data, fill_color=COLOURS[k], fill_alpha=0.15)
        line = self.losses.line("step", "mean", source=data, line_color=COLOURS[k], line_width=2)
        self.loss_sources.append(data)
        self.loss_lines.append((band, line))
        self.loss_hover.renderers = [line for _, line in self.loss_lines]

    def _add_layer(self, k: int) -> None:
        for chart, at in ((self.gradients, k), (self.ratios, LAYERS + k)):
            look = {"source": self.layer_source, "line_color": COLOURS[k], "line_width": 2}
            self.layer_lines.append(chart.line("seconds", f"l{at}", **look))

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
        self.head.text = _head(run, quiet)
        if run is None:
            return
        self._update_runs(run)
        self._update_charts(run)
        self.words.text, self.seats.text, self.lost.text = _plan(run), _seats(run), _lost(run)
        self.lost.visible = bool(run.recoveries)
        self._draw(run)

    def _update_runs(self, run: Shown) -> None:
        runs = list(self.board.runs.values())
        options = [(r.run, f"{r.name}: {r.about.get('target', '')}, {r.status}") for r in runs]
        if self.choice.options != options:
            self.choice.options = options
        self.choice.visible = len(runs) > 1
        if self.choice.value != run.run:
            self.choice.value = run.run
        self.runs.text = _table(runs, run) if len(runs) > 1 else ""
        self.runs.visible = len(runs) > 1

    def _put(self, source: Any, state: Any, columns: Callable[[], dict[str, list[float]]]) -> None:
        """Give a source its columns, if it shows another state: whatever is assigned is sent."""
        if self._sent.get(source.id) != state:
            self._sent[source.id] = state
            source.data = {name: np.array(column, np.float64) for name, column in columns().items()}

    def _update_charts(self, run: Shown) -> None:
        runs = list(self.board.runs.values())
        for k in range(len(self.loss_lines), len(runs)):
            self._add_losses(k)
        for k, (source, (band, line)) in enumerate(zip(self.loss_sources, self.loss_lines)):
            losses = runs[k].losses if k < len(runs) else Losses()
            self._put(source, (runs[k].run, runs[k].step) if k < len(runs) else None, losses.columns)
            mine = k < len(runs) and runs[k] is run
            band.visible = mine
            if mine:
                self.held_out.glyph.line_color = COLOURS[k]
                self.marks[0].glyph.update(line_color=COLOURS[k], fill_color=COLOURS[k])
            line.glyph.line_width, line.glyph.line_alpha = (2.5, 1.0) if mine else (1.2, 0.6)
        told = [(r["step"], r["validation_loss"]) for r in run.epochs if _finite(r.get("validation_loss"))]
        self._put(
            self.validation,
            (run.run, len(told), told[-1:]),
            lambda: {"step": [a for a, _ in told], "loss": [b for _, b in told]},
        )
        if self._sent.get("metrics") != (run.run, len(run.epochs), run.epoch):
            self._sent["metrics"] = run.run, len(run.epochs), run.epoch
            self._update_metrics(run)
        for source, series, names in (
            (self.rate_source, run.rates, ("seconds", "rate")),
            (self.time_source, run.times, ("seconds", *KINDS)),
        ):
            self._put(source, (run.run, series.rows[-1:]), partial(series.columns, names))
        if run.layers:
            self._update_layers(run)

    def _update_metrics(self, run: Shown) -> None:
        left_out = {*PLAIN, "step"}
        names = list(dict.fromkeys(n for r in run.epochs for n in r if n not in left_out and _finite(r[n])))[:8]
        shown = {n: [r[n] if _finite(r.get(n)) else math.nan for r in run.epochs] for n in names}
        gone = {n: [math.nan] * len(run.epochs) for n in self.metric_lines}
        columns = {"epoch": [r["epoch"] for r in run.epochs], **gone, **shown}
        self._put(self.metric_source, self._sent["metrics"], lambda: columns)
        for k, name in enumerate(n for n in names if n not in self.metric_lines):
            colour = COLOURS[(len(self.metric_lines) + k) % len(COLOURS)]
            look = {"source": self.metric_source, "name": name, "legend_label": name.replace("_", " ")}
            line = self.metrics.line("epoch", name, line_color=colour, line_width=2, **look)
            self.marks.append(self.metrics.scatter("epoch", name, color=colour, size=6, **look))
            self.metric_lines[name] = line
        for mark in self.marks:
            mark.visible = len(run.epochs) <= MARKED
        if names:
            self.metrics.legend.location = "bottom_right"

    def _update_layers(self, run: Shown) -> None:
        count = len(run.layers)
        names = [f"l{k + at}" for at in (0, LAYERS) for k in range(count)]

        def columns() -> dict[str, list[float]]:
            known = run.norms.columns(["seconds", *names])
            empty = [math.nan] * len(run.norms.rows)
            unused = {name: empty for name in self.layer_source.data if name not in known}
            return {name: [v if v > 0 else math.nan for v in known[name]] for name in known} | unused

        self._put(self.layer_source, (run.run, run.norms.rows[-1:]), columns)
        for k in range(len(self.layer_lines) // 2, count):
            self._add_layer(k)
        for k in range(len(self.layer_lines) // 2):
            for line in self.layer_lines[2 * k : 2 * k + 2]:
                line.visible = k < count
                line.name = run.layers[k] if k < count else ""
        for which, legend in enumerate(self.layer_legends):
            if [item.label.value for item in legend.items] != run.layers:
                lines = self.layer_lines[which::2]
                legend.items = [
                    LegendItem(label={"value": name}, renderers=[line]) for name, line in zip(run.layers, lines)
                ]
                legend.ncols = 4

    # -- the graph ----------------------------------------------------------------------------------------------

    def _draw(self, run: Shown) -> None:
        """Have the scene that is wanted, in a thread where it must be laid out, then paint it."""
        if not run.nodes:
            self.legend.text = f'<span class="faint">{escape(run.counted or "the graph comes in a moment")}</span>'
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
        changed = (len(tasks), run.seconds // VALUES_SECONDS) if tasks else ()
        wanted = self._scene_of, self.dark, self.by.value, run.values_step, len(run.values), changed, self.kept
        if wanted == self._painted:
            return
        self._painted = wanted
        took, kept = took_of(run.nodes, tasks), kept_of(run.nodes, self.kept)
        told = Told(self.scene, run.nodes, run.values, self.by.value, run.key, took, kept)
        self.picture.paint(self.scene, run.nodes, told, self.dark)
        self.shut.visible = bool(self.opened)
        self.legend.text = _legend(self.scene, told, self.by.value, run)


def _source(names: str) -> ColumnDataSource:
    return ColumnDataSource({name: [] for name in names.split()})


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


# -- words ----------------------------------------------------------------------------------------------------------


def _head(run: Shown | None, quiet: float) -> str:
    if run is None:
        return (
            '<div class="panel"><h3>No training yet</h3><p>Whatever <code>fg.Trainer(...).fit(...)</code> trains on this '
            "scheduler is shown here while it runs.</p></div>"
        )
    about = run.about
    steps, epochs = about.get("steps", 0), about.get("epochs", 0)
    part = run.step / steps if steps else 0.0
    status = {"gone": "its client is gone", "stopped": "stopped"}.get(run.status, run.status)
    if quiet:
        status = f"no news for {lasting(quiet)}"
    begun = f"from {number(run.first_loss)}" if run.step else ""
    last = run.epochs[-1] if run.epochs else {}
    metric = next((n for n in ("validation_accuracy", "accuracy", "validation_r2") if _finite(last.get(n))), "")
    told = f"{100 * last[metric]:.2f} %" if metric.endswith("accuracy") else number(last.get("validation_loss"))
    left = (steps - run.step) / (run.step / run.seconds) if run.step and run.seconds else math.nan
    idle = sum(seat["first"] is None for seat in run.seats)
    ahead = f"{lasting(left)} left" if run.status == "training" else f"took {lasting(run.seconds)}"
    bar = f'<div class="progress"><i style="width:{100 * min(1.0, part):.1f}%"></i></div>'
    tiles = [
        tile(run.name, status, escape(about.get("graph", "")) + bar),
        tile("epoch", f"{min(run.epoch, epochs):,} of {epochs:,}", f"step {run.step:,} of {steps:,} · {ahead}"),
        tile("loss", number(run.loss), begun),
        tile(metric.replace("_", " ") or "validation loss", told, f"after epoch {last['epoch']:,}" if last else ""),
        tile("samples/s", number(run.rate), f"batches of {about.get('batch', 0):,} by {about.get('optimizer', '')}"),
        tile("workers", f"{len(run.seats)}", f"{idle} of them idle" if idle else "all of them at work"),
    ]
    cause = f'<p class="faint">{escape(run.cause)}</p>' if run.cause else ""
    return f'<div class="tiles">{"".join(tiles)}</div>{cause}'


def _table(runs: list[Shown], run: Shown) -> str:
    rows = []
    for k, r in enumerate(runs):
        strong = ' style="font-weight: 600"' if r is run else ""
        cells = (
            f'<span class="dot" style="background:{COLOURS[k]}"></span>{r.name}',
            escape(str(r.about.get("target", ""))),
            r.status,
            f"epoch {r.epoch:,} of {r.about.get('epochs', 0):,}",
            f"loss {number(r.loss)}",
            f"{number(r.rate)} samples/s",
            escape(r.grain),
        )
        rows.append(f"<tr{strong}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="panel"><table>{"".join(rows)}</table></div>'


def _plan(run: Shown) -> str:
    told = run.about.get("plan", {})
    if not told:
        return ""
    plan = Plan(**told | {"grain": run.grain})
    lanes = sum(seat["first"] is not None for seat in run.seats)
    what = {
        "round": f"One worker runs {count(plan.steps_per_task, 'step')} in a task, one after the other.",
        "collective": f"{lanes} workers share each step: everyone computes some shards, and they exchange gradients directly.",
        "shard": f"A step is a task for each of {lanes} workers, one for the update, and one that sends the weights.",
        "sample": "The gradient of each sample is a task.",
        "node": "Each node, and each edge on the way back, is a task.",
    }.get(plan.grain, "")
    threads = min((seat["threads"] for seat in run.seats), default=1)
    why = idle_workers(plan, len(run.seats), threads)
    lines = [
        f"grain <b>{escape(plan.grain)}</b>, {count(plan.shards, 'shard')} of a batch, kernel {escape(plan.kernel)}",
        escape(what),
        f'<span class="faint">{escape(plan.reason)}</span>',
        escape(f"{why}." if why else ""),
    ]
    return '<div class="panel"><h3>Plan</h3>' + "".join(f"<p>{line}</p>" for line in lines if line) + "</div>"


def _seats(run: Shown) -> str:
    rows = ["<tr><th>worker</th><th>threads</th><th>shards</th><th>computing</th><th></th></tr>"]
    for seat in run.seats[:32]:
        first, stop = seat["first"], seat["stop"]
        busy = run.busy.get(seat["address"], 0.0)
        if first is None:
            rows.append(
                f'<tr class="idle"><td>{escape(seat["address"])}</td><td>{seat["threads"]}</td><td>none: idle</td><td></td></tr>'
            )
            continue
        shards = f"{first}" if stop == first + 1 else f"{first} to {stop - 1}"
        bar = f'<div class="bar"><i style="width:{100 * busy:.0f}%"></i></div>'
        rows.append(
            f"<tr><td>{escape(seat['address'])}</td><td>{seat['threads']}</td><td>{shards}</td><td>{bar}</td>"
            f"<td>{100 * busy:.0f} %</td></tr>"
        )
    more = f"<p>and {len(run.seats) - 32} more</p>" if len(run.seats) > 32 else ""
    return f'<div class="panel"><h3>Lanes over the workers</h3><table>{"".join(rows)}</table>{more}</div>'


def _lost(run: Shown) -> str:
    if not run.recoveries:
        return ""
    rows = [
        f"<tr><td>{lasting(r.get('seconds', math.nan))}</td><td>after step {r['step']:,}</td>"
        f'<td>{r.get("again", 0):,} steps done again</td><td class="wide">{escape(str(r.get("cause", "")))}</td></tr>'
        for r in list(run.recoveries)[-8:]
    ]
    return f'<div class="panel"><h3>Lost, and done again</h3><table>{"".join(rows)}</table></div>'


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
        f"{number(told.least)}{unit} {bar} {number(told.most)}{unit} {kept}"
        f'<span class="faint">{by} {what} · {escape(scene.caption)}</span>{signs}'
    )

"""The charts of the page: curves of loss and metrics, rates, what a step's time goes to, norms by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, Div, HoverTool, Legend, LegendItem, NumeralTickFormatter, Span
from bokeh.plotting import figure

from flowgrad.draw.curves import LATER, PLAIN

from .look import CARD, SHEET, TIMES
from .state import KINDS, LAYERS, Shown
from .words import COLOURS, finite, heading

# Epochs up to which each has a mark, and metrics that are shown.
MARKED, METRICS = 40, 8
# What is smaller than so much of the largest norm is shown as that: batches that are learnt have none at all.
FLOOR = 1e-8
# Of legends above a chart: five entries fit beside each other where the window is 1280 pixels wide.
ABOVE = {"orientation": "horizontal", "margin": 0, "spacing": 8}
# Of a chart what it shows, what is to be known of it, and what pointing at its title tells.
LOSS = (
    "Loss",
    "mean, least and largest of steps; validation by epoch",
    "Training: each point is of some steps, whose mini-batches have a loss each. Validation: all its samples, after each epoch.",
)
METRIC = (
    "Metrics",
    "after each epoch; epoch 0 is before the first step",
    "An axis with many epochs leaves out epoch 0.",
)
RATE = ("Samples per second", "mean of a second or more", "Evaluation between epochs is included.")
TIME = (
    "Time of a step, ms",
    "mean of the workers at work, by dask's tasks",
    "exchange: gradients and weights on their way. waiting: neither computing nor exchanging, but for the scheduler, for others of "
    "the step, or for other trainings.",
)
NORMS = (
    (
        "Norm of the gradient of one batch, by layer",
        "of a batch now and then, which may be learnt already",
        f"What is smaller than {FLOOR:g} of the largest is shown as that. Layers: variables that follow each other and are alike.",
    ),
    (
        "Update to weight, by layer",
        "usual is about 1e-3, the dotted line",
        "Norm of what one update changes, divided by the norm of the weights.",
    ),
)
# Norms are measured for those who look.
SOON = "measured while this page is open: some seconds to wait"
NEVER = "measured while somebody looks, and nobody did"


class Charts:
    """What one session sees of them.

    Attributes
    ----------
    rows : list
        Their cards, side by side.
    """

    def __init__(self) -> None:
        self._sent: dict[str, Any] = {}
        losses, metrics = self._make_losses(), self._make_metrics()
        rates, times = self._make_rates(), self._make_times()
        norms = self._make_norms()
        stretch = {"sizing_mode": "stretch_width", "spacing": 10}
        self.rows = [row(losses, metrics, rates, **stretch), row(times, *norms, **stretch)]

    # -- how they are made --------------------------------------------------------------------------------------

    def _chart(self, x: str, **more: Any) -> Any:
        look = {"tools": "", "toolbar_location": None, "x_axis_label": x, **more}
        chart = figure(height=215, min_width=250, sizing_mode="stretch_width", **look)
        chart.x_range.range_padding = 0.02
        chart.xaxis.ticker.desired_num_ticks = 5  # of six digits
        return chart

    def _card(self, chart: Any, title: str, words: str, more: str) -> Any:
        caption = Div(text=heading(title, words, more), sizing_mode="stretch_width", stylesheets=[SHEET], margin=(0, 8))
        return column(caption, chart, sizing_mode="stretch_width", stylesheets=[CARD])

    def _make_losses(self) -> Any:
        self.losses = chart = self._chart("step", name="loss")
        self.loss, self.validation = _source("step mean least most"), _source("step loss")
        self.band = chart.varea("step", "least", "most", source=self.loss, fill_alpha=0.15)
        self.line = chart.line("step", "mean", source=self.loss, line_width=2.5)
        self.held_out = chart.line("step", "loss", source=self.validation, line_width=1.5, line_dash="dashed")
        self.marks = [chart.scatter("step", "loss", source=self.validation, size=6)]
        # Other runs; lines come with what they show: bokeh goes through all models of a page for each message that it sends.
        self.others: list[Any] = []
        # The shown run alone says how far the axes go: another one may be a thousand times as long.
        chart.x_range.renderers = chart.y_range.renderers = [self.line, self.held_out]
        tips = [("step", "@step{0,0}"), ("loss", "@mean{0.0000}"), ("from", "@least{0.0000} to @most{0.0000}")]
        chart.add_tools(HoverTool(tooltips=tips, renderers=[self.line], mode="vline"))
        chart.xaxis.formatter = NumeralTickFormatter(format="0,0")
        entries = (("training, mean", self.line), ("least to largest", self.band), ("validation", self.held_out))
        self.entries = [LegendItem(label={"value": name}, renderers=[shown]) for name, shown in entries]
        chart.add_layout(Legend(items=self.entries, **ABOVE), "above")
        return self._card(chart, *LOSS)

    def _make_metrics(self) -> Any:
        self.metrics = self._chart("epoch", y_range=(0.0, 1.0))
        self.metrics.xaxis.ticker.min_interval = 1
        self.metrics.x_range.default_span = 1.0
        self.metric_source = _source("epoch")
        self.metric_lines: dict[str, tuple[Any, Any]] = {}
        self.metrics.add_tools(HoverTool(tooltips=[("epoch", "@epoch"), ("", "$name: $y{0.0000}")]))
        self.metric_legend = Legend(**ABOVE)
        self.metrics.add_layout(self.metric_legend, "above")
        return self._card(self.metrics, *METRIC)

    def _make_rates(self) -> Any:
        rates = self._chart("seconds")
        self.rate_source = _source("seconds rate")
        rates.line("seconds", "rate", source=self.rate_source, line_color="#27ae60", line_width=2)
        rates.varea("seconds", 0, "rate", source=self.rate_source, fill_color="#27ae60", fill_alpha=0.12)
        rates.add_tools(HoverTool(tooltips=[("", "@rate{0,0.[0]} samples/s at @seconds{0} s")], mode="vline"))
        rates.yaxis.formatter = NumeralTickFormatter(format="0,0.[0]")
        rates.y_range.start = 0
        return self._card(rates, *RATE)

    def _make_times(self) -> Any:
        times = self._chart("seconds")
        self.time_source = _source("seconds " + " ".join(KINDS))
        look = {"color": [TIMES[k] for k in KINDS], "alpha": 0.85, "legend_label": list(KINDS)}
        times.varea_stack(list(KINDS), x="seconds", source=self.time_source, **look)
        times.y_range.start = 0
        legend = times.legend[0]
        legend.update(**ABOVE)
        times.add_layout(legend, "above")
        return self._card(times, *TIME)

    def _make_norms(self) -> list[Any]:
        self.layer_source = _source("seconds " + " ".join(f"l{k}" for k in range(2 * LAYERS)))
        self.layer_lines: list[Any] = []
        self.norms = [self._chart("seconds", y_axis_type="log") for _ in range(2)]
        self.layer_legends = [Legend(**ABOVE) for _ in range(2)]
        for chart, legend in zip(self.norms, self.layer_legends):
            chart.add_layout(legend, "above")
            chart.add_tools(HoverTool(tooltips=[("", "$name: $y{0.00e+0} at @seconds{0} s")]))
        self.norms[1].add_layout(Span(location=1e-3, dimension="width", line_dash="dotted", line_color="#8d99ae"))
        cards = [self._card(chart, *told) for chart, told in zip(self.norms, NORMS)]
        self.norm_captions = [card.children[0] for card in cards]
        return cards

    def _add_other(self, k: int) -> None:
        look = {"line_color": COLOURS[k], "line_width": 1.2, "line_alpha": 0.6}
        self.others.append(self.losses.line("step", "mean", source=_source("step mean least most"), **look))

    def _add_metric(self, name: str) -> None:
        look = {"source": self.metric_source, "name": name}
        line, marks = (
            self.metrics.line("epoch", name, line_width=2, **look),
            self.metrics.scatter("epoch", name, size=6, **look),
        )
        self.metric_lines[name] = line, marks
        self.marks.append(marks)

    def _add_layer(self, k: int) -> None:
        for chart, at in zip(self.norms, (k, LAYERS + k)):
            look = {"source": self.layer_source, "line_color": COLOURS[k], "line_width": 2}
            self.layer_lines.append(chart.line("seconds", f"l{at}", **look))

    # -- what they show -----------------------------------------------------------------------------------------

    def update(self, runs: Sequence[Shown], run: Shown) -> None:
        """Show a run, and the losses of the others beside its own."""
        self._update_losses(runs, run)
        seen = run.run, len(run.epochs), run.epoch
        if self._sent.get("metrics") != seen:
            self._sent["metrics"] = seen
            self._update_metrics(run, runs.index(run))
        for source, series, names in (
            (self.rate_source, run.rates, ("seconds", "rate")),
            (self.time_source, run.times, ("seconds", *KINDS)),
        ):
            self._put(source, (run.run, series.rows[-1:]), partial(series.columns, names))
        self._update_layers(run)

    def _put(self, source: Any, state: Any, columns: Callable[[], dict[str, Any]]) -> None:
        """Give a source its columns, if it shows another state: whatever is assigned is sent."""
        if self._sent.get(source.id) != state:
            self._sent[source.id] = state
            source.data = {name: np.array(column, np.float64) for name, column in columns().items()}

    def _update_losses(self, runs: Sequence[Shown], run: Shown) -> None:
        for k in range(len(self.others), len(runs) if runs[1:] else 0):
            self._add_other(k)
        for k, line in enumerate(self.others):
            line.visible = k < len(runs) and runs[k] is not run
            if line.visible:
                self._put(line.data_source, (runs[k].run, runs[k].step), runs[k].losses.columns)
        self._put(self.loss, (run.run, run.step), run.losses.columns)
        told = [(r["step"], r["validation_loss"]) for r in run.epochs if finite(r.get("validation_loss"))]
        columns = {"step": [a for a, _ in told], "loss": [b for _, b in told]}
        self._put(self.validation, (run.run, len(told), told[-1:]), lambda: columns)
        self.entries[-1].visible = bool(told)
        colour = COLOURS[runs.index(run)]
        self.band.glyph.fill_color = self.line.glyph.line_color = self.held_out.glyph.line_color = colour
        self.marks[0].glyph.update(line_color=colour, fill_color=colour)

    def _update_metrics(self, run: Shown, place: int) -> None:
        left_out = {*PLAIN, "step"}
        names = list(dict.fromkeys(n for r in run.epochs for n in r if n not in left_out and finite(r[n])))[:METRICS]
        shown = {n: [r[n] if finite(r.get(n)) else math.nan for r in run.epochs] for n in names}
        gone = {n: [math.nan] * len(run.epochs) for n in self.metric_lines}
        columns = {"epoch": [r["epoch"] for r in run.epochs], **gone, **shown}
        self._put(self.metric_source, self._sent["metrics"], lambda: columns)
        for name in names:
            if name not in self.metric_lines:
                self._add_metric(name)
        for k, name in enumerate(names):
            colour, (line, marks) = COLOURS[(place + k) % len(COLOURS)], self.metric_lines[name]
            line.glyph.line_color = colour
            marks.glyph.update(line_color=colour, fill_color=colour)
        # Legends of a run before stay until there is something else: to give them other entries costs a walk through all models.
        if names and [item.label.value for item in self.metric_legend.items] != [_spaced(n) for n in names]:
            self.metric_legend.items = [
                LegendItem(label={"value": _spaced(n)}, renderers=[self.metric_lines[n][0]]) for n in names
            ]
            self.metric_legend.ncols = 3
        for mark in self.marks:
            mark.visible = len(run.epochs) <= MARKED
        start, end = span_of([[r.get(n) for n in names] for r in run.epochs])
        self.metrics.y_range.update(start=start, end=end)

    def _update_layers(self, run: Shown) -> None:
        count = len(run.layers)

        def columns() -> dict[str, Any]:
            empty = [math.nan] * len(run.norms.rows)
            names = [f"l{k + at}" for at in (0, LAYERS) for k in range(count)]
            told = run.norms.columns(["seconds", *names])
            for half in (names[:count], names[count:]):
                told |= zip(half, floored([told[name] for name in half]))
            return {name: empty for name in self.layer_source.data} | told

        self._put(self.layer_source, (run.run, run.norms.rows[-1:]), columns)
        for caption, (title, words, more) in zip(self.norm_captions, NORMS):
            later = SOON if run.status == "training" else NEVER
            caption.text = heading(title, words if len(run.norms.rows) > 1 else later, more)
        for k in range(len(self.layer_lines) // 2, count):
            self._add_layer(k)
        for k in range(len(self.layer_lines) // 2):
            for line in self.layer_lines[2 * k : 2 * k + 2]:
                line.visible = k < count
                line.name = run.layers[k] if k < count else ""
        for which, legend in enumerate(self.layer_legends):
            if run.layers and [item.label.value for item in legend.items] != run.layers:
                lines = self.layer_lines[which::2]
                legend.items = [
                    LegendItem(label={"value": name}, renderers=[line]) for name, line in zip(run.layers, lines)
                ]
                legend.ncols = 4


def span_of(rows: Sequence[Sequence[Any]]) -> tuple[float, float]:
    """Return where an axis of metrics starts and ends: it shows all of a few epochs, later not what was before the first.

    Examples
    --------
    >>> span_of([[0.1]]), span_of([[20.0], [40.0]])
    ((0.0, 1.0), (19.0, 41.0))
    >>> span_of([[0.1], [0.75], [0.95], [0.95], [0.95]])
    (0.74, 0.96)
    """
    numbers = [x for row in rows[len(rows) > LATER :] for x in row if finite(x)]
    least, most = min(numbers, default=0.0), max(numbers, default=1.0)
    if len(rows) < 2 and 0.0 <= least <= most <= 1.0:
        return 0.0, 1.0
    room = 0.05 * (most - least) or 0.05 * abs(most) or 0.5
    return least - room, most + room


def floored(norms: Sequence[Sequence[float]]) -> Any:
    """Return norms that a logarithm can show; what is not finite, or all of them if none is positive, is not."""
    shown = np.array(norms, np.float64)
    shown[~np.isfinite(shown)] = math.nan
    floor = FLOOR * np.nanmax(shown, initial=0.0)
    return np.maximum(shown, floor) if floor > 0 else np.full_like(shown, math.nan)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _source(names: str) -> ColumnDataSource:
    return ColumnDataSource({name: [] for name in names.split()})

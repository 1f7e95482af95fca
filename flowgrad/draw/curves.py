"""Learning curves: loss, accuracy or other metrics, and the learning rate, by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np

from ..errors import DataError

INK, FAINT, GRID, TRAIN, TEST = "#1f2937", "#6b7280", "#e5e7eb", "#6366f1", "#db2777"
# Of an epoch's record, what is no metric.
PLAIN = ("epoch", "loss", "validation_loss", "seconds", "samples_per_second", "learning_rate")
MOST = 4  # panels
# Epochs from which on what was before the first one does not decide about the axes.
LATER = 2
# What is best, in words, and where it is; of other metrics nobody knows.
BEST: dict[str, tuple[str, Callable[..., Any]]] = {
    "loss": ("lowest", np.nanargmin),
    "accuracy": ("highest", np.nanargmax),
}


def curves(
    records: Sequence[Mapping[str, Any]],
    losses: Sequence[float],
    kept: int | None = None,
    title: str = "",
    every: int = 1,
) -> Any:
    """Return a figure of the course of a training.

    Parameters
    ----------
    records : sequence of dict
        As ``History.epochs``.
    losses : sequence of float
        Means of `every` steps each.
    kept : int, optional
        The epoch whose state was kept; where there is none, loss and accuracy each have their own best one marked.

    Raises
    ------
    DataError
        When matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise DataError("drawing curves needs matplotlib: pip install 'flowgrad[viz]'") from error
    epochs = np.array([record["epoch"] for record in records], dtype=int)
    panels: list[Callable[[Any], None]] = [lambda axes: _loss(axes, records, losses, epochs, every)]
    for name in _metrics(records):
        panels.append(lambda axes, name=name: _metric(axes, records, epochs, name))  # type: ignore[misc]
    rates = _column(records, "learning_rate")
    if len(set(rates[np.isfinite(rates)])) > 1:
        panels[MOST - 1 :] = [lambda axes: _rate(axes, epochs, rates)]
    panels = panels[:MOST]
    width = 5.5 * max(len(panels), 1)
    figure: Any = Figure(
        figsize=(width, 4.6), facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    )
    if title:
        figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    last = int(epochs[-1]) if len(epochs) else 1
    for axes, panel in zip(np.ravel(figure.subplots(1, len(panels))), panels):
        panel(axes)
        axes.set_xlabel("epoch", color=FAINT)
        axes.set_xlim(-0.02 * max(last, 1), last * 1.03 or 1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        title = axes.get_title("left")
        best = best_epoch(records, kept, title) if kept is not None or title in BEST else None
        if best is not None:
            axes.axvline(best, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            text = f"{'kept' if kept is not None else BEST[title][0]}: epoch {best}"
            side, shift = ("right", -4) if best > last / 2 else ("left", 4)
            at = dict(xytext=(shift, -3), textcoords="offset points", ha=side, va="top", fontsize=8, color=FAINT)
            axes.annotate(text, (best, 1), xycoords=("data", "axes fraction"), **at)
        axes.tick_params(which="both", colors=FAINT, length=0)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
    figure._repr_png_ = partial(_png, figure)  # notebooks show figures by themselves only if pyplot made them
    return figure


def _png(figure: Any) -> bytes:
    out = BytesIO()
    figure.savefig(out, format="png", dpi=80)
    return out.getvalue()


def best_epoch(records: Sequence[Mapping[str, Any]], kept: int | None = None, name: str = "loss") -> int | None:
    """Return the epoch that was kept, else that with the best loss or accuracy, of validation where there is one."""
    if kept is not None:
        return kept
    for key in (f"validation_{name}", name):
        values = _column(records, key)
        if np.isfinite(values).any():
            return int(records[int(BEST[name][1](values))]["epoch"])
    return None


def smooth(values: np.ndarray, span: int) -> np.ndarray:
    """Return the centred moving mean over `span` of ``(N,)`` values; near the ends over those that there are."""
    span = max(1, min(span, len(values)))
    total = np.concatenate(([0.0], np.cumsum(values)))
    middle = np.arange(len(values))
    low = np.maximum(middle - span // 2, 0)
    high = np.minimum(middle + (span + 1) // 2, len(values))
    return (total[high] - total[low]) / (high - low)


def _loss(
    axes: Any, records: Sequence[Mapping[str, Any]], losses: Sequence[float], epochs: np.ndarray, every: int
) -> None:
    """Draw on a log scale where the loss falls far, four decades at most."""
    steps = np.asarray(losses, dtype=float)
    test, train = _column(records, "validation_loss"), _column(records, "loss")
    lines = [test, train]
    if len(steps) and epochs[-1] > 0:
        at = (np.arange(len(steps)) + 1) / len(steps) * epochs[-1]
        span = max(1, len(steps) // 60)
        lines.append(smooth(steps, span))
    shown = np.concatenate(lines)
    shown = shown[np.isfinite(shown)]
    positive = bool(len(shown)) and bool(shown.min() > 0)
    high = shown.max(initial=0.0) if not positive else shown.max()
    floor = max(shown.min(initial=0.0) if not positive else shown.min(), 1e-4 * high)
    log = positive and high > 5 * floor
    if len(lines) > 2:
        few, thin = max(1, span // 10), max(1, len(steps) // 600)
        if few > 1:
            fine = np.maximum(smooth(steps, few), 0.6 * floor) if log else smooth(steps, few)
            faint = dict(color=TRAIN, alpha=0.25, linewidth=0.7, label=f"training, mean of {few * every} steps")
            axes.plot(at[::thin], fine[::thin], **faint)
        label = f"training, mean of {span * every} steps" if span * every > 1 else "training"
        kept = np.maximum(lines[2], floor) if log else lines[2]
        axes.plot(at[::thin], kept[::thin], color=TRAIN, linewidth=1.8, label=label)
    elif np.isfinite(train).any():
        axes.plot(epochs, train, "o-", color=TRAIN, linewidth=1.8, markersize=4, label="training")
    if np.isfinite(test).any():
        kept = np.maximum(test, floor) if log else test
        _dots(axes, epochs, kept, "validation")
    if log:
        low, high = floor * 0.6, high * 1.4
        _scale(axes, "log", low, high, _decades(low, high), lambda value, _: f"{value:g}")
    _head(axes, "loss")


def _metric(axes: Any, records: Sequence[Mapping[str, Any]], epochs: np.ndarray, name: str) -> None:
    """Draw a metric, from where the epochs that matter begin; what lies outside of that is written down."""
    test, train = _column(records, f"validation_{name}"), _column(records, name)
    both = np.concatenate((test, train))
    late = np.concatenate((test[epochs > 0], train[epochs > 0])) if epochs[-1] >= LATER else both
    late = late[np.isfinite(late)] if np.isfinite(late).any() else both[np.isfinite(both)]
    share = name == "accuracy" and bool((late >= 0).all() and (late <= 1).all())
    if np.isfinite(train).any():
        axes.plot(epochs, train, "o-", color=TRAIN, linewidth=1.8, markersize=4, label="training")
    if np.isfinite(test).any():
        _dots(axes, epochs, test, "validation", clip=True)
    if share:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    written = (lambda value: f"{100 * value:.2f} %") if share else (lambda value: f"{value:.4g}")
    least, most = float(late.min()), float(late.max())
    room = most - least or 0.01 * abs(most) or 1.0
    low, high = least - 0.1 * room, most + 0.18 * room
    axes.set_ylim(low, high)
    axes.yaxis.get_major_locator().set_params(nbins=5)
    drawn, colour = (test, TEST) if np.isfinite(test).any() else (train, TRAIN)
    known = np.flatnonzero(np.isfinite(drawn))
    at = dict(xytext=(-3, 8), textcoords="offset points", ha="right", color=colour)
    axes.annotate(written(drawn[known[-1]]), (epochs[known[-1]], drawn[known[-1]]), **at)
    before = drawn[known[0]]
    if not low <= before <= high:
        text = f"epoch {epochs[known[0]]}: {written(before)}, {'below' if before < low else 'above'}"
        at = dict(xytext=(0, 5), textcoords="offset points", ha="right", color=colour)
        axes.annotate(text, (1, 1), xycoords="axes fraction", fontsize=8.5, **at)
    _head(axes, name.replace("_", " "))


def _rate(axes: Any, epochs: np.ndarray, rates: np.ndarray) -> None:
    known = np.isfinite(rates)
    axes.plot(epochs[known], rates[known], "o-", color=INK, linewidth=1.5, markersize=3)
    least, most = rates[known].min(), rates[known].max()
    if 20 * least < most < 1e4 * least:  # else the last one, near 0, would be all that one sees
        _scale(axes, "log", 0.7 * least, 1.4 * most, _decades(least, most), lambda value, _: f"{value:g}")
    _head(axes, "learning rate, at the end of each epoch")


def _head(axes: Any, title: str) -> None:
    """Write the title, and below it what the lines are: over the axes, where no line runs."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=22)
    if axes.get_legend_handles_labels()[0]:
        close = dict(borderaxespad=0.3, borderpad=0, handlelength=1.4, columnspacing=1.2, fontsize=8.5)
        axes.legend(frameon=False, labelcolor=INK, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, **close)


def _dots(axes: Any, epochs: np.ndarray, values: np.ndarray, label: str, clip: bool = False) -> None:
    few = "o-" if len(epochs) <= 60 else "-"
    axes.plot(epochs, values, few, color=TEST, linewidth=1.8, markersize=5, label=label, clip_on=clip, zorder=4)


def _scale(axes: Any, kind: str, low: float, high: float, ticks: Iterable[float], form: Callable[..., str]) -> None:
    axes.set(yscale=kind, ylim=(low, high), yticks=[tick for tick in ticks if low <= tick <= high])
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(form)


def _decades(low: float, high: float) -> list[float]:
    marks = (1, 2, 5) if high < 200 * low else (1,)
    return [m * 10.0**e for e in range(-12, 12) for m in marks]


def _metrics(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of metrics that are numbers, accuracy first."""
    names = list(dict.fromkeys(key.removeprefix("validation_") for r in records for key in r if key not in PLAIN))
    known = (n for n in names if any(np.isfinite(_column(records, key)).any() for key in (n, f"validation_{n}")))
    return sorted(known, key=lambda name: name != "accuracy")


def _column(records: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Return one number for each epoch; nan for what is none, such as a confusion matrix."""
    values = [record.get(key) for record in records]
    return np.array([v if isinstance(v, (int, float)) else np.nan for v in values], dtype=float)

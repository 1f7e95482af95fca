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
LATER = 4


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
        The epoch whose state was kept; the best one is marked where there is none.

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
    best = best_epoch(records, kept)
    last = int(epochs[-1]) if len(epochs) else 1
    for axes, panel in zip(np.ravel(figure.subplots(1, len(panels))), panels):
        panel(axes)
        axes.set_xlabel("epoch", color=FAINT)
        axes.set_xlim(-0.02 * max(last, 1), last * 1.03 or 1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if best is not None:
            axes.axvline(best, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            text = f"{'kept' if kept is not None else 'best'}: epoch {best}"
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


def best_epoch(records: Sequence[Mapping[str, Any]], kept: int | None = None) -> int | None:
    """Return the epoch that was kept, else that with the lowest loss, of validation where there is one."""
    if kept is not None:
        return kept
    for name in ("validation_loss", "loss"):
        values = _column(records, name)
        if np.isfinite(values).any():
            return int(records[int(np.nanargmin(values))]["epoch"])
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
    axes.set_title("loss", loc="left", fontsize=11, color=INK)
    if axes.lines:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper center", bbox_to_anchor=(0.55, 0.97))


def _metric(axes: Any, records: Sequence[Mapping[str, Any]], epochs: np.ndarray, name: str) -> None:
    """Draw shares on a logit scale: 90, 99 and 99.9 % lie equally far apart, so that late epochs can be told apart."""
    test, train = _column(records, f"validation_{name}"), _column(records, name)
    axes.set_title(name.replace("_", " "), loc="left", fontsize=11, color=INK)
    both = np.concatenate((test, train))
    late = np.concatenate((test[epochs > 0], train[epochs > 0])) if epochs[-1] >= LATER else both
    late = late[np.isfinite(late)] if np.isfinite(late).any() else both[np.isfinite(both)]
    share = name == "accuracy" and bool((late >= 0).all() and (late <= 1).all())
    fit: Callable[[Any], Any] = (lambda values: np.clip(values, 0.02, 0.9995)) if share else (lambda values: values)
    if np.isfinite(train).any():
        axes.plot(epochs, fit(train), "o-", color=TRAIN, linewidth=1.8, markersize=4, label="training")
    if np.isfinite(test).any():
        _dots(axes, epochs, fit(test), "validation", clip=True)
    shown, least, most = fit(late), float(fit(late).min()), float(fit(late).max())
    if share:
        low, high = max(0.7 * least, 1 - 1.6 * (1 - least)), 1 - 0.6 * (1 - most)
        ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
        _scale(axes, "logit", low, high, ticks, lambda value, _: f"{100 * value:g} %")
    elif most > least:
        axes.set_ylim(least - 0.08 * (most - least), most + 0.12 * (most - least))
    drawn = test if np.isfinite(test).any() else train
    known = np.flatnonzero(np.isfinite(drawn))
    if len(known) and len(shown):
        text = f"{100 * drawn[known[-1]]:.2f} %" if share else f"{drawn[known[-1]]:.4g}"
        colour = TEST if drawn is test else TRAIN
        at = dict(xytext=(-3, 8), textcoords="offset points", ha="right", color=colour)
        axes.annotate(text, (epochs[known[-1]], fit(drawn)[known[-1]]), **at)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="lower center")


def _rate(axes: Any, epochs: np.ndarray, rates: np.ndarray) -> None:
    known = np.isfinite(rates)
    axes.plot(epochs[known], rates[known], "o-", color=INK, linewidth=1.5, markersize=3)
    least, most = rates[known].min(), rates[known].max()
    if 20 * least < most < 1e4 * least:  # else the last one, near 0, would be all that one sees
        _scale(axes, "log", 0.7 * least, 1.4 * most, _decades(least, most), lambda value, _: f"{value:g}")
    axes.set_title("learning rate, at the end of each epoch", loc="left", fontsize=11, color=INK)


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

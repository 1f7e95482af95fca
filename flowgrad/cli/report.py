"""What a training command leaves behind: tables, a picture of the learning curves, a report."""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..scheduler.training import History

INK, FAINT, TRAIN, TEST = "#1f2937", "#6b7280", "#6366f1", "#db2777"


class EarlyImports(threading.Thread):
    """A callback that imports what the report needs in a thread, while the workers train and this process waits."""

    def run(self) -> None:
        """Import."""
        for name in ("sklearn.metrics", "matplotlib.figure", "matplotlib.backends.backend_agg"):
            import_module(name)

    def on_train_begin(self, info: dict[str, Any]) -> None:
        """Begin: compiling kernels, before, wants this process for itself."""
        self.start()


def write_tables(folder: Path, history: History) -> None:
    """Write ``history.csv``, one row per epoch, and ``steps.csv``, one row per step."""
    columns = list(dict.fromkeys(key for record in history.epochs for key in record))
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        rows.writeheader()
        for record in history.epochs:
            rows.writerow({key: "" if value != value else value for key, value in record.items()})
    with (folder / "steps.csv").open("w", newline="", encoding="utf-8") as file:
        steps = csv.writer(file, lineterminator="\n")
        steps.writerow(("step", "loss"))
        steps.writerows(history.steps)


def classification_text(labels: np.ndarray, predicted: np.ndarray, classes: int) -> str:
    """Return scikit-learn's classification report and confusion matrix, as text, for class indices ``(N,)``."""
    from sklearn.metrics import classification_report, confusion_matrix

    indices = list(range(classes))
    report = classification_report(labels, predicted, labels=indices, digits=4, zero_division=0)
    matrix = confusion_matrix(labels, predicted, labels=indices)
    width = max(len(str(matrix.max())), len(str(classes - 1)), 3) + 2
    lines = ["confusion matrix (rows: true class, columns: predicted class)", ""]
    lines.append(" " * 6 + "".join(f"{i:>{width}}" for i in indices))
    lines += [f"{i:>6}" + "".join(f"{n:>{width}}" for n in row) for i, row in enumerate(matrix)]
    return "classification report\n\n" + report.rstrip() + "\n\n" + "\n".join(lines) + "\n"


def smooth(values: np.ndarray, span: int) -> np.ndarray:
    """Return the centred moving mean over `span` of ``(N,)`` values; near the ends over those that there are."""
    span = max(1, min(span, len(values)))
    total = np.concatenate(([0.0], np.cumsum(values)))
    middle = np.arange(len(values))
    low = np.maximum(middle - span // 2, 0)
    high = np.minimum(middle + (span + 1) // 2, len(values))
    return (total[high] - total[low]) / (high - low)


def draw_curves(path: Path, history: History, title: str) -> None:
    """Draw the learning curves as a ``.png``: loss by step and by epoch, accuracy by epoch, from before the first epoch on."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(11, 4.6), facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    left, right = figure.subplots(1, 2)
    epochs = np.array([record["epoch"] for record in history.epochs])
    _draw_loss(left, history, epochs)
    _draw_accuracy(right, history, epochs)
    for axes in (left, right):
        axes.set_xlabel("epoch", color=FAINT)
        axes.set_xlim(-0.02 * max(epochs[-1], 1), epochs[-1] * 1.03 or 1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(which="both", colors=FAINT, length=0)
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#d1d5db")
    figure.savefig(path, format="png", dpi=160)


def _draw_loss(axes: Any, history: History, epochs: np.ndarray) -> None:
    """Draw on a log scale where the loss falls far, four decades at most."""
    steps = np.array([loss for _, loss in history.steps], dtype=float)
    test = _column(history, "validation_loss")
    lines = [test]
    if len(steps) and epochs[-1] > 0:
        at = (np.arange(len(steps)) + 1) / len(steps) * epochs[-1]
        span = max(1, len(steps) // 60)
        lines.append(smooth(steps, span))
    shown = np.concatenate(lines)
    shown = shown[np.isfinite(shown) & (shown > 0)]
    high = shown.max(initial=1e-300)
    floor = max(shown.min(initial=high), 1e-4 * high)
    log = high > 5 * floor
    if len(lines) > 1:
        if span >= 10:
            few = span // 10
            fine = np.maximum(smooth(steps, few), 0.6 * floor if log else 0)
            axes.plot(at, fine, color=TRAIN, alpha=0.25, linewidth=0.7, label=f"training, mean of {few} steps")
        label = f"training, mean of {span} steps" if span > 1 else "training"
        axes.plot(at, np.maximum(lines[1], floor if log else 0), color=TRAIN, linewidth=1.8, label=label)
    kept = np.maximum(test, floor) if log else test
    axes.plot(epochs, kept, "o-", color=TEST, linewidth=1.8, markersize=5, label="test", clip_on=False, zorder=4)
    if log:
        low, high = floor * 0.6, high * 1.4
        marks = (1, 2, 5) if high < 200 * low else (1,)
        ticks = [m * 10.0**e for e in range(-9, 9) for m in marks]
        _scale(axes, "log", low, high, ticks, lambda value, _: f"{value:g}")
    axes.set_title("loss", loc="left", fontsize=11, color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def _draw_accuracy(axes: Any, history: History, epochs: np.ndarray) -> None:
    """Draw on a logit scale: 90, 99 and 99.9 % lie equally far apart, so that late epochs can be told apart."""
    accuracy = _column(history, "validation_accuracy")
    axes.set_title("test accuracy", loc="left", fontsize=11, color=INK)
    known = np.flatnonzero(np.isfinite(accuracy))
    if not len(known):
        axes.set_ylim(0, 1)
        return
    shown = np.clip(accuracy, 0.02, 0.9995)
    axes.plot(epochs, shown, "o-", color=TEST, linewidth=1.8, markersize=5, clip_on=False, zorder=4)
    low, high = 0.7 * np.nanmin(shown), 1 - 0.6 * (1 - np.nanmax(shown))
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
    _scale(axes, "logit", low, high, ticks, lambda value, _: f"{100 * value:g} %")
    for i in sorted({known[0], known[-1]}):
        early = i == known[0] and i != known[-1]
        shift, anchor = ((9, -4), "left") if early else ((0, -18), "right")
        text = f"{100 * accuracy[i]:.2f} %"
        axes.annotate(text, (epochs[i], shown[i]), shift, textcoords="offset points", ha=anchor, color=TEST)


def _scale(axes: Any, kind: str, low: float, high: float, ticks: Iterable[float], form: Callable[..., str]) -> None:
    axes.set(yscale=kind, ylim=(low, high), yticks=[tick for tick in ticks if low <= tick <= high])
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(form)


def _column(history: History, key: str) -> np.ndarray:
    return np.array([record.get(key) for record in history.epochs], dtype=float)  # nan for None

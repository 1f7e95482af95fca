"""What a training command leaves behind: tables, a picture of the learning curves, a report."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

INK, FAINT, TRAIN, TEST = "#1f2937", "#6b7280", "#6366f1", "#db2777"


class History(Protocol):
    """What `Trainer.fit` returns: one record per epoch, and the loss of every step."""

    epochs: list[dict[str, Any]]
    steps: list[tuple[int, float]]


def write_tables(folder: Path, history: History) -> None:
    """Write ``history.csv``, one row per epoch, and ``steps.csv``, one row per step.

    Parameters
    ----------
    folder : Path
    history : History
    """
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
    """Return scikit-learn's classification report and confusion matrix as text.

    Parameters
    ----------
    labels, predicted : ndarray, (N,), int
        True and predicted class indices.
    classes : int
        How many classes there are.

    Returns
    -------
    str
        Several lines; in the matrix a row is a true class and a column a predicted one.
    """
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
    """Return the centred moving mean over `span` values; near the ends over those that there are.

    Parameters
    ----------
    values : ndarray, (N,)
    span : int

    Returns
    -------
    ndarray, (N,)
    """
    span = max(1, min(span, len(values)))
    total = np.concatenate(([0.0], np.cumsum(values)))
    middle = np.arange(len(values))
    low = np.maximum(middle - span // 2, 0)
    high = np.minimum(middle + (span + 1) // 2, len(values))
    return (total[high] - total[low]) / (high - low)


def draw_curves(path: Path, history: History, title: str) -> None:
    """Draw the learning curves: loss by step and by epoch, accuracy by epoch, from before the first epoch on.

    Parameters
    ----------
    path : Path
        A ``.png`` file to write.
    history : History
    title : str
        Headline of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), facecolor="white", layout="constrained")
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    left, right = figure.subplots(1, 2)
    epochs = np.array([record["epoch"] for record in history.epochs])
    _draw_loss(left, history, epochs)
    _draw_accuracy(right, history, epochs)
    for axes in (left, right):
        axes.set_xlabel("epoch", color=FAINT)
        axes.set_xlim(-0.02 * max(epochs[-1], 1), epochs[-1] * 1.03 or 1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(colors=FAINT, length=0)
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#d1d5db")
    figure.savefig(path, format="png", dpi=160)


def _draw_loss(axes: Any, history: History, epochs: np.ndarray) -> None:
    steps = np.array([loss for _, loss in history.steps], dtype=float)
    if len(steps) and epochs[-1] > 0:
        at = (np.arange(len(steps)) + 1) / len(steps) * epochs[-1]
        thin = max(1, len(steps) // 4000)
        axes.plot(at[::thin], steps[::thin], color=TRAIN, alpha=0.16, linewidth=0.6, rasterized=True)
        span = max(1, len(steps) // 60)
        axes.plot(
            at, smooth(steps, span), color=TRAIN, linewidth=1.8, label=f"training, mean of {span} steps"
        )
    test = _column(history, "validation_loss")
    axes.plot(
        epochs, test, "o-", color=TEST, linewidth=1.8, markersize=5, label="test", clip_on=False, zorder=4
    )
    positive = np.concatenate((test, smooth(steps, 9) if len(steps) else steps))
    positive = positive[np.isfinite(positive) & (positive > 0)]
    if len(positive) and positive.max() > 10 * positive.min():
        axes.set_yscale("log")
        axes.set_ylim(positive.min() * 0.7, positive.max() * 1.4)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.set_title("loss", loc="left", fontsize=11, color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def _draw_accuracy(axes: Any, history: History, epochs: np.ndarray) -> None:
    accuracy = 100 * _column(history, "validation_accuracy")
    axes.set_title("test accuracy, %", loc="left", fontsize=11, color=INK)
    axes.plot(epochs, accuracy, "o-", color=TEST, linewidth=1.8, markersize=5, clip_on=False, zorder=4)
    axes.set_ylim(0, 100)
    known = np.flatnonzero(np.isfinite(accuracy))
    for i in {known[0], known[-1]} if len(known) else ():
        above = accuracy[i] < 50
        shift = (6, 8) if i == known[0] and i != known[-1] else (0, 10 if above else -16)
        anchor = "left" if i == known[0] and i != known[-1] else "right"
        text = f"{accuracy[i]:.2f} %"
        axes.annotate(
            text, (epochs[i], accuracy[i]), shift, textcoords="offset points", ha=anchor, color=TEST
        )


def _column(history: History, key: str) -> np.ndarray:
    values: Sequence[Any] = [record.get(key) for record in history.epochs]
    return np.array([np.nan if value is None else value for value in values], dtype=float)

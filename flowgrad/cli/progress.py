"""What a training command shows while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TimeRemainingColumn

from .console import column
from .console import console as plain_console

COLUMNS = {"epoch": 7, "test loss": 10, "test accuracy": 13, "train loss": 10, "samples/s": 10, "seconds": 7}
HEADER = "  ".join(name.rjust(width) for name, width in COLUMNS.items())


class ProgressCallback:
    """A trainer's callback: a progress bar on a terminal, and one line per epoch anywhere.

    Parameters
    ----------
    epochs : int
        How many epochs will be trained.
    console : rich.console.Console, optional
        Where to print; standard output when not given.
    """

    def __init__(self, epochs: int, console: Console | None = None):
        self.epochs = epochs
        self.console = console or plain_console()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._samples = 0

    def on_train_begin(self, info: Mapping[str, Any]) -> None:
        """Print the plan and the heading, and show an empty bar."""
        plan = info["plan"]
        steps = plan["steps_per_task"]
        parts = f"grain {plan['grain']}, shards {plan['shards']}, {steps} step{'s' * (steps != 1)} per task"
        self.console.print(f"plan: {parts}\n      ({plan['reason']})", soft_wrap=True)
        self.console.print(HEADER, style="bold", soft_wrap=True)
        if self.console.is_terminal:
            self._bar = Progress(
                column("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(bar_width=None),
                column("{task.percentage:>3.0f} %"),
                column("{task.fields[speed]:>9,.0f} samples/s"),
                column("loss {task.fields[loss]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
                refresh_per_second=8,
            )
            fields: dict[str, Any] = {"epoch": 1, "epochs": self.epochs, "speed": 0.0, "loss": "-"}
            self._task = self._bar.add_task("train", total=None, **fields)
            self._bar.start()

    def on_steps(self, info: Mapping[str, Any]) -> None:
        """Move the bar on."""
        if self._bar is not None:
            self._samples += info["samples"]
            seconds = info["seconds"]
            self._bar.update(
                self._task,
                completed=info["step"],
                total=info["steps"],
                epoch=min(info["epoch"], self.epochs),
                speed=self._samples / seconds if seconds > 0 else 0.0,
                loss=f"{info['loss']:.4f}",
            )

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Print one line."""
        self.console.print(epoch_line(record, self.epochs), soft_wrap=True)

    def on_train_end(self, history: object) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Take the bar away; safe to call twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    """Format one epoch's record under `HEADER`; what was not measured is left blank."""
    if record["epoch"] == 0:  # nothing was trained yet
        record = {**record, "samples_per_second": None}

    def field(key: str, width: int, form: str, factor: float = 1.0, unit: str = "") -> str:
        value = record.get(key)
        if value is None or not math.isfinite(value):
            return " " * width
        return (format(value * factor, form) + unit).rjust(width)

    return "  ".join(
        (
            f"{record['epoch']}/{epochs}".rjust(7),
            field("validation_loss", 10, ".4f"),
            field("validation_accuracy", 13, ".2f", 100.0, " %"),
            field("loss", 10, ".4f"),
            field("samples_per_second", 10, ",.0f"),
            field("seconds", 7, ".1f"),
        )
    ).rstrip()

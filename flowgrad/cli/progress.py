"""What a training command shows while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TimeRemainingColumn

from .console import column
from .console import console as plain_console

# Headings, as wide as their columns, and how the numbers of a record are written, some times 100.
NAMES = ("  epoch", " test loss", "test accuracy", "train loss", " samples/s", "seconds")
FORMS = {
    "validation_loss": "{:.4f}",
    "validation_accuracy": "{1:.2f} %",
    "loss": "{:.4f}",
    "samples_per_second": "{:,.0f}",
    "seconds": "{:.1f}",
}
HEADER = "  ".join(NAMES)


class ProgressCallback:
    """A trainer's callback: a progress bar on a terminal, and one line per epoch anywhere.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where to print; standard output when not given.
    """

    def __init__(self, console: Console | None = None):
        self.epochs = 0
        self.console = console or plain_console()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._samples = 0

    def on_train_begin(self, info: Mapping[str, Any]) -> None:
        """Print the plan and the heading, and show an empty bar."""
        plan, self.epochs = info["plan"], info["epochs"]
        steps = plan["steps_per_task"]
        parts = f"grain {plan['grain']}, shards {plan['shards']}, {steps} step{'s' * (steps != 1)} per task"
        self.console.print(f"plan: {parts}\n      ({plan['reason']})", soft_wrap=True)
        self.console.print(HEADER, style="bold", soft_wrap=True)
        if self.console.is_terminal:
            self._bar = Progress(
                column(f"epoch {{task.fields[epoch]}}/{self.epochs}"),
                BarColumn(bar_width=None),
                column("{task.percentage:>3.0f} %"),
                column("{task.fields[speed]:>9,.0f} samples/s"),
                column("loss {task.fields[loss]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
                refresh_per_second=8,
            )
            self._task = self._bar.add_task("train", total=None, epoch=1, speed=0.0, loss="-")
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

    fields = [f"{record['epoch']}/{epochs}"]
    for key, form in FORMS.items():
        value: Any = record.get(key)
        known = value is not None and math.isfinite(value)
        fields.append(form.format(value, 100 * value) if known else "")
    return "  ".join(field.rjust(len(name)) for field, name in zip(fields, NAMES)).rstrip()

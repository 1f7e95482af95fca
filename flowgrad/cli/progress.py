"""What a training command shows while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TimeRemainingColumn

from ..inputs import count
from .console import column
from .console import console as plain_console

# Headings, as wide as their columns, and how the numbers of a record are written, some times 100.
NAMES = ("  epoch", " test loss", "test accuracy", "train loss", " samples/s", "seconds")
LEFT, METRIC = "    left", 12
FORMS = {
    "validation_loss": "{:.4f}",
    "validation_accuracy": "{1:.2f} %",
    "loss": "{:.4f}",
    "samples_per_second": "{:,.0f}",
    "seconds": "{:.1f}",
}
HEADER = "  ".join((*NAMES, LEFT))


class ProgressCallback:
    """A trainer's callback: a progress bar on a terminal, and one line per epoch anywhere, with the trainer's metrics.

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
        self._samples = self._epochs = 0
        self._began = 0.0
        self._columns: list[str] | None = None

    def on_train_begin(self, info: Mapping[str, Any]) -> None:
        """Print the plan and the heading, and show an empty bar."""
        plan, self.epochs = info["plan"], info["epochs"]
        steps = plan["steps_per_task"]
        parts = f"grain {plan['grain']}, shards {plan['shards']}, {count(steps, 'step')} per task"
        self.console.print(f"plan: {parts}\n      ({plan['reason']})", soft_wrap=True)
        if info.get("hint"):
            self.console.print(f"hint: {info['hint']}", soft_wrap=True)
        self._began, self._columns = time.monotonic(), None
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
        """Print one line, below a heading if it is the first."""
        if self._columns is None:
            self._columns = metric_columns(record)
            heading = [HEADER, *(name.rjust(METRIC) for name in self._columns)]
            self.console.print("  ".join(heading), style="bold", soft_wrap=True)
        left = None
        if record["epoch"]:
            self._epochs += 1  # those before a checkpoint took no time now
            left = (time.monotonic() - self._began) / self._epochs * (self.epochs - record["epoch"])
        self.console.print(epoch_line(record, self.epochs, left, self._columns), soft_wrap=True)

    def on_recovery(self, record: Mapping[str, Any]) -> None:
        """Print what was lost and is done again."""
        again = f"{count(record['again'], 'step')} of it {'is' if record['again'] == 1 else 'are'} done again"
        self.console.print(f"after step {record['step']:,}: {record['cause']}; {again}", soft_wrap=True)

    def on_train_end(self, history: object) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Take the bar away; safe to call twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def metric_columns(record: Mapping[str, Any]) -> list[str]:
    """Return the metrics of a record that are numbers and no column of the table: of test samples if there are any."""
    known = ("epoch", "learning_rate", *FORMS)
    names = [name for name, value in record.items() if name not in known and isinstance(value, (int, float))]
    tested = any(name.startswith("validation_") for name in names)
    return [name for name in names if name.startswith("validation_") == tested]


def epoch_line(record: Mapping[str, Any], epochs: int, left: float | None = None, columns: Iterable[str] = ()) -> str:
    """Format one epoch's record under `HEADER`; what was not measured is left blank."""
    if record["epoch"] == 0:  # nothing was trained yet
        record = {**record, "samples_per_second": None}

    fields = [f"{record['epoch']}/{epochs}".rjust(len(NAMES[0]))]
    forms = [(key, form, len(name)) for (key, form), name in zip(FORMS.items(), NAMES[1:])]
    for key, form, wide in forms:
        value: Any = record.get(key)
        known = value is not None and math.isfinite(value)
        fields.append((form.format(value, 100 * value) if known else "").rjust(wide))
    fields.append(("" if left is None else clock(left)).rjust(len(LEFT)))
    fields += [f"{record.get(name, math.nan):.4f}".rjust(max(METRIC, len(name))) for name in columns]
    return "  ".join(fields).rstrip()


def clock(seconds: float) -> str:
    """Return a length of time: 0:07, 12:30, 3:04:05.

    Examples
    --------
    >>> clock(7.4), clock(11045)
    ('0:07', '3:04:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

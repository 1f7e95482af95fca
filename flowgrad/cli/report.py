"""What a training command leaves behind: tables and texts; ``flowgrad report``: the page that shows them."""

from __future__ import annotations

import csv
import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from .facts import facts_in
from .folder import writing
from .options import option
from .page import report_page

if TYPE_CHECKING:
    from ..scheduler.training import History

PAGE = "report.html"


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


@click.command(short_help="Write the report of a run, as one page.")
@click.argument("run", type=click.Path(path_type=Path))
@option("--out", "The page.  [default: RUN/report.html]", metavar="FILE", type=click.Path(path_type=Path))
def report(run: Path, out: Path | None) -> None:
    """Write the report of RUN, the folder of a training, as one page that needs no network.

    It shows the learning curves, what was confused, the worst-classified samples, the filters of the first layer, the
    graph, the plan and what else would have cost, times, workers and machine. Neither data nor a cluster is needed.

    \b
    Examples:
      flowgrad report runs/mnist-20260101-120000
      flowgrad report runs/digits --out digits.html
    """  # noqa: D301
    run = run.parent if run.is_file() else run  # the page itself, say
    page, out = report_page(facts_in(run)), out or run / PAGE
    with writing(out.parent):
        out.write_text(page, encoding="utf-8")
    click.echo(f"{out}: {len(page.encode()) / 1e6:.1f} MB; open it in a browser")

"""What the page says of runs, as HTML; and what others say that must not load bokeh."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from html import escape
from signal import Signals
from typing import Any

from flowgrad.inputs import count

from ..costs import Plan, idle_workers
from .state import Shown, seat_name

# The page's path.
PAGE = "flowgrad"
# How a reason begins of which a training says nothing: whoever started the scheduler wanted it so.
QUIET = "quietly:"
# Of runs and layers, one after the other; readable on white and on dark.
COLOURS = ("#4f8fea", "#f2994a", "#27ae60", "#eb5d8e", "#9b6ef3", "#17a2a8", "#c9a227", "#8d99ae", "#e2574c", "#6ab04c",
           "#5f6cf0", "#b5651d")  # fmt: skip
# Workers, and the latest failures, that are listed.
SEATS, LOST = 32, 8


def describe(error: BaseException) -> str:
    """Return an error in a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def cause_of(error: BaseException) -> str:
    """Return in a line why a training broke off."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if isinstance(error, SystemExit):
        known = {str(128 + s): s.name for s in Signals}
        return f"stopped by {known.get(str(error.code)) or f'sys.exit({error.code!r})'}"
    kind, text = type(error).__name__, describe(error)
    return kind if text == kind else f"{kind}: {text}"


def number(value: Any) -> str:
    """Write a number of a few digits."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e9:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.2e}"


def lasting(seconds: float) -> str:
    """Write how long something takes."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def heading(title: str, words: str, more: str = "") -> str:
    """Return what stands above a chart or a table: what it shows, what is to be known of it, and what pointing at it tells."""
    return f'<div title="{escape(more)}"><h3>{escape(title)}</h3><p class="faint">{escape(words)}</p></div>'


def table(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a table of cells of HTML; each row comes with its class."""
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f'<tr class="{kind}">' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>" for kind, cells in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def tile(what: str, text: str, more: str = "") -> str:
    """Return a tile of the page: a number and what it is."""
    return f'<div class="tile"><span>{escape(what)}</span><b>{escape(text)}</b><span>{more}</span></div>'


def finite(value: Any) -> bool:
    """Whether something is a number that can be shown."""
    return isinstance(value, (int, float)) and math.isfinite(value)


# -- of runs ---------------------------------------------------------------------------------------------------------


def learns(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Return in a sentence whether a training learns, from the records of its epochs.

    Examples
    --------
    >>> learns([{"epoch": k, "validation_loss": loss} for k, loss in enumerate([2.3, 0.4, 0.2, 0.3, 0.6])])
    'validation loss was lowest after epoch 2, 0.2, and has risen since, to 0.6'
    >>> learns([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    'training loss falls: 0.25 after epoch 2 is its lowest'
    """
    name = "validation_loss" if any(finite(r.get("validation_loss")) for r in epochs) else "loss"
    told = [(r[name], r["epoch"]) for r in epochs if finite(r.get(name))]
    if len(told) < 2:
        return ""
    what = "training loss" if name == "loss" else "validation loss"
    (first, begin), (now, epoch), (least, best) = told[0], told[-1], min(told)
    if best == epoch:
        return f"{what} falls: {number(now)} after epoch {epoch:,} is its lowest"
    if best == begin:
        return f"{what} has not fallen: {number(now)} after epoch {epoch:,}, {number(first)} after epoch {begin:,}"
    since = "risen since, to" if now - least > 0.1 * abs(least) else "hardly changed since:"
    return f"{what} was lowest after epoch {best:,}, {number(least)}, and has {since} {number(now)}"


def head_of(run: Shown | None, quiet: float) -> str:
    """Return what runs, how far it is, how fast, and whether it learns."""
    if run is None:
        return (
            '<div class="panel"><h3>No training yet</h3><p>Whatever <code>fg.Trainer(...).fit(...)</code> trains on this '
            "scheduler is shown here while it runs.</p></div>"
        )
    about = run.about
    steps, epochs = about.get("steps", 0), about.get("epochs", 0)
    part = run.step / steps if steps else 0.0
    status = f"no news for {lasting(quiet)}" if quiet else _status(run)
    last = run.epochs[-1] if run.epochs else {}
    metric = next((n for n in ("validation_accuracy", "accuracy", "validation_r2") if finite(last.get(n))), "")
    held_out = number(last.get("validation_loss"))
    told = (
        f"{100 * last[metric]:.2f} %" if metric.endswith("accuracy") else number(last[metric]) if metric else held_out
    )
    after = f"after epoch {last['epoch']:,}" if last else ""
    beside = f"{after}; validation loss {held_out}" if metric and held_out != "-" else after
    left = (steps - run.step) / (run.step / run.seconds) if run.step and run.seconds else math.nan
    idle = len(run.seats) - run.at_work
    ahead = f"{lasting(left)} left" if run.status == "training" else f"took {lasting(run.seconds)}"
    bar = f'<div class="progress"><i style="width:{100 * min(1.0, part):.1f}%"></i></div>'
    loss, counted = run.loss
    begun = f"mean of the last {count(counted, 'step')}; {number(run.first_loss)} at the first" if counted else ""
    workers = f"{idle} of them idle" if idle else "all of them take part" if run.seats else "not told yet"
    tiles = [
        tile(
            f"{run.name} · {about.get('script', '')}",
            status,
            f"{_process(run)}<br>{escape(about.get('graph', ''))}{bar}",
        ),
        tile("epoch", f"{min(run.epoch, epochs):,} of {epochs:,}", f"step {run.step:,} of {steps:,} · {ahead}"),
        tile("training loss", number(loss), begun),
        tile(metric.replace("_", " ") or "validation loss", told, beside),
        tile("samples/s", number(run.rate), f"batches of {about.get('batch', 0):,} by {about.get('optimizer', '')}"),
        tile("workers", f"{len(run.seats)}" if run.seats else "-", workers),
    ]
    said = [escape(text[0].upper() + text[1:]) + "." for text in (run.cause, learns(run.epochs)) if text]
    more = f'<div class="panel said">{" ".join(said)}</div>' if said else ""
    return f'<div class="tiles">{"".join(tiles)}</div>{more}'


def _status(run: Shown) -> str:
    return {"gone": "its client is gone"}.get(run.status, run.status)


def _process(run: Shown) -> str:
    """Return which process a run is of, and since when."""
    about = run.about
    since = time.strftime("%H:%M", time.localtime(about["began"])) if "began" in about else ""
    return escape(f"pid {about.get('process', '?')} on {about.get('host', '?')}, since {since}")


def label_of(run: Shown) -> str:
    """Return what a run is called where it is chosen among others."""
    return f"{run.name} · {run.about.get('script', '')} · {_status(run)}"


def table_of(runs: Sequence[Shown], run: Shown) -> str:
    """Return the runs beside each other."""
    rows = [
        (
            "strong" if r is run else "",
            (
                f'<span class="dot" style="background:{COLOURS[k]}"></span>{r.name}',
                escape(str(r.about.get("script", ""))),
                _process(r),
                _status(r),
                f"{r.epoch:,} of {r.about.get('epochs', 0):,}",
                number(r.loss[0]),
                number(r.rate),
                escape(r.grain),
            ),
        )
        for k, r in enumerate(runs)
    ]
    names = ("run", "script", "process", "status", "epoch", "training loss", "samples/s", "grain")
    return f'<div class="panel">{table(names, rows)}</div>'


def plan_of(run: Shown) -> str:
    """Return the plan in words, with its reason."""
    told = run.about.get("plan", {})
    if not told:
        return ""
    plan = Plan(**told | {"grain": run.grain})
    lanes = run.at_work
    shared = f"A step is {lanes + 2} tasks: one for each of {lanes} workers, one for the update, and one that sends the weights."
    what = {
        "round": f"One worker runs {count(plan.steps_per_task, 'step')} in a task, one after the other.",
        "collective": f"{lanes} workers share each step: everyone computes some shards, and they exchange gradients directly.",
        "shard": shared if lanes > 1 else "A step is one task, on one worker.",
        "sample": "The gradient of each sample is a task.",
        "node": "Each node, and each edge on the way back, is a task, which dask places on some worker. A task takes dask about a "
        "millisecond, however short it is: this grain is to look at, not for speed.",
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


def seats_of(run: Shown) -> str:
    """Return what each worker has of a step, and how busy it is."""
    rows = []
    for seat in run.seats[:SEATS]:
        who, threads = escape(seat_name(seat)), str(seat["threads"])
        if not run.works(seat):
            rows.append(("idle", (who, threads, "none of this run", "", "")))
            continue
        first, last, busy = seat["first"], (seat["stop"] or 0) - 1, run.busy.get(seat["address"], 0.0)
        shards = "any nodes" if run.free else f"{first}" if first == last else f"{first} to {last}"
        bar = f'<div class="bar"><i style="width:{100 * busy:.0f}%"></i></div>'
        rows.append(("", (who, threads, shards, bar, f"{100 * busy:.0f} %")))
    more = f"<p>and {len(run.seats) - SEATS} more</p>" if len(run.seats) > SEATS else ""
    title = heading(
        "Lanes over the workers", "a shard is a part of each batch; its lane is the worker that computes it"
    )
    if run.free:
        title = heading("Tasks over the workers", "there are no lanes: dask places the task of each node")
    names = ("worker", "threads", "tasks of" if run.free else "shards", "computing", "")
    return f'<div class="panel">{title}{table(names, rows)}{more}</div>'


def lost_of(run: Shown) -> str:
    """Return the latest failures that were got over."""
    rows = [
        (
            "",
            (
                lasting(r.get("seconds", math.nan)),
                f"{r['step']:,}",
                f"{r.get('again', 0):,}",
                escape(", ".join(r.get("workers", ())) or "-"),
                f'<div class="wide">{escape(str(r.get("cause", "")))}</div>',
            ),
        )
        for r in list(run.recoveries)[-LOST:]
    ]
    names = ("after", "last step done", "steps done again", "workers that went away", "noticed as")
    return f'<div class="panel"><h3>Lost, and done again</h3>{table(names, rows)}</div>' if rows else ""

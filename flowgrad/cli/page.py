"""The report of a training as one page of HTML, from facts alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from io import StringIO
from typing import Any

from ..draw import best_epoch, curves, mixed, svg_of
from ..draw.curves import FAINT, GRID, INK, TEST, TRAIN
from .facts import scene_from

# Classes up to which the confusion matrix is written out, pairs that are told, cards in the table of times.
CLASSES, PAIRS, TIMED = 20, 8, 12
HEAT = "#fff7ed", "#f97316"  # of an op that took no time, and most


def report_page(facts: Mapping[str, Any]) -> str:
    """Return the page."""
    history = facts["history"]
    parts = [
        f"<h1>{escape(facts['title'])}</h1>",
        f'<p class="faint">{escape(facts["result"])} · {escape(facts["made"])}</p>',
        _tiles(facts),
        "<h2>Learning curves</h2>",
        f'<div class="wide curves">{_curves(history)}</div>',
        _mistakes(facts),
        _worst(facts["worst"]),
        _filters(facts["filters"]),
        _graph(facts),
        _plan(facts),
        _workers(facts),
        _machine(facts),
    ]
    page = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    body = "\n".join(filter(None, parts))
    return page.replace("@TITLE@", escape(facts["title"])).replace("@BODY@", body)


def _tiles(facts: Mapping[str, Any]) -> str:
    history, records = facts["history"], facts["history"]["epochs"]
    last, best = records[-1], best_epoch(records, history["kept_epoch"])
    rates = [r["samples_per_second"] for r in records if r["epoch"]]
    tiles = [
        (f"{100 * facts['accuracy']:.2f} %", "test accuracy"),
        (_number(last["validation_loss"]), "test loss, last epoch"),
        (_number(last["loss"]), "training loss, last epoch"),
        (f"{best} of {last['epoch']}", "best epoch" if history["kept_epoch"] is None else "epoch that was kept"),
        (f"{facts['seconds']:.1f} s", "in all"),
        (f"{sorted(rates)[len(rates) // 2]:,.0f}" if rates else "-", "samples/s, median epoch"),
        (f"{facts['parameters']:,}", "trained numbers"),
    ]
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in tiles)
        + "</div>"
    )


def _curves(history: Mapping[str, Any]) -> str:
    """Return the curves as SVG whose colours are those of the page."""
    from matplotlib import rc_context

    out = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "flowgrad", "font.family": "sans-serif"}):
        figure = curves(history["epochs"], history["losses"], history["kept_epoch"], every=history["every"])
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1 system-ui, sans-serif", text.replace("&quot;", "'"))
    for colour, name in ((INK, "ink"), (FAINT, "faint"), (GRID, "line"), (TRAIN, "train"), (TEST, "test")):
        text = text.replace(colour, f"var(--{name})")
    return text


def _mistakes(facts: Mapping[str, Any]) -> str:
    matrix, n = facts["matrix"], facts["classes"]
    totals = [sum(row) or 1 for row in matrix]
    pairs = sorted((-matrix[i][j], i, j) for i in range(n) for j in range(n) if i != j and matrix[i][j])
    rows = [(f"{i} taken for {j}", f"{-count:,}", f"{-100 * count / totals[i]:.1f} %") for count, i, j in pairs[:PAIRS]]
    told = _table(("true, predicted", "samples", "of the class"), rows) if rows else "<p>Nothing was confused.</p>"
    most = max((-pairs[0][0] if pairs else 1), 1)
    cells = ""
    if n <= CLASSES:
        lines = ["<tr><th></th>" + "".join(f"<th>{j}</th>" for j in range(n)) + "</tr>"]
        for i, row in enumerate(matrix):
            line = [f"<tr><th>{i}</th>"]
            for j, count in enumerate(row):
                part = 0.5 * count / totals[i] if i == j else 0.08 + 0.72 * count / most if count else 0
                colour = f"background: rgba(var(--{'right' if i == j else 'wrong'}), {part:.2f})"
                line.append(f'<td style="{colour}">{count:,}</td>' if count else '<td class="faint">·</td>')
            lines.append("".join(line) + "</tr>")
        table = f'<table class="matrix">{"".join(lines)}</table>'
        cells = f'<div class="wide"><h3>rows: true class, columns: predicted</h3>{table}</div>'
    else:
        told += f'<p class="faint">{n} classes: the whole matrix is in report.txt</p>'
    return f'<h2>What is confused</h2><div class="side">{cells}<div><h3>most confused</h3>{told}</div></div>'


def _worst(worst: Sequence[Mapping[str, Any]]) -> str:
    figures = []
    for w in worst:
        label, predicted, name = w["label"], w["predicted"], f"test sample {w['sample']}"
        right = label == predicted
        said = '<b class="yes">right</b>' if right else f'taken for <b class="no">{predicted}</b>'
        told = f"{label}: {_percent(w['true'])}" + ("" if right else f", {predicted}: {_percent(w['given'])}")
        image = _image(w, w["shape"], name)
        figures.append(f'<figure>{image}<b>{label}</b> {said}<br><span class="faint">{told}</span></figure>')
    return (
        f'<h2>The {len(worst)} worst-classified test samples</h2><p class="faint">Those whose true class was given the smallest '
        f'probability, the worst first; point at one for its number.</p><div class="gallery">{"".join(figures)}</div>'
    )


def _filters(filters: Mapping[str, Any] | None) -> str:
    if filters is None:
        return ""
    shown = filters["pictures"]
    images = "".join(_image(f, filters["shape"], f"{f['name']}, up to ±{f['reach']:.3g}") for f in shown)
    many = f"{len(shown)} of {filters['of']}" if len(shown) < filters["of"] else str(len(shown))
    height, width = filters["shape"]
    return (
        f"<h2>Filters of the first layer</h2><p class='faint'>{many} weights of {height} x {width}, blue above 0, red below, each "
        f"to its own largest; point at one for its name.</p><div class='filters'>{images}</div>"
    )


def _image(told: Mapping[str, Any], shape: Sequence[int], text: str) -> str:
    data, ratio = told["picture"], f"{shape[1]}/{shape[0]}" if shape[1] <= 8 * shape[0] else "4/1"
    words = escape(text)
    return f'<img src="data:image/png;base64,{data}" alt="{words}" title="{words}" style="aspect-ratio:{ratio}">'


def _graph(facts: Mapping[str, Any]) -> str:
    scene = scene_from(facts["scene"])
    if not any(map(any, facts["times"].values())):
        said = '<p class="faint">It is too large for its nodes to be timed.</p>'
        return f'<h2>The graph</h2>{said}<div class="wide">{svg_of(scene)}</div>'
    times = {int(key): pair for key, pair in facts["times"].items()}
    total = sum(map(sum, times.values())) or 1.0
    hints = {key: f"{_ms(a)} ms forward, {_ms(b)} ms back" for key, (a, b) in times.items() if a + b}
    most = max(map(sum, times.values())) or 1.0
    colours = {key: mixed(*HEAT, (sum(times[key]) / most) ** 0.5) for key in hints}
    cards = sorted((c for c in scene.cards if sum(times[c.key]) > 0), key=lambda c: -sum(times[c.key]))
    rows = []
    for card in cards[:TIMED]:
        forward, back = times[card.key]
        parts = ((forward, "train"), (back, "back"))
        bar = "".join(f'<i style="width:{240 * t / most:.1f}px;background:var(--{c})"></i>' for t, c in parts)
        count = f" × {card.count}" if card.count > 1 else ""
        share = f"{100 * (forward + back) / total:.1f} %"
        rows.append((escape(card.title + count), _ms(forward), _ms(back), share, bar))
    table = _table(("node", "forward ms", "back ms", "share", ""), rows, raw=True, last="bar")
    return (
        '<h2>The graph</h2><p class="faint">The more orange an op, the more time it took, see below; point at one for its own.</p>'
        f'<div class="wide">{svg_of(scene, colours=colours, hints=hints)}</div>'
        '<h2>Time per node</h2><p class="faint">One sample, a task for each node forward and each edge back, on two threads of the '
        "process that wrote this; cards of several nodes are summed. A training runs programs in which many of these are one: "
        f'look at the shares, not at the sums.</p><div class="wide">{table}</div>'
    )


def _plan(facts: Mapping[str, Any]) -> str:
    return f"<h2>The plan, and what else would have cost</h2><pre>{escape(facts['explained'])}</pre>"


def _workers(facts: Mapping[str, Any]) -> str:
    known, history = facts["timeline"], facts["history"]
    lost = "".join(
        f"<li>step {r['step']}: {escape(str(r['cause']))}; {r['again']} steps done again</li>"
        for r in history["recoveries"]
    )
    lost = f"<p>Lost and done again:</p><ul>{lost}</ul>" if lost else ""
    if known is None:
        return f"<h2>Workers</h2><p>What each did when is not known.</p>{lost}"
    lanes = []
    for worker, kinds in known["workers"].items():
        bars, bins = "", len(next(iter(kinds.values())))
        for kind, colour in (("compute", "var(--train)"), ("transfer", "rgb(var(--wrong))")):
            path = "".join(
                f"M{k} 1v{-min(1.0, part):.3g}h1v{min(1.0, part):.3g}z"
                for k, part in enumerate(kinds.get(kind, ()))
                if part
            )
            bars += f'<path d="{path}" fill="{colour}"/>' if path else ""
        share = sum(min(1.0, part) for part in kinds.get("compute", ())) / bins
        lanes.append(
            f'<div class="lane"><span>{escape(worker)}</span><svg viewBox="0 0 {bins} 1" preserveAspectRatio="none">{bars}</svg>'
            f"<span>{100 * share:.0f} % busy</span></div>"
        )
    idle = f"<p>{escape(facts['hint'][0].upper() + facts['hint'][1:])}.</p>" if facts["hint"] else ""
    return (
        f'<h2>Workers</h2><p class="key faint">{known["seconds"]:.1f} s from the first task to the last, in {known["tasks"]:,} '
        'tasks<i style="background:var(--train)"></i>computing<i style="background:rgb(var(--wrong))"></i>fetching</p>'
        f"{''.join(lanes)}{idle}{lost}"
    )


def _machine(facts: Mapping[str, Any]) -> str:
    machine, settings = facts["machine"], facts["settings"]
    given = {key: value for key, value in settings.items() if value not in (None, False)}
    rows = {
        "processor": f"{machine['cpu']}, {machine['usable_cores']} of {machine['cores']} cores",
        "memory": f"{machine['memory'] / 2**30:.1f} GiB",
        "system": machine["system"],
        "Python": machine["python"],
        "packages": ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        "settings": ", ".join(f"{key} {value}" for key, value in given.items()),
    }
    return (
        "<h2>Machine, versions, settings</h2><dl>"
        + "".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in rows.items())
        + "</dl>"
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], raw: bool = False, last: str = "") -> str:
    lines = ["<tr>" + "".join(f"<th>{h}</th>" for h in head) + "</tr>"]
    for row in rows:
        cells = [cell if raw else escape(cell) for cell in row]
        mark = f' class="{last} left"' if last else ""
        lines.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells[:-1]) + f"<td{mark}>{cells[-1]}</td></tr>")
    return f'<table class="list">{"".join(lines)}</table>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.01 else "< 1 %"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"

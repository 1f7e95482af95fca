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
from ..inputs import count
from ..scheduler.costs import ms
from .facts import scene_from

# Classes up to which the confusion matrix is written out, pairs that are told, cards in the table of times.
CLASSES, PAIRS, TIMED = 20, 8, 12
# Share of the time below which a node is one of others; epochs up to which their ends are marked; seconds between two ticks.
LEAST, MARKED, EVERY = 0.01, 60, (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600, 6 * 3600)
FILES = {
    "history.csv": "the epochs: losses, accuracy, seconds, samples per second, learning rate",
    "learning_curves.png": "the curves as a picture",
    "model.safetensors": "the trained net and the state of its optimizer",
    "performance-report.html": "dask's own report of the tasks",
    "predictions.npz": "of each test sample label, predicted class and probabilities",
    "report.html": "this page",
    "report.json": "what this page is written from: flowgrad report FOLDER writes it again",
    "report.txt": "precision, recall and F1 of each class, and the confusion matrix",
    "settings.json": "how it was trained, and the plan",
    "steps.csv": "the loss of each step",
}
HEAT = "#fff7ed", "#f97316"  # of an op that took no time, and most


def report_page(facts: Mapping[str, Any]) -> str:
    """Return the page."""
    history = facts["history"]
    sizes = f"{facts['sizes']['training']:,} training and {facts['sizes']['test']:,} test samples"
    cluster = f"{_workers_told(facts['places'])}, seed {facts['settings']['seed']}"
    parts = [
        f"<h1>{escape(facts['title'])}</h1>",
        f'<p class="faint">{escape(facts["result"])} · {sizes} · {cluster} · {escape(facts["made"])}</p>',
        _tiles(facts),
        f'<p class="under">{_weights(facts)}</p>',
        "<h2>Learning curves</h2>",
        f'<div class="wide curves">{_curves(history)}</div>',
        _epochs(history),
        _mistakes(facts),
        _worst(facts["worst"]),
        _filters(facts["filters"]),
        _graph(facts),
        _plan(facts),
        _workers(facts),
        _files(facts),
        _machine(facts),
    ]
    page = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    body = "\n".join(filter(None, parts))
    return page.replace("@TITLE@", escape(facts["title"])).replace("@BODY@", body)


def _tiles(facts: Mapping[str, Any]) -> str:
    history, records = facts["history"], facts["history"]["epochs"]
    last, best = _saved(history), best_epoch(records)
    rates = [r["samples_per_second"] for r in records if r["epoch"]]
    tiles = [
        (f"{100 * facts['accuracy']:.2f} %", "test accuracy"),
        (_number(last["validation_loss"]), f"test loss, epoch {last['epoch']}"),
        (_number(last["loss"]), f"training loss, epoch {last['epoch']}"),
        (f"{best} of {records[-1]['epoch']}", "epoch of the lowest test loss"),
        (f"{records[-1]['seconds']:.1f} s", "training"),
        (f"{sorted(rates)[len(rates) // 2]:,.0f}" if rates else "-", "samples/s, median epoch"),
        (f"{facts['parameters']:,}", "trained numbers"),
    ]
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in tiles)
        + "</div>"
    )


def _saved(history: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the record of the epoch whose weights were saved."""
    records = history["epochs"]
    return next((r for r in records if r["epoch"] == history["kept_epoch"]), records[-1])


def _weights(facts: Mapping[str, Any]) -> str:
    """Say which weights were saved, and what the test samples had to do with it."""
    history, epoch = facts["history"], _saved(facts["history"])["epoch"]
    same = f"What the curves call validation are the {facts['sizes']['test']:,} test samples"
    if history["kept_epoch"] is None:
        best = best_epoch(history["epochs"])
        earlier = f" The test loss was lowest after epoch {best}: --patience N stops there and saves those weights."
        return (
            f"The weights that were saved, and all that is said here, are those after the last epoch, {epoch}. {same}."
            + (earlier if best != epoch else "")
        )
    return (
        f"The weights that were saved, and all that is said here, are those after epoch {epoch}, which had the lowest test loss. "
        f"{same}, by which that epoch was chosen: on others the net may be a little worse."
    )


def _workers_told(places: Sequence[int]) -> str:
    threads = " and ".join(map(str, sorted(set(places))))
    return f"{count(len(places), 'worker')} of {threads} {'thread' if threads == '1' else 'threads'}"


def _epochs(history: Mapping[str, Any]) -> str:
    """Return all epochs as a table, folded."""
    keys = [k for k in dict.fromkeys(k for r in history["epochs"] for k in r)]
    keys = [k for k in keys if any(isinstance(r.get(k), (int, float)) for r in history["epochs"])]
    rows = [[_cell(k, r.get(k)) for k in keys] for r in history["epochs"]]
    table = _table((k.replace("_", " ") for k in keys), rows)
    return f'<details><summary>Epochs in numbers</summary><div class="wide">{table}</div></details>'


def _cell(key: str, value: Any) -> str:
    if not isinstance(value, (int, float)):
        return ""
    if key.endswith("accuracy"):
        return f"{100 * value:.2f} %"
    return f"{value:,.1f}" if key == "seconds" else f"{value:,.0f}" if key == "samples_per_second" else f"{value:.4g}"


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
        told += f'<p class="faint">{n} classes: the whole matrix, and each class, are in report.txt</p>'
    return f'<h2>What is confused</h2><div class="side">{cells}<div><h3>most confused</h3>{told}</div>{_classes(matrix)}</div>'


def _classes(matrix: Sequence[Sequence[int]]) -> str:
    if len(matrix) > CLASSES:
        return ""
    rows = []
    for k, row in enumerate(matrix):
        right, guessed, there = row[k], sum(r[k] for r in matrix), sum(row)
        shares = (
            right / guessed if guessed else 0.0,
            right / there if there else 0.0,
            2 * right / (guessed + there or 1),
        )
        rows.append((str(k), *(f"{100 * share:.1f} %" for share in shares), f"{there:,}"))
    return f"<div><h3>each class</h3>{_table(('class', 'precision', 'recall', 'F1', 'samples'), rows)}</div>"


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
    shown, figures = filters["pictures"], []
    known = [f["active"] for f in shown if f["active"] is not None]
    for f in shown:
        told = f"{f['name']}, norm {f['norm']:.3g}, weights up to ±{f['reach']:.3g}"
        if f["active"] is not None:
            told += f"; the unit is above 0 for {100 * f['active']:.1f} % of the test samples"
        dead = ' <b class="no">dead</b>' if f["active"] == 0 else ""
        figures.append(f"<figure>{_image(f, filters['shape'], told)}<span>{f['norm']:.2g}{dead}</span></figure>")
    many = f"The {len(shown)} longest of {filters['of']}" if len(shown) < filters["of"] else f"All {len(shown)}"
    height, width = filters["shape"]
    dead = sum(part == 0 for part in known)
    said = " No unit is dead: each is above 0 for some test samples." if known else ""
    if dead:
        said = f" {dead} of {len(known)} units {'is' if dead == 1 else 'are'} dead: above 0 for no test sample, they learn nothing."
    return (
        f"<h2>Filters of the first layer</h2><p class='faint'>{many} weight vectors as pictures of {height} x {width}, in order of "
        "their norms, which stand below. Blue is above 0, red below; the strongest colour is the largest weight of a picture, so "
        f"that colours of two do not compare.{said} Point at one for its name.</p><div class='filters'>{''.join(figures)}</div>"
    )


def _image(told: Mapping[str, Any], shape: Sequence[int], text: str) -> str:
    data, ratio = told["picture"], f"{shape[1]}/{shape[0]}" if shape[1] <= 8 * shape[0] else "4/1"
    words = escape(text)
    return f'<img src="data:image/png;base64,{data}" alt="{words}" title="{words}" style="aspect-ratio:{ratio}">'


def _graph(facts: Mapping[str, Any]) -> str:
    scene, parts = scene_from(facts["scene"]), facts["costs"].get("parts")
    piles = "A pile stands for nodes alike and stays closed here: <code>graph.draw('graph.html')</code> has piles that open."
    if parts is None:
        return f'<h2>The graph</h2><p class="faint">{piles}</p><div class="wide">{svg_of(scene)}</div>'
    times = {int(key): pair for key, pair in facts["times"].items()}
    hints = {key: f"{_us(a)} µs forward, {_us(b)} µs back" for key, (a, b) in times.items() if a + b}
    most = max(map(sum, times.values())) or 1.0
    colours = {key: mixed(*HEAT, (sum(times[key]) / most) ** 0.5) for key in hints}
    own = {"all gradients into one vector": parts["nodes"].get("", [0.0, 0.0])}
    own = {c.title + (f" × {c.count}" if c.count > 1 else ""): times[c.key] for c in scene.cards} | own
    total = sum(map(sum, own.values())) or 1.0
    rows: list[tuple[str, ...]] = []
    left = 0.0
    for name, (forward, back) in sorted(own.items(), key=lambda entry: -sum(entry[1])):
        if forward + back < LEAST * total or len(rows) == TIMED:
            left += forward + back
            continue
        bars = ((forward, "train"), (back, "back"))
        bar = "".join(f'<i style="width:{240 * t / most:.1f}px;background:var(--{c})"></i>' for t, c in bars)
        rows.append((escape(name), _us(forward), _us(back), f"{100 * (forward + back) / total:.1f} %", bar))
    rows.append(("all others", "", _us(left), f"{100 * left / total:.1f} %", ""))
    table = _table(("node or layer", "forward µs", "back µs", "share", ""), rows, raw=True, last="bar")
    plan, samples = facts["history"]["plan"], count(parts["samples"], "sample")
    what = f"a shard of {samples}, {plan['shards']} of which are a step"
    what = what if plan["shards"] > 1 else f"a mini-batch of {samples}"
    whole = (
        "one for each node and edge"
        if plan["grain"] == "node"
        else "in which a layer of many nodes is one matrix product"
    )
    compiled = ""
    if plan["kernel"] == "numba":
        compiled = (
            f" The training ran them compiled, a whole step with its update in {ms(facts['costs']['work'])} ms: there matrix "
            "products take as long as here, and all else a fraction."
        )
    drawn = svg_of(scene, colours=colours, hints=hints)
    return (
        '<h2>The graph</h2><p class="faint">The more orange an op, the more time it took, see below; point at one for its own. '
        f'{piles}</p><div class="wide">{drawn}</div><h2>Time per node or layer</h2><p class="faint">Measured after the training '
        f"on {what}: the instructions of the training's own step, {whole}, run one after the other by NumPy on one thread, the "
        f"shortest of several runs of each, of which 1 to 4 µs are the call itself: {ms(total)} ms in all, without the update of "
        f"the weights.{compiled}</p>"
        f'<div class="wide">{table}</div>'
    )


def _plan(facts: Mapping[str, Any]) -> str:
    """Say what ran, why, and what every other grain would have cost; the whole account below, folded."""
    costs, plan = facts["costs"], facts["history"]["plan"]
    head, details = "<h2>The plan, and what else would have cost</h2>", f"<pre>{escape(costs['explained'])}</pre>"
    if "grains" not in costs:
        return head + details
    batch = facts["settings"]["batch_size"] * facts["settings"]["accumulate"]
    steps = f"{count(plan['steps_per_task'], 'step')} of {count(batch, 'sample')}"
    said = {
        "round": f"{steps} run one after the other in one task, on one worker",
        "collective": f"workers share each step, and {steps} are one task of each",
        "shard": f"the samples of each step are cut into {count(plan['shards'], 'part')}, in tasks of their own",
        "sample": "each sample of a step is a task",
        "node": "each node, and each edge on the way back, is a task",
    }[plan["grain"]]
    why = plan["reason"].partition(";")[0].removeprefix("auto: ")
    why = "It was asked for." if why == "asked for" else f"Why: {why}."
    rows = []
    for other in costs["grains"]:
        seconds = other["seconds"].get(plan["kernel"], other["seconds"]["numpy"])
        time = "-" if seconds is None else f"{ms(seconds)} ms"
        tasks = "-" if seconds is None else other["tasks"]
        against = re.sub("x$", " times as long", "as long" if other["against"] == "1x" else other["against"])
        rows.append((other["grain"], other["task"], tasks, time, against))
    table = _table(("grain", "a task is", "tasks in a step", "time of a step", "against the plan"), rows, last="why")
    return (
        f"{head}<p>Grain <b>{plan['grain']}</b>: {said}; a step was expected to take {ms(costs['step'])} ms. {escape(why)} What a "
        f"step computes is the same at each grain; what differs is how many tasks it is, and a task costs about "
        f'{ms(costs["task"])} ms by itself, whatever it does.</p><div class="wide grains">{table}</div>'
        f"<details><summary>The whole account, as flowgrad explain writes it</summary>{details}</details>"
    )


def _workers(facts: Mapping[str, Any]) -> str:
    known, history = facts["timeline"], facts["history"]
    lost = "".join(
        f"<li>step {r['step']}: {escape(str(r['cause']))}; {r['again']} steps done again</li>"
        for r in history["recoveries"]
    )
    lost = f"<p>Lost and done again:</p><ul>{lost}</ul>" if lost else ""
    if known is None:
        return f"<h2>Workers</h2><p>What each did when is not known.</p>{lost}"
    lanes, wide = [], known["seconds"] or 1.0
    marks = "".join(f"M{end / wide:.4f} 0v1" for end in known["epochs"] if 0 <= end <= wide)
    for worker, kinds in known["workers"].items():
        bars, bins = "", len(next(iter(kinds.values())))
        for kind, colour in (("compute", "train"), ("transfer", "back")):
            path = "".join(
                f"M{k} 1v{-min(1.0, part):.3g}h1v{min(1.0, part):.3g}z"
                for k, part in enumerate(kinds.get(kind, ()))
                if part
            )
            bars += f'<path d="{path}" fill="var(--{colour})"/>' if path else ""
        ends = f'<path class="end" transform="scale({bins} 1)" d="{marks}"/>' if len(known["epochs"]) <= MARKED else ""
        share = sum(min(1.0, part) for part in kinds.get("compute", ())) / bins
        lanes.append(
            f'<div class="lane"><span>{escape(worker)}</span>'
            f'<svg viewBox="0 0 {bins} 1" preserveAspectRatio="none">{bars}{ends}</svg>'
            f"<span>{100 * share:.0f} % busy</span></div>"
        )
    every = next(e for e in EVERY if e * 10 >= wide or e == EVERY[-1])
    ticks = "".join(
        f'<i style="left:{100 * k * every / wide:.2f}%">{k * every:g} s</i>' for k in range(int(wide / every) + 1)
    )
    lanes.append(f'<div class="lane axis"><span></span><div>{ticks}</div><span></span></div>')
    idle = f"<p>{escape(facts['hint'][0].upper() + facts['hint'][1:])}.</p>" if facts["hint"] else ""
    return (
        f'<h2>Workers</h2><p class="key faint">From the first task to the last, in {known["tasks"]:,} tasks'
        '<i style="background:var(--train)"></i>computing<i style="background:var(--back)"></i>fetching data from another process'
        f'<i style="background:var(--ink);width:2px"></i>an epoch ends</p>{"".join(lanes)}'
        f'<p class="faint">Blank: the worker waits, '
        f"or loads code, as before its first step. Between epochs all workers evaluate the net on the test samples.</p>{idle}{lost}"
    )


def _files(facts: Mapping[str, Any]) -> str:
    rows = [(name, FILES.get(name, "")) for name in facts["files"]]
    table = _table(("file", "holds"), rows, last="why")
    load = (
        'graph, optimizer = flowgrad.load("model.safetensors")\n'
        'probabilities = flowgrad.Engine().forward(graph["probabilities"], {"x": samples})  # (N, '
        f"{facts['classes']}), of samples (N, {facts['inputs']})"
    )
    return (
        f'<h2>Files beside this page, and the model</h2><div class="wide grains">{table}</div>'
        f"<p>In Python the trained net is there again by:</p><pre>{escape(load)}</pre>"
    )


def _machine(facts: Mapping[str, Any]) -> str:
    machine, settings = facts["machine"], facts["settings"]
    given = {key: value for key, value in settings.items() if value is not None and value is not False}
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


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f}"

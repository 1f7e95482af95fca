"""What a report needs of a training: plain values that are kept as JSON, so that it needs neither data nor cluster."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..draw import Arrow, Card, Frame, Scene, scene_of
from ..errors import DataError
from ..graph import Node, Variable
from .tell import plain

if TYPE_CHECKING:
    from distributed import Client

    from ..data import DataSet
    from ..scheduler.training import History
    from .models import Model

FILE = "report.json"
# Worst samples that are kept, filters, numbers of a curve, and parts of the time of a timeline.
WORST, FILTERS, POINTS, BINS = 24, 100, 2000, 240
# Alike siblings from which on they are one card, and the width of the picture.
FOLD, WIDTH = 4, 1080
# Colours of -1, 0 and 1.
DIVERGING = ((178, 24, 43), (250, 250, 250), (33, 102, 172))


def facts_of_samples(data: DataSet, probabilities: np.ndarray) -> dict[str, Any]:
    """Return confusion matrix, worst samples and sizes, from what each test sample's classes were given."""
    label, classes = data.y_test, data.classes
    predicted = probabilities.argmax(axis=1)
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (label, predicted), 1)
    true = probabilities[np.arange(len(label)), label]
    worst = []
    for k in np.argsort(true, kind="stable")[:WORST]:
        pixels = as_picture(data.x_test[k])
        worst.append(
            {
                "sample": int(k),
                "label": int(label[k]),
                "predicted": int(predicted[k]),
                "given": float(probabilities[k].max()),
                "true": float(true[k]),
                "picture": grey_png(pixels),
                "shape": list(pixels.shape),
            }
        )
    return {"classes": classes, "matrix": matrix.tolist(), "worst": worst}


def facts_of_graph(model: Model, parts: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the picture of the graph, and the seconds of each card forward and back, from those by node if they are known."""
    scene = scene_of(model.graph, model.loss, fold=FOLD, width=WIDTH)
    # Instructions about variables only name parts of the parameters.
    placed = [(model.graph.nodes[k], card.key) for card in scene.cards for k in card.nodes]
    card_of = {node.name: key for node, key in placed if not isinstance(node, Variable)}
    times = {card.key: [0.0, 0.0] for card in scene.cards}
    for name, pair in (parts or {"nodes": {}})["nodes"].items():
        if name in card_of:
            times[card_of[name]] = [a + b for a, b in zip(times[card_of[name]], pair)]
    return {"scene": asdict(scene), "times": times}


def filters_of(x: Node, active: np.ndarray | None = None) -> dict[str, Any] | None:
    """Return the weights that meet an input first, as pictures, the longest first; None if there are none.

    Where it is known for which share of the samples units are above 0, `active`, that is told, too.
    """
    found: list[tuple[str, np.ndarray]] = []
    for child in x.children:
        for weight in child.parents:
            if isinstance(weight, Variable) and weight.trainable and weight.dim % x.dim == 0:
                rows = np.asarray(weight.value, float).reshape(-1, x.dim)
                found += [(weight.name if len(rows) == 1 else f"{weight.name}[{k}]", row) for k, row in enumerate(rows)]
    if not found:
        return None
    known = active is not None and len(active) == len(found)
    pictures = []
    norms = [float(np.linalg.norm(row)) for _, row in found]
    for k in sorted(range(len(found)), key=lambda k: -norms[k])[:FILTERS]:
        name, row = found[k]
        reach = float(np.abs(row).max()) or 1.0
        told = {"name": name, "reach": reach, "norm": norms[k], "picture": diverging_png(as_picture(row) / reach)}
        pictures.append(told | {"active": float(active[k]) if active is not None and known else None})
    return {"of": len(found), "shape": list(as_picture(found[0][1]).shape), "pictures": pictures}


def facts_of_history(history: History) -> dict[str, Any]:
    """Return the records, the plan, and the loss of steps, in means of neighbours where there are many."""
    losses = np.array(history.steps.losses)
    span = max(1, -(-len(losses) // POINTS))
    means = np.add.reduceat(losses, range(0, len(losses), span)) if len(losses) else losses
    sizes = np.minimum(span, len(losses) - span * np.arange(len(means)))
    told = {**vars(history), "steps": len(losses), "every": span, "losses": [float(f"{x:.6g}") for x in means / sizes]}
    return plain(told)


def timeline(client: Client, since: float, epochs: Sequence[float]) -> dict[str, Any] | None:
    """Return which share of each part of the time every worker computed, and fetched, since then; None if nothing is known.

    When `epochs` ended is told in seconds from the first task on.
    """
    tasks: Sequence[Mapping[str, Any]] = ()
    with suppress(OSError, RuntimeError):  # a cluster that has ended
        tasks = client.get_task_stream(start=since)
    parts = [(str(task["worker"]), part) for task in tasks for part in task["startstops"]]
    found = [(worker, part["action"], part["start"], part["stop"]) for worker, part in parts]
    if not found:
        return None
    start, stop = min(part[2] for part in found), max(part[3] for part in found)
    wide = max(stop - start, 1e-9) / BINS
    rows: dict[str, dict[str, np.ndarray]] = {}
    for worker, action, begin, end in sorted(found):
        kind = "compute" if action == "compute" else "transfer" if action == "transfer" else "other"
        row = rows.setdefault(worker, {}).setdefault(kind, np.zeros(BINS))
        edges = start + wide * np.arange(BINS + 1)
        row += np.maximum(0, np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin)) / wide
    lines = {worker: {kind: np.round(row, 3).tolist() for kind, row in kinds.items()} for worker, kinds in rows.items()}
    ends = [end - start for end in epochs]
    return {"seconds": stop - start, "tasks": len(tasks), "workers": lines, "epochs": ends}


# -- pictures -------------------------------------------------------------------------------------------------------


def as_picture(row: np.ndarray) -> np.ndarray:
    """Return a sample as rows of pixels: a square if it can be one, else rows that are as square as they can be."""
    side = math.isqrt(len(row))
    while len(row) % side:
        side -= 1
    return np.asarray(row, float).reshape(side, -1)


def grey_png(pixels: np.ndarray) -> str:
    """Return pixels as a grey picture, the largest white."""
    least, most = float(pixels.min()), float(pixels.max())
    return _png(np.rint(255 * (pixels - least) / max(most - least, 1e-300)).astype(np.uint8), None)


def diverging_png(pixels: np.ndarray) -> str:
    """Return pixels between -1 and 1 as a picture from red over white to blue."""
    t = np.linspace(-1, 1, 255)
    low, middle, high = np.array(DIVERGING, float)
    palette = np.where(t[:, None] < 0, middle + (low - middle) * -t[:, None], middle + (high - middle) * t[:, None])
    return _png(np.rint(127 + 127 * np.clip(pixels, -1, 1)).astype(np.uint8), np.rint(palette).astype(np.uint8))


def _png(pixels: np.ndarray, palette: np.ndarray | None) -> str:
    from PIL import Image

    picture, file = Image.fromarray(pixels), BytesIO()
    if palette is not None:
        picture.putpalette(palette.tobytes())
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


# -- file -----------------------------------------------------------------------------------------------------------


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write facts to a run's folder."""
    text = json.dumps(plain(facts), separators=(",", ":"), default=str, allow_nan=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def facts_in(folder: Path) -> dict[str, Any]:
    """Return the facts of a run.

    Raises
    ------
    DataError
        If the folder has none, or what is there is none.
    """
    file = folder / FILE
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        scene_from(facts["scene"])
        return facts
    except FileNotFoundError:
        raise DataError(
            f"{folder} has no {FILE}: give the folder of a run that ended well, such as runs/mnist-..."
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is no report's: {type(error).__name__} {error}; train again, or take another run"
        ) from error


def scene_from(told: Mapping[str, Any]) -> Scene:
    """Return a scene that was written as JSON."""

    def made(kind: Any, entries: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
        return tuple(kind(**{key: _tuples(value) for key, value in entry.items()}) for entry in entries)

    parts = {"cards": made(Card, told["cards"]), "arrows": made(Arrow, told["arrows"])}
    roles = {role: _tuples(colours) for role, colours in told["roles"].items()}
    return Scene(**{**told, **parts, "frames": made(Frame, told["frames"]), "roles": roles})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

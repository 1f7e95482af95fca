"""The interpreter, sample by sample: what a person steps through, one `Dot` per neuron."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.lowering import chain
from benchmarks.turns import answer_of, clean_environment

SAMPLES, BATCH, TURNS = 320, 32, 5


def units(fg: Any, x: Any, label: Any) -> Any:
    """Return the loss of a net with a hidden layer of 90 neurons."""
    hidden = fg.layers.dense(x, 90, "relu", per_neuron=True)
    return fg.CrossEntropyWithSoftMax(fg.layers.dense(hidden, 10, per_neuron=True), label)


# Label, length of a sample, loss.
GRAPHS: dict[str, tuple[str, int, Callable[[Any, Any, Any], Any]]] = {
    "units": ("784-90-10, a `Dot` per neuron", 784, units),
    "chain": ("chain of 1,000 nodes", 16, lambda fg, x, label: chain(fg, x, 1_000)),
}


def measure_one(kind: str) -> dict[str, Any]:
    """Step through samples, after a first batch, and return the seconds of each: for the value, and for `one_step`."""
    import flowgrad as fg

    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(GRAPHS[kind][1], trainable=False), fg.Variable(10, trainable=False)
        loss = GRAPHS[kind][2](fg, x, label)
    optimizer = fg.Adam(graph, loss, batch_size=BATCH)
    random = np.random.default_rng(0)
    forward, step = [], []
    for row, target in zip(random.random((SAMPLES, x.dim)), np.eye(10)[random.integers(0, 10, SAMPLES)]):
        began = time.perf_counter()
        x.set_value(row)
        label.set_value(target)
        loss.forward()
        computed = time.perf_counter()
        optimizer.one_step()
        forward.append(computed - began)
        step.append(time.perf_counter() - computed)
    return {"nodes": len(graph.nodes), "forward": forward[BATCH:], "step": step[BATCH:]}


def interpreter_report(tell: Callable[[str], None] = print, turns: int = TURNS) -> str:
    """Let the graphs take turns, each in its own process, and return a Markdown table."""
    answers: dict[str, list[dict[str, Any]]] = {kind: [] for kind in GRAPHS}
    for turn in range(turns):
        tell(f"interpreter: turn {turn + 1} of {turns}")
        for kind, given in answers.items():
            answer = answer_of("interpreter", kind, env=clean_environment(1))
            assert answer is not None
            given.append(answer)
    lines = [
        "| graph | nodes | `set_value` and `forward`, ms | `one_step`, ms | samples/s: median (best turn) |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind, given in answers.items():
        forward, step = (statistics.median(statistics.median(a[part]) for a in given) for part in ("forward", "step"))
        rates = [len(a["step"]) / sum(a["forward"] + a["step"]) for a in given]
        lines.append(
            f"| {GRAPHS[kind][0]} | {given[0]['nodes']:,} | {forward * 1e3:.2f} | {step * 1e3:.2f} "
            f"| {statistics.median(rates):,.0f} ({max(rates):,.0f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(measure_one(sys.argv[1])))

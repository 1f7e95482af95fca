"""What sibling fusion brings: the same steps by the same NumPy kernel, fused and node by node."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.turns import answer_of, clean_environment

BATCH = 32


def _dense(fg: Any, x: Any, units: int) -> Any:
    return fg.Vectorize(*(fg.Add(fg.Dot(fg.Variable(x.dim, True), x), fg.Variable(1, True)) for _ in range(units)))


def deep(fg: Any, x: Any) -> Any:
    """Return 20 hidden layers of 32 neurons."""
    value = x
    for _ in range(20):
        value = fg.Tanh(_dense(fg, value, 32))
    return value


def ragged(fg: Any, x: Any) -> Any:
    """Return a tree whose siblings have different shapes: other fan-outs, other widths, leaves of other lengths."""
    random = np.random.default_rng(3)

    def leaf() -> Any:
        start = int(random.integers(0, x.dim - 12))
        return x[start : start + int(random.integers(3, 12))]

    level = [leaf() for _ in range(96)]
    while len(level) > 1:
        parents, at = [], 0
        while at < len(level):
            width = int(random.integers(2, 5))
            children = level[at : at + width]
            joined = children[0] if len(children) == 1 else fg.Vectorize(*children)
            parents.append(fg.Tanh(_dense(fg, joined, int(random.integers(3, 9)))))
            at += width
        level = parents
    return level[0]


GRAPHS: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "deep": ("20 layers of 32 neurons", deep),
    "ragged": ("ragged tree, 96 leaves", ragged),
}


def measure_one(kind: str, seconds: float = 2.0) -> dict[str, Any]:
    """Run steps fused and unfused in turn, in this process, for about `seconds` each."""
    import flowgrad as fg
    from flowgrad.scheduler.feeds.check import check_feeds
    from flowgrad.scheduler.machine.blas import one_thread
    from flowgrad.scheduler.programs.compile import flat_values
    from flowgrad.scheduler.steps.step import compile_step
    from flowgrad.scheduler.steps.work import run_round

    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(64, trainable=False), fg.Variable(10, trainable=False)
        loss = fg.CrossEntropyWithSoftMax(_dense(fg, GRAPHS[kind][1](fg, x), 10), label)
    random = np.random.default_rng(0)
    arrays = {x: random.normal(size=(BATCH, 64)).astype(np.float32), label: random.integers(0, 10, BATCH)}
    feeds = check_feeds(graph, arrays, np.float32)
    optimizer = fg.Adam(graph, loss, batch_size=BATCH)
    rule, rows = optimizer.rule, [[np.arange(BATCH)]]
    runs = {}
    for grain in ("round", "node"):
        step = compile_step(loss, feeds, optimizer.variables(without=feeds.arrays), grain)
        w = flat_values(step.program, graph, "param", feeds.dtype)[0]
        values = [feeds.arrays[graph.nodes[k]] for k in step.fed]  # type: ignore[index]
        runs[grain] = (replace(step, rule=rule), ({"w": w, **rule.init(w)}, []), None, values, rows)
    spent: dict[str, list[float]] = {"round": [], "node": []}
    ends = time.perf_counter() + 2 * seconds
    with one_thread():
        while time.perf_counter() < ends or len(spent["node"]) < 3:
            for grain, args in runs.items():
                start = time.perf_counter()
                run_round(*args)
                spent[grain].append(time.perf_counter() - start)
    instructions = {grain: len(args[0].program.instrs) for grain, args in runs.items()}
    return {"nodes": len(graph.nodes), "instructions": instructions, "seconds": spent}


def fusion_report(tell: Callable[[str], None] = print) -> str:
    """Measure both graphs, each in its own process, and return a Markdown table."""
    lines = [
        "| graph | nodes | instructions unfused | fused | step unfused, ms | fused, ms | factor (median) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, (label, _) in GRAPHS.items():
        tell(f"fusion: {label}")
        a = answer_of("fusion", kind, env=clean_environment(1))
        assert a is not None
        node, fused = a["seconds"]["node"], a["seconds"]["round"]
        factor = statistics.median(x / y for x, y in zip(node, fused))
        lines.append(
            f"| {label} | {a['nodes']:,} | {a['instructions']['node']:,} | {a['instructions']['round']:,} "
            f"| {min(node) * 1e3:.2f} | {min(fused) * 1e3:.2f} | {min(node) / min(fused):.1f}x ({factor:.1f}x) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(measure_one(sys.argv[1])))

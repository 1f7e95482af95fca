"""Time and memory of lowering: from nodes to dask task graph, gradient included.

Run as a module it measures one graph and answers in JSON: the process's peak memory then belongs to that graph alone.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.setting import LAYERS
from benchmarks.turns import answer_of

SIZES = (25_000, 50_000, 100_000)
# Seconds after which a graph is given up.
PATIENCE = 60
# Seconds that lowering may take.
WANTED = {"main": 0.05, "wide": 10.0, "chain": 10.0, "dag": 10.0}


def wide(fg: Any, x: Any, nodes: int) -> Any:
    """One layer of `nodes` / 4 neurons, each a `Dot` of its own weights plus a bias."""
    units = [fg.Add(fg.Dot(fg.Variable(x.dim, True), x), fg.Variable(1, True)) for _ in range(nodes // 4)]
    return fg.Sum(fg.Vectorize(*units))


def chain(fg: Any, x: Any, nodes: int) -> Any:
    """`nodes` elementwise operations, one after the other."""
    value = fg.Multiply(fg.Variable(x.dim, True), x)
    for k in range(nodes):
        value = fg.Tanh(value) if k % 2 else fg.Negative(value)
    return fg.Sum(value)


def dag(fg: Any, x: Any, nodes: int) -> Any:
    """`nodes` operations on earlier nodes drawn at random; those that nobody reads are added up at the end."""
    random = np.random.default_rng(0)
    pool = [x, *(fg.Variable(x.dim, True) for _ in range(nodes // 10))]
    unread = set(range(len(pool)))
    unary, binary = (fg.Tanh, fg.ReLU, fg.Negative), (fg.Add, fg.Subtract, fg.Multiply)
    for _ in range(nodes - len(pool)):
        a, b = (int(k) for k in random.integers(0, len(pool), 2))
        unread -= {a}
        if random.random() < 0.4:
            node = unary[random.integers(3)](pool[a])
        else:
            unread -= {b}
            node = binary[random.integers(3)](pool[a], pool[b])
        unread.add(len(pool))
        pool.append(node)
    return fg.Sum(fg.Vectorize(*(pool[k] for k in sorted(unread))))


GRAPHS: dict[str, tuple[str, Callable[[Any, Any, int], Any]]] = {
    "wide": ("wide net of Dot units", wide),
    "chain": ("deep chain", chain),
    "dag": ("random DAG", dag),
}


def _memory(kind: str) -> float:
    """Return a line of this process's memory in MiB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(kind))


def measure_one(kind: str, nodes: int) -> dict[str, float]:
    """Build and lower one graph in this process."""
    import flowgrad as fg

    engine = fg.Engine("sync", dtype=np.float32)
    start = time.perf_counter()
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(4, trainable=False)
        loss = GRAPHS[kind][1](fg, x, nodes)
    built, before = time.perf_counter() - start, _memory("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    engine.lower(loss, {x: np.ones((8, 4), np.float32)}, gradient=True)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"nodes": len(graph.nodes), "build": built, "lower": seconds, "cpu": cpu, "mib": _memory("VmHWM") - before}


def measure_main(times: int = 7) -> dict[str, float]:
    """Lower the main graph several times in this process, as if it were new; the first one also loads what is needed."""
    import flowgrad as fg
    from benchmarks.own import neurons

    engine = fg.Engine("sync", dtype=np.float32)
    random = np.random.default_rng(0)
    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(LAYERS[0], trainable=False), fg.Variable(LAYERS[-1], trainable=False)
        hidden, _ = neurons(x, random.normal(size=LAYERS[:2]), np.zeros(LAYERS[1]))
        logits, _ = neurons(fg.ReLU(hidden), random.normal(size=LAYERS[1:]), np.zeros(LAYERS[2]))
        loss = fg.CrossEntropyWithSoftMax(logits, label)
    feeds = {x: np.ones((32, LAYERS[0]), np.float32), label: np.zeros(32, np.int64)}
    seconds = []
    for _ in range(times):
        engine.clear_cache()
        start = time.perf_counter()
        engine.lower(loss, feeds, gradient=True)
        seconds.append(time.perf_counter() - start)
    return {
        "nodes": len(graph.nodes),
        "first": seconds[0],
        "best": min(seconds),
        "median": statistics.median(seconds),
    }


def lowering_report(tell: Callable[[str], None] = print, sizes: tuple[int, ...] = SIZES) -> str:
    """Measure all graphs, each in a process of its own, and return a Markdown table."""
    main = answer_of("lowering", "main", "0")
    assert main is not None
    lines = [
        f"Main graph ({main['nodes']} nodes): {main['best'] * 1e3:.0f} ms (median {main['median'] * 1e3:.0f} ms, "
        f"first time in a process {main['first'] * 1e3:.0f} ms); wanted < {WANTED['main'] * 1e3:.0f} ms: "
        f"{'yes' if main['median'] < WANTED['main'] else 'no'}.",
        "",
        "| graph | nodes | build, s | lower, s | of it processor, s | µs per node | peak MiB | KiB per node | wanted |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for kind, (label, _) in GRAPHS.items():
        for size in sizes:
            tell(f"lowering: {label}, {size:,} nodes")
            a = answer_of("lowering", kind, str(size), timeout=PATIENCE)
            if a is None:
                lines.append(f"| {label} | {size:,} | | > {PATIENCE} | | | | | no |")
                continue
            wanted = f"< {WANTED[kind]:.0f} s: {'yes' if a['lower'] < WANTED[kind] else 'no'}"
            cells = [label, f"{a['nodes']:,}", *(f"{a[key]:.2f}" for key in ("build", "lower", "cpu"))]
            cells += [f"{a['cpu'] / a['nodes'] * 1e6:.0f}", f"{a['mib']:.0f}", f"{a['mib'] * 1024 / a['nodes']:.1f}"]
            lines.append("| " + " | ".join([*cells, wanted]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    kind, nodes = sys.argv[1], int(sys.argv[2])
    print(json.dumps(measure_main() if kind == "main" else measure_one(kind, nodes)))

"""Whole trainings of graphs from ten to a hundred thousand nodes: `auto` beside NumPy, from one epoch to fifty.

Run as a module it trains one graph and answers in JSON: the process's whole time then belongs to it alone.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.lowering import chain, dag, wide
from benchmarks.turns import answer_of

KINDS = {"wide": wide, "chain": chain, "dag": dag}
# Nodes, samples, and epochs.
SIZES = ((10, 2_048, (1, 10, 50)), (300, 1_024, (1, 10, 50)), (5_000, 128, (1, 10, 50)), (100_000, 64, (1, 50)))
INPUTS, BATCH, TURNS = 16, 32, 3
WANTED = 1.1
# Seconds after which one turn is enough, and after which a training is given up.
LONG, PATIENCE = 20.0, 120.0


def train(kind: str, nodes: int, samples: int, epochs: int, kernel: str) -> float:
    """Return the seconds of a training, the engine's making included."""
    import flowgrad as fg

    with fg.Graph(seed=0) as graph:
        x = fg.Variable(INPUTS, trainable=False)
        loss = KINDS[kind](fg, x, nodes)
    optimizer = fg.Adam(graph, loss, 1e-9, batch_size=BATCH)
    rows = np.random.default_rng(0).normal(size=(samples, INPUTS)).astype(np.float32)
    began = time.perf_counter()
    fg.Trainer(optimizer, fg.Engine("threads", kernel=kernel)).fit({x: rows}, epochs=epochs)
    return time.perf_counter() - began


def sizes_report(tell: Callable[[str], None] = print, turns: int = TURNS) -> str:
    """Let both take turns, and return a table of medians."""
    lines = [
        "| graph | nodes | steps per epoch | epochs | `auto`, s | NumPy, s | `auto` / better | within 1.1 |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for kind in KINDS:
        for nodes, samples, lengths in SIZES:
            for epochs in lengths:
                tell(f"sizes: {kind} of {nodes:,} nodes, {epochs} epochs")
                taken: dict[str, list[float]] = {"auto": [], "numpy": []}
                for _ in range(turns):
                    for kernel, times in taken.items():
                        asked = kind, str(nodes), str(samples), str(epochs), kernel
                        answer = answer_of("sizes", *asked, timeout=PATIENCE)
                        times.append(math.inf if answer is None else answer["seconds"])
                    if max(*taken["auto"], *taken["numpy"]) > LONG:
                        break
                auto, numpy = (statistics.median(times) for times in taken.values())
                ratio = auto / min(auto, numpy)
                told = [f"{t:.2f}" if t < math.inf else f"> {PATIENCE:.0f}" for t in (auto, numpy)]
                lines.append(
                    f"| {kind} | {nodes:,} | {samples // BATCH} | {epochs} | {told[0]} | {told[1]} | {ratio:.2f} | "
                    f"{'yes' if ratio <= WANTED else 'no'} |"
                )
    lines += [
        "",
        f"Seconds of `Engine` and `fit` in a new process: medians of {turns} turns, of one where it takes long.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    kind, nodes, samples, epochs, kernel = sys.argv[1:]
    print(json.dumps({"seconds": train(kind, int(nodes), int(samples), int(epochs), kernel)}))

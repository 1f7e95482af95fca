"""Two workers that share every step, on clusters as dask makes them, beside one worker and PyTorch's DistributedDataParallel.

Run as a module it trains one net by one contender and answers in JSON: milliseconds per step, epoch by epoch.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from benchmarks.setting import LAYERS, RATE, Array
from benchmarks.turns import answer_of

# Hidden units, batch size, shards (None: as the plan has them; one shard has no use for a second worker), samples.
CASES = (
    (90, 32, 2, 60_000),
    (90, 256, None, 60_000),
    (1024, 256, None, 20_480),
    (1024, 1024, None, 40_960),
    (1024, 4096, None, 57_344),
)
EPOCHS, TURNS = 5, 3
# Contender: label, workers, grain; DDP has none.
CONTENDERS: dict[str, tuple[str, int, str]] = {
    "one": ("flowgrad, 1 worker", 1, "round"),
    "two": ("flowgrad, 2 workers, `collective`", 2, "collective"),
    "hand": ("the same, processes started by hand", 2, "collective"),
    "auto": ("flowgrad, 2 workers, `auto`", 2, "auto"),
    "ddp": ("DDP (gloo), 2 processes", 0, ""),
}
# DDP's time by ours, at least, and one worker's by two, where something is wanted.
WANTED = {(90, 32): (1 / 0.6, 0.0), (90, 256): (1 / 0.6, 0.0), (1024, 256): (1.0, 0.0), (1024, 1024): (1.0, 1.45),
          (1024, 4096): (1.0, 1.75)}  # fmt: skip


def data(hidden: int, samples: int) -> tuple[Array, Array, tuple[Array, ...]]:
    """Return inputs, classes, and weights (as for ``w @ x + b``)."""
    rng = np.random.default_rng(0)
    inputs, _, classes = LAYERS
    shapes = ((hidden, inputs), (hidden,), (classes, hidden), (classes,))
    weights = tuple(rng.normal(0, 0.03, shape).astype(np.float32) for shape in shapes)
    return rng.random((samples, inputs), np.float32), rng.integers(0, classes, samples), weights


@contextmanager
def stock(workers: int, dashboard: str | None = None) -> Iterator[Any]:
    """Give a client of a cluster as `LocalCluster` makes it, whose dashboard is at an address."""
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=dashboard)
    with cluster, Client(cluster) as client:
        yield client


@contextmanager
def by_hand(workers: int) -> Iterator[Any]:
    """Give a client of a scheduler and workers that were started by their commands."""
    from distributed import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as processes:

        def start(kind: str, *args: str) -> None:
            command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *args, "--no-dashboard"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            processes.callback(process.wait)
            processes.callback(process.terminate)

        start("scheduler", "--host", "127.0.0.1", "--port", str(port))
        for _ in range(workers):
            start("worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1")
        with Client(f"tcp://127.0.0.1:{port}", timeout=60) as client:
            client.wait_for_workers(workers, timeout=60)
            yield client


def own(
    hidden: int, batch: int, shards: int | None, samples: int, workers: int, grain: str, cluster: Any = stock
) -> list[float]:
    """Train by flowgrad on a cluster."""
    import flowgrad as fg

    inputs, classes, weights = data(hidden, samples)
    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(LAYERS[0], trainable=False), fg.Variable(LAYERS[-1], trainable=False)
        w1, b1, w2, b2 = (fg.Variable(w.size, w.ravel()) for w in weights)
        loss = fg.CrossEntropyWithSoftMax(fg.MatVec(w2, fg.ReLU(fg.MatVec(w1, x) + b1)) + b2, label)
    with cluster(workers) as client:
        engine = fg.Engine(client, grain=grain, shards=shards)
        trainer = fg.Trainer(fg.Adam(graph, loss, RATE, batch_size=batch), engine)
        history = trainer.fit({x: inputs, label: classes}, epochs=EPOCHS)
    return [batch * 1e3 / record["samples_per_second"] for record in history.epochs]


def ddp(hidden: int, batch: int, samples: int, rank: int, port: int) -> list[float]:
    """Train by PyTorch as one of two processes, each with half of every mini-batch and one thread."""
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    inputs, classes, _ = data(hidden, samples)
    net = torch.nn.Sequential(torch.nn.Linear(LAYERS[0], hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, LAYERS[-1]))
    net = torch.nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, fused=True)
    x, y, half = torch.from_numpy(inputs), torch.from_numpy(classes), batch // 2
    took = []
    for epoch in range(EPOCHS):
        order = torch.from_numpy(np.random.default_rng(epoch).permutation(samples)[: samples // batch * batch])
        began = time.perf_counter()
        for rows in order.reshape(-1, batch):
            mine = rows[rank * half : (rank + 1) * half]
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(net(x[mine]), y[mine]).backward()
            optimizer.step()
        took.append((time.perf_counter() - began) * 1e3 / (samples // batch))
    distributed.destroy_process_group()
    return took


def both_ranks(hidden: int, batch: int, samples: int) -> list[float]:
    """Start the other process, and be rank 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.collective", "rank", *map(str, (hidden, batch, samples, port))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL):
        return ddp(hidden, batch, samples, 0, port)


def collective_report(tell: Callable[[str], None] = print, turns: int = TURNS) -> str:
    """Let all take turns; return a table of medians over epochs, then over turns."""
    lines = [
        "| net | batch | "
        + " | ".join(label for label, *_ in CONTENDERS.values())
        + " | DDP / two | one / two | best / auto |",
        "|---|---:|" + "---:|" * len(CONTENDERS) + "---|---|---|",
    ]
    for hidden, batch, shards, samples in CASES:
        taken: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for turn in range(turns):
            for name, times in taken.items():
                answer = answer_of("collective", name, *map(str, (hidden, batch, shards or 0, samples)), timeout=300)
                times.append(float("inf") if answer is None else statistics.median(answer["ms"]))
            tell(f"collective: 784-{hidden}-10, batch {batch}, turn {turn + 1} of {turns}: {taken}")
        ms = {name: statistics.median(times) for name, times in taken.items()}
        against, speed = WANTED[hidden, batch]
        ratios = [ms["ddp"] / ms["two"], ms["one"] / ms["two"], min(ms["ddp"], ms["one"], ms["two"]) / ms["auto"]]
        words = [f"{ratio:.2f}" + (f", wanted {least:.2f}: {'yes' if ratio >= least else 'no'}" if least else "")
                 for ratio, least in zip(ratios, (against, speed, 0.95))]  # fmt: skip
        lines.append(
            f"| 784-{hidden}-10 | {batch} | "
            + " | ".join(f"{t:.2f}" for t in ms.values())
            + f" | {' | '.join(words)} |"
        )
    lines += ["", f"ms per step on a stock `LocalCluster`, workers of one thread: medians of {EPOCHS} epochs and {turns} turns; "
              "float32, Adam. The step of 784-90-10 at batch 32 is forced into two shards: by itself it is one."]  # fmt: skip
    return "\n".join(lines)


def main(name: str, *numbers: Any) -> list[float]:
    """Be one contender."""
    if name == "rank":
        hidden, batch, samples, port = map(int, numbers)
        return ddp(hidden, batch, samples, 1, port)
    hidden, batch, shards, samples = map(int, numbers)
    _, workers, grain = CONTENDERS[name]
    if not workers:
        return both_ranks(hidden, batch, samples)
    return own(hidden, batch, shards or None, samples, workers, grain, by_hand if name == "hand" else stock)


if __name__ == "__main__":
    print(json.dumps({"ms": main(*sys.argv[1:])}))

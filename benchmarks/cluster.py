"""Training over worker processes: time of a dependent step, DDP, memory over many steps, large data."""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

import flowgrad as fg
from benchmarks.own import matrix
from benchmarks.turns import Contender, take_turns
from flowgrad.scheduler.executors.cluster import local_cluster
from flowgrad.scheduler.tasks.keys import Ref
from flowgrad.scheduler.tasks.records import Task

Tell = Callable[[str], None]
BATCHES = (32, 256, 4096, 32_768)
# Milliseconds per dependent step: two processes, two threads of one.
WANTED_STEP = {(2, 1): 6.0, (1, 2): 2.5}


def net(hidden: int, batch: int, samples: int) -> tuple[fg.Optimizer, dict[Any, Any]]:
    """Return Adam on a 784-`hidden`-10 net and random feeds."""
    random = np.random.default_rng(0)
    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(784, trainable=False), fg.Variable(10, trainable=False)
        first, _ = matrix(x, random.normal(0, 0.05, (784, hidden)), np.zeros(hidden))
        logits, _ = matrix(fg.ReLU(first), random.normal(0, 0.05, (hidden, 10)), np.zeros(10))
        loss = fg.CrossEntropyWithSoftMax(logits, label)
    feeds = {x: random.random((samples, 784), dtype=np.float32), label: random.integers(0, 10, samples)}
    return fg.Adam(graph, loss, batch_size=batch), feeds


def rates(client: Any, hidden: int, batch: int, samples: int, epochs: int, **engine: Any) -> tuple[list[float], Any]:
    """Train on a cluster; return samples per second of each epoch but the first, and the history."""
    optimizer, feeds = net(hidden, batch, samples)
    history = fg.Trainer(optimizer, fg.Engine(client, dtype=np.float32, **engine)).fit(feeds, epochs=epochs)
    return [record["samples_per_second"] for record in history.epochs[1:]], history


def add_one(values: list[Any], step: int) -> Any:
    """Do next to nothing with what every worker has."""
    return values[0] + np.float32(1)


def bare_chain(executor: Any, steps: int = 100, entries: int = 71_560) -> float:
    """Return milliseconds per step of the same chain of tasks without any training: what dask and the network take."""
    addresses = [worker.address for worker in executor.workers()]
    name = uuid.uuid4().hex
    before = [Ref(f"bare-{name}-0-{k}") for k in range(len(addresses))]
    records: dict[str, Any] = {ref.key: Task(np.zeros, (entries, np.float32), k) for k, ref in enumerate(before)}
    for step in range(1, steps + 1):
        after = [Ref(f"bare-{name}-{step}-{k}") for k in range(len(addresses))]
        records |= {ref.key: Task(add_one, (before, step), k) for k, ref in enumerate(after)}
        before = after
    start = time.perf_counter()
    handles = executor.submit(records, [ref.key for ref in before], addresses)
    executor.outcome(handles, addresses)
    seconds = time.perf_counter() - start
    executor.release(handles)
    return seconds / steps * 1e3


def steps_report(tell: Tell) -> str:
    """Milliseconds per dependent step of 32 samples, a gradient task pinned to each lane."""
    lines = [
        "| workers x threads | ms per step: best epoch | median | wanted | dask as it comes | tasks that add 1: best | median |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (workers, threads), wanted in WANTED_STEP.items():
        with (
            local_cluster(workers, threads, dashboard=False) as client,
            LocalCluster(workers, threads_per_worker=threads, host="127.0.0.1", dashboard_address=":0") as cluster,
            Client(cluster, set_as_default=False) as stock,
        ):
            times: list[list[float]] = [[], []]
            bare = []
            for _ in range(3):
                for k, where in enumerate((client, stock)):
                    speeds, _ = rates(where, 90, 32, 3200, 5, grain="shard", shards=2, kernel="numba")
                    times[k] += [32e3 / rate for rate in speeds]
                bare += [bare_chain(fg.Engine(client).executor) for _ in speeds]
        best = min(times[0])
        verdict = f"{wanted:g}: {'yes' if best <= wanted else 'no'}"
        row = (best, statistics.median(times[0]), verdict, min(times[1]), min(bare), statistics.median(bare))
        cells = [cell if isinstance(cell, str) else f"{cell:.1f}" for cell in row]
        lines.append(f"| {workers} x {threads} | {' | '.join(cells)} |")
        tell(lines[-1])
    about = (
        "784-90-10, Adam, 286 kB of parameters, batch 32 in two shards, grain `shard`. Beside it, on the same cluster, the same "
        "chain of tasks on 286 kB that do nothing but add 1."
    )
    return about + "\n\n" + "\n".join(lines)


def ddp_report(tell: Tell, turns: int = 3) -> str:
    """Against DistributedDataParallel, batch size by batch size."""
    lines = [
        "| batch | flowgrad: best (median), samples/s | plan | DDP | flowgrad / DDP (turn by turn) |",
        "|---:|---:|---|---:|---:|",
    ]
    for batch in BATCHES:
        own, peer = Contender("flowgrad-cluster", 0), Contender("ddp", 0)
        take_turns([own, peer], batch, turns, tell)
        if own.problem or peer.problem:
            lines.append(f"| {batch} | {own.problem} | | {peer.problem} | |")
            continue
        paired = statistics.median(a / b for a, b in zip(own.rates, peer.rates))
        cells = [f"{c.best:,.0f} ({c.median:,.0f})" for c in (own, peer)]
        ratio = own.best / peer.best
        verdict = f"{ratio:.2f} ({paired:.2f}): {'yes' if ratio >= 1 else 'no'}"
        lines.append(f"| {batch} | {cells[0]} | {own.about.get('plan')} | {cells[1]} | {verdict} |")
        tell(lines[-1])
    return "784-90-10 on MNIST, two processes with one thread each, grain `auto`; wanted: at least 1.\n\n" + "\n".join(
        lines
    )


def memory_of(pid: int) -> int:
    """Return the memory of a process in bytes; Linux only."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak(threading.Thread):
    """Looks at the memory of processes until it is stopped."""

    def __init__(self, pids: list[int]):
        super().__init__(daemon=True)
        self.pids, self.most, self.stop = pids, dict.fromkeys(pids, 0), threading.Event()

    def run(self) -> None:
        """Look twenty times a second."""
        while not self.stop.wait(0.05):
            for pid in self.pids:
                with suppress(OSError):
                    self.most[pid] = max(self.most[pid], memory_of(pid))


def many_steps_report(tell: Tell, steps: int = 100_000) -> str:
    """Memory of client with scheduler, and of the workers, after the first 5 % and at the end of many steps."""
    batch, samples = 8, 8000
    noted: list[tuple[int, list[int]]] = []
    with local_cluster(2, 1, dashboard=False) as client:
        pids = [os.getpid(), *client.run(os.getpid).values()]

        class Note:
            def on_steps(self, info: dict[str, Any]) -> None:
                if not noted or info["step"] >= noted[-1][0] + steps // 20:
                    noted.append((info["step"], [memory_of(pid) for pid in pids]))
                    tell(f"step {info['step']:,}: " + ", ".join(f"{m / 2**20:.0f}" for m in noted[-1][1]) + " MiB")

        optimizer, feeds = _small(batch, samples)
        engine = fg.Engine(client, grain="shard", shards=2, kernel="numpy")
        start = time.perf_counter()
        history = fg.Trainer(optimizer, engine, callbacks=[Note()]).fit(feeds, epochs=steps * batch // samples)
        seconds = time.perf_counter() - start
    early, late = noted[1], noted[-1]
    cells = [
        f"{name} {a / 2**20:.0f} -> {b / 2**20:.0f}"
        for name, a, b in zip(("client", "worker", "worker"), early[1], late[1])
    ]
    return (
        f"{len(history.steps):,} steps at grain `shard` in {seconds:.0f} s, windows of {history.window['steps']} steps and "
        f"{history.window['tasks']} tasks. MiB after step {early[0]:,} and at step {late[0]:,}: {', '.join(cells)} "
        f"(the client's process holds scheduler and history too)."
    )


def _small(batch: int, samples: int) -> tuple[fg.Optimizer, dict[Any, Any]]:
    random = np.random.default_rng(0)
    with fg.Graph(seed=0) as graph:
        x, y = fg.Variable(8, trainable=False), fg.Variable(1, trainable=False)
        hidden = fg.Tanh(fg.MatVec(fg.Variable(64, random.normal(size=64)), x))
        loss = fg.MeanSquaredError(fg.Dot(fg.Variable(8, random.normal(size=8)), hidden), y)
    features = random.normal(size=(samples, 8))
    return fg.GradientDescent(graph, loss, 0.01, batch_size=batch), {x: features, y: np.tanh(features[:, 0])}


def large_data_report(tell: Tell, gigabytes: float = 4.0, batch: int = 8192) -> str:
    """Train an epoch on a file that is larger than all workers' memory."""
    samples = int(gigabytes * 1e9 / (784 * 4)) // batch * batch
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        x = np.lib.format.open_memmap(path, "w+", np.float32, (samples, 784))
        random = np.random.default_rng(0)
        labels = random.integers(0, 10, samples)
        for k in range(0, samples, batch):
            x[k : k + batch] = random.random((batch, 784), dtype=np.float32)
        x.flush()
        del x
        tell(f"{path.stat().st_size / 1e9:.2f} GB written")
        optimizer, _ = net(90, batch, 1)
        fed = [v for v in optimizer.graph.nodes if isinstance(v, fg.Variable) and not v.trainable]
        with local_cluster(2, 1, dashboard=False, memory_limit="1GB") as client:
            pids = list(client.run(os.getpid).values())
            watch = Peak([os.getpid(), *pids])
            watch.start()
            feeds = {fed[0]: np.load(path, mmap_mode="r"), fed[1]: labels}
            start = time.perf_counter()
            history = fg.Trainer(optimizer, fg.Engine(client, dtype=np.float32)).fit(feeds, epochs=1)
            seconds = time.perf_counter() - start
            watch.stop.set()
    client_most, *workers_most = (f"{watch.most[pid] / 2**20:.0f} MiB" for pid in watch.pids)
    return (
        f"{gigabytes:g} GB of float32 in a `.npy` file, two workers limited to 1 GB each, batch {batch}, shuffled over all rows: "
        f"an epoch in {seconds:.0f} s ({history.epochs[-1]['samples_per_second']:,.0f} samples/s), "
        f"{len(history.recoveries)} recoveries. Most resident memory, pages of the mapped file included: "
        f"client {client_most}, workers {' and '.join(workers_most)}."
    )


def numpy_report(tell: Tell, turns: int = 5) -> str:
    """Train with the NumPy kernel on a stock cluster and on threads here, in turns: medians of all epochs but the first."""
    lines = ["| shards | on a stock cluster, samples/s | on threads, samples/s | ratio |", "|---:|---:|---:|---:|"]
    with (
        LocalCluster(2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        for shards in (1, 4):
            speeds: dict[str, list[float]] = {"cluster": [], "threads": []}
            for turn in range(turns):
                tell(f"cluster: NumPy kernel, {shards} shards, turn {turn + 1}")
                for name, where in (("cluster", client), ("threads", "threads")):
                    optimizer, feeds = net(32, 64, 12_000)
                    engine = fg.Engine(where, np.float32, "round", shards=shards, kernel="numpy")
                    history = fg.Trainer(optimizer, engine, callbacks=[fg.Callback()]).fit(feeds, epochs=4)
                    speeds[name] += [record["samples_per_second"] for record in history.epochs[1:]]
            far, near = (statistics.median(speeds[name]) for name in ("cluster", "threads"))
            lines.append(f"| {shards} | {far:,.0f} | {near:,.0f} | {far / near:.2f} |")
    return "784-32-10, batch 64, 12,000 samples in memory.\n\n" + "\n".join(lines)


REPORTS: dict[str, Callable[[Tell], str]] = {
    "The NumPy kernel on a stock cluster": numpy_report,
    "A dependent step": steps_report,
    "Against DistributedDataParallel": ddp_report,
    "Memory over many steps": many_steps_report,
    "Data larger than memory": large_data_report,
}


def cluster_report(tell: Tell) -> str:
    """Return all reports as Markdown."""
    return "\n\n".join(f"### {title}\n\n{report(tell)}" for title, report in REPORTS.items())


if __name__ == "__main__":
    import sys

    for title, report in REPORTS.items():
        if any(word in title.lower() for word in sys.argv[1:]):
            print(report(lambda text: print(text, file=sys.stderr, flush=True)))

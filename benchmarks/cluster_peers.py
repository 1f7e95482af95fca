"""Two processes that train one net: flowgrad on a cluster of its own, and PyTorch's DistributedDataParallel with gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.setting import LAYERS, RATE, Task, load_task

EPOCHS = 3
LARGE = 32_768  # a batch size that the data set is too small for: samples are repeated


def cluster_task(batch: int) -> Task:
    """Return the task, its number of samples a multiple of every batch size."""
    task = load_task(batch)
    if len(task.x) % batch == 0:
        return task
    rows = np.arange(2 * LARGE) % len(task.x)
    return replace(task, x=task.x[rows], y=task.y[rows])


def cluster_contender(name: str, batch: int) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """Set up; as `child.contender`."""
    return (own_cluster if name == "flowgrad-cluster" else ddp)(cluster_task(batch))


def own_cluster(task: Task) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """Set up flowgrad with two worker processes and grain ``auto``."""
    import flowgrad as fg
    from benchmarks.own import matrix
    from flowgrad.scheduler.executors.cluster import local_cluster

    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(LAYERS[0], trainable=False), fg.Variable(LAYERS[-1], trainable=False)
        w1, b1, w2, b2 = task.weights
        hidden, _ = matrix(x, w1, b1)
        logits, _ = matrix(fg.ReLU(hidden), w2, b2)
        loss = fg.CrossEntropyWithSoftMax(logits, label)
    cluster = local_cluster(2, 1, dashboard=False)
    client = cluster.__enter__()
    trainer = fg.Trainer(fg.Adam(graph, loss, RATE, batch_size=task.batch), fg.Engine(client, dtype=np.float32))
    plans: list[str] = []

    def turn() -> Any:
        history = trainer.fit({x: task.x, label: task.y}, epochs=EPOCHS)
        plans.append("{grain}, {shards} shards, {kernel}".format(**history.plan))
        return {"wall": [record["samples_per_second"] for record in history.epochs]}

    def about() -> dict[str, Any]:
        cluster.__exit__(None, None, None)
        return {"plan": plans[-1]}

    return turn, about


def ddp(task: Task) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """PyTorch: this process is rank 0, and starts rank 1; each has half of every mini-batch and one thread."""
    import torch  # noqa: F401  # missing: told before anything starts

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.cluster_peers", str(task.batch), str(port)], stdout=subprocess.DEVNULL
    )
    epoch = _rank(task, 0, port)

    def turn() -> Any:
        return {"wall": [epoch(True) for _ in range(EPOCHS)]}

    def about() -> dict[str, Any]:
        epoch(False)
        other.wait()
        return {}

    return turn, about


def _rank(task: Task, rank: int, port: int) -> Callable[[bool], float]:
    """Return a function that trains an epoch and returns samples per second; all ranks call it."""
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    inputs, hidden, classes = LAYERS
    net = torch.nn.Sequential(torch.nn.Linear(inputs, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, classes))
    net = torch.nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, fused=True)
    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    half, count = task.batch // 2, iter(range(1 << 30))

    def epoch(on: bool) -> float:
        go = torch.tensor([int(on)])
        distributed.broadcast(go, 0)
        if not go.item():
            distributed.destroy_process_group()
            return 0.0
        start = time.perf_counter()
        for rows in torch.from_numpy(task.order(next(count))):
            mine = rows[rank * half : (rank + 1) * half]
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(net(x[mine]), y[mine])
            loss.backward()
            optimizer.step()
        loss.item()
        return len(x) / (time.perf_counter() - start)

    return epoch


def main() -> None:
    """Be rank 1 until rank 0 says stop."""
    epoch = _rank(cluster_task(int(sys.argv[1])), 1, int(sys.argv[2]))
    while epoch(True):
        pass


if __name__ == "__main__":
    main()

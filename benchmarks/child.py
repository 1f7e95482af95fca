"""One contender in a process of its own: trains two epochs for every line that it reads, and answers with JSON lines."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

EPOCHS = 2
CLUSTER = ("flowgrad-cluster", "ddp")  # two processes each


Rates = dict[str, list[float]]


def contender(name: str, batch: int, threads: int) -> tuple[Callable[[], Rates], Callable[[], dict[str, Any]]]:
    """Set a contender up, compiled and warm.

    Returns
    -------
    (callable, callable)
        The first trains on and returns samples per second by clock, a number per epoch; the second tells more about it.
    """
    from benchmarks.setting import SAMPLES, load_task

    if name.endswith("-numpy"):
        sys.modules["numba"] = None  # type: ignore[assignment]  # importing it fails, as if it were not installed
    if name in CLUSTER:
        from benchmarks.cluster_peers import cluster_contender

        return cluster_contender(name, batch)
    task = load_task(batch)
    if name.startswith("flowgrad"):
        from benchmarks.own import OWN, Own

        own = Own(task, OWN[name][1], threads)
        return own.turn, lambda: {"weights": own.digest()}

    from benchmarks.peers import PEERS

    epoch = PEERS[name][1](task, threads)

    def turn() -> Rates:
        rates: Rates = {"wall": [], "cpu": []}
        for _ in range(EPOCHS):
            start, cpu = time.perf_counter(), time.process_time()
            epoch()
            rates["wall"].append(SAMPLES / (time.perf_counter() - start))
            rates["cpu"].append(SAMPLES / (time.process_time() - cpu))
        return rates

    return turn, dict


def main() -> None:
    """Talk to the process that started this one."""
    name, batch, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    start = time.perf_counter()
    try:
        turn, about = contender(name, batch, threads)
    except ImportError as error:
        answer(missing=error.name or str(error))
        return
    first = turn()  # compiles
    answer(ready=True, seconds=time.perf_counter() - start, first=first)
    for _ in sys.stdin:
        answer(rates=turn())
    answer(**about())


if __name__ == "__main__":
    main()

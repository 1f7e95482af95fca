"""What the tasks run that are timed where they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowgrad.optim import AdamRule

from ..machine import one_thread

# Seconds for which something is run again and again, and parameters of an update.
LONG, UPDATED = 0.012, 1 << 20
# Exchanges between two workers that are timed.
LETTERS = 22


def burst() -> float:
    """Return the seconds of a matrix product, of many one after the other; others may be at it at the same time."""
    a, b, out = (np.ones(shape, np.float32) for shape in ((256, 512), (512, 512), (256, 512)))
    return _typical(lambda: np.matmul(a, b, out=out))


def new_state() -> float:
    """Return the seconds per byte read or written of an update by Adam, which has the most state, that makes a new state."""
    rule, w = AdamRule(), np.ones(UPDATED, np.float32)
    # Gradient, parameters and each array of state, the latter two twice.
    moved = (3 + 2 * len(rule.slots)) * w.nbytes
    return _typical(lambda: rule.update(w, w.copy(), rule.init(w))) / moved


def letters(group: Any, sizes: Sequence[int]) -> list[float]:
    """Return the seconds of an exchange with another worker, by the bytes that each sends."""
    seconds = []
    for size in sizes:
        # What is sent must stay as it is until the next exchange has ended.
        parts = [np.ones(size, np.uint8) for _ in range(2)]
        times = []
        for k in range(LETTERS):
            start = time.perf_counter()
            group.exchange(("measure",), [parts[k % 2]] * group.size)
            times.append(time.perf_counter() - start)
        seconds.append(float(np.mean(times[2:])))
    return seconds


def _typical(call: Callable[[], Any]) -> float:
    times: list[float] = []
    ends = time.perf_counter() + LONG
    with one_thread():
        while (start := time.perf_counter()) < ends or len(times) < 2:
            call()
            times.append(time.perf_counter() - start)
    return float(np.quantile(times, 0.25))

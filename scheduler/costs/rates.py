"""How fast a machine works and how long its tasks take to reach each other: plain numbers, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..programs import Product, Work

# Shapes of the matrix products that are measured: samples, rows of the matrix, its columns. No powers of two among the narrow
# ones: widths of nets mostly are none, and BLAS is slower at them.
SAMPLES = (4, 16, 64, 256)
OUTPUTS = (10, 30, 100, 512)
INPUTS = (10, 30, 100, 768)

Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Rates:
    """What one thread of a machine does in a second, by one kernel in one precision.

    Attributes
    ----------
    kernel, dtype : str
    start, call : float
        Seconds of a program on nothing: by itself, and for each instruction.
    products : dict
        Seconds of a matrix product by side, on the grid `SAMPLES` x `OUTPUTS` x `INPUTS`, without its call.
    moving : curve
        Seconds per byte read or written by the size of what is worked on, in bytes.
    function, reduction : float
        Seconds of a transcendental function; of what an op that goes through a whole row takes beside its functions.
    taking : curve
        Seconds per byte of rows that are gathered from the feeds, by their size in bytes.
    updating : curve
        Seconds per byte of parameters, gradient and optimizer state, by the size of them all.
    """

    kernel: str
    dtype: str
    start: float
    call: float
    products: dict[str, list[list[list[float]]]]
    moving: Curve
    function: float
    reduction: float
    taking: Curve
    updating: Curve

    def as_dict(self) -> dict[str, Any]:
        """Return the rates as values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Rates:
        """Return the rates that `as_dict` wrote."""
        curves = {
            name: tuple((float(x), float(y)) for x, y in values[name]) for name in ("moving", "taking", "updating")
        }
        return cls(**{**values, **curves})

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return int(np.dtype(self.dtype).itemsize)

    def product(self, product: Product, samples: int) -> float:
        """Return the seconds of a matrix product over `samples` samples."""
        grid: Any = self.products[product.side]
        shape = (samples, product.outputs, product.inputs)
        return math.exp(_grid(grid, (SAMPLES, OUTPUTS, INPUTS), [math.log(n) for n in shape]))

    def peak(self) -> float:
        """Return the operations per second of the largest product that was measured."""
        return 2.0 * SAMPLES[-1] * OUTPUTS[-1] * INPUTS[-1] / self.products["value"][-1][-1][-1]

    def calls(self, work: Work) -> float:
        """Return the seconds of a program on nothing."""
        return self.start + work.calls * self.call

    def gradient(self, work: Work, samples: int) -> float:
        """Return the seconds of the program on one shard of `samples` samples, by one thread."""
        size = self.itemsize
        seconds = self.calls(work)
        taken = samples * work.taken * size
        seconds += samples * (work.functions * self.function + work.reductions * self.reduction)
        seconds += taken * on_curve(self.taking, taken)
        seconds += sum(n * self.product(p, samples) for p, n in work.products.items())
        if self.kernel == "numba":  # buffers of the whole program are used again and again
            per_byte = on_curve(self.moving, size * work.held(samples))
            return seconds + (work.moved(samples) - samples * work.taken) * size * per_byte
        seconds += work.once * size * on_curve(self.moving, size * work.once)
        for loop, n in work.loops.items():
            seconds += n * samples * loop.moved * size * on_curve(self.moving, size * samples * loop.out)
        return seconds

    def update(self, params: int, slots: int) -> float:
        """Return the seconds of one update of `params` parameters by a rule with `slots` arrays of state."""
        nbytes = update_bytes(params * self.itemsize, slots)
        return nbytes * on_curve(self.updating, nbytes)

    def add(self, params: int) -> float:
        """Return the seconds of adding one gradient to another."""
        nbytes = 3 * params * self.itemsize
        return nbytes * on_curve(self.moving, nbytes)


@dataclass(frozen=True)
class Links:
    """What tasks cost on an executor, beside their work.

    Attributes
    ----------
    workers, threads, slots : int
        Processes that run tasks; threads that one task may use; tasks that run at one time.
    hop : float
        Seconds from the end of a task to the start of one that waits for it.
    task : float
        Seconds of one task more beside others.
    window : float
        Seconds from handing over a window of steps to its losses, without the steps.
    rows : float
        Seconds of handing one shard's rows to a round.
    step : float
        Seconds of a step whose two shards are tasks of their own, without their work.
    move : float
        Seconds for a byte to come from another worker, while one goes there.
    update : float
        Seconds per byte of parameters, gradient and optimizer state of an update that makes a new state.
    machine : int
        Threads that a long task may use when nothing else runs.
    crowd : float
        How much longer a matrix product takes while all slots are at it.
    """

    workers: int
    threads: int
    slots: int
    hop: float
    task: float
    window: float = 0.0
    rows: float = 0.0
    step: float = 0.0
    move: float = 0.0
    update: float = 0.0
    machine: int = 1
    crowd: float = 1.0

    def crowding(self, threads: int) -> float:
        """Return how much longer work takes while `threads` threads are at it."""
        return 1.0 + (self.crowd - 1.0) * (threads - 1) / max(1, self.slots - 1)


def update_bytes(parameter_bytes: int, slots: int) -> int:
    """Return what an update reads and writes: gradient, parameters and each array of state, the latter two twice."""
    return (3 + 2 * slots) * parameter_bytes


def on_curve(curve: Sequence[tuple[float, float]], x: float) -> float:
    """Return the value at `x`: between two points interpolated over logarithms, beyond the ends that of the end."""
    if x <= curve[0][0]:
        return curve[0][1]
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x <= x1:
            share = math.log(x / x0) / math.log(x1 / x0)
            return math.exp(math.log(y0) * (1 - share) + math.log(y1) * share)
    return curve[-1][1]


def _grid(values: Any, axes: Sequence[Sequence[int]], at: Sequence[float]) -> float:
    """Return the logarithm of the value at the logarithms `at`; beyond the last grid point it grows in proportion."""
    if not axes:
        return math.log(values)
    points, x = [math.log(n) for n in axes[0]], at[0]
    if x >= points[-1]:
        return _grid(values[-1], axes[1:], at[1:]) + x - points[-1]
    if x <= points[0]:
        return _grid(values[0], axes[1:], at[1:])
    k = next(k for k, point in enumerate(points) if point > x)
    share = (x - points[k - 1]) / (points[k] - points[k - 1])
    low, high = (_grid(values[j], axes[1:], at[1:]) for j in (k - 1, k))
    return low * (1 - share) + high * share

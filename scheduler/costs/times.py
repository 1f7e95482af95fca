"""What steps and tasks take, as it was measured: plain numbers, and what lies between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Times:
    """What steps take, by one thread.

    Attributes
    ----------
    steps : tuple of (int, float)
        Seconds of a step of one shard by its number of samples: some of them, rising, the first is 1.
    more : float
        Seconds of one more shard, of one sample.
    """

    kernel: str
    steps: tuple[tuple[int, float], ...]
    more: float

    @property
    def update(self) -> float:
        """Seconds of a step beside the gradients of its shards."""
        return max(self.steps[0][1] - self.more, 0.0)

    def gradient(self, samples: int) -> float:
        """Return the seconds of the gradient of a shard, which is added to those of others."""
        return between(self.steps, samples) - self.update

    @property
    def calls(self) -> float:
        """Seconds of a shard that tasks of one process spend in Python's interpreter, and so one after the other."""
        return self.more if self.kernel == "numpy" else 0.0


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
    letter, letter_byte : float
        Seconds of an exchange between two workers that share steps, of next to nothing, and for each byte more; 0: they cannot.
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
    letter: float = 0.0
    letter_byte: float = 0.0

    def crowding(self, threads: int) -> float:
        """Return how much longer work takes while `threads` threads are at it."""
        return 1.0 + (self.crowd - 1.0) * (threads - 1) / max(1, self.slots - 1)


def between(curve: Sequence[tuple[int, float]], x: int) -> float:
    """Return the value at `x`, on the line between two points; beyond the last one it grows as it did before.

    Examples
    --------
    >>> curve = ((1, 2.0), (11, 3.0), (21, 5.0))
    >>> [between(curve, x) for x in (0, 6, 16, 31)]
    [2.0, 2.5, 4.0, 7.0]
    """
    if x <= curve[0][0] or len(curve) == 1:
        return curve[0][1]
    (x0, y0), (x1, y1) = next((pair for pair in pairwise(curve) if x <= pair[1][0]), curve[-2:])
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

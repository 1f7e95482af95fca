"""Which rows each step reads: they follow from a seed, so that tasks carry a few numbers and no rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

from flowgrad.typing import Array

from ..tasks import bounds

T = TypeVar("T")
# Of a row in the order of an epoch that is no longer than most.
ORDER_BYTES = 4


class Epoch(NamedTuple):
    """The order of the samples in an epoch, in mini-batches of `size`; the last one may be smaller.

    The order depends on `seed` and `number` alone.
    """

    samples: int
    size: int
    shuffle: bool
    seed: int
    number: int

    @property
    def steps(self) -> int:
        """Number of mini-batches."""
        return -(-self.samples // self.size)

    def samples_of(self, step: int) -> int:
        """Return the number of samples of a mini-batch; the first is 0."""
        return min(self.size, self.samples - step * self.size)


@lru_cache(maxsize=1)
def order_of(epoch: Epoch) -> Array:
    """Return all rows in the order of an epoch."""
    rows = np.arange(epoch.samples, dtype=np.int32 if epoch.samples < 1 << 31 else np.int64)
    if epoch.shuffle:
        np.random.default_rng([epoch.seed, epoch.number]).shuffle(rows)
    rows.flags.writeable = False
    return rows


@dataclass(frozen=True)
class _Range(Sequence[T]):
    """Neighbours ``first:stop`` of an epoch, each made when it is asked for; a slice of them is one of the same kind."""

    epoch: Epoch
    first: int
    stop: int

    @abstractmethod
    def _one(self, position: int) -> T: ...

    def __len__(self) -> int:
        return self.stop - self.first

    def __getitem__(self, index: int | slice) -> Any:
        part = range(self.first, self.stop)[index]
        return self._one(part) if isinstance(part, int) else replace(self, first=part.start, stop=part.stop)


@dataclass(frozen=True)
class Shards(_Range[Array]):
    """Rows of neighbouring shards of one step; the order is drawn where they are read.

    Attributes
    ----------
    first, stop : int
        Which shards of the step.
    step : int
        In the epoch, from 0.
    shards : int
        Into how many a mini-batch is cut.
    """

    step: int
    shards: int

    def _bounds(self) -> list[tuple[int, int]]:
        begin = self.step * self.epoch.size
        return [(begin + a, begin + b) for a, b in bounds(self.epoch.samples_of(self.step), self.shards)]

    def _one(self, position: int) -> Array:
        start, stop = self._bounds()[position]
        return order_of(self.epoch)[start:stop]

    def __iter__(self) -> Iterator[Array]:
        order = order_of(self.epoch)
        return iter([order[start:stop] for start, stop in self._bounds()[self.first : self.stop]])


@dataclass(frozen=True)
class Batches(_Range[Shards]):
    """Neighbouring steps of an epoch, each as its shards.

    Attributes
    ----------
    first, stop : int
        Which steps, from 0.
    shards : int
        Into how many each is cut.

    Examples
    --------
    >>> batches = Batches(Epoch(samples=5, size=4, shuffle=False, seed=0, number=1), 0, 2, shards=2)
    >>> [[rows.tolist() for rows in shards] for shards in batches]
    [[[0, 1], [2, 3]], [[4]]]
    >>> batches[1:].samples
    1
    """

    shards: int

    @property
    def samples(self) -> int:
        """Number of rows of all steps."""
        return min(self.stop * self.epoch.size, self.epoch.samples) - self.first * self.epoch.size

    @property
    def largest(self) -> int:
        """Number of rows of the largest step, which is the first."""
        return self.epoch.samples_of(self.first)

    def _one(self, position: int) -> Shards:
        return Shards(self.epoch, 0, min(self.shards, self.epoch.samples_of(position)), position, self.shards)

"""Which rows each step reads: they follow from a seed, so that tasks carry a few numbers and no rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, overload

import numpy as np

from flowgrad.jacobian import Array

from .tree import bounds


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


@lru_cache(maxsize=1)
def order_of(epoch: Epoch) -> Array:
    """Return all rows in the order of an epoch."""
    rows = np.arange(epoch.samples, dtype=np.int32 if epoch.samples < 1 << 31 else np.int64)
    if epoch.shuffle:
        np.random.default_rng([epoch.seed, epoch.number]).shuffle(rows)
    rows.flags.writeable = False
    return rows


class Shards(Sequence[Array]):
    """Rows of neighbouring shards of one step; the order is drawn where they are read.

    Parameters
    ----------
    epoch : Epoch
    step : int
        In the epoch, from 0.
    shards : int
        Into how many a mini-batch is cut.
    first, stop : int
        Of these, which.
    """

    def __init__(self, epoch: Epoch, step: int, shards: int, first: int, stop: int):
        self.epoch, self.step, self.shards, self.first, self.stop = epoch, step, shards, first, stop

    @property
    def samples(self) -> int:
        """Number of rows of all of them; nothing is drawn for it."""
        return sum(stop - start for start, stop in self._bounds())

    def _bounds(self) -> list[tuple[int, int]]:
        begin = self.step * self.epoch.size
        size = min(self.epoch.size, self.epoch.samples - begin)
        return [(begin + start, begin + stop) for start, stop in bounds(size, self.shards)[self.first : self.stop]]

    def __len__(self) -> int:
        return self.stop - self.first

    @overload
    def __getitem__(self, index: int) -> Array: ...

    @overload
    def __getitem__(self, index: slice) -> Shards: ...

    def __getitem__(self, index: int | slice) -> Any:
        part = range(self.first, self.stop)[index]
        if isinstance(part, int):
            start, stop = self._bounds()[part - self.first]
            return order_of(self.epoch)[start:stop]
        return Shards(self.epoch, self.step, self.shards, part.start, part.stop)

    def __iter__(self) -> Iterator[Array]:
        order = order_of(self.epoch)
        return iter([order[start:stop] for start, stop in self._bounds()])

    def __repr__(self) -> str:
        return f"Shards({self.epoch!r}, {self.step}, {self.shards}, {self.first}, {self.stop})"


class Batches(Sequence[Shards]):
    """Neighbouring steps of an epoch, each as its shards.

    Parameters
    ----------
    epoch : Epoch
    shards : int
    first, stop : int
        Which steps, from 0.

    Examples
    --------
    >>> batches = Batches(Epoch(samples=5, size=4, shuffle=False, seed=0, number=1), shards=2)
    >>> [[rows.tolist() for rows in shards] for shards in batches]
    [[[0, 1], [2, 3]], [[4]]]
    >>> batches[1:].samples
    1
    """

    def __init__(self, epoch: Epoch, shards: int, first: int = 0, stop: int | None = None):
        self.epoch, self.shards, self.first = epoch, shards, first
        self.stop = epoch.steps if stop is None else stop

    @property
    def samples(self) -> int:
        """Number of rows of all steps."""
        return min(self.stop * self.epoch.size, self.epoch.samples) - self.first * self.epoch.size

    @property
    def largest(self) -> int:
        """Number of rows of the largest step."""
        return self[0].samples

    def __len__(self) -> int:
        return self.stop - self.first

    @overload
    def __getitem__(self, index: int) -> Shards: ...

    @overload
    def __getitem__(self, index: slice) -> Batches: ...

    def __getitem__(self, index: int | slice) -> Any:
        part = range(self.first, self.stop)[index]
        if isinstance(part, int):
            size = min(self.epoch.size, self.epoch.samples - part * self.epoch.size)
            return Shards(self.epoch, part, self.shards, 0, min(self.shards, size))
        return Batches(self.epoch, self.shards, part.start, part.stop)

    def __repr__(self) -> str:
        return f"Batches({self.epoch!r}, {self.shards}, {self.first}, {self.stop})"

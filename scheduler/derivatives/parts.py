"""The factors of per-sample gradients, a block of samples each: here, or as futures on workers, made again where those are lost."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Made(NamedTuple):
    """Factors by block, and what lets go of them where an executor keeps them."""

    values: list[Any]
    release: Callable[[], None] | None = None


class Parts:
    """Factors by block of samples.

    Parameters
    ----------
    made : Made
        Lists of `Factors`; futures of such; or, for dask arrays that were fed, dask's promises.
    lengths : sequence of int
        Samples of each block.
    again : callable, optional
        Makes them once more, if values were lost with a worker.
    """

    def __init__(self, made: Made, lengths: Sequence[int], again: Callable[[], Made] | None = None):
        self.lengths, self.again = list(lengths), again
        self._take(made)

    def _take(self, made: Made) -> None:
        self.values = made.values
        if made.release is not None:
            weakref.finalize(self, made.release)

    @property
    def here(self) -> list[Any] | None:
        """The factors of the only block, if they are in this process."""
        return self.values[0] if len(self.values) == 1 and isinstance(self.values[0], list) else None

    def renew(self) -> None:
        """Make them again, if they can have been lost."""
        if self.again is not None:
            self._take(self.again())

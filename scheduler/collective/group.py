"""What the members of a gang do together: sums and exchanges of arrays, in an order that never changes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from dask import is_dask_collection

from flowgrad.errors import ClusterError
from flowgrad.typing import Array

from ..tasks import bounds, reduce_tree
from .letter import Letter

if TYPE_CHECKING:
    from .mailbox import Box, Line

# Bytes and members from which on an array is summed slice by slice: every member adds up a part, and sends the sum. Two of them
# send as much either way, and would wait for each other twice instead of once.
SLICED, LEAST_SLICES = 1 << 19, 3
# Kinds of arrays that have a sum, and of those that can be laid end to end: `+` joins text and makes of two Trues one.
SUMMED, GATHERED = "iufcm", "biufcmMSUV"


class GangBroken(ClusterError):
    """A member is gone, or does something else than the others."""


class Group:
    """A member's view of its gang.

    Every verb is called by all members, in the same order. Sums are taken in a tree by rank, so that all get the same bits,
    always.

    Attributes
    ----------
    rank, size : int
        This member's number, and how many there are.
    seconds : float
        How long exchanges took, waiting for others included.
    """

    def __init__(self, rank: int, addresses: Sequence[str], box: Box, lines: Mapping[int, Line]):
        self.rank, self.size, self.addresses = rank, len(addresses), addresses
        self._box, self._lines, self._number = box, lines, 0
        self.seconds = 0.0

    def exchange(self, about: Any, parts: Sequence[Any], note: Any = None) -> list[Letter]:
        """Send each member its part, an array, a list of them or nothing; return what came from each, and the own in its place.

        An array that is sent must not change before the exchange after this one has ended: then the others have read it. What
        came may be the sender's very array, and must not change either.

        Parameters
        ----------
        about : tuple of (str, ...)
            The verb, and what else all members must agree in.
        note : any plain value, optional
            Sent along to all; for a few numbers this is faster than an array.
        """
        start = time.perf_counter()
        number, self._number = self._number, self._number + 1
        others = [(self.rank + k) % self.size for k in range(1, self.size)]
        for peer in others:
            self._lines[peer].send(Letter(number, about, parts[peer], note))
        came = [Letter(number, about, part, note) for part in parts]
        for peer in others:
            letter = self._box.take(peer, number)
            if isinstance(letter, str):
                where = f"rank {peer} ({self.addresses[peer]})"
                raise GangBroken(f"{where} {letter}, while rank {self.rank} was in {_told(about)}")
            theirs = _plain(letter.about)
            if theirs != _plain(about):
                (a, x), (b, y) = sorted([(self.rank, about), (peer, theirs)])
                raise GangBroken(
                    f"rank {a} is in {_told(x)}, rank {b} in {_told(y)}: all members call the same verbs in the same order"
                )
            came[peer] = letter
        self.seconds += time.perf_counter() - start
        return came

    def all_reduce(self, a: Any) -> Array:
        """Return the sum of all members' arrays.

        Parameters
        ----------
        a : array
            Of the same shape and dtype on all members.
        """
        mine = self._array("all_reduce", a, SUMMED)
        about = ("all_reduce", str(mine.dtype), mine.shape)
        if worth_slices(mine, self.size):
            return self.all_gather(self._slice(about, mine.reshape(-1))).reshape(mine.shape)
        came = self.exchange(about, [mine] * self.size)
        return np.array(reduce_tree([np.asarray(x.data) for x in came], _sum))

    def reduce_scatter(self, a: Any) -> Array:
        """Return this member's slice, along axis 0, of the sum of all members' arrays.

        Slice ``k`` of ``n`` is that of ``np.array_split``: the first ones are one longer where they cannot be equal.
        """
        mine = self._array("reduce_scatter", a, SUMMED, 1)
        return self._slice(("reduce_scatter", str(mine.dtype), mine.shape), mine)

    def all_gather(self, a: Any) -> Array:
        """Return all members' arrays, end to end along axis 0, where their lengths may differ."""
        mine = self._array("all_gather", a, GATHERED, 1)
        came = self.exchange(("all_gather", str(mine.dtype), ("n", *mine.shape[1:])), [mine] * self.size)
        return np.concatenate([np.asarray(x.data) for x in came])

    def _slice(self, about: Any, mine: Array) -> Array:
        came = self.exchange(about, [mine[start:stop] for start, stop in slices(len(mine), self.size)])
        return np.array(reduce_tree([np.asarray(x.data) for x in came], _sum))

    def _array(self, verb: str, a: Any, kinds: str, ndmin: int = 0) -> Array:
        """Return what this member gave to a verb as an array of its own."""
        told = _unseen(a)
        try:
            array = np.array(None if told else a, order="C", ndmin=ndmin)
        except Exception as error:  # whatever it is that makes an array of it
            told = f"{type(a).__name__} that is no array ({' '.join(str(error).split())})"
        if not told and (array.dtype.kind not in kinds or array.dtype.hasobject):
            told = f"{type(a).__name__} of dtype {array.dtype}, shape {array.shape}"
        if told:
            wanted = "numbers to add up; to count, integers" if kinds == SUMMED else "an array without objects"
            raise ClusterError(f"rank {self.rank} ({self.addresses[self.rank]}) gave {verb} {told}: give {wanted}")
        return array

    def barrier(self) -> None:
        """Wait until all members are here."""
        self.exchange(("barrier",), [None] * self.size)

    def __repr__(self) -> str:
        return f"<Group: rank {self.rank} of {self.size}>"


def worth_slices(a: Array, size: int) -> bool:
    """Return whether so many members add up an array slice by slice."""
    return traffic(a.nbytes, size)[0] > 1


def traffic(nbytes: int, size: int) -> tuple[int, float]:
    """Return how many exchanges the sum of an array takes, and how many bytes each member sends in them, and receives.

    Examples
    --------
    >>> traffic(1000, 4), traffic(1_000_000, 4)
    ((1, 3000), (2, 1500000.0))
    """
    if nbytes >= SLICED and size >= LEAST_SLICES:
        return 2, 2 * (size - 1) * nbytes / size
    return 1, (size - 1) * nbytes


def slices(length: int, size: int) -> list[tuple[int, int]]:
    """Return start and stop of each member's slice.

    Examples
    --------
    >>> slices(5, 2), slices(1, 2)
    ([(0, 3), (3, 5)], [(0, 1), (1, 1)])
    """
    cuts = bounds(length, size) if length else []
    return [*cuts, *[(length, length)] * (size - len(cuts))]


def _sum(group: list[Array]) -> Array:
    total = group[0]
    for more in group[1:]:
        total = np.add(total, more)
    return total


def _unseen(a: Any) -> str:
    """Return what NumPy says nothing of: it drops masks, and computes what is dask's, which may wait for this task's thread."""
    if isinstance(a, (list, tuple)):
        return next(filter(None, map(_unseen, a)), "")
    if np.ma.is_masked(a):
        return f"{type(a).__name__} with masked entries, dtype {a.dtype}, shape {a.shape}"
    return f"{type(a).__name__} of dask that is not computed" if is_dask_collection(a) else ""


def _plain(about: Any) -> Any:
    """Return what travelled as it was sent: tuples arrive as lists."""
    return tuple(_plain(x) for x in about) if isinstance(about, (list, tuple)) else about


def _told(about: Any) -> str:
    verb, *rest = _plain(about)
    dtype, shape = (*rest, "", "")[:2]
    return f"{verb}({dtype} {shape})".replace("'", "") if rest else f"{verb}()"

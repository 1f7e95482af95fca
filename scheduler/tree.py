"""The fixed tree in which shards are reduced: by shard index, never by arrival."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")

# How many neighbours one reduction adds up; part of the arithmetic, so part of every fingerprint.
FAN_IN = 8


def reduce_tree(items: Sequence[T], combine: Callable[[list[T]], T]) -> T:
    """Combine neighbours by index, level by level, until one is left.

    Parameters
    ----------
    items : sequence
        In the order of the shards; at least one.
    combine : callable
        Combines up to `FAN_IN` neighbours, in their order.

    Examples
    --------
    >>> reduce_tree(list(range(10)), sum)
    45
    """
    level = list(items)
    while len(level) > 1:
        level = [
            group[0] if len(group) == 1 else combine(group)
            for group in (level[i : i + FAN_IN] for i in range(0, len(level), FAN_IN))
        ]
    return level[0]


def bounds(n: int, shards: int) -> list[tuple[int, int]]:
    """Return start and stop of each shard of `n` samples; sizes differ by at most one, none is empty.

    Examples
    --------
    >>> bounds(5, 2)
    [(0, 3), (3, 5)]
    """
    shards = max(1, min(shards, n))
    size, more = divmod(n, shards)
    ends = [0]
    for s in range(shards):
        ends.append(ends[-1] + size + (s < more))
    return list(pairwise(ends))

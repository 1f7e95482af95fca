"""The fixed tree in which shards are reduced: by shard index, never by arrival."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")

# How many neighbours one reduction adds up; part of the arithmetic, so part of every fingerprint. With two, a lane that has
# neighbouring shards can add up most of them before anything travels.
FAN_IN = 2
# Gradients that a round keeps side by side, at least: more of them are folded into the tree as they are done. Changes no bit.
SIDE_BY_SIDE = 8


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
    >>> reduce_tree(list("abcde"), lambda pair: f"({pair[0]}{pair[1]})")
    '(((ab)(cd))e)'
    """
    (root,) = reduce_some({(0, k): item for k, item in enumerate(items)}, len(items), combine).values()
    return root


def reduce_some(
    nodes: Mapping[tuple[int, int], T], shards: int, combine: Callable[[list[T]], T]
) -> dict[tuple[int, int], T]:
    """Combine what can be combined of a tree of which only some nodes are here.

    Parameters
    ----------
    nodes : mapping
        Values by level and index; shards are level 0.
    shards : int
        How many shards the whole tree has.

    Returns
    -------
    dict
        The nodes that are left. With nothing missing it is one, the value of `reduce_tree`.

    Examples
    --------
    >>> reduce_some({(0, 0): 1, (0, 1): 2, (0, 2): 4}, 4, sum)
    {(0, 2): 4, (1, 0): 3}
    """
    left, level = dict(nodes), 0
    while shards > 1:
        parents = -(-shards // FAN_IN)
        for p in range(parents):
            children = [(level, k) for k in range(p * FAN_IN, min((p + 1) * FAN_IN, shards))]
            if all(c in left for c in children):
                group = [left.pop(c) for c in children]
                left[level + 1, p] = group[0] if len(group) == 1 else combine(group)
        level, shards = level + 1, parents
    return left


def levels(items: int) -> int:
    """Return how many times a tree of so many items is reduced."""
    depth = 0
    while FAN_IN**depth < items:
        depth += 1
    return depth


def fold_tree(items: Iterable[T], combine: Callable[[list[T]], T]) -> T:
    """Combine items as `reduce_tree` does, as they come, and keep one per level.

    Parameters
    ----------
    items : iterable
        In the order of the shards; at least one.
    combine : callable
        Must be a fold itself: ``combine([a, b, c]) == combine([combine([a, b]), c])``.

    Examples
    --------
    >>> fold_tree(iter(range(100)), sum)
    4950
    """
    groups: list[tuple[int, int, T]] = []  # level, how many of that level it holds, value; levels fall
    for item in items:
        level, count = 0, 1
        while groups and groups[-1][0] == level:
            _, before, group = groups.pop()
            item, count = combine([group, item]), before + 1
            if count < FAN_IN:
                break
            level, count = level + 1, 1
        groups.append((level, count, item))
    result = groups.pop()[2]
    while groups:
        result = combine([groups.pop()[2], result])
    return result


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

"""From nodes to boxes: levels, steps that repeat folded into one, and many alike siblings folded into one box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PERIOD = 400  # nodes of the longest step that is looked for
WIDE = 8  # operands up to which they are compared one by one
WHOLE = 200  # nodes up to which what repeats is opened as a whole, not step by step
PILES = 12  # boxes that an opened box becomes, at most: of more siblings, those that follow each other stay together


@dataclass(frozen=True)
class Item:
    """One vertex of what is to be drawn.

    Attributes
    ----------
    key : hashable
        Its identity.
    title, lines : str, tuple of str
        First line of its label, and the others.
    role : str
        Decides the colour and is told in the legend.
    parents : tuple of hashable
        Keys by slot.
    kind, like : hashable
        Siblings of one kind are folded together, and steps whose items are alike.
    slots : bool
        Whether the order of the parents means something.
    scope : tuple of str
        The frames in which it lies, the outermost first.
    trained : int
        How many numbers are trained in it.
    """

    key: Hashable
    title: str
    lines: tuple[str, ...]
    role: str
    parents: tuple[Hashable, ...]
    kind: Hashable
    like: Hashable = None
    slots: bool = True
    scope: tuple[str, ...] = ()
    trained: int = 0


@dataclass
class Box:
    """One box of the picture.

    Attributes
    ----------
    members : list of int
        Places of the items that it stands for.
    ports : list of str
        Labels of the places, in order, where arrows come in.
    free : bool
        Whether arrows may come in in any order.
    apart : float
        Distance of two ports, pixels.
    """

    members: list[int]
    level: int
    free: bool = False
    ports: list[str] = field(default_factory=list)
    apart: float = 15.0


@dataclass(frozen=True)
class Edge:
    """An arrow from box `source` to port `port` of box `target`, standing for `count` edges from `lag` steps before.

    With `each`, both are piles, and every item reads one that no other reads.
    """

    source: int
    target: int
    port: int
    count: int
    lag: int = 0
    each: bool = False


@dataclass(frozen=True, order=True)
class Run:
    """Items that repeat: `count` times `period` of them, from `start` on."""

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        """Return the place behind the last item."""
        return self.start + self.period * self.count


def fold(items: Sequence[Item], limit: int, opened: Collection[int] = ()) -> tuple[list[Box], list[Edge]]:
    """Turn items, parents before children, into boxes and arrows in the order of their first items.

    Steps of which each reads the one before become one step when they are three or more, of together more than `limit` items. More
    than `limit` siblings that look alike become one box; alike are items of one kind and level, of alike parents and children.
    No box stands for an item of `opened` and others; of 90 siblings of which the 35th is opened there are 10, and 8 boxes of 10.
    """
    place = {item.key: i for i, item in enumerate(items)}
    parents = [tuple(place[p] for p in item.parents) for item in items]
    run, step, group = _steps(items, parents, limit, opened)
    members: list[list[int]] = [[] for _ in range(max(group) + 1)]
    for i, g in enumerate(group):
        members[g].append(i)
    # By group and slot: groups that are read, and from how many steps before.
    wide = [not items[m[0]].slots or max(len(parents[i]) for i in m) > limit for m in members]
    above: list[list[set[tuple[int, int]]]] = []
    for g, those in enumerate(members):
        slots: list[set[tuple[int, int]]] = [set() for _ in range(1 if wide[g] else len(parents[those[0]]))]
        for i in those:
            for slot, p in enumerate(parents[i]):
                lag = step[i] - step[p] if run[i] == run[p] >= 0 else 0
                slots[0 if wide[g] else slot].add((group[p], lag))
        above.append(slots)
    level = _levels([[h for slot in slots for h, lag in slot if not lag] for slots in above])
    kinds = [(items[m[0]].kind, items[m[-1]].role, level[g], len(m)) for g, m in enumerate(members)]
    colour = _colours(kinds, above, wide)
    alike: dict[int, list[int]] = {}
    for g, c in enumerate(colour):
        alike.setdefault(c, []).append(g)
    apart = {group[i] for i in opened if 0 <= i < len(items)}
    pile_of = {g: pile for those in alike.values() if len(those) > limit for pile in _piles(those, apart) for g in pile}
    boxes: dict[int, Box] = {}
    numbers: dict[int, int] = {}
    box_of = []
    for g, those in enumerate(members):
        key = pile_of.get(g, [g])[0]
        box_of.append(numbers.setdefault(key, len(numbers)))
        boxes.setdefault(key, Box([], level[g], not items[those[0]].slots)).members.extend(those)
    edges: list[Edge] = []
    boxes_of = [box_of[g] for g in group]
    for k, box in enumerate(boxes.values()):
        box.members.sort()
        g = group[box.members[0]]
        named = items[box.members[0]].slots
        edges += _connect(k, box, wide[g], named, parents, boxes_of, run, step)
    return list(boxes.values()), edges


def _piles(groups: Sequence[int], apart: Collection[int]) -> list[Sequence[int]]:
    """Cut siblings into those that are drawn as one: all of them, or, where one is drawn apart, as few as leave it alone."""
    if not any(g in apart for g in groups):
        return [groups]
    if len(groups) <= PILES:
        return [[g] for g in groups]
    size = 1
    while size * PILES < len(groups):
        size *= 10
    return [pile for k in range(0, len(groups), size) for pile in _piles(groups[k : k + size], apart)]


def levels(items: Sequence[Item]) -> dict[Hashable, int]:
    """Return each item's level: the longest way to it, leaves right before their first child."""
    place = {item.key: i for i, item in enumerate(items)}
    found = _levels([[place[p] for p in item.parents] for item in items])
    return {item.key: level for item, level in zip(items, found)}


def _levels(above: Sequence[Sequence[int]]) -> list[int]:
    level = [0] * len(above)
    for k, those in enumerate(above):
        level[k] = 1 + max((level[p] for p in those), default=-1)
    first_child: dict[int, int] = {}
    for k, those in enumerate(above):
        for p in those:
            first_child[p] = min(first_child.get(p, level[k]), level[k])
    for k, those in enumerate(above):
        if not those:
            level[k] = first_child.get(k, 1) - 1
    return level


def _colours(
    kinds: Sequence[Hashable], above: Sequence[Sequence[Iterable[tuple[int, int]]]], wide: Sequence[bool]
) -> list[int]:
    """Colour refinement: groups get the same number when they, their parents and their children look alike."""
    below: list[list[tuple[int, int, int]]] = [[] for _ in kinds]
    for g, slots in enumerate(above):
        for slot, those in enumerate(slots):
            for p, lag in those:
                below[p].append((-1 if wide[g] else slot, lag, g))
    colour = _number(kinds)
    for _ in range(64):
        look = []
        for g, slots in enumerate(above):
            before = tuple(tuple(sorted((colour[p], lag) for p, lag in those)) for those in slots)
            after = tuple(sorted((slot, lag, colour[child]) for slot, lag, child in below[g]))
            look.append((colour[g], before, after))
        refined = _number(look)
        if len(set(refined)) == len(set(colour)):
            break
        colour = refined
    return colour


def _number(looks: Iterable[Hashable]) -> list[int]:
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(look, len(seen)) for look in looks]


# -- what repeats ---------------------------------------------------------------------------------------------------


def _steps(
    items: Sequence[Item], parents: Sequence[tuple[int, ...]], limit: int, opened: Collection[int]
) -> tuple[list[int], list[int], list[int]]:
    """Return for each item the run that it is in, or -1, its step there, and what it is drawn with if it has no sibling.

    What has no parents and is read in one step alone is part of that step, whenever it was built.
    """
    run, step, group = [-1] * len(items), [0] * len(items), [(-1, k, -1) for k in range(len(items))]
    readers: dict[int, list[tuple[int, int]]] = {i: [] for i, those in enumerate(parents) if not those}
    for i, those in enumerate(parents):
        for slot, p in enumerate(those):
            if p in readers:
                readers[p].append((i, slot))
    inner = [i for i, those in enumerate(parents) if those]
    number = 0
    for found in _runs(items, parents, inner, limit):
        place = {i: (k // found.period, k % found.period, -1) for k, i in enumerate(inner[found.start : found.stop])}
        own: dict[tuple[int, int], dict[int, int]] = {}
        for leaf, uses in readers.items():
            steps = {place[i][0] if i in place else -1 for i, _ in uses}
            if len(steps) == 1 and -1 not in steps:
                reader, slot = uses[0]
                own.setdefault((place[reader][1], slot), {})[leaf] = place[reader][0]
        for (phase, slot), leaves in own.items():
            if len(leaves) > 1:
                place.update({leaf: (t, phase, slot) for leaf, t in leaves.items()})
        inside = {place[i][0] for i in opened if i in place}
        if inside and len(place) <= WHOLE:
            continue
        numbers = [number]
        for t in range(1, found.count):  # what comes after a step that is drawn on its own is another run
            numbers.append(numbers[-1] + (t in inside or t - 1 in inside))
        for i, (t, phase, slot) in place.items():
            if t not in inside:
                run[i], step[i], group[i] = numbers[t], t, (numbers[t], phase, slot)
        number = numbers[-1] + 1
    return run, step, _number(group)


def _runs(items: Sequence[Item], parents: Sequence[tuple[int, ...]], inner: Sequence[int], limit: int) -> list[Run]:
    """Find what repeats of `inner`, the items that have parents, in the order in which they were built, and reads itself.

    Those that cover most come first. Two items are alike when each slot reads the item as far before, or one of the same colour:
    the same expression but for attributes and parameters. What was found is one colour by its place in the step, so what reads
    its steps repeats as well.
    """
    base = _number((item.like, len(item.parents)) for item in items)
    at = {i: k for k, i in enumerate(inner)}
    reads = [tuple(at.get(p, -1) for p in parents[i]) for i in inner]
    kinds = np.array([base[i] for i in inner], np.int64)
    free = np.ones(len(inner), bool)
    where: list[Hashable] = [None] * len(items)
    runs: list[Run] = []
    while len(runs) < 50 and len(inner) > limit:
        colour = _seen_from_above(base, parents, where)
        far, looks = _tokens(reads, [[colour[p] for p in parents[i]] for i in inner])
        taken = len(runs)
        for start, stop, period in _periodic(kinds, far, looks, free):
            if stop - start <= limit or not free[start:stop].all():
                continue
            found = _aligned(start, stop, period, kinds, far, looks, free, reads)
            if found is None or found.stop - found.start <= limit:
                continue
            runs.append(found)
            free[found.start : found.stop] = False
            for k in range(found.start, found.stop):
                where[inner[k]] = (len(runs), (k - found.start) % found.period)
        if len(runs) == taken:
            break
    return sorted(runs)


def _seen_from_above(base: Sequence[int], parents: Sequence[tuple[int, ...]], where: Sequence[Hashable]) -> list[int]:
    """Give items that compute the same from the same one number; those of a run have one by their place in a step."""
    seen: dict[Hashable, int] = {}
    colour: list[int] = []
    for i, those in enumerate(parents):
        look = where[i] or (base[i], *(colour[p] for p in those))
        colour.append(seen.setdefault(look, len(seen)))
    return colour


def _tokens(reads: Sequence[tuple[int, ...]], colours: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Return for each item and slot how far before its operand is, and the operand's colour; wide items have one slot."""
    width = min(max(map(len, reads), default=0), WIDE)
    far, looks = np.zeros((len(reads), width), np.int64), np.full((len(reads), width), -1, np.int64)
    for k, (those, seen) in enumerate(zip(reads, colours)):
        before = [k - p if p >= 0 else -1 - colour for p, colour in zip(those, seen)]
        if len(those) > WIDE:
            far[k, 0], looks[k, 0] = hash(tuple(before)), hash(tuple(seen))
        else:
            far[k, : len(those)], looks[k, : len(those)] = before, seen
    return far, looks


def _periodic(base: Any, far: Any, looks: Any, free: Any) -> list[tuple[int, int, int]]:
    """Return (start, stop, period) of all that repeats three times or more, the longest first."""
    found = []
    for period in range(1, min(PERIOD, len(base) // 3) + 1):
        alike = (base[period:] == base[:-period]) & free[period:] & free[:-period]
        if int(alike.sum()) < 2 * period:
            continue
        alike &= ((far[period:] == far[:-period]) | (looks[period:] == looks[:-period])).all(axis=1)
        turns = np.flatnonzero(np.diff(np.concatenate([[False], alike, [False]]).astype(np.int8)))
        found += [(int(a), int(b) + period, period) for a, b in zip(turns[::2], turns[1::2]) if b - a >= period]
    return sorted(found, key=lambda run: (run[0] - run[1], run[2]))


def _aligned(
    start: int, stop: int, period: int, base: Any, far: Any, looks: Any, free: Any, reads: Sequence[tuple[int, ...]]
) -> Run | None:
    """Say where steps begin: with most steps, and fewest operands from the step before; None where no step reads another.

    The first step may read what comes from outside where others read the one before.
    """
    best: tuple[tuple[int, int, int], Run | None] = ((0, 0, 0), None)
    for first in range(start, min(start + period, stop - period + 1)):
        begin = first - period
        if begin < 0 or not free[begin:first].all() or not _begins(begin, period, base, far, looks, reads):
            begin = first
        count = (stop - begin) // period
        if count < 3:
            continue
        later = range(begin + period, begin + 2 * period)
        back = sum(begin <= p < begin + period for i in later for p in reads[i])
        if not back:
            return None
        rank = (-count, back, begin)
        best = min(best, (rank, Run(begin, period, count)))
    return best[1]


def _begins(begin: int, period: int, base: Any, far: Any, looks: Any, reads: Sequence[tuple[int, ...]]) -> bool:
    """Whether the items from `begin` on are a step whose operands of the step before come from outside."""
    here, there = slice(begin, begin + period), slice(begin + period, begin + 2 * period)
    if begin + 2 * period > len(base) or (base[here] != base[there]).any():
        return False
    same = (far[here] == far[there]) | (looks[here] == looks[there])
    for phase, slot in np.argwhere(~same).tolist():
        i = begin + phase
        if len(reads[i]) > WIDE or reads[i][slot] >= begin or not begin <= reads[i + period][slot] < begin + period:
            return False
    return True


# -- arrows ---------------------------------------------------------------------------------------------------------


def _connect(
    index: int,
    box: Box,
    wide: bool,
    named: bool,
    parents: Sequence[tuple[int, ...]],
    box_of: Sequence[int],
    run: Sequence[int],
    step: Sequence[int],
) -> list[Edge]:
    """Give a box its ports and return the arrows into them: what is of another step has a port of its own."""
    source_at: dict[int, int] = {}
    slots: dict[tuple[int, int], set[int]] = {}
    steps: dict[tuple[int, int], set[int]] = {}
    pairs: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for i in box.members:
        for slot, p in enumerate(parents[i]):
            lag = step[i] - step[p] if run[i] == run[p] >= 0 else 0
            port = source_at.setdefault(box_of[p], len(source_at)) if wide else slot, lag
            slots.setdefault(port, set()).add(slot)
            steps.setdefault(port, set()).add(step[i])
            pairs.setdefault((box_of[p], *port), []).append((p, i))
    order = {port: k for k, port in enumerate(sorted(slots))}
    lags = Counter(place for place, _ in order)
    named = named and (len(lags) > 1 or wide)
    for port in order:
        words = [_range(sorted(slots[port])) or f"{len(slots[port])} slots"] if named else []
        if port[1]:
            words.append(f"t-{port[1]}")
        elif lags[port[0]] > 1:
            some = _range(sorted(steps[port]))
            words.append(f"t = {some}" if some else "other t")
        box.ports.append(": ".join(words))
    return [
        Edge(source, index, order[place, lag], len(those), lag, not lag and _one_to_one(those))
        for (source, place, lag), those in pairs.items()
    ]


def _one_to_one(pairs: Sequence[tuple[int, int]]) -> bool:
    return len(pairs) > 1 and all(len(set(ends)) == len(pairs) for ends in zip(*pairs))


def _range(numbers: list[int]) -> str:
    """Write numbers, in order, as ``3`` or ``0–89``; nothing where some between are left out."""
    first, last = numbers[0], numbers[-1]
    return str(first) if first == last else f"{first}–{last}" if last - first == len(numbers) - 1 else ""

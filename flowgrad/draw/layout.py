"""Layered layout: levels from left to right, few crossings, straight arrows (Sugiyama's method)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .fold import Box, Edge

Sizes = Sequence[tuple[float, float]]
PORT = 0.15  # distance of two ports, inches
ORDER_SWEEPS = 16
PLACE_SWEEPS = 24


@dataclass
class Spot:
    """A place in a column: a box, or the point where a long arrow passes."""

    column: int
    height: float
    box: int | None
    y: float = 0.0
    before: list[Link] = field(default_factory=list)
    after: list[Link] = field(default_factory=list)


@dataclass
class Link:
    """A piece of an arrow, from a spot to one in the next column; it ends `offset` below the middle."""

    start: Spot
    end: Spot
    offset: float
    weight: float


@dataclass
class Layout:
    """Where everything goes, in inches, y downwards.

    Attributes
    ----------
    centres : list of (x, y)
        One per box.
    routes : list of list of (x, y)
        One per arrow: start, then entry and exit of each column on the way, then the end.
    width, height : float
    """

    centres: list[tuple[float, float]]
    routes: list[list[tuple[float, float]]]
    width: float
    height: float


def port_offset(box: Box, port: int) -> float:
    """Return how far below the middle of its box a port lies, in inches."""
    return (port - (len(box.ports) - 1) / 2) * PORT


def lay_out(boxes: Sequence[Box], edges: Sequence[Edge], sizes: Sizes) -> Layout:
    """Place boxes, whose widths and heights are given in inches, and arrows, each to a higher level."""
    columns, spots, paths = _columns(boxes, edges, sizes)
    _order(columns)
    _free_ports(boxes, columns)
    _place(columns)
    xs, widths = _column_positions(columns, sizes)
    low = min(spot.y - spot.height / 2 for column in columns for spot in column)
    high = max(spot.y + spot.height / 2 for column in columns for spot in column)
    centres = [(xs[spot.column], spot.y - low) for spot in spots]
    routes = []
    for edge, path in zip(edges, paths):
        x, y = centres[edge.source]
        route = [(x + sizes[edge.source][0] / 2, y)]
        for link in path[:-1]:
            at = link.end
            half = widths[at.column] / 2
            route += [(xs[at.column] - half, at.y - low), (xs[at.column] + half, at.y - low)]
        x, y = centres[edge.target]
        route.append((x - sizes[edge.target][0] / 2, y + path[-1].offset))
        routes.append(route)
    return Layout(centres, routes, xs[-1] + widths[-1] / 2, high - low)


def _columns(
    boxes: Sequence[Box], edges: Sequence[Edge], sizes: Sizes
) -> tuple[list[list[Spot]], list[Spot], list[list[Link]]]:
    """Make the columns and the links of each arrow; arrows from one box pass a column at one spot."""
    low = min(box.level for box in boxes)
    columns: list[list[Spot]] = [[] for _ in range(max(box.level for box in boxes) - low + 1)]
    spots = [Spot(box.level - low, height, index) for index, (box, (_, height)) in enumerate(zip(boxes, sizes))]
    passing: dict[tuple[int, int], Link] = {}
    paths = []
    for edge in edges:
        at, path = spots[edge.source], []
        for column in range(at.column + 1, spots[edge.target].column):
            if (edge.source, column) not in passing:
                passing[edge.source, column] = _link(at, Spot(column, 0.06, None), 0.0)
            path.append(passing[edge.source, column])
            at = path[-1].end
        path.append(_link(at, spots[edge.target], port_offset(boxes[edge.target], edge.port)))
        paths.append(path)
    for spot in _depth_first(spots):
        columns[spot.column].append(spot)
    return columns, spots, paths


def _link(start: Spot, end: Spot, offset: float) -> Link:
    link = Link(start, end, offset, 1.0 + 3.0 * (start.box is None) + 3.0 * (end.box is None))
    start.after.append(link)
    end.before.append(link)
    return link


def _depth_first(spots: Sequence[Spot]) -> list[Spot]:
    """Order spots as met going back from the results, slot by slot: a tree has no crossings then."""
    seen: dict[int, Spot] = {}
    for root in [spot for spot in spots if not spot.after] or list(spots):
        stack = [root]
        while stack:
            spot = stack.pop()
            if id(spot) in seen:
                continue
            seen[id(spot)] = spot
            stack += [link.start for link in reversed(spot.before)]
    return list(seen.values())


def _order(columns: list[list[Spot]]) -> None:
    """Barycentre sweeps in both directions; the order with the fewest crossings stays."""
    best = [list(column) for column in columns]
    fewest = _crossings(columns)
    for sweep in range(ORDER_SWEEPS):
        if fewest == 0:
            break
        forward = sweep % 2 == 0
        rank = {id(spot): i for column in columns for i, spot in enumerate(column)}
        for column in columns if forward else reversed(columns):
            _sort(column, rank, forward)
            rank.update((id(spot), i) for i, spot in enumerate(column))
        _switch(columns, rank)
        crossings = _crossings(columns)
        if crossings < fewest:
            fewest, best = crossings, [list(column) for column in columns]
    columns[:] = best


def _sort(column: list[Spot], rank: dict[int, int], forward: bool) -> None:
    """Sort a column by the mean rank of the neighbours on one side; spots without any stay where they are."""
    aims = []
    for spot in column:
        near = spot.before if forward else spot.after
        if near:
            ends = [rank[id(link.start if forward else link.end)] + 1e-3 * link.offset for link in near]
            aims.append((sum(ends) / len(near), spot))
    aims.sort(key=lambda aim: aim[0])
    moved = iter(aims)
    column[:] = [next(moved)[1] if (spot.before if forward else spot.after) else spot for spot in column]


def _switch(columns: list[list[Spot]], rank: dict[int, int]) -> None:
    """Exchange neighbours in a column wherever that takes crossings away."""
    for _ in range(8):
        before = dict(rank)
        for column in columns:
            for i in range(len(column) - 1):
                a, b = column[i], column[i + 1]
                if _pair(a, b, rank) > _pair(b, a, rank):
                    column[i], column[i + 1] = b, a
                    rank[id(a)], rank[id(b)] = i + 1, i
        if rank == before:
            return


def _pair(a: Spot, b: Spot, rank: dict[int, int]) -> int:
    """Count the crossings between the arrows of two spots of a column when `a` is right above `b`."""
    ends = sorted(rank[id(link.start)] for link in b.before)
    total = sum(bisect_left(ends, rank[id(link.start)]) for link in a.before)
    ports = sorted((rank[id(link.end)], link.offset) for link in b.after)
    return total + sum(bisect_left(ports, (rank[id(link.end)], link.offset)) for link in a.after)


def _crossings(columns: list[list[Spot]]) -> int:
    total = 0
    for column in columns[1:]:
        rank = {id(spot): i for i, spot in enumerate(columns[column[0].column - 1])}
        met: list[int] = []
        for spot in column:
            starts = sorted((link.offset, rank[id(link.start)]) for link in spot.before)
            for _, start in starts:
                total += len(met) - bisect_right(met, start)
                insort(met, start)
    return total


def _free_ports(boxes: Sequence[Box], columns: list[list[Spot]]) -> None:
    """Where the order of operands means nothing, let arrows come in without crossing each other."""
    rank = {id(spot): i for column in columns for i, spot in enumerate(column)}
    for column in columns:
        for spot in column:
            if spot.box is not None and boxes[spot.box].free:
                offsets = sorted(link.offset for link in spot.before)
                for link, offset in zip(sorted(spot.before, key=lambda link: rank[id(link.start)]), offsets):
                    link.offset = offset


def _place(columns: list[list[Spot]]) -> None:
    """Choose heights: each spot as near to its neighbours as the order and the gaps in its column allow."""
    for column in columns:
        _spread(column, [(0.0, 1.0)] * len(column))
    for sweep in range(PLACE_SWEEPS):
        last = sweep >= PLACE_SWEEPS - 4
        forward = sweep % 2 == 0
        for column in columns if forward else reversed(columns):
            _spread(column, [_aim(spot, forward or last, last or not forward) for spot in column])


def _aim(spot: Spot, back: bool, ahead: bool) -> tuple[float, float]:
    """Return the mean height of what pulls at a spot from one side or both, and its weight."""
    pulls = [(link.start.y - link.offset, link.weight) for link in spot.before] if back else []
    pulls += [(link.end.y + link.offset, link.weight) for link in spot.after] if ahead else []
    weight = sum(w for _, w in pulls)
    return (sum(y * w for y, w in pulls) / weight, weight) if pulls else (spot.y, 0.1)


def _spread(column: list[Spot], aims: Sequence[tuple[float, float]]) -> None:
    """Least squares under "not closer than": pool adjacent violators on heights less the room above them."""
    room = [0.0]
    for above, spot in pairwise(column):
        narrow = spot.box is None or above.box is None
        room.append(room[-1] + ((above.height + spot.height) / 2 + (0.12 if narrow else 0.2)))
    pools: list[list[float]] = []  # mean, weight, number of spots
    for (y, weight), taken in zip(aims, room):
        pools.append([y - taken, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, weight, n = pools.pop()
            other = pools[-1]
            other[0] = (other[0] * other[1] + mean * weight) / (other[1] + weight)
            other[1] += weight
            other[2] += n
    heights = [mean for mean, _, n in pools for _ in range(int(n))]
    for spot, y, taken in zip(column, heights, room):
        spot.y = y + taken


def _column_positions(columns: list[list[Spot]], sizes: Sizes) -> tuple[list[float], list[float]]:
    """Return the middle and the width of each column; steep arrows get more room."""
    widths = [max((sizes[s.box][0] for s in column if s.box is not None), default=0.3) for column in columns]
    xs = [widths[0] / 2]
    for column, (before, width) in zip(columns[1:], pairwise(widths)):
        steep = max((abs(link.start.y - s.y) for s in column for link in s.before), default=0.0)
        xs.append(xs[-1] + (before / 2 + width / 2 + min(0.55 + 0.14 * steep, 1.8)))
    return xs, widths

"""Layered layout: levels one after the other, few crossings, straight arrows (Sugiyama's method).

All is laid out as if arrows went right: `u` is the way that they go, `v` across it. Who wants them to go down exchanges the two.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from .fold import Box, Edge

Sizes = Sequence[tuple[float, float]]
Point = tuple[float, float]
LANE = 9.0  # distance of arrows that lie between bands
BETWEEN = 60.0  # distance of bands, besides their lanes
NEAR, NEAR_ARROW = 20.0, 12.0  # distance of boxes, and of what passes them
GAP, STEEP, WIDEST = 44.0, 0.12, 130.0  # between columns
SQUEEZED = 0.6
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
    """Where everything goes, in pixels.

    Attributes
    ----------
    centres : list of (u, v)
        One per box.
    routes : list of list of (u, v)
        One per arrow: start, then the three points of each cubic piece.
    length, breadth : float
        Along the arrows, and across.
    bands : list of int
        One per box: the band that it is in, 0 for the first.
    """

    centres: list[Point]
    routes: list[list[Point]]
    length: float
    breadth: float
    bands: list[int]


def port_offset(box: Box, port: int) -> float:
    """Return how far from the middle of its box a port lies."""
    return (port - (len(box.ports) - 1) / 2) * box.apart


def in_rows(boxes: Sequence[Box], sizes: Sizes, most: float) -> list[Box]:
    """Return boxes with levels that are no broader than `most`: what is too broad becomes several levels."""
    found = list(boxes)
    shift = 0
    for level in sorted({box.level for box in boxes}):
        broad, row = 0.0, 0
        for k, box in enumerate(boxes):
            if box.level == level:
                broad += sizes[k][1] + NEAR
                if broad > most + NEAR and broad > sizes[k][1] + NEAR:
                    row, broad = row + 1, sizes[k][1] + NEAR
                found[k] = replace(box, level=level + shift + row)
        shift += row
    return found


def in_scopes(boxes: Sequence[Box], edges: Sequence[Edge], scopes: Sequence[tuple[str, ...]]) -> list[Box]:
    """Return boxes with other levels: what begins a scope lies behind all that the scope reads, so that a frame fits around it.

    What has no parents, and what is computed from that for one box alone, lies right before its first child.
    """
    order = sorted(range(len(boxes)), key=lambda k: boxes[k].level)
    above: list[set[int]] = [set() for _ in boxes]
    below: list[set[int]] = [set() for _ in boxes]
    for edge in edges:
        if not edge.lag:
            above[edge.target].add(edge.source)
            below[edge.source].add(edge.target)
    leaves = {k for k in order if not above[k]}
    late = set(leaves)
    for k in order:
        if above[k] and all(p in late and len(below[p]) == 1 for p in above[k]):
            late.add(k)
    parts: dict[tuple[str, ...], set[int]] = {}
    for k, scope in enumerate(scopes):
        for depth in range(1, len(scope) + 1):
            parts.setdefault(scope[:depth], set()).add(k)
    alone = [{k, *(p for p in above[k] if not scopes[p] and len(below[p]) == 1)} for k in order if not scopes[k]]
    for part in [*sorted(parts.values(), key=len, reverse=True), *alone] if parts else []:
        begins = [k for k in part if k in leaves]
        outside = {p for k in part for p in above[k]} - part
        if outside & _reached(part, below):  # what leaves the scope comes again
            continue
        for p in outside:
            below[p].update(begins)
        for k in begins:
            above[k] |= outside
    level = [0] * len(boxes)
    missing = [len(those) for those in above]
    ready = [k for k in order if not missing[k]]
    for k in ready:
        for child in below[k]:
            level[child] = max(level[child], level[k] + 1)
            missing[child] -= 1
            if not missing[child]:
                ready.append(child)
    for k in reversed(ready):
        if k in late and below[k]:
            level[k] = min(level[child] for child in below[k]) - 1
    return [replace(box, level=at) for box, at in zip(boxes, level)]


def _reached(start: Iterable[int], below: Sequence[Iterable[int]]) -> set[int]:
    seen = set(start)
    stack = list(seen)
    while stack:
        new = set(below[stack.pop()]) - seen
        seen |= new
        stack += new
    return seen - set(start)


def lay_out(
    boxes: Sequence[Box],
    edges: Sequence[Edge],
    sizes: Sizes,
    longest: float | None = None,
    parts: Sequence[object] = (),
    room: float = 0.0,
) -> Layout:
    """Place boxes, whose lengths and breadths are given, and arrows, each to a higher level but those from a step before.

    What is longer than `longest` goes on below, in as many bands as it takes; they end between `parts` where they can, None is no
    part. There is so much `room` more than usual between columns, and between bands.
    """
    ahead = [edge for edge in edges if not edge.lag]
    columns, spots, paths = _columns(boxes, ahead, sizes)
    _order(columns)
    _free_ports(boxes, columns)
    _place(columns)
    lengths = [max((sizes[s.box][0] for s in column if s.box is not None), default=20.0) for column in columns]
    gaps = [0.0]
    for column in columns[1:]:
        steep = max((abs(link.start.y - s.y) for s in column for link in s.before), default=0.0)
        gaps.append(min(GAP + STEEP * steep, WIDEST) + room)
    spare = (longest or math.inf) - sum(lengths)
    if SQUEEZED * sum(gaps) <= spare < sum(gaps):  # narrower gaps rather than another band
        gaps = [gap * (spare - 0.01) / sum(gaps) for gap in gaps]  # a little less: sums are rounded
    back = [e for e in edges if e.lag]
    costs = _costs(columns, parts)
    page = _Page(
        columns,
        lengths,
        gaps,
        _bands(lengths, gaps, costs, longest),
        [((e.source, e.lag), spots[e.source], spots[e.target]) for e in back],
        room,
    )
    centres = [page.at(spot) for spot in spots]
    found = iter(paths)
    routes = []
    for edge in edges:
        end = (-sizes[edge.target][0] / 2, port_offset(boxes[edge.target], edge.port))
        if edge.lag:
            routes.append(page.back(edge, spots[edge.source], sizes[edge.source][0] / 2, spots[edge.target], end))
            continue
        path = next(found)
        end = (end[0], path[-1].offset)
        routes.append(page.forward(path, sizes[edge.source][0] / 2, end))
    low_u, low_v, high_u, high_v = page.extent(centres, sizes, routes)
    return Layout(
        [(u - low_u, v - low_v) for u, v in centres],
        [[(u - low_u, v - low_v) for u, v in route] for route in routes],
        high_u - low_u,
        high_v - low_v,
        [page.band[spot.column] for spot in spots],
    )


class _Page:
    """Columns in bands one below the other; arrows from band to band, and back, go through the lanes below bands."""

    def __init__(
        self,
        columns: list[list[Spot]],
        lengths: list[float],
        gaps: list[float],
        band: list[int],
        back: Sequence[tuple[object, Spot, Spot]],
        room: float,
    ) -> None:
        self.lengths, self.band = lengths, band
        self.left = 2.5 + room / 2  # for the frames of what begins a band
        self.u: list[float] = []
        for k, (length, gap) in enumerate(zip(lengths, gaps)):
            goes_on = k and self.band[k] == self.band[k - 1]
            self.u.append(self.u[-1] + lengths[k - 1] / 2 + gap + length / 2 if goes_on else length / 2)
        # Arrows back, the shortest first: it is the innermost.
        spans: dict[object, tuple[int, int]] = {}
        for whose, source, target in back:
            span = abs(self.band[source.column] - self.band[target.column]), abs(source.column - target.column)
            spans[whose] = max(spans.get(whose, span), span)
        self.loops = {whose: n for n, whose in enumerate(sorted(spans, key=spans.__getitem__))}
        # Lanes below each band, the highest first: those of arrows back, then those of what goes on below. What leaves a band
        # highest has the lowest lane, then arrows that keep their order do not cross.
        lanes: list[list[object]] = [[] for _ in range(self.band[-1] + 1)]
        for whose, source, target in sorted(back, key=lambda one: self.loops[one[0]]):
            here, there = self.band[source.column], self.band[target.column]
            if whose not in lanes[here]:
                lanes[here].append(whose)
            if whose not in lanes[there]:
                lanes[there].insert(0, whose)
        self.sides: dict[object, tuple[float, float]] = {}
        outermost = 0
        for k in range(1, len(columns)):
            if self.band[k] != self.band[k - 1]:
                heights = {id(link.start): link.start.y for spot in columns[k] for link in spot.before}
                order = sorted(heights, key=heights.__getitem__, reverse=True)
                lanes[self.band[k - 1]] += order
                self.sides |= {whose: (LANE * (n + 1), LANE * (len(order) - n)) for n, whose in enumerate(order)}
                outermost = max(outermost, len(order))
        self.sides |= {whose: (0.0, LANE * (outermost + 1 + n)) for whose, n in self.loops.items()}
        self.lanes = {(whose, row): LANE * n for row, those in enumerate(lanes) for n, whose in enumerate(those)}
        self.right = max(u + length / 2 for u, length in zip(self.u, lengths)) + 8.5 + room / 2
        self.bottom: list[float] = []
        self.shift: list[float] = []
        below = 0.0
        for row, those in enumerate(lanes):
            spots = [s for k, column in enumerate(columns) if self.band[k] == row for s in column]
            low = min(s.y - s.height / 2 for s in spots)
            high = max(s.y + s.height / 2 for s in spots)
            self.shift.append(below - low)
            self.bottom.append(below + high - low)
            below += high - low + BETWEEN + room + LANE * len(those)

    def at(self, spot: Spot) -> Point:
        return self.u[spot.column], spot.y + self.shift[self.band[spot.column]]

    def lane(self, band: int, whose: object) -> float:
        """Return how far down the lane below a band is that an arrow takes; arrows of one source share it."""
        return self.bottom[band] + NEAR + self.lanes[whose, band]

    def forward(self, path: list[Link], start: float, end: Point) -> list[Point]:
        u, v = self.at(path[0].start)
        points = [(u + start, v)]
        for link in path:
            u, v = self.at(link.end)
            half = self.lengths[link.end.column] / 2
            last = link is path[-1]
            goal = (u + end[0], v + end[1]) if last else (u - half, v)
            band, before = self.band[link.end.column], self.band[link.start.column]
            if band != before:
                whose = id(link.start)
                out, into = self.right + self.sides[whose][0], -self.left - self.sides[whose][1]
                lane = self.lane(before, whose)
                _corners(points, [(out, points[-1][1]), (out, lane), (into, lane), (into, goal[1]), goal])
            else:
                # Wider boxes of both columns are passed in straight lines.
                _line(points, (self.u[link.start.column] + self.lengths[link.start.column] / 2, points[-1][1]))
                _curve(points, (u - half, goal[1]))
                _line(points, goal)
            if not last:
                _line(points, (u + half, v))
        return points

    def back(self, edge: Edge, source: Spot, start: float, target: Spot, end: Point) -> list[Point]:
        """Go down behind the source, below its band, up before the target."""
        whose = edge.source, edge.lag
        off = LANE * (self.loops[whose] % 3)
        (u, v), (x, y) = self.at(source), self.at(target)
        here, there = self.band[source.column], self.band[target.column]
        out = u + self.lengths[source.column] / 2 + 18.0 + off
        into = x - self.lengths[target.column] / 2 - 12.0 - off
        goal = (x + end[0], y + end[1])
        points = [(u + start, v)]
        lane = self.lane(here, whose)
        corners = [(out, v), (out, lane)]
        if here != there:
            side = -self.left - self.sides[whose][1]
            above = self.lane(there, whose)
            corners += [(side, lane), (side, above), (into, above)]
        else:
            corners += [(into, lane)]
        _corners(points, [*corners, (into, goal[1]), goal])
        return points

    def extent(
        self, centres: Sequence[Point], sizes: Sizes, routes: Sequence[Sequence[Point]]
    ) -> tuple[float, float, float, float]:
        us = [u + s * size[0] / 2 for (u, _), size in zip(centres, sizes) for s in (-1, 1)]
        vs = [v + s * size[1] / 2 for (_, v), size in zip(centres, sizes) for s in (-1, 1)]
        us += [u for route in routes for u, _ in route]
        vs += [v for route in routes for _, v in route]
        return min(us), min(vs), max(us), max(vs)


def _costs(columns: Sequence[list[Spot]], parts: Sequence[object]) -> list[int]:
    """Return what it costs to end a band before a column: arrows that go on, and parts that it cuts."""
    where: dict[object, list[int]] = {}
    for k, column in enumerate(columns):
        for spot in column:
            if spot.box is not None and parts and parts[spot.box] is not None:
                where.setdefault(parts[spot.box], []).append(k)
    cut = [sum(those[0] < k <= those[-1] for those in where.values()) for k in range(len(columns))]
    return [_crossing(column) + 2 * cuts for column, cuts in zip(columns, cut)]


def _bands(lengths: Sequence[float], gaps: Sequence[float], costs: Sequence[int], longest: float | None) -> list[int]:
    """Return the band of each column: as many to a band as fit, fewer where it costs less to end it before."""
    ends: list[int] = []
    begin = 0
    while begin < len(lengths):
        length, end = lengths[begin], begin + 1
        while end < len(lengths) and (longest is None or length + gaps[end] + lengths[end] <= longest):
            length += gaps[end] + lengths[end]
            end += 1
        if end < len(lengths):
            least = begin + 1 + (end - begin) * 4 // 10
            end = min(range(end, least - 1, -1), key=costs.__getitem__, default=end)
        ends.append(end)
        begin = end
    return [bisect_right(ends, k) for k in range(len(lengths))]


def _crossing(column: Sequence[Spot]) -> int:
    """Return how many arrows come into a column, those of one source as one."""
    return len({id(link.start) for spot in column for link in spot.before})


def _line(points: list[Point], end: Point) -> None:
    if points[-1] == end:
        return
    (u, v), (x, y) = points[-1], end
    points += [(u + (x - u) / 3, v + (y - v) / 3), (u + (x - u) * 2 / 3, v + (y - v) * 2 / 3), end]


def _curve(points: list[Point], end: Point) -> None:
    (u, v), (x, y) = points[-1], end
    points += [((u + x) / 2, v), ((u + x) / 2, y), end]


def _corners(points: list[Point], corners: Sequence[Point]) -> None:
    """Go on in straight lines with round corners."""
    for k, corner in enumerate(corners):
        if k == len(corners) - 1:
            _line(points, corner)
            return
        (u, v), (x, y), (a, b) = points[-1], corner, corners[k + 1]
        came, goes = abs(x - u) + abs(y - v), abs(a - x) + abs(b - y)
        r = min(6.0, came / 2, goes / 2)
        if not came or not goes:
            continue
        enter = (x - (x - u) / came * r, y - (y - v) / came * r)
        leave = (x + (a - x) / goes * r, y + (b - y) / goes * r)
        _line(points, enter)
        points += [corner, corner, leave]


def _columns(
    boxes: Sequence[Box], edges: Sequence[Edge], sizes: Sizes
) -> tuple[list[list[Spot]], list[Spot], list[list[Link]]]:
    """Make the columns and the links of each arrow; arrows from one box pass a column at one spot."""
    level = {level: k for k, level in enumerate(sorted({box.level for box in boxes}))}
    columns: list[list[Spot]] = [[] for _ in level]
    spots = [Spot(level[box.level], height, index) for index, (box, (_, height)) in enumerate(zip(boxes, sizes))]
    passing: dict[tuple[int, int], Link] = {}
    paths = []
    for edge in edges:
        at, path = spots[edge.source], []
        for column in range(at.column + 1, spots[edge.target].column):
            if (edge.source, column) not in passing:
                passing[edge.source, column] = _link(at, Spot(column, 4.0, None), 0.0)
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
            ends = [rank[id(link.start if forward else link.end)] + 1e-5 * link.offset for link in near]
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
        room.append(room[-1] + ((above.height + spot.height) / 2 + (NEAR_ARROW if narrow else NEAR)))
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

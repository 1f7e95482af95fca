"""Sibling fusion: many small nodes of one kind become one wide node, and the parameters one flat vector.

Nodes are taken level by level. Those of one *signature* (op, attributes, dims and batching of the operands) are siblings; the op
says how they stack. `Vectorize` and `Slice` compute nothing: a variable is known as a list of *segments* of others, and only
where segments do not lie end to end is a gather written. What cannot be fused stays as it was.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from flowgrad.op import Op
from flowgrad.ops import Gather, Slice, Vectorize
from flowgrad.program import Builder, Instr, Program, Role, Type

from ..tasks import attrs_token, token

# From this many pieces of one variable on, one indexed read beats joining the pieces.
GATHER_FROM = 4
# So few siblings stay single where more pieces would have to be copied than there are siblings.
FEW = 4
Layout = dict[int, tuple[Role, int, int]]


class Segment(NamedTuple):
    """Entries ``start:stop`` of a variable of the new program, or of a parameter or constant (``base < 0``: ``-1 - input``)."""

    base: int
    start: int
    stop: int


class _Wide(NamedTuple):
    """A node that siblings become: op, operands (variables of the new program), attributes, and the siblings."""

    op: type[Op]
    args: list[int]
    attrs: dict[str, Any]
    part: list[Instr]


Segments = tuple[Segment, ...]


def pack(program: Program, layout: Layout | None = None) -> Program:
    """Lay parameters and constants into one flat vector each; nodes stay as they are.

    Parameters
    ----------
    program : Program
        As traced.
    layout : dict, optional
        Layout of the parameters that is to be kept, of another program over the same parameters.
    """
    return _Fusion(program, layout).run(fuse=False)


def fuse(program: Program, layout: Layout | None = None) -> Program:
    """Fuse siblings, and lay the parameters so that stacked ones are one range of the flat vector.

    Parameters
    ----------
    program, layout
        See `pack`.
    """
    return _Fusion(program, layout).run(fuse=True)


class _Fusion:
    def __init__(self, program: Program, layout: Layout | None):
        self.program = program
        self.fixed = layout or {}
        self.builder = Builder()
        self.segments: dict[int, Segments] = {}
        self.ready: dict[Segments, int] = {}
        self.sources: dict[int, Segments] = {}
        self.flat: dict[Role, int] = {}
        self.placed: dict[int, Segment] = {}
        self.cursor: Counter[Role] = Counter()
        # By variable of the new program: which node begins, or ends, at an entry of it.
        self.begins: dict[tuple[int, int], str] = {}
        self.ends: dict[tuple[int, int], str] = {}

    def run(self, fuse: bool) -> Program:
        self._inputs()
        if fuse:
            for level in _levels(self.program):
                for group in _siblings(level.computed, self.program).values():
                    self._fuse_group(group)
                for i in level.selections:
                    self._select(i)
                for i in level.cotangents:
                    self._single(i)
        else:
            for var in [i.var for i in self.program.inputs]:
                self.materialise(self.segments[var])
            for i in self.program.instrs:
                self._single(i)
        outputs = {name: self.materialise(self.segments[var]) for name, var in self.program.outputs.items()}
        # Parameters that no fused node wanted together, or that nothing reads, come last.
        for entry in self.program.inputs:
            if entry.role in self.flat:
                self._place(self.segments[entry.var][0])
        return self.builder.build(outputs)

    # -- inputs and the flat vectors ----------------------------------------------------------------------------

    def _inputs(self) -> None:
        sizes: Counter[Role] = Counter()
        labels: dict[Role, list[str]] = defaultdict(list)
        for k, entry in enumerate(self.program.inputs):
            type_ = self.program.types[entry.var]
            if entry.role in ("feed", "seed"):
                var = self.builder.input(type_, entry.role, entry.node, entry.label)
                self.segments[entry.var] = (self._call(self._whole(var), entry.label),)
            else:
                self.segments[entry.var] = (Segment(-1 - k, 0, type_.dim),)
                sizes[entry.role] += type_.dim
                labels[entry.role].append(entry.label)
        for role, size in sizes.items():
            self.flat[role] = self.builder.input(Type(size, False), role, label=_range(labels[role]))

    def _place(self, s: Segment) -> Segment:
        """Return where a segment of a parameter lies in its flat vector; a new one is laid at the end."""
        if s.base >= 0:
            return s
        entry = self.program.inputs[-1 - s.base]
        if s.base not in self.placed:
            if entry.role == "param" and entry.node in self.fixed:
                _, start, stop = self.fixed[entry.node]
            else:
                start = self.cursor[entry.role]
                stop = start + self.program.types[entry.var].dim
                self.cursor[entry.role] = stop
            self.placed[s.base] = self._call(Segment(self.flat[entry.role], start, stop), entry.label)
            self.builder.layout[entry.node] = (entry.role, start, stop)
        whole = self.placed[s.base]
        return Segment(whole.base, whole.start + s.start, whole.start + s.stop)

    def materialise(self, segments: Segments) -> int:
        """Return a variable that holds the segments end to end."""
        segments = _merge([self._place(s) for s in segments])
        if segments in self.ready:
            return self.ready[segments]
        types = self.builder.types
        first, last = segments[0], segments[-1]
        dim = types[first.base].dim
        if segments == ((first.base, 0, dim),):
            return first.base
        label = _range([self.begins.get(first[:2], ""), self.ends.get((last.base, last.stop), "")])
        bases = {s.base for s in segments}
        if len(segments) == 1:
            var = self.builder.apply(Slice, [first.base], {"start": first.start, "stop": first.stop, "dim": dim}, label)
        elif len(bases) == 1 and len(segments) >= GATHER_FROM:
            index = tuple(i for s in segments for i in range(s.start, s.stop))
            var = self.builder.apply(Gather, [first.base], {"index": index, "dim": dim}, label)
        else:
            parts = [self.materialise((s,)) for s in segments]
            ends, end = [], 0
            for s in segments:
                end += s.stop - s.start
                ends.append(end)
            var = self.builder.apply(Vectorize, parts, {"ends": tuple(ends)}, label)
        self.ready[segments] = var
        self.sources[var] = segments
        return var

    # -- nodes --------------------------------------------------------------------------------------------------

    def _select(self, i: Instr) -> None:
        if i.op is Vectorize:
            self.segments[i.out] = _merge([s for a in i.args for s in self.segments[a]])
            return
        attrs = dict(i.attrs)
        cut = _cut(self.segments[i.args[0]], attrs["start"], attrs["stop"])
        batched = any(s.base >= 0 and self.builder.types[s.base].batched for s in cut)
        if batched == self.program.types[i.out].batched:
            self.segments[i.out] = cut
        else:  # what all samples share is left of a value with a row for each of them, and what reads it expects such rows
            self._single(i)

    def _single(self, i: Instr) -> None:
        args = [self.materialise(self.segments[a]) for a in i.args]
        var = self.builder.copy(i, self.program.types[i.out], args)
        self.segments[i.out] = (self._call(self._whole(var), i.label),)

    def _call(self, s: Segment, label: str) -> Segment:
        """Note which node a segment of the new program is, and return it."""
        self.begins[s[:2]] = self.ends[s.base, s.stop] = label
        return s

    def _fuse_group(self, group: list[Instr]) -> None:
        unique: dict[tuple[Segments, ...], list[Instr]] = defaultdict(list)
        for i in group:
            unique[tuple(self.segments[a] for a in i.args)].append(i)
        members = [same[0] for same in unique.values()]
        wide: dict[Any, list[_Wide]] = defaultdict(list)
        for part in self._parts(members):
            made = self._stack_part(part)
            if made is None:
                for i in part:
                    self._single(i)
            else:
                types = tuple(self.builder.types[a] for a in made.args)
                wide[made.op, token(made.attrs), types].append(made)
        for same_kind in wide.values():
            self._write(self._stack_again(same_kind))
        for same in unique.values():
            for copy in same[1:]:
                self.segments[copy.out] = self.segments[same[0].out]

    def _parts(self, members: list[Instr]) -> list[list[Instr]]:
        """Split siblings by the operand that they share, where the op can make use of it: so that fewest nodes are left."""
        first = members[0]
        best, fewest = [members], len(members)
        for slot in range(len(first.args) if len(members) > 1 else 0):
            by_operand: dict[Segments, list[Instr]] = defaultdict(list)
            for i in members:
                by_operand[self.segments[i.args[slot]]].append(i)
            shared = tuple(s == slot for s in range(len(first.args)))
            dims = tuple(self.program.types[a].dim for a in first.args)
            stacked = first.op.stack(2, shared, dims, **dict(first.attrs))
            if len(by_operand) > len(members) // 2 or stacked is None:
                continue
            left = len(by_operand)
            others = tuple(s != slot for s in range(len(first.args)))
            # Those of one group may stack with those of another.
            if stacked.op.stack(2, others, dims, **stacked.attrs) is not None:
                left = len({self._others(part, slot) for part in by_operand.values()})
            if left < fewest:
                # The operands of the longest lie end to end in the flat vector, for they are laid first.
                best, fewest = sorted(by_operand.values(), key=len, reverse=True), left
        return best

    def _others(self, part: list[Instr], slot: int) -> tuple[Segments, ...]:
        return tuple(self.segments[a] for i in part for k, a in enumerate(i.args) if k != slot)

    def _stack_part(self, part: list[Instr]) -> _Wide | None:
        """Return the node that siblings become, or None: they stay single."""
        if len(part) == 1:
            return None
        columns = [[self.segments[i.args[slot]] for i in part] for slot in range(len(part[0].args))]
        attrs = dict(part[0].attrs)
        shared = [all(o == column[0] for o in column) for column in columns]
        made = self._stack(part[0].op, attrs, columns, shared, part)
        if made is None and any(shared):
            shared = [False] * len(shared)
            made = self._stack(part[0].op, attrs, columns, shared, part)
        return made

    def _stack_again(self, wide: list[_Wide]) -> list[_Wide]:
        """Stack wide nodes of one kind that share an operand: one matrix for several vectors (shared weights)."""
        first = wide[0]
        columns: list[list[Segments]] = [
            [self.sources.get(w.args[slot], (self._whole(w.args[slot]),)) for w in wide]
            for slot in range(len(first.args))
        ]
        shared = [all(o == column[0] for o in column) for column in columns]
        if len(wide) == 1 or not any(shared):
            return wide
        made = self._stack(first.op, first.attrs, columns, shared, [i for w in wide for i in w.part])
        return wide if made is None else [made]

    def _stack(
        self, op: type[Op], attrs: dict[str, Any], columns: list[list[Segments]], shared: list[bool], part: list[Instr]
    ) -> _Wide | None:
        """Return what nodes with these operands, by slot, become; None if the op does not stack where these are shared."""
        dims = tuple(sum(s.stop - s.start for s in column[0]) for column in columns)
        stacked = op.stack(len(columns[0]), tuple(shared), dims, **attrs)
        if stacked is None or (stacked.op is op and len(part) <= FEW and self._copies(columns, shared) >= len(part)):
            return None
        args = [
            self.materialise(column[0] if same else tuple(s for o in column for s in o))
            for column, same in zip(columns, shared)
        ]
        if stacked.order is not None:
            args = [args[slot] for slot in stacked.order]
        return _Wide(stacked.op, args, stacked.attrs, part)

    def _copies(self, columns: list[list[Segments]], shared: list[bool]) -> int:
        """Return how many pieces must be copied, so that operands lie end to end."""
        copies = 0
        for column, same in zip(columns, shared):
            segments = [s for o in column for s in o]
            # New parameters are laid as they are wanted.
            new = [s.base < 0 and s.base not in self.placed for s in segments]
            placed = [s if new_ else self._place(s) for s, new_ in zip(segments, new)]
            pieces = 1 if same or all(new) else len(_merge(placed))
            copies += pieces if pieces > 1 else 0
        return copies

    def _whole(self, var: int) -> Segment:
        return Segment(var, 0, self.builder.types[var].dim)

    def _write(self, wide: list[_Wide]) -> None:
        for w in wide:
            label = f"{len(w.part)} x {w.part[0].op.__name__} {_range([i.label for i in w.part])}"
            var = self.builder.apply(w.op, w.args, w.attrs, label)
            start = 0
            for i in w.part:
                stop = start + self.program.types[i.out].dim
                self.segments[i.out] = (self._call(Segment(var, start, stop), i.label),)
                start = stop


def _range(labels: list[str]) -> str:
    """Return what several nodes are called together."""
    first, last = labels[0], labels[-1]
    return first if first == last else f"{first} .. {last}"


def ends_of(label: str) -> tuple[str, str]:
    """Return the names of the first and the last node that an instruction's label is about.

    Examples
    --------
    >>> ends_of("2 x Dot h.dot3 .. h.dot7"), ends_of("loss")
    (('h.dot3', 'h.dot7'), ('loss', 'loss'))
    """
    first, _, last = re.sub(r"^\d+ x \w+ ", "", label).partition(" .. ")
    return first, last or first


class _Level(NamedTuple):
    """Instructions that wait for nothing but earlier levels: those that compute, only select, and belong to a backward part."""

    computed: list[Instr]
    selections: list[Instr]
    cotangents: list[Instr]


def _levels(program: Program) -> list[_Level]:
    level = [0] * len(program.types)
    levels = [_Level([], [], [])]
    for i in program.instrs:
        selects = i.verb == "apply" and (i.op is Vectorize or i.op is Slice)
        level[i.out] = max(level[a] for a in i.args) + (not selects)
        while len(levels) <= level[i.out]:
            levels.append(_Level([], [], []))
        kind = levels[level[i.out]]
        (kind.cotangents if i.verb != "apply" else kind.selections if selects else kind.computed).append(i)
    return levels


def _siblings(instrs: list[Instr], program: Program) -> dict[Any, list[Instr]]:
    groups: dict[Any, list[Instr]] = defaultdict(list)
    for i in instrs:
        groups[(i.op, attrs_token(i.attrs), tuple(program.types[a] for a in i.args))].append(i)
    return groups


def _merge(segments: list[Segment]) -> Segments:
    merged: list[Segment] = []
    for s in segments:
        if merged and merged[-1].base == s.base and merged[-1].stop == s.start:
            merged[-1] = Segment(s.base, merged[-1].start, s.stop)
        else:
            merged.append(s)
    return tuple(merged)


def _cut(segments: Segments, start: int, stop: int) -> Segments:
    cut, at = [], 0
    for s in segments:
        lo, hi = max(start - at, 0), min(stop - at, s.stop - s.start)
        if lo < hi:
            cut.append(Segment(s.base, s.start + lo, s.start + hi))
        at += s.stop - s.start
    return tuple(cut)

"""Program -> a table of instructions over one block of memory, for a loop that was compiled once; no graph is compiled.

A row says which instruction, which kernel (a loop over numbers), how many rows and columns, and where each operand lies: a space
(parameters, feeds, this shard's frame, ...), an offset, and strides by sample, by row of a cotangent, and within a sample. So
ranges of a vector are never copied, and what all samples share is read with a stride of 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from flowgrad.formulas import OPERANDS, formula
from flowgrad.jacobians import Diagonal, Identity, Outer, Rows, Selection
from flowgrad.ops import BatchMatVec, Dot, Gather, MatVec, RowDot, Slice, Vectorize
from flowgrad.ops.linear import LARGE_MATRIX
from flowgrad.program import Instr, Program, Type
from flowgrad.reads import code_token
from flowgrad.tangents import bent_slots
from flowgrad.typing import Array

from ..machine import without_collection

# What the loop can do by itself; the rest is kernels.
LOOP, PRODUCT, PYTHON, TILES, STOP, NEXT_STEP, NEXT_SHARD, TAKE, LOSS, TREE, NORM, UPDATE = range(12)
# Fields of a row.
OPCODE, KERNEL, FIRST, BATCHED, TIMES, COLUMNS, INNER, MOVES, EXTRA, OPERAND, WIDTH = 0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 48
# Fields of an operand: space, offset, and strides by row, by row of a cotangent, and within a row.
FIELDS, SLOTS = 5, 7
# Operands beside the result that a loop over numbers reads, and the place of its attributes.
MOST, ATTRIBUTES = 5, 6
# Verbs that read the local Jacobian itself.
FIRST_ORDER = ("pull", "pull_sum", "push")
# Spaces that are given; those after them are feeds, and tangents.
FRAME, PARAM, CONST, GRAD, SEED, NUMBERS, INDICES, FEEDS = range(8)
ROLES = {"param": PARAM, "const": CONST, "seed": SEED}
# Entries of all operands of a tile: they stay in the first cache.
TILE = 8192
ALIGNED = 64

# Places in the context. What is shared by threads is an address.
(
    SAMPLES, DIRECTIONS, BLAS, SIZE, ONE, ZERO, SYNC, ROW,  # samples of this walk, rows of a cotangent; BLAS; bytes of a number
    STEP, SHARD, WAVE_START, THREAD, THREADS, MET,  # where this thread is
    STEPS, SHARDS, WAVE, LEVELS, ENTRIES, BEGIN, END,  # of a round; this thread's part of the parameters
    ORDER, CUTS, COUNTS, LOSSES, SHARES, FOLDED, NORMED, SEEDS, CONSTANTS, SCALE, ADD, COPY_ROW, CLEAR,
    SPANS, SPAN_CUTS, WEIGHTS,  # where gradients are not zero, and which of these stretches are of which step
) = range(37)  # fmt: skip
# Arrays of an update, the gradient among them; their places follow from that of the weights on.
MOVED = 7
BASES = WEIGHTS + MOVED - 1
DONE, CALL, PAUSE, MEASURE, ENDED = -1, -2, -3, -4, -5


class Kernel(NamedTuple):
    """A loop that rows of the table call: a formula, one of a few others by name, or a function of a sample's vectors."""

    text: str
    operands: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    function: Callable[..., None] | None = None
    slot: int | None = None


FILL, COPY, SUM = Kernel("0.0"), Kernel("a", ("a",)), Kernel("out + a", ("a",))
PLUS, SCALED = Kernel("a + b", ("a", "b")), Kernel("k * a", ("a",), ("k",))
DOT, GATHER, SCATTER = Kernel(":dot", ("a", "b")), Kernel(":gather", ("a", "b")), Kernel(":scatter", ("a", "b"))
TURN, CLIP = Kernel(":turn", ("a", "b")), Kernel("k * out", (), ("k",))
LOSS_SUM, WALK = Kernel(":loss"), Kernel(":walk")


def row_kernel(function: Callable[..., None], count: int, slot: int | None = None) -> Kernel:
    """Return the kernel that calls a function of so many vectors of a sample, as it is now: constants that it names may change."""
    return Kernel(":rows", tuple("abcdefgh"[:count]), (code_token(function),), function, slot)


class View(NamedTuple):
    """Where entries lie: part of each row of a slot."""

    slot: int
    start: int
    dim: int


class Slot(NamedTuple):
    """Memory: a row for each sample, or one; in a space that is given, or in the frame."""

    type: Type
    space: int = FRAME


@dataclass(frozen=True, eq=False)
class Table:
    """A program's instructions, with the places of their operands still as slots.

    Attributes
    ----------
    fields : ndarray (rows, OPERAND)
        Opcode and so on; kernels as numbers.
    kernels : list of Kernel
    slots : list of Slot
    places : ndarray (rows, SLOTS, 3)
        Slot or -1, first entry, stride within a row.
    numbers, indices : ndarray
        Attributes of kernels; positions of gathers.
    calls : list of (Instr, View, list of View)
        What Python runs.
    outputs : dict
        View by name.
    """

    fields: Array
    kernels: list[Kernel]
    slots: list[Slot]
    places: Array
    numbers: Array
    indices: Array
    calls: list[tuple[Instr, View, list[View]]]
    outputs: dict[str, View]
    feeds: int = 0

    def offsets(self, samples: int, directions: int, size: int) -> tuple[Array, int]:
        """Return where each slot begins in its space, and the bytes of the frame."""
        bytes_ = np.array([self._bytes(s.type, samples, directions, size) for s in self.slots], np.int64)
        inside = np.array([s.space == FRAME for s in self.slots])
        bytes_ = -(-bytes_ // ALIGNED) * ALIGNED * inside
        ends = np.cumsum(bytes_)
        return (ends - bytes_) * inside, int(ends[-1])

    @staticmethod
    def _bytes(t: Type, samples: int, directions: int, size: int) -> int:
        return t.dim * (samples if t.batched else 1) * (directions if t.cotangent else 1) * size

    def numbered(self, samples: int, offsets: Array, size: int, addresses: Sequence[int]) -> Array:
        """Return the table as numbers, for at most so many samples, slots at these offsets, and numbers of so many bytes."""
        out = np.zeros((len(self.fields), WIDTH), np.int64)
        out[:, :OPERAND] = self.fields
        where = np.array([*addresses, 0], np.int64)
        out[:, KERNEL], out[:, FIRST] = where[self.fields[:, KERNEL]], where[self.fields[:, FIRST]]
        slot, start, inner = (self.places[:, :, k] for k in range(3))
        dims, batched, moves, space = (
            np.array([*column, 0], np.int64)[slot]
            for column in (
                [s.type.dim for s in self.slots],
                [s.type.batched for s in self.slots],
                [s.type.cotangent for s in self.slots],
                [s.space for s in self.slots],
            )
        )
        rows = np.where(batched, samples, 1)
        operands = np.zeros((len(out), SLOTS, FIELDS), np.int64)
        operands[:, :, 0] = space
        # Positions of gathers are whole numbers of eight bytes.
        width = np.where(space == INDICES, 8, size)
        operands[:, :, 1] = np.append(offsets, 0)[slot] + start * width
        # What is shared by the samples stands still, but for the rows of what has no samples at all.
        steps = batched | ((self.fields[:, [TIMES]] > 1) & (self.fields[:, [BATCHED]] == 0))
        operands[:, :, 2] = dims * steps * size // np.maximum(self.fields[:, TIMES, None], 1)
        operands[:, :, 3] = dims * rows * moves * size
        operands[:, :, 4] = inner * size
        out[:, OPERAND:] = operands.reshape(len(out), -1)
        # A loop whose operands all lie end to end is one loop.
        columns, given = self.fields[:, COLUMNS, None] * size, slot >= 0
        wanted = np.where(np.arange(SLOTS) < ATTRIBUTES, columns, 0)
        formulas = np.array([not k.text.startswith(":") for k in self.kernels] + [False])[self.fields[:, KERNEL]]
        flat = (~given | (operands[:, :, 2] == wanted)).all(axis=1) & (self.fields[:, INNER] == 1) & formulas
        out[:, EXTRA] = np.where(out[:, OPCODE] == LOOP, flat, out[:, EXTRA])
        out[:, EXTRA] *= np.where(out[:, OPCODE] == TAKE, size, 1)
        return out


class Assembler:
    """Writes the rows of a program.

    Parameters
    ----------
    gradient : str or None
        The output that is the gradient of the flat parameter vector, if there is one: it has a space of its own.
    seeds : bool
        Whether the seed has a row for each sample, or one for all.
    keys : int, optional
        The feed that has its rows in the order of the samples, so that none are picked.
    """

    def __init__(self, program: Program, gradient: str | None = None, seeds: bool = False, keys: int | None = None):
        self.program, self.types = program, program.types
        self.fields: list[list[int]] = []
        self.operands: list[list[tuple[int, int, int]]] = []
        self.kernels: dict[Kernel, int] = {}
        self.slots: list[Slot] = []
        self.views: dict[int, View] = {}
        self.numbers: list[float] = []
        self.indices: list[int] = []
        self.calls: list[tuple[Instr, View, list[View]]] = []
        self.places: dict[int, View] = {}
        self.added: dict[int, int] = {}
        self.begun: set[int] = set()
        self.cleared: Collection[int] = ()
        self.reserved: set[int] = set()
        self.free: dict[Type, list[int]] = {}
        self.owners: Counter[int] = Counter()
        self.uses = Counter(a for i in program.instrs for a in i.args)
        self.outputs = set(program.outputs.values())
        self.makers = {i.out: i for i in program.instrs}
        self.zeros = {i.out for i in program.instrs if not i.args}
        self.wanted = {(i.op, i.args[1:]) for i in program.instrs if i.verb in FIRST_ORDER and not i.slot}
        self.factors: dict[Any, View] = {}
        self.known_numbers: dict[tuple[float, ...], View] = {}
        self.known_indices: dict[tuple[int, ...], View] = {}
        self.number_slot, self.index_slot = self._given(Type(1, False), NUMBERS), self._given(Type(1, False), INDICES)
        feeds = 0
        for entry in program.inputs:
            type_ = self.types[entry.var]
            given = type_._replace(batched=type_.batched and (seeds or entry.role != "seed"))
            self.views[entry.var] = view = View(self._given(given, ROLES.get(entry.role, FEEDS + feeds)), 0, type_.dim)
            if given != type_:  # the same for all samples, but what reads it expects a row for each
                self.views[entry.var] = self._new(type_)
                self._copy(view, self.views[entry.var])
                self.owners[self.views[entry.var].slot] += 1
            feeds += entry.role not in ROLES
        self.feeds, self.keys = feeds, keys
        self.gradient = gradient
        if gradient is not None:
            self._lay(program.outputs[gradient], GRAD)

    @without_collection
    def write(self) -> Table:
        """Return the table of the program; its outputs have spaces of their own, after those of the feeds."""
        for k, var in enumerate(dict.fromkeys(self.program.outputs.values())):
            self._lay(var, FEEDS + self.feeds + k)
        self._write()
        self._row(STOP, None, ())
        return self._table()

    @without_collection
    def write_shards(self) -> Table:
        """Return the table that takes one shard's rows after the other, each with a gradient of its own."""
        self._write()
        self._close_shards(0)
        self._row(STOP, None, ())
        return self._table()

    @without_collection
    def write_round(self, rule: Kernel, clips: bool, cleared: Collection[int] = (), lazy: bool = False) -> Table:
        """Return the table of a round; `clips`: by a norm of Python's. Gradients at `cleared` are zero before each step."""
        self.cleared = cleared
        self._write()
        self._close_shards(1)
        self.fields.insert(0, [NEXT_STEP, -1, -1, *[0] * (OPERAND - 3)])
        self.operands.insert(0, [(-1, 0, 0)] * SLOTS)
        self._row(TREE, None, (), extra=(1,))
        if clips:
            self._row(NORM, CLIP, ())
        self._row(UPDATE, rule, (), extra=(0, len(rule.attributes), int(lazy)))
        return self._table()

    def _write(self) -> None:
        ends: dict[int, list[int]] = {}
        for var, k in {a: k for k, i in enumerate(self.program.instrs) for a in (*i.args, i.out)}.items():
            ends.setdefault(k, []).append(var)
        for i in reversed(self.program.instrs):
            self._place_parts(i)
        for k, i in enumerate(self.program.instrs):
            self._instr(i)
            self.owners[self.views[i.out].slot] += i.out not in self.reserved
            for var in ends.get(k, ()):
                if var not in self.outputs:
                    self._leave(self.views[var].slot)
        for var, view in self.places.items():
            if var in self.outputs and self.views[var] != view:  # the gradient is something else's value
                self._copy(self.views[var], view)
        self._tile()

    def _table(self) -> Table:
        return Table(
            np.array(self.fields, np.int64).reshape(-1, OPERAND),
            list(self.kernels),
            self.slots,
            np.array(self.operands, np.int64).reshape(-1, SLOTS, 3),
            np.array(self.numbers or [0.0]),
            np.array(self.indices or [0], np.int64),
            self.calls,
            {name: self.places.get(var, self.views[var]) for name, var in self.program.outputs.items()},
            self.feeds,
        )

    def _close_shards(self, first: int) -> None:
        """Put around the rows what goes to the next shard, whose row is number `first`, and takes its samples."""
        if self.gradient is None and self.program.size("param"):  # no parameter reaches the loss
            type_ = Type(self.program.size("param"), False, True)
            self._loop(FILL, View(self._given(type_, GRAD), 0, type_.dim))
        loss = self.views[self.program.outputs["0"]]
        if not self._batched(loss) or self.slots[loss.slot].type.dim != 1:
            whole = self._new(Type(1, True))
            self._copy(loss, whole)
            loss = whole
        self._row(LOSS, LOSS_SUM, (loss,), extra=(first,))
        fields, operands = self.fields, self.operands
        self.fields, self.operands = [], []
        feeds = [self.types[i.var].dim for i in self.program.inputs if i.role == "feed"]
        self._row(NEXT_SHARD, None, (), extra=(first + 1 + len(feeds) + len(fields),))
        for k, dim in enumerate(feeds):
            self._row(TAKE, None, (), extra=(dim, FEEDS + k, FEEDS + len(feeds) + k, k == self.keys))
        self.fields += fields
        self.operands += operands

    def _tile(self) -> None:
        """Let neighbouring loops run together, some samples at a time, so that what they share stays in a cache."""
        fields, operands = self.fields, self.operands
        self.fields, self.operands = [], []
        k = 0
        while k < len(fields):
            end, entries = k, 0
            sums: set[int] = set()
            while end < len(fields) and fields[end][OPCODE] == LOOP and fields[end][BATCHED]:
                slots = {slot for slot, _, _ in operands[end] if slot >= 0}
                if slots & sums:
                    break  # it reads a sum over all samples
                target = operands[end][0][0]
                if not self.slots[target].type.batched:
                    sums.add(target)
                entries += max(fields[end][COLUMNS], 1) * len(slots)
                end += 1
            if end - k > 1:
                rows = max(1, TILE // entries)
                self.fields.append([TILES, -1, -1, 1, 1, 0, 1, 0, rows, end - k, 0, 0, 0])
                self.operands.append([(-1, 0, 0)] * SLOTS)
            end = max(end, k + 1)
            self.fields += fields[k:end]
            self.operands += operands[k:end]
            k = end

    def _lay(self, var: int, space: int) -> None:
        self.places[var] = View(self._given(self.types[var], space), 0, self.types[var].dim)

    # -- where values lie ---------------------------------------------------------------------------------------

    def _given(self, type_: Type, space: int) -> int:
        self.slots.append(Slot(type_, space))
        self.owners[len(self.slots) - 1] = 1  # never to be used again
        return len(self.slots) - 1

    def _new(self, type_: Type) -> View:
        free = self.free.setdefault(type_, [])
        if not free:
            self.slots.append(Slot(type_))
            free.append(len(self.slots) - 1)
        return View(free.pop(), 0, type_.dim)

    def _leave(self, slot: int) -> None:
        self.owners[slot] -= 1
        if not self.owners[slot] and self.slots[slot].space == FRAME:
            self.free[self.slots[slot].type].append(slot)

    def _target(self, var: int) -> View:
        """Return where a variable is written."""
        return self.places[var] if var in self.places else self._new(self.types[var])

    def _place_parts(self, i: Instr) -> None:
        """Let what is laid end to end, or added up, be written where it belongs; seen from the end of the program."""
        if i.verb == "add":
            products = [a for a in i.args if self._adds_up(a)]
            if products:
                whole = self._reserved(i.out)
                self.places |= dict.fromkeys(products, whole)
                self.added |= dict.fromkeys(products, i.out)
            return
        if i.verb == "scatter" and self.program.tiles(i):
            starts: Sequence[int] = dict(i.attrs)["starts"]
        elif i.verb == "apply" and i.op is Vectorize:
            starts = [0, *dict(i.attrs)["ends"][:-1]]
        else:
            return
        parts = [(a, start) for a, start in zip(i.args, starts) if self._writes(a, i)]
        if parts:
            whole = self._reserved(i.out)
            self.places |= {a: View(whole.slot, whole.start + start, self.types[a].dim) for a, start in parts}

    def _reserved(self, var: int) -> View:
        """Return where a variable lies, which is so from now on."""
        if var not in self.places:
            self.places[var] = view = self._new(self.types[var])
            self.owners[view.slot] += 1
            self.reserved.add(var)
        return self.places[var]

    def _writes(self, var: int, reader: Instr) -> bool:
        """Whether an instruction can write a part where its only reader has it."""
        maker = self.makers.get(var)
        if maker is None or self.uses[var] > 1 or var in self.outputs or var in self.places:
            return False
        same = self.types[var]._replace(dim=0) == self.types[reader.out]._replace(dim=0)
        apart = maker.op is BatchMatVec and self.types[var].batched  # its result must lie end to end
        apart |= _rows(maker) > 1 and maker.verb != "pull_sum"  # so must rows
        return same and maker.op not in (Slice, Vectorize) and not self._is_alias(maker) and not apart

    def _adds_up(self, var: int) -> bool:
        """Whether a part of a sum can be added to the sum by itself: a product."""
        maker = self.makers.get(var)
        if maker is None or self.uses[var] > 1 or var in self.outputs or maker.verb != "pull_sum":
            return False
        return (
            maker.op in (MatVec, Dot)
            and maker.slot == 0
            and self.types[maker.args[0]].batched
            and not self.types[var].batched
        )

    def _is_alias(self, i: Instr) -> bool:
        if i.verb not in FIRST_ORDER or (i.verb == "pull_sum" and self.types[i.args[0]].batched):
            return False
        return i.op.kind(i.slot) is Identity or i.op is Vectorize

    # -- rows ---------------------------------------------------------------------------------------------------

    def _row(
        self,
        opcode: int,
        kernel: Kernel | None,
        views: Sequence[View | None],
        *,
        columns: int = 0,
        inner: int = 1,
        within: Sequence[int] = (),
        times: int = 1,
        first: Kernel | None = None,
        extra: Sequence[int] = (),
        attributes: View | None = None,
    ) -> None:
        """Add a row; it runs over the samples if its result does, or if one of its operands does that it adds up."""
        views = [*views, *[None] * (ATTRIBUTES - len(views)), attributes]
        types = [self.slots[v.slot].type for v in views if v is not None]
        batched, moves = any([t.batched for t in types]), any([t.cotangent for t in types])
        numbers = [-1 if k is None else self.kernels.setdefault(k, len(self.kernels)) for k in (kernel, first)]
        self.fields.append(
            [opcode, *numbers, batched, times, columns, inner, moves, *extra, *[0] * (OPERAND - EXTRA - len(extra))]
        )
        strides = [*within, *[0] * (SLOTS - len(within))]
        self.operands.append([(-1, 0, 0) if v is None else (v.slot, v.start, k) for v, k in zip(views, strides)])

    def _loop(self, kernel: Kernel, *views: View, **more: Any) -> None:
        more.setdefault("columns", views[0].dim)
        self._row(LOOP, kernel, views, **more)

    def _copy(self, source: View, target: View) -> None:
        self._loop(COPY, target, source)

    def _sum(self, source: View, target: View) -> None:
        """Add up the samples."""
        self._loop(SUM, target, source, first=FILL)

    def _numbers(self, values: Sequence[float]) -> View:
        key = tuple(map(float, values))
        if key not in self.known_numbers:
            self.known_numbers[key] = View(self.number_slot, len(self.numbers), len(key))
            self.numbers += key
        return self.known_numbers[key]

    def _indices(self, index: tuple[int, ...]) -> View:
        if index not in self.known_indices:
            self.known_indices[index] = View(self.index_slot, len(self.indices), len(index))
            self.indices += index
        return self.known_indices[index]

    def _contiguous(self, view: View, whole: bool = False) -> View:
        """Return a view that is a whole slot, or, unless it must be `whole`, one row."""
        type_ = self.slots[view.slot].type
        if view.dim == type_.dim or not (whole or type_.batched):
            return view
        copy = self._room(type_._replace(dim=view.dim))
        self._copy(view, copy)
        return copy

    def _room(self, type_: Type) -> View:
        """Return room for the length of an instruction."""
        view = self._new(type_)
        self.spare.append(view.slot)
        return view

    def _total(self, g: View) -> View:
        """Return the sum of the samples of a cotangent."""
        total = self._room(Type(g.dim, False, True))
        self._sum(g, total)
        return total

    def _batched(self, view: View) -> bool:
        return self.slots[view.slot].type.batched

    # -- instructions -------------------------------------------------------------------------------------------

    def _instr(self, i: Instr) -> None:
        self.spare: list[int] = []
        view = self._alias(i)
        if view is None:
            view = self._target(i.out)
            args = [self.views[a] for a in i.args]
            written = self._write_instr(i, view, args if _rows(i) == 1 else [self._contiguous(a, True) for a in args])
            if not written:
                self._call(i, view)
        elif i.out in self.places and self.places[i.out] != view:
            self._copy(view, self.places[i.out])
            view = self.places[i.out]
        self.views[i.out] = view
        for slot in self.spare:
            self.free[self.slots[slot].type].append(slot)

    def _alias(self, i: Instr) -> View | None:
        """Return the view that an instruction only is."""
        if i.verb in ("apply", "push") and i.op is Slice:
            a, attrs = self.views[i.args[0]], dict(i.attrs)
            return View(a.slot, a.start + attrs["start"], attrs["stop"] - attrs["start"])
        if not self._is_alias(i):
            return None
        g = self.views[i.args[0]]
        if i.op is not Vectorize:
            return g
        ends = dict(i.attrs)["ends"]
        start = ends[i.slot - 1] if i.slot else 0
        return View(g.slot, g.start + start, ends[i.slot] - start)

    def _call(self, i: Instr, out: View) -> None:
        """Leave an instruction to Python."""
        self.calls.append((i, out, [self.views[a] for a in i.args]))
        self._row(PYTHON, None, (), extra=(len(self.calls) - 1,))

    def _write_instr(self, i: Instr, out: View, args: list[View]) -> bool:
        if i.verb == "apply":
            return self._apply(i, out, args)
        if i.verb == "add":
            return self._add(i, out, args)
        if i.verb == "scatter":
            return self._scatter(i, out, args)
        if i.verb == "push":
            return self._push(i, out, args)
        if i.verb.startswith("bend"):
            return self._bend(i, out, args)
        return self._pull(i, out, args)

    def _add(self, i: Instr, out: View, args: list[View]) -> bool:
        left = [view for a, view in zip(i.args, args) if self.added.get(a) != i.out]
        if len(left) == len(args):
            self._loop(PLUS, out, *left[:2])
            left = left[2:]
        for view in left:
            self._loop(SUM, out, view)
        return True

    def _scatter(self, i: Instr, out: View, args: list[View]) -> bool:
        starts = dict(i.attrs)["starts"]
        tiles = self.program.tiles(i)
        if not tiles:
            self._loop(FILL, out)
        for view, start in zip(args, starts):
            part = View(out.slot, out.start + start, view.dim)
            if not (tiles and view == part):
                self._loop(COPY if tiles else SUM, part, view)
        return True

    def _element(self, i: Instr, text: str, out: View, operands: Mapping[str, View]) -> bool:
        """Add a loop by a formula; False if it names what no loop is given."""
        stated = formula(text, i.arity)
        attrs = {k: v for k, v in sorted(i.attrs) if isinstance(v, (int, float, np.number)) and k in stated.names}
        if (
            stated.names - set(attrs) - set(operands)
            or len(operands) > MOST
            or any(v.dim != out.dim for v in operands.values())
        ):
            return False
        numbers = self._numbers(list(map(float, attrs.values()))) if attrs else None
        self._loop(Kernel(text, tuple(operands), tuple(attrs)), out, *operands.values(), attributes=numbers)
        return True

    # -- values -------------------------------------------------------------------------------------------------

    def _apply(self, i: Instr, out: View, args: list[View]) -> bool:
        attrs = dict(i.attrs)
        if i.op.formula is not None:
            return self._element(i, i.op.formula, out, dict(zip(OPERANDS, args)))
        if i.op is Vectorize:
            start = 0
            for view in args:
                part = View(out.slot, out.start + start, view.dim)
                if view != part:
                    self._copy(view, part)
                start += view.dim
        elif i.op is Gather:
            self._loop(GATHER, out, args[0], self._indices(attrs["index"]))
        elif i.op in (MatVec, Dot):
            matrix, vector = args
            if i.op is Dot and self._batched(matrix) and not self._batched(vector):
                matrix, vector = vector, matrix
            self._matvec(out, matrix, vector, out.dim, attrs.get("n", matrix.dim))
        elif i.op is BatchMatVec:
            self._products(out, args[0], args[1], attrs["count"], attrs["n"])
        elif i.op is RowDot:
            n = args[0].dim // attrs["rows"]
            self._loop(DOT, out, *args, columns=n, inner=attrs["rows"], within=(1, n, n))
        elif i.op.row_value is not None and (not i.attrs or _own(i.op)):
            return self._row_value(i, out, args)
        else:
            return False
        return True

    def _matvec(self, out: View, matrix: View, x: View, k: int, n: int) -> None:
        if self._batched(matrix):
            self._loop(DOT, out, matrix, x, columns=n, inner=k, within=(1, n, 0))
        else:  # out = x @ matrix.T
            self._product(out, x, matrix, (-1, k, n), (0, 1), (out.dim, n, n))

    def _products(self, out: View, matrix: View, xs: View, count: int, n: int) -> None:
        k = out.dim // count
        xs, whole = self._contiguous(xs), self._whole(out)
        if self._batched(matrix):
            self._product(whole, xs, matrix, (count, k, n), (0, 1), (k, n, n), each=True)
        else:
            self._product(whole, xs, matrix, (-1, k, n), (0, 1), (k, n, n), times=count)
        if whole != out:
            self._copy(whole, out)

    def _whole(self, out: View) -> View:
        """Return a place of its own for a result that must lie end to end."""
        type_ = self.slots[out.slot].type
        if not type_.batched or out.dim == type_.dim:
            return out
        return self._room(type_._replace(dim=out.dim))

    def _product(
        self,
        out: View,
        a: View,
        b: View,
        shape: tuple[int, int, int],
        turned: tuple[int, int],
        widths: tuple[int, int, int],
        times: int = 1,
        each: bool = False,
        add: bool = False,
    ) -> None:
        """Add ``out = a @ b`` of shape (m, n, k), -1 for the samples; `widths` are entries from one row of each matrix to the next.

        `widths` of what has a row per sample are those of its slot.
        """
        widths = tuple(  # type: ignore[assignment]
            self.slots[v.slot].type.dim if self._batched(v) and times == 1 and not each else w
            for v, w in zip((out, a, b), widths)
        )
        m, n, k = shape
        views, kernel = [out, a, b], None
        moves = any([self.slots[v.slot].type.cotangent for v in views])
        if m < 0 and turned == (0, 1) and times == 1 and n * k >= LARGE_MATRIX and not moves:
            # For few samples BLAS is faster if it computes the transpose.
            views.append(self._room(Type(n, self._batched(out))))
            kernel = TURN
        self._row(
            PRODUCT, kernel, views, inner=int(each), within=widths, times=times, columns=int(add),
            extra=(turned[0] + 2 * turned[1], m, n, k),
        )  # fmt: skip

    def _row_value(self, i: Instr, out: View, args: list[View]) -> bool:
        """Call a function of a sample's vectors; the factor of slot 0 is made in the same pass if it is wanted and the op can."""
        op: Any = i.op
        if len(args) > MOST - 1 or not self._fits_rows(i, [out, *args]):
            return False
        if op.row_both is not None and (i.op, i.args) in self.wanted:
            factor = self._new(Type(args[0].dim, any(map(self._batched, args))))
            self.owners[factor.slot] += 1  # stays until the end
            self.factors[i.op, i.args] = factor
            self._function(op.row_both, None, [out, factor, *args])
        else:
            attrs = dict(i.attrs)
            numbers = [self._numbers([attrs[name] for name in op.numbers])] if op.numbers else []
            self._function(op.row_value, None, [out, *args, *numbers], _rows(i))
        return True

    def _function(self, function: Callable[..., None], slot: int | None, views: Sequence[View], rows: int = 1) -> None:
        """Call a function of vectors: those of a sample, or of each of its rows."""
        lengths = [v.dim // rows for v in views]
        self._row(LOOP, row_kernel(function, len(views), slot), views, within=lengths, inner=0, times=rows)

    def _fits_rows(self, i: Instr, views: Sequence[View]) -> bool:
        """Whether rows of all operands lie one behind the other, through all samples."""
        whole = all(v.dim == self.slots[v.slot].type.dim for v in views)
        return _rows(i) == 1 or (whole and len({self._batched(v) for v in views}) == 1)

    # -- cotangents ---------------------------------------------------------------------------------------------

    def _pull(self, i: Instr, out: View, args: list[View]) -> bool:
        kind, g = i.op.kind(i.slot), args[0]
        summed = self._batched(g) and not self.types[i.out].batched
        if kind is Identity or i.op is Vectorize:  # summed, or it would be an alias
            if i.op is Vectorize:
                ends = dict(i.attrs)["ends"]
                g = View(g.slot, g.start + (ends[i.slot - 1] if i.slot else 0), out.dim)
            self._sum(g, out)
        elif kind is Diagonal:
            if len(i.op.slopes) <= i.slot:
                return False
            names = [("y", *OPERANDS)[need + 1] for need in i.op.needs(i.slot, i.arity)]
            return self._summed(
                summed,
                out,
                g,
                lambda to: self._element(i, f"g * ({i.op.slopes[i.slot]})", to, {"g": g, **dict(zip(names, args[1:]))}),
            )
        elif kind is Outer:
            row = args[1] if i.op in (MatVec, Dot, RowDot) else self._factor(i, args)
            if row is None:
                return False
            self._outer(i, out, g, row, summed)
        elif kind is Rows:
            n = args[1].dim // g.dim
            return self._summed(summed, out, g, lambda to: self._scaled(to, args[1], g, n, n))
        elif i.op is MatVec:
            k, n = g.dim, out.dim
            if not self._batched(args[1]):
                return self._summed(
                    summed, out, g, lambda to: self._product(to, g, args[1], (-1, n, k), (0, 0), (n, k, n))
                )
            self._summed(
                summed, out, g, lambda to: self._product(to, g, args[1], (1, n, k), (0, 0), (n, k, n), each=True)
            )
        elif i.op is BatchMatVec:
            self._pull_batch(i, out, g, args[1], summed)
        elif kind is Selection and i.op in (Slice, Gather):
            self._pull_selection(i, out, g, summed)
        elif kind.row_add is not None and _own(i.op):  # to the sum itself, if it is one
            if self.slots[out.slot].space != GRAD or out.start not in self.cleared:
                self._loop(FILL, out)
            self._function(kind.row_add, None, [out, *args])
        elif kind.row_pull is not None and _own(i.op):
            pull = kind.row_pull
            if not self._fits_rows(i, args) or (_rows(i) > 1 and not summed and not self._fits_rows(i, [out, g])):
                return False
            return self._summed(summed, out, g, lambda to: self._function(pull, None, [to, *args], _rows(i)))
        else:
            return False
        return True

    def _summed(self, summed: bool, out: View, g: View, write: Callable[[View], Any]) -> bool:
        """Let what is to be summed be written into a place of its own, and add it up."""
        if not summed:
            return write(out) is not False
        each = self._room(Type(out.dim, True, True))
        if write(each) is False:
            return False
        self._sum(each, out)
        return True

    def _factor(self, i: Instr, args: list[View]) -> View | None:
        """Return the rows of an `Outer` that a row function makes."""
        used = i.args[1:]
        if i.slot == 0 and (i.op, used) in self.factors:
            return self.factors[i.op, used]
        if i.op.row_factor is None or len(used) > MOST - 1 or (i.attrs and not _own(i.op)):
            return None
        dims = self.types[i.out].dim, self.types[i.args[0]].dim
        factor = self._room(Type(max(dims) // min(dims), any(map(self._batched, args[1:]))))
        self._function(i.op.row_factor, i.slot, [factor, *args[1:]])
        return factor

    def _outer(self, i: Instr, out: View, g: View, row: View, summed: bool) -> None:
        k, n = g.dim, row.dim
        if summed and self._batched(row):
            whole = self.added.get(i.out)
            self._product(out, g, row, (k, n, -1), (1, 0), (n, k, n), add=whole in self.begun)
            if whole is not None:
                self.begun.add(whole)
            return
        if summed:
            g = self._total(g)
        self._scaled(out, row, g, n, 0)

    def _scaled(self, out: View, row: View, g: View, n: int, step: int) -> None:
        """Add ``out[a, j] = g[a] * row[a, j]``."""
        self._loop(SCALED, out, row, columns=n, inner=g.dim, within=(n, step, 0, 0, 0, 0, 1), attributes=g)

    # -- tangents -----------------------------------------------------------------------------------------------

    def _push(self, i: Instr, out: View, args: list[View]) -> bool:
        kind, t, attrs = i.op.kind(i.slot), args[0], dict(i.attrs)
        if kind is Diagonal:  # its own transpose
            return self._pull(i, out, args)
        if kind.row_push is not None and _own(i.op):
            if not self._fits_rows(i, [out, *args]):
                return False
            self._function(kind.row_push, None, [out, *args], _rows(i))
            return True
        if i.op is Gather:
            self._loop(GATHER, out, t, self._indices(attrs["index"]))
        elif i.op is BatchMatVec:
            matrix, xs = (args[1], t) if i.slot else (t, args[1])
            self._products(out, matrix, xs, attrs["count"], attrs["n"])
        elif i.op is MatVec and i.slot:
            self._matvec(out, args[1], t, out.dim, t.dim)
        elif kind is Rows:
            n = t.dim // out.dim
            self._loop(DOT, out, t, args[1], columns=n, inner=out.dim, within=(1, n, n))
        elif kind is Outer:
            row = args[1] if i.op in (MatVec, Dot) else self._factor(i, args)
            if row is None:
                return False
            self._matvec(out, t, row, out.dim, row.dim)
        else:
            return False
        return True

    def _bend(self, i: Instr, out: View, args: list[View]) -> bool:
        slots = bent_slots(i)
        values, tangents = (
            dict(zip(slots, args[1:])),
            dict(zip(slots, zip(i.args[1 + len(slots) :], args[1 + len(slots) :]))),
        )
        moved = {slot: view for slot, (var, view) in tangents.items() if var not in self.zeros}
        if i.op in (MatVec, Dot, RowDot, BatchMatVec) and moved:  # the factor is the other operand
            return self._pull(i, out, [args[0], *moved.values()])
        if i.op.bends:
            pairs = {k: i.op.bends.get((min(k, i.slot), max(k, i.slot)), "0") for k in moved if k >= 0}
            bends = {OPERANDS[k]: bend for k, bend in pairs.items() if bend != "0"}
        elif moved:
            return False
        if not moved or not bends:
            self._loop(FILL, out)
            return True
        names = {"g": args[0]} | {("y", *OPERANDS)[k + 1]: v for k, v in values.items()}
        names |= {f"moved_{OPERANDS[k]}": view for k, view in moved.items() if k >= 0}
        text = f"g * ({' + '.join(f'({bend}) * moved_{a}' for a, bend in bends.items())})"
        used = formula(text, i.arity).names
        names = {name: view for name, view in names.items() if name in used}
        summed = self._batched(args[0]) and not self.types[i.out].batched
        return self._summed(summed, out, args[0], lambda to: self._element(i, text, to, names))

    def _pull_batch(self, i: Instr, out: View, g: View, other: View, summed: bool) -> None:
        attrs = dict(i.attrs)
        count, n = attrs["count"], attrs["n"]
        k = g.dim // count
        g, other = self._contiguous(g), self._contiguous(other)
        if i.slot:  # each stretch of the cotangent times the matrix

            def write(to: View) -> None:
                if self._batched(other):
                    self._product(to, g, other, (count, n, k), (0, 0), (n, k, n), each=True)
                else:
                    self._product(to, g, other, (-1, n, k), (0, 0), (n, k, n), times=count)

            whole = out if summed else self._whole(out)
            self._summed(summed, whole, g, write)
            if whole != out:
                self._copy(whole, out)
        elif summed and self._batched(other):
            self._product(out, g, other, (k, n, -1), (1, 0), (n, k, n), times=count)
        else:
            self._summed(
                summed, out, g, lambda to: self._product(to, g, other, (k, n, count), (1, 0), (n, k, n), each=True)
            )

    def _pull_selection(self, i: Instr, out: View, g: View, summed: bool) -> None:
        attrs = dict(i.attrs)
        if i.op is Slice:
            part = View(out.slot, out.start + attrs["start"], g.dim)
            self._loop(FILL, out)
            (self._sum if summed else self._copy)(g, part)
            return
        if summed:
            g = self._total(g)
        self._loop(FILL, out)
        self._loop(SCATTER, out, g, self._indices(attrs["index"]), columns=g.dim)


def _rows(i: Instr) -> int:
    """Return how many rows of its operands an op acts on, each for itself."""
    rows: int = dict(i.attrs).get("rows", 1) if i.op.row_value is not None else 1
    return rows


def _own(op: Any) -> bool:
    return bool(op.__module__.startswith("flowgrad.ops."))

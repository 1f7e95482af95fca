"""Reverse mode: program -> program with its backward part.

See A. Griewank and A. Walther, *Evaluating Derivatives*, 2nd ed., SIAM 2008, chapter 3.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .ops import Gather, Mark, Slice
from .program import Builder, Instr, Program, Type, Verb


def differentiate(program: Program, target: int, wrt: Sequence[int], fold: bool = True) -> Program:
    """Append the cotangents of `wrt` for a seed cotangent of `target`.

    The result has one more input, the seed ``(V, N, dim of target)``, and outputs ``"d<k>"`` for ``wrt[k]``; an output is
    missing where the target does not depend on ``wrt[k]``. Where a batched value meets a shared parent, cotangents are summed
    over the samples; `derive` keeps them apart.

    Parameters
    ----------
    program : Program
        A forward program.
    target : int
        The program variable to differentiate.
    wrt : sequence of int
        The program variables to differentiate by.
    fold : bool
        True: the cotangents of ranges of one variable are gathered by one ``scatter``, not one ``pull`` each. Ranges of the
        program's inputs are always gathered so.
    """
    sweep = _Sweep(program, target, wrt, apart=False)
    inputs = {i.var for i in program.inputs}
    for i, g in sweep.cotangents():
        if i.out in wrt:
            sweep.parts[i.out] = [g]
        if i.op is Slice and (fold or i.args[0] in inputs):
            sweep.range(i, g)
            continue
        for slot, arg in enumerate(i.args):
            if sweep.active[arg]:
                sweep.pull(i, slot, g)
    outputs = dict(program.outputs)
    for k, var in enumerate(wrt):
        if var in sweep.parts or var in sweep.pieces:
            outputs[f"d{k}"] = sweep.total(var)
    return sweep.builder.build(outputs)


class Edge(NamedTuple):
    """The last step back to a variable that derivatives are taken by; it is not part of the program, but left to the reader.

    Attributes
    ----------
    wrt : int
        Which of the variables.
    pull : Instr
        A ``pull`` whose result is one share of the derivative; its arguments are variables of the program.
    dim : int
        Length of the share.
    start : int
        Where the share lies in the variable.
    entries : tuple of int, or None
        Where the share's entries lie, if not end to end.
    """

    wrt: int
    pull: Instr
    dim: int
    start: int = 0
    entries: tuple[int, ...] | None = None

    @property
    def reads(self) -> tuple[int, ...]:
        """Return the variables that it reads."""
        return self.pull.args

    def renamed(self, name: Callable[[int], int]) -> Edge:
        """Return the edge with other numbers for what it reads."""
        return self._replace(pull=self.pull._replace(args=tuple(map(name, self.reads))))


@dataclass(frozen=True, eq=False)
class Derivation:
    """A program with its backward part up to, but without, the last edges.

    Attributes
    ----------
    program : Program
        Its last input is the seed.
    seed : int
        The program variable of the seed.
    edges : tuple of Edge
        The derivative by a variable is the sum of its edges; no edge: it is zero.
    """

    program: Program
    seed: int
    edges: tuple[Edge, ...]


def derive(program: Program, target: int, wrt: Sequence[int]) -> Derivation:
    """Append the cotangents on the way from `target` to `wrt`, samples kept apart, and list the last edges.

    The last edges are where a derivative becomes large: whoever runs them may keep their factors, or write into a result.
    A seed ``(V, 1, dim)`` serves all samples; one for each is possible even where the target is the same for all.

    Parameters
    ----------
    program : Program
        A forward program.
    target : int
        The program variable to differentiate.
    wrt : sequence of int
        Inputs or marks.
    """
    sweep = _Sweep(program, target, wrt, apart=True)
    types, inputs = sweep.builder.types, {i.var for i in program.inputs}
    last: dict[int, tuple[int, int, tuple[int, ...] | None]] = {
        var: (k, 0, None) for k, var in enumerate(wrt) if var in inputs
    }
    marks = {var: k for k, var in enumerate(wrt) if var not in inputs}
    for i in program.instrs:
        if i.args and i.args[0] in inputs and i.args[0] in last:
            if i.op is Slice:
                last[i.out] = (last[i.args[0]][0], dict(i.attrs)["start"], None)
            elif i.op is Gather:
                last[i.out] = (last[i.args[0]][0], 0, dict(i.attrs)["index"])
    edges: list[Edge] = []
    if target in last:
        edges.append(Edge(last[target][0], _same(sweep.seed), types[target].dim, *last[target][1:]))
    for i, g in sweep.cotangents(last):
        if i.out in marks:
            edges.append(Edge(marks[i.out], _same(g), types[i.out].dim))
        for slot, arg in enumerate(i.args):
            if arg in last:
                edges.append(Edge(last[arg][0], sweep.pull_of(i, slot, g), types[arg].dim, *last[arg][1:]))
            elif sweep.active[arg] and i.op is Slice:
                sweep.range(i, g)
            elif sweep.active[arg]:
                sweep.pull(i, slot, g)
    return Derivation(sweep.builder.build(dict(program.outputs)), sweep.seed, tuple(edges))


class _Sweep:
    """Cotangents from a target back, added up where several meet.

    Attributes
    ----------
    active : list of bool
        Whether a variable depends on what is differentiated by.
    parts, pieces : dict
        Cotangents that have arrived at a variable: whole ones, and those of ranges of it with their starts.
    """

    def __init__(self, program: Program, target: int, wrt: Sequence[int], apart: bool):
        self.program, self.apart = program, apart
        self.builder = Builder.of(program)
        self.labels = program.labels()
        types = self.builder.types
        self.active = [False] * len(types)
        for var in wrt:
            self.active[var] = True
        for i in program.instrs:
            through = i.op.differentiable and any(self.active[a] for a in i.args)
            self.active[i.out] = self.active[i.out] or through
        self.seed = self.builder.input(
            Type(types[target].dim, types[target].batched or apart, True), "seed", label=self.labels[target]
        )
        self.parts: dict[int, list[int]] = {target: [self.seed]}
        self.pieces: dict[int, list[tuple[int, int]]] = {}

    def cotangents(self, stop: Container[int] = ()) -> Iterator[tuple[Instr, int]]:
        """Give each instruction that has one with its cotangent, the last first; whoever asks sends it on to the operands."""
        for i in reversed(self.program.instrs):
            if self.active[i.out] and i.out not in stop and (i.out in self.parts or i.out in self.pieces):
                yield i, self.total(i.out)

    def range(self, i: Instr, g: int) -> None:
        """Send the cotangent of a `Slice` on as that of a range."""
        self.pieces.setdefault(i.args[0], []).append((dict(i.attrs)["start"], g))

    def pull(self, i: Instr, slot: int, g: int) -> None:
        """Send a cotangent on to an operand; summed over the samples where that is shared by them, unless they stay apart."""
        parent, own = self.builder.types[i.args[slot]], self.builder.types[g]
        sums = own.batched and not parent.batched and not self.apart
        pull = self.pull_of(i, slot, g, "pull_sum" if sums else "pull")
        pulled = self.builder.copy(pull, Type(parent.dim, own.batched and not sums, True), pull.args)
        self.parts.setdefault(i.args[slot], []).append(pulled)

    def pull_of(self, i: Instr, slot: int, g: int, verb: Verb = "pull") -> Instr:
        """Return the pull along the edge of a slot."""
        values = [i.out if need < 0 else i.args[need] for need in i.op.needs(slot, i.arity)]
        by = self.labels[i.args[slot]]
        return Instr(verb, -1, (g, *values), i.op, i.attrs, slot, i.arity, i.label, by=by)

    def total(self, var: int) -> int:
        """Return the sum of the cotangents of a variable."""
        parts, pieces = self.parts.pop(var, []), sorted(self.pieces.pop(var, []))
        types, dim, label = self.builder.types, self.builder.types[var].dim, self.labels[var]
        if pieces:
            batched = any(types[g].batched for _, g in pieces)
            attrs = (("starts", tuple(start for start, _ in pieces)), ("dim", dim))
            type_, cotangents = Type(dim, batched, True), [g for _, g in pieces]
            parts.append(self.builder.emit("scatter", type_, cotangents, attrs=attrs, label=label))
        if len(parts) == 1:
            return parts[0]
        return self.builder.emit("add", Type(dim, any(types[g].batched for g in parts), True), parts, label=label)


def _same(g: int) -> Instr:
    return Instr("pull", -1, (g,), Mark, (("node", -1),), 0, 1)

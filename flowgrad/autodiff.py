"""Reverse mode: program -> program with its backward part.

See A. Griewank and A. Walther, *Evaluating Derivatives*, 2nd ed., SIAM 2008, chapter 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .ops import Gather, Mark, Slice
from .program import Builder, Instr, Program, Type


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
    builder = Builder.of(program)
    types = builder.types
    given = {i.var for i in program.inputs}
    active = [False] * len(types)
    for var in wrt:
        active[var] = True
    for i in program.instrs:
        active[i.out] = active[i.out] or any(active[a] for a in i.args)
    seed = builder.input(Type(types[target].dim, types[target].batched, True), "seed")
    parts: dict[int, list[int]] = {target: [seed]}
    pieces: dict[int, list[tuple[int, int]]] = {}

    for i in reversed(program.instrs):
        if not active[i.out] or (i.out not in parts and i.out not in pieces):
            continue
        g = _total(builder, i.out, parts.pop(i.out, []), pieces.pop(i.out, []))
        if i.out in wrt:
            parts[i.out] = [g]
        if i.op is Slice and (fold or i.args[0] in given):
            pieces.setdefault(i.args[0], []).append((dict(i.attrs)["start"], g))
            continue
        for slot, arg in enumerate(i.args):
            if active[arg]:
                parts.setdefault(arg, []).append(_pull(builder, i, slot, g, False))

    outputs = dict(program.outputs)
    for k, var in enumerate(wrt):
        if var in parts or var in pieces:
            outputs[f"d{k}"] = _total(builder, var, parts.get(var, []), pieces.get(var, []))
    return builder.build(outputs)


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
        return self._replace(pull=self.pull._replace(args=tuple(map(name, self.pull.args))))


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
    A seed ``(V, 1, dim)`` serves all samples.

    Parameters
    ----------
    program : Program
        A forward program.
    target : int
        The program variable to differentiate.
    wrt : sequence of int
        Inputs or marks.
    """
    builder = Builder.of(program)
    types, given = builder.types, {i.var for i in program.inputs}
    last: dict[int, tuple[int, int, tuple[int, ...] | None]] = {
        var: (k, 0, None) for k, var in enumerate(wrt) if var in given
    }
    marks = {var: k for k, var in enumerate(wrt) if var not in given}
    active = [False] * len(types)
    for var in wrt:
        active[var] = True
    for i in program.instrs:
        active[i.out] = active[i.out] or any(active[a] for a in i.args)
        if i.args and i.args[0] in given and i.args[0] in last:
            attrs = dict(i.attrs)
            if i.op is Slice:
                last[i.out] = (last[i.args[0]][0], attrs["start"], None)
            elif i.op is Gather:
                last[i.out] = (last[i.args[0]][0], 0, attrs["index"])
    seed = builder.input(Type(types[target].dim, types[target].batched, True), "seed")
    edges: list[Edge] = []
    if target in last:
        edges.append(Edge(last[target][0], _same(seed), types[target].dim, *last[target][1:]))
    parts: dict[int, list[int]] = {target: [seed]}
    pieces: dict[int, list[tuple[int, int]]] = {}
    for i in reversed(program.instrs):
        if not active[i.out] or i.out in last or (i.out not in parts and i.out not in pieces):
            continue
        g = _total(builder, i.out, parts.pop(i.out, []), pieces.pop(i.out, []))
        if i.out in marks:
            edges.append(Edge(marks[i.out], _same(g), types[i.out].dim))
        for slot, arg in enumerate(i.args):
            if arg in last:
                edges.append(Edge(last[arg][0], _pull_of(i, slot, g), types[arg].dim, *last[arg][1:]))
            elif active[arg] and i.op is Slice:
                pieces.setdefault(arg, []).append((dict(i.attrs)["start"], g))
            elif active[arg]:
                parts.setdefault(arg, []).append(_pull(builder, i, slot, g, True))
    return Derivation(builder.build(dict(program.outputs)), seed, tuple(edges))


def _same(g: int) -> Instr:
    return Instr("pull", -1, (g,), Mark, (("node", -1),), 0, 1)


def _pull_of(i: Instr, slot: int, g: int) -> Instr:
    values = [i.out if need < 0 else i.args[need] for need in i.op.needs(slot, i.arity)]
    return Instr("pull", -1, (g, *values), i.op, i.attrs, slot, i.arity, i.label)


def _pull(builder: Builder, i: Instr, slot: int, g: int, apart: bool) -> int:
    parent, own = builder.types[i.args[slot]], builder.types[g]
    sums = own.batched and not parent.batched and not apart
    values = [i.out if need < 0 else i.args[need] for need in i.op.needs(slot, i.arity)]
    return builder.emit(
        "pull_sum" if sums else "pull",
        Type(parent.dim, own.batched and not sums, True),
        (g, *values),
        op=i.op,
        attrs=i.attrs,
        slot=slot,
        arity=i.arity,
        label=i.label,
    )


def _total(builder: Builder, var: int, parts: list[int], pieces: list[tuple[int, int]]) -> int:
    """Add up the cotangents of one variable: whole ones, and those of ranges of it."""
    types, dim = builder.types, builder.types[var].dim
    if pieces:
        pieces = sorted(pieces)
        batched = any(types[g].batched for _, g in pieces)
        starts = tuple(start for start, _ in pieces)
        joined = builder.emit(
            "scatter", Type(dim, batched, True), [g for _, g in pieces], attrs=(("starts", starts), ("dim", dim))
        )
        parts = [*parts, joined]
    if len(parts) == 1:
        return parts[0]
    return builder.emit("add", Type(dim, any(types[g].batched for g in parts), True), parts)

"""Reverse mode: program -> program with its backward part.

See A. Griewank and A. Walther, *Evaluating Derivatives*, 2nd ed., SIAM 2008, chapter 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from .ops import Slice
from .program import Builder, Instr, Program, Type


def differentiate(
    program: Program, target: int, wrt: Sequence[int], per_sample: bool = False, fold: bool = True
) -> Program:
    """Append the cotangents of `wrt` for a seed cotangent of `target`.

    The result has one more input, the seed ``(V, N, dim of target)``, and outputs ``"d<k>"`` for ``wrt[k]``; an output is
    missing where the target does not depend on ``wrt[k]``.

    Parameters
    ----------
    program : Program
        A forward program.
    target : int
        The program variable to differentiate.
    wrt : sequence of int
        The program variables to differentiate by.
    per_sample : bool
        False: where a batched value meets a shared parent, cotangents are summed over the samples. True: samples stay apart.
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
                parts.setdefault(arg, []).append(_pull(builder, i, slot, g, per_sample))

    outputs = dict(program.outputs)
    for k, var in enumerate(wrt):
        if var in parts or var in pieces:
            outputs[f"d{k}"] = _total(builder, var, parts.get(var, []), pieces.get(var, []))
    return builder.build(outputs)


def _pull(builder: Builder, i: Instr, slot: int, g: int, per_sample: bool) -> int:
    parent, own = builder.types[i.args[slot]], builder.types[g]
    sums = own.batched and not parent.batched and not per_sample
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

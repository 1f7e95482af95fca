"""What a program costs, from kinds and shapes alone."""

from __future__ import annotations

from functools import lru_cache

from flowgrad.jacobian import Dense, Outer
from flowgrad.ops import Dot, MatVec
from flowgrad.program import Instr, Program


@lru_cache(maxsize=256)
def flops(program: Program) -> tuple[float, float]:
    """Return floating-point operations per run and per sample of a run.

    Parameters
    ----------
    program : Program

    Returns
    -------
    (float, float)
        Fixed part; part that each sample adds.
    """
    fixed = each = 0.0
    for i in program.instrs:
        count = _count(i, program)
        if any(program.types[a].batched for a in (*i.args, i.out)):
            each += count
        else:
            fixed += count
    return fixed, each


def _count(i: Instr, program: Program) -> float:
    types = program.types
    out = types[i.out].dim
    if i.verb == "apply" and i.op in (MatVec, Dot):
        return 2.0 * max(types[a].dim for a in i.args)
    if i.verb.startswith("pull") and i.op.kind(i.slot) is Outer:
        return 2.0 * out
    if i.verb.startswith("pull") and i.op.kind(i.slot) is Dense:
        return 2.0 * types[i.args[0]].dim * out
    return float(out * max(1, len(i.args) - 1))

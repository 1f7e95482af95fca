"""Operations of an instruction, from kinds and lengths alone."""

from __future__ import annotations

from .jacobians import Dense, Outer
from .ops import BatchMatVec, Dot, MatVec
from .program import Instr, Program


def operations(i: Instr, program: Program) -> float:
    """Return the floating-point operations of an instruction per sample, and per row of a cotangent."""
    types = program.types
    out = types[i.out].dim
    if i.verb == "apply" and i.op in (MatVec, Dot):
        return 2.0 * max(types[a].dim for a in i.args)
    if i.op is BatchMatVec and i.verb in ("apply", "pull", "pull_sum"):
        value = out if i.verb == "apply" else types[i.args[0]].dim
        return 2.0 * value * dict(i.attrs)["n"]
    if i.verb.startswith("pull") and i.op.kind(i.slot) is Outer:
        return 2.0 * out
    if i.verb.startswith("pull") and i.op.kind(i.slot) is Dense:
        return 2.0 * types[i.args[0]].dim * out
    return float(out * max(1, len(i.args) - 1))

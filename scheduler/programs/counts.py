"""What a program costs, from kinds and shapes alone: operations, parameters, levels. No clock, no machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from flowgrad.counts import operations
from flowgrad.jacobians import Outer
from flowgrad.ops import Dot, MatVec
from flowgrad.program import Instr, Program


@dataclass(frozen=True)
class Counts:
    """What a program does.

    Attributes
    ----------
    fixed, each : float
        Floating-point operations of a run; those that each sample adds.
    products : float
        Of the latter, those in matrix products.
    params : int
        Length of the flat parameter vector.
    levels : int
        Instructions on the longest way from an input to an output.
    """

    fixed: float
    each: float
    products: float
    params: int
    levels: int

    def flops(self, samples: int) -> float:
        """Return the operations of a run over so many samples."""
        return self.fixed + self.each * samples


@lru_cache(maxsize=256)
def counts_of(program: Program) -> Counts:
    """Return what a program does; a seed has one row."""
    fixed = each = products = 0.0
    depth = [0] * len(program.types)
    for i in program.instrs:
        depth[i.out] = 1 + max((depth[a] for a in i.args), default=0)
        flops = operations(i, program)
        if any(program.types[a].batched for a in (*i.args, i.out)):
            each += flops
            products += flops if _is_product(i, program) else 0.0
        else:
            fixed += flops
    return Counts(fixed, each, products, program.size("param"), max(depth))


def _is_product(i: Instr, program: Program) -> bool:
    """Whether an instruction is one matrix product over all samples: of a matrix that they share, or by it."""
    types = program.types
    if i.op not in (MatVec, Dot) or i.verb not in ("apply", "pull", "pull_sum"):
        return False
    if i.verb == "apply":
        return types[i.args[0]].batched != types[i.args[1]].batched
    rows = types[i.args[1]].batched
    return types[i.args[0]].batched and (rows and not types[i.out].batched if i.op.kind(i.slot) is Outer else not rows)

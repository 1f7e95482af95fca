"""What a program costs, from kinds and shapes alone: operations, bytes, calls. No clock, no machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from flowgrad.jacobians import Dense, Outer, Selection
from flowgrad.op import Op
from flowgrad.ops import Dot, MatVec, Slice
from flowgrad.program import Instr, Program

# Names in the code of a rule that tell that it computes transcendental functions, which cost many operations each.
FUNCTIONS = {"exp", "expm1", "log", "log1p", "tanh", "sin", "cos", "arctan", "erf", "power", "softmax"}


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
        its = count(i, program)
        if any(program.types[a].batched for a in (*i.args, i.out)):
            each += its
        else:
            fixed += its
    return fixed, each


def count(i: Instr, program: Program) -> float:
    """Return the operations of an instruction per sample, and per row of a cotangent."""
    types = program.types
    out = types[i.out].dim
    if i.verb == "apply" and i.op in (MatVec, Dot):
        return 2.0 * max(types[a].dim for a in i.args)
    if i.verb.startswith("pull") and i.op.kind(i.slot) is Outer:
        return 2.0 * out
    if i.verb.startswith("pull") and i.op.kind(i.slot) is Dense:
        return 2.0 * types[i.args[0]].dim * out
    return float(out * max(1, len(i.args) - 1))


class Product(NamedTuple):
    """A matrix product of a layer whose matrix has `outputs` rows and `inputs` columns, over all samples at once.

    `side` is what it computes: ``"value"`` (N, outputs), ``"input"`` the cotangent of the input (N, inputs), ``"matrix"`` the
    cotangent of the matrix (outputs, inputs), summed over the samples.
    """

    side: str
    outputs: int
    inputs: int


class Loop(NamedTuple):
    """An instruction that goes through entries: how many it reads and writes, and how many its result has; per sample."""

    moved: int
    out: int


@dataclass(frozen=True)
class Work:
    """What a program does, instructions of one kind and shape counted together.

    Attributes
    ----------
    products, loops : dict
        How often, by `Product` and by `Loop`; each grows with the number of samples.
    once : int
        Entries that are moved once, however many samples there are.
    functions, reductions : int
        Transcendental functions (exp, log, tanh, ...) per sample; rows that ops such as SoftMax go through as a whole.
    calls : int
        Instructions.
    taken : int
        Entries of the feeds per sample.
    params : int
        Length of the flat parameter vector.
    levels : int
        Instructions on the longest way from an input to an output.
    """

    products: dict[Product, int]
    loops: dict[Loop, int]
    once: int
    functions: int
    reductions: int
    calls: int
    taken: int
    params: int
    levels: int

    def product_flops(self, samples: int) -> float:
        """Return the operations of all matrix products."""
        return sum(2.0 * n * p.outputs * p.inputs * samples for p, n in self.products.items())

    def moved(self, samples: int) -> float:
        """Return the entries that all other instructions read and write, feeds included."""
        return self.once + samples * (self.taken + sum(loop.moved * n for loop, n in self.loops.items()))

    def held(self, samples: int) -> float:
        """Return the entries of all intermediate results."""
        per_sample = sum(loop.out * n for loop, n in self.loops.items())
        per_sample += sum(n * (p.inputs if p.side == "input" else p.outputs) for p, n in self.products.items())
        return samples * (self.taken + per_sample)


@lru_cache(maxsize=256)
def work_of(program: Program) -> Work:
    """Return what a program does; a seed has one row."""
    products: Counter[Product] = Counter()
    loops: Counter[Loop] = Counter()
    once = functions = reductions = 0
    depth = [0] * len(program.types)
    for i in program.instrs:
        depth[i.out] = 1 + max((depth[a] for a in i.args), default=0)
        product = _product(i, program)
        if product is not None:
            products[product] += 1
            continue
        out = program.types[i.out].dim
        read = sum(program.types[a].dim for a in i.args)
        moved = out + (min(out, read) if i.verb == "apply" and i.op.kind(0) is Selection else read)
        if any(program.types[a].batched for a in (*i.args, i.out)):
            loops[Loop(moved, out)] += 1
            functions += _functions(i, program)
            reductions += (i.op.row_value if i.verb == "apply" else i.op.row_factor) is not None
        elif not _is_view(i, program):
            once += moved
    taken = sum(program.types[i.var].dim for i in program.inputs if i.role == "feed")
    return Work(
        dict(products),
        dict(loops),
        once,
        functions,
        reductions,
        len(program.instrs),
        taken,
        program.size("param"),
        max(depth),
    )


def _product(i: Instr, program: Program) -> Product | None:
    """Return the matrix product that an instruction is, if it is one."""
    types = program.types
    if i.verb == "apply" and i.op in (MatVec, Dot):
        matrix, vector = (types[a] for a in i.args)
        if i.op is Dot and matrix.batched:
            matrix, vector = vector, matrix
        return None if matrix.batched or not vector.batched else Product("value", types[i.out].dim, vector.dim)
    if not i.verb.startswith("pull") or not types[i.args[0]].batched:
        return None
    outputs, out, kind = types[i.args[0]].dim, types[i.out], i.op.kind(i.slot)
    if kind is Outer and i.op in (MatVec, Dot) and not out.batched and types[i.args[1]].batched:
        return Product("matrix", outputs, out.dim // outputs)
    if kind is Dense and i.op is MatVec and not types[i.args[1]].batched:
        return Product("input", outputs, out.dim)
    return None


def _is_view(i: Instr, program: Program) -> bool:
    """Return whether an instruction on shared variables moves nothing: a range of a vector, or pieces written in place."""
    if i.verb == "scatter":
        return program.tiles(i)
    return i.verb == "apply" and i.op is Slice


def _functions(i: Instr, program: Program) -> int:
    if i.verb not in ("apply", "pull", "pull_sum") or not _is_function(i.op, i.verb == "apply"):  # type: ignore[arg-type]
        return 0
    return max(program.types[a].dim for a in (*i.args[i.verb != "apply" :], i.out))


@lru_cache(maxsize=512)
def _is_function(op: type[Op], value: bool) -> bool:
    """Return whether an op's value, or its local Jacobian, calls transcendental functions, by the names in its code."""
    code: Any = getattr(op.apply if value else op.jacobian, "__code__", None)
    return code is not None and not FUNCTIONS.isdisjoint(code.co_names)

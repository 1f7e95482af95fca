"""Units of a program: what one task of a derivative runs, and what is kept of it, under a name of its own."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from flowgrad.program import Instr, Program

from .cost import count
from .tasks import token

# Programs of more instructions are cut into so many units; each unit is a task, and what is cached.
MAX_UNITS = 256
UNITS = 64


@dataclass(frozen=True, eq=False)
class Unit:
    """Instructions that one task runs; variables are numbered anew: first what is read, then each result.

    `fed` tells whether results depend on a feed. `flops` are the operations per sample and row of the seed of a single instruction
    whose samples may be dealt out to threads.
    """

    prefix: str
    token: str
    instrs: tuple[Instr, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    fed: bool = True
    flops: float = 0.0


def combine(*parts: str) -> str:
    """Return a token of tokens."""
    return blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def renumber(instrs: Sequence[Instr], reads: Sequence[int]) -> tuple[Instr, ...]:
    """Return instructions whose variables are positions: first `reads`, then their own results in order."""
    at = {var: k for k, var in enumerate(reads)}
    out = []
    for i in instrs:
        args = tuple(at[a] for a in i.args)
        at[i.out] = len(at)
        out.append(i._replace(out=at[i.out], args=args))
    return tuple(out)


def cut_up(
    program: Program, statics: Sequence[Instr | int], same: Container[int], through: Callable[[int], int], grain: str
) -> list[Unit]:
    """Cut a program into units: single instructions, or runs of them where there are very many."""
    cuts = {i.out for i in statics if isinstance(i, Instr)}
    instrs = [i for i in program.instrs if i.out not in same and i.out not in cuts]
    size = 1 if grain == "node" or len(instrs) <= MAX_UNITS else -(-len(instrs) // UNITS)
    units = []
    tokens: dict[int, str] = {}
    fed = {i.var for i in program.inputs if i.role == "feed"}
    for start in range(0, len(instrs), size):
        run = [i._replace(args=tuple(map(through, i.args))) for i in instrs[start : start + size]]
        own = {i.out for i in run}
        reads = tuple(dict.fromkeys(a for i in run for a in i.args if a not in own))
        numbered = renumber(run, reads)
        for i in numbered:
            if id(i.attrs) not in tokens:
                tokens[id(i.attrs)] = token(i.attrs)
        rows = [f"{i.verb} {i.args} {token(i.op)} {tokens[id(i.attrs)]} {i.slot}" for i in numbered]
        apart = len(run) == 1 and run[0].verb in ("apply", "pull") and program.types[run[0].out].batched
        flops = count(run[0], program) if apart else 0.0
        writes = tuple(i.out for i in run)
        if not fed.isdisjoint(reads):
            fed.update(writes)
        units.append(Unit(_prefix(run), combine(*rows), numbered, reads, writes, writes[0] in fed, flops))
    return units


def _prefix(run: Sequence[Instr]) -> str:
    first = run[0]
    if len(run) > 1:
        return "block"
    if first.verb in ("pull", "pull_sum"):
        return f"pull-{first.op.__name__.lower()}"
    return first.op.__name__.lower() if first.verb == "apply" else first.verb

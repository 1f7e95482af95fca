"""Units of a program: what one task of a derivative runs, and what is kept of it, under a name of its own."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flowgrad.program import Instr, Program

from ..programs import instr_flops
from ..tasks import attrs_tokens, combine, prefix_of, token

# Programs of more instructions are cut into so many units; each unit is a task, and what is cached.
MAX_UNITS = 256
UNITS = 64


@dataclass(frozen=True, eq=False)
class Unit:
    """Instructions that one task runs; variables are numbered anew: first what is read, then each result.

    Attributes
    ----------
    holders : tuple of int
        Whose results it reads: what is given, and of each other unit the first variable that it writes.
    where : tuple of (int, int or None)
        Per variable that is read, which of `holders` it is, or which of the results that are in it.
    sizes : tuple of (int, bool, bool)
        Of each result the dim, whether there is one per sample, and one per row of the seed.
    flops : float
        Operations per sample and row of the seed of a single instruction whose samples may be dealt out to threads.
    """

    prefix: str
    token: str
    instrs: tuple[Instr, ...]
    writes: tuple[int, ...]
    holders: tuple[int, ...]
    where: tuple[tuple[int, int | None], ...]
    sizes: tuple[tuple[int, bool, bool], ...]
    flops: float

    def entries(self, samples: int, rows: int) -> int:
        """Return how many numbers all results have, for a seed of `rows` rows."""
        return sum(dim * (samples if batched else 1) * (rows if moving else 1) for dim, batched, moving in self.sizes)


class ValueName(NamedTuple):
    """What a value's key consists of.

    Attributes
    ----------
    stem : str
        Stands for its expression, down to the content of whatever is no feed.
    feeds : tuple of int
        The feeds in it, in the order in which it reads them; their content is the other half of the key.
    """

    stem: str
    feeds: tuple[int, ...] = ()


def name_values(units: Sequence[Unit], leaves: Mapping[int, ValueName]) -> dict[int, ValueName]:
    """Return the names of what is given and of each unit's results, by the first variable that it writes.

    The same expression has the same name whatever its feeds are called, and wherever it is a part of another one.
    """
    names = dict(leaves)
    for unit in units:
        feeds = tuple(dict.fromkeys(f for var in unit.holders for f in names[var].feeds))
        reads = [f"{names[var].stem} {[feeds.index(f) for f in names[var].feeds]}" for var in unit.holders]
        names[unit.writes[0]] = ValueName(f"{unit.prefix}-{combine(unit.token, repr(unit.where), *reads)}", feeds)
    return names


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
    program: Program, cuts: Iterable[Instr], same: Container[int], through: Callable[[int], int], grain: str
) -> tuple[list[Unit], dict[int, tuple[int, int | None]]]:
    """Cut a program into units: single instructions, or runs of them where there are very many.

    Returns
    -------
    units : list of Unit
    holder : dict
        By variable that a unit writes: whose result it is in, see `Unit.holders`, and which of several it is.
    """
    given = {i.out for i in cuts}
    instrs = [i for i in program.instrs if i.out not in same and i.out not in given]
    size = 1 if grain == "node" or len(instrs) <= MAX_UNITS else -(-len(instrs) // UNITS)
    units = []
    tokens = attrs_tokens(instrs)
    holder: dict[int, tuple[int, int | None]] = {}
    for start in range(0, len(instrs), size):
        run = [i._replace(args=tuple(map(through, i.args))) for i in instrs[start : start + size]]
        own = {i.out for i in run}
        reads = tuple(dict.fromkeys(a for i in run for a in i.args if a not in own))
        numbered = renumber(run, reads)
        rows = [f"{i.verb} {i.args} {token(i.op)} {tokens[id(i.attrs)]} {i.slot} {i.arity}" for i in numbered]
        apart = len(run) == 1 and run[0].verb in ("apply", "pull") and program.types[run[0].out].batched
        flops = instr_flops(run[0], program) if apart else 0.0
        writes = tuple(i.out for i in run)
        read = [holder.get(a, (a, None)) for a in reads]
        holders = tuple(dict.fromkeys(var for var, _ in read))
        where = tuple((holders.index(var), number) for var, number in read)
        holder.update((var, (writes[0], number if len(run) > 1 else None)) for number, var in enumerate(writes))
        sizes = tuple((t.dim, t.batched, t.cotangent) for t in (program.types[var] for var in writes))
        name, identity = prefix_of(run[0]) if len(run) == 1 else "block", combine(*rows)
        units.append(Unit(name, identity, numbered, writes, holders, where, sizes, flops))
    return units, holder

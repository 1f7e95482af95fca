"""Units of a program: what one task of a derivative runs, and what is kept of it, under a name of its own."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from flowgrad.counts import operations
from flowgrad.program import Builder, Instr, Program, Type

from ..tasks import attrs_tokens, combine, prefix_of, token

# Programs of more instructions are cut into so many units; each unit is a task, and what is cached. A compiled program is one: to
# hand a value from one to another takes longer than most instructions.
MAX_UNITS = 256
UNITS = 64


@dataclass(frozen=True, eq=False)
class Unit:
    """Instructions that one task runs; variables are numbered anew: first what is read, then each result.

    Attributes
    ----------
    program : Program, optional
        The instructions of a unit that is compiled; outputs are `results`.
    results : tuple of int, or None
        Of several instructions, which of the numbered variables are read elsewhere.
    writes : tuple of int
        The program's own numbers of those.
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
    name: str
    token: str
    instrs: tuple[Instr, ...]
    program: Program | None
    results: tuple[int, ...] | None
    writes: tuple[int, ...]
    holders: tuple[int, ...]
    where: tuple[tuple[int, int | None], ...]
    sizes: tuple[tuple[int, bool, bool], ...]
    flops: float

    def entries(self, samples: int, rows: int) -> int:
        """Return how many numbers all results have, for a seed of `rows` rows."""
        return sum([dim * (samples if batched else 1) * (rows if moving else 1) for dim, batched, moving in self.sizes])


class ValueName(NamedTuple):
    """What a value's token consists of.

    Attributes
    ----------
    stem : str
        Stands for its expression, down to the content of whatever is no feed.
    feeds : tuple of int
        The feeds in it, in the order in which it reads them; their content is the other half of the token.
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
        names[unit.writes[0]] = ValueName(combine(unit.token, repr(unit.where), *reads), feeds)
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
    program: Program,
    cuts: Iterable[Instr],
    same: Container[int],
    through: Callable[[int], int],
    grain: str,
    wanted: Iterable[int],
) -> tuple[list[Unit], dict[int, tuple[int, int | None]]]:
    """Cut a program into units: single instructions, or runs of them where there are very many, or where they are compiled.

    Parameters
    ----------
    wanted : iterable of int
        What is read besides what the instructions read.

    Returns
    -------
    units : list of Unit
    holder : dict
        By variable that a unit writes: whose result it is in, see `Unit.holders`, and which of several it is.
    """
    given = {i.out for i in cuts}
    instrs = [i for i in program.instrs if i.out not in same and i.out not in given]
    alone = grain == "node" or (len(instrs) <= MAX_UNITS and not program.compiled)
    size = 1 if alone else max(1, len(instrs) if program.compiled else -(-len(instrs) // UNITS))
    # By variable: the last run that reads it.
    readers = {through(a): k // size for k, i in enumerate(instrs) for a in i.args}
    readers |= dict.fromkeys(map(through, wanted), len(instrs))
    units: list[Unit] = []
    tokens, ops = attrs_tokens(instrs), {op: token(op) for op in {i.op for i in instrs}}
    holder: dict[int, tuple[int, int | None]] = {}
    for start in range(0, len(instrs), size):
        run = [i._replace(args=tuple(map(through, i.args))) for i in instrs[start : start + size]]
        own = {i.out for i in run}
        reads = tuple(dict.fromkeys(a for i in run for a in i.args if a not in own))
        numbered = renumber(run, reads)
        rows = [f"{i.verb} {i.args} {ops[i.op]} {tokens[id(i.attrs)]} {i.slot} {i.arity}" for i in numbered]
        apart = len(run) == 1 and run[0].verb in ("apply", "pull") and program.types[run[0].out].batched
        flops = operations(run[0], program) if apart else 0.0
        results = tuple(k for k, i in enumerate(run, len(reads)) if readers.get(i.out, -1) > start // size)
        if not results:
            continue
        writes = tuple(run[k - len(reads)].out for k in results)
        read = [holder.get(a, (a, None)) for a in reads]
        holders = tuple(dict.fromkeys(var for var, _ in read))
        where = tuple((holders.index(var), number) for var, number in read)
        holder.update((var, (writes[0], number if size > 1 else None)) for number, var in enumerate(writes))
        sizes = tuple((t.dim, t.batched, t.cotangent) for t in (program.types[var] for var in writes))
        prefix, identity = prefix_of(run[0]) if len(run) == 1 else "block", combine(*rows, repr(results))
        name = run[0].name if len(run) == 1 else f"{run[0].name} .. {run[-1].name}"
        block = None
        if program.compiled:
            block = _block(program, numbered, [program.types[i.out] for i in run], reads, results)
            identity = token(block)  # its types too
        kept = results if size > 1 else None
        units.append(Unit(prefix, name, identity, numbered, block, kept, writes, holders, where, sizes, flops))
    return units, holder


def _block(
    program: Program, numbered: Sequence[Instr], types: Sequence[Type], reads: Sequence[int], results: Sequence[int]
) -> Program:
    """Return numbered instructions as a program."""
    seeds = {i.var for i in program.inputs if i.role == "seed"}
    builder = Builder()
    for var in reads:
        type_ = program.types[var]
        builder.input(type_, "seed" if var in seeds else "tangent" if type_.cotangent else "feed", var)
    for i, type_ in zip(numbered, types):
        builder.copy(i, type_, i.args)
    return replace(builder.build({str(k): var for k, var in enumerate(results)}), compiled=True)

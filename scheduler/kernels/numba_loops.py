"""The parts of generated text: names, preallocated buffers, and elementwise loops that neighbouring instructions share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from flowgrad.jacobians import Identity
from flowgrad.program import Instr, Program


class Unsupported(Exception):
    """A program that cannot be written as loops; the message says which instruction."""


@dataclass
class Source:
    """Generated text and what it refers to.

    Attributes
    ----------
    body : list of str
        Lines of ``gradient``.
    feeds, buffers : list
        Names of the feeds in the program's order; names and shapes of the buffers, ``"n"`` for the number of samples.
    functions : dict
        Row functions of ops by the name under which the text calls them.
    """

    body: list[str] = field(default_factory=list)
    feeds: list[str] = field(default_factory=list)
    buffers: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    functions: dict[str, Callable[..., None]] = field(default_factory=dict)


@dataclass
class _Loop:
    """A pending elementwise loop: expressions of the entries at [i, j] of one shape."""

    batched: bool
    dim: int
    lines: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    local: dict[int, str] = field(default_factory=dict)
    stored: list[int] = field(default_factory=list)
    sums: list[tuple[int, str]] = field(default_factory=list)


class LoopWriter:
    """Keeps track of where each program variable lies, and of the elementwise loop that is being written."""

    def __init__(self, program: Program):
        self.program = program
        self.out = Source()
        self.name: dict[int, str] = {}
        self.place: dict[int, str] = {}
        self.loop: _Loop | None = None
        self.uses: Counter[int] = Counter(a for i in program.instrs for a in i.args)
        self.uses.update(program.outputs.values())
        self.left: Counter[int] = Counter(self.uses)

    # -- names and buffers --------------------------------------------------------------------------------------

    def _buffer(self, var: int) -> str:
        """Return the name of the array that `var` is written to."""
        if var in self.name:
            return self.name[var]
        type_ = self.program.types[var]
        if var in self.place:
            self.name[var] = self.place[var]
        else:
            name = f"b{var}"
            self.out.buffers.append((name, ("n", str(type_.dim)) if type_.batched else (str(type_.dim),)))
            self.name[var] = f"{name}[:n]" if type_.batched else name
        return self.name[var]

    def _line(self, *lines: str) -> None:
        self.out.body += lines

    def _read(self, var: int) -> str:
        """Return the array of `var`; a pending loop that computes it is written first."""
        if self.loop is not None and (var in self.loop.local or any(v == var for v, _ in self.loop.sums)):
            self._flush()
        return self.name[var]

    # -- elementwise loops --------------------------------------------------------------------------------------

    def _entry(self, var: int) -> str:
        """Return the entry of `var` at the position of the pending loop."""
        assert self.loop is not None
        if var in self.loop.local:
            return self.loop.local[var]
        name = self.name[var].removesuffix("[:n]")
        return f"{name}[i, j]" if self.program.types[var].batched else f"{name}[j]"

    def _join(self, batched: bool, dim: int, reads: list[int]) -> _Loop:
        """Return the pending loop if it has this shape and can go on, else a new one."""
        loop = self.loop
        summed = set() if loop is None else {v for v, _ in loop.sums}
        if loop is None or (loop.batched, loop.dim) != (batched, dim) or summed & set(reads):
            self._flush()
            self.loop = loop = _Loop(batched, dim)
        return loop

    def _elementwise(self, out: int, expr: str, reads: list[int]) -> None:
        """Add ``out[i, j] = expr``, where ``{k}`` stands for the entry of ``reads[k]``."""
        type_ = self.program.types[out]
        loop = self._join(type_.batched, type_.dim, reads)
        loop.lines.append(f"t{out} = " + expr.format(*(f"({self._entry(v)})" for v in reads)))
        loop.local[out] = f"t{out}"
        loop.stored.append(out)

    def _sum(self, out: int, expr: str, reads: list[int], dim: int) -> None:
        """Add ``out[j] = Σ_i expr``."""
        loop = self._join(True, dim, reads)
        target = self._buffer(out)
        loop.before.append(f"{target}[:] = F(0)")
        loop.sums.append((out, f"{target}[j] += " + expr.format(*(f"({self._entry(v)})" for v in reads))))

    def _flush(self) -> None:
        loop, self.loop = self.loop, None
        if loop is None:
            return
        inside = list(loop.lines)
        for var in loop.stored:
            if not self.left[var] and var not in self.program.outputs.values():
                continue
            target = self._buffer(var).removesuffix("[:n]")
            inside.append(f"{target}[{'i, j' if loop.batched else 'j'}] = t{var}")
        for _, line in loop.sums:
            inside.append(line)
        self._line(*loop.before)
        if loop.batched:
            self._line("for i in range(n):", f"    for j in range({loop.dim}):", *("        " + x for x in inside))
        else:
            self._line(f"for j in range({loop.dim}):", *("    " + x for x in inside))

    def _is_alias(self, i: Instr) -> bool:
        summed = i.verb == "pull_sum" and self.program.types[i.args[0]].batched
        return i.verb in ("pull", "pull_sum") and i.op.kind(i.slot) is Identity and not summed

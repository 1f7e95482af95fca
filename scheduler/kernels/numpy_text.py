"""Program -> text of a Python function: one NumPy call an instruction, values written into buffers that are made once."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from flowgrad.jacobians import Identity
from flowgrad.op import Op
from flowgrad.ops import Vectorize
from flowgrad.program import Instr, Program, Type
from flowgrad.returned import both_rule, carry, is_own, jacobian_rule, value_rule
from flowgrad.typing import Array

from ..tasks import token


@dataclass
class Text:
    """A kernel's text and what it refers to.

    Attributes
    ----------
    lines : list of str
        The function ``run(frame, wholes, <inputs>)``; returns the outputs in the order of the program.
    names : dict
        What the text calls.
    frame : list of Type
        The buffers that it is given.
    wholes : list of (str, Type)
        Outputs that are put together of pieces in place; they are given too.
    instrs : dict
        The instruction by line number.
    """

    lines: list[str] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)
    frame: list[Type] = field(default_factory=list)
    wholes: list[tuple[str, Type]] = field(default_factory=list)
    instrs: dict[int, Instr] = field(default_factory=dict)


class KernelWriter:
    """Writes the text of a program."""

    def __init__(self, program: Program):
        self.program = program
        self.text = Text(names={"add": np.add, "carry": carry, "join": join, "reduce": reduce})
        self.uses = Counter(a for i in program.instrs for a in i.args)
        self.left = Counter(self.uses)
        self.outputs = set(program.outputs.values())
        self.wanted = {_applied(i) for i in program.instrs if i.verb in ("pull", "pull_sum") and not i.slot}
        self.known: dict[Any, str] = {}
        self.takes_out: dict[type[Op], bool] = {}
        self.place: dict[int, str] = {}
        self.held: dict[int, frozenset[int]] = {}
        self.free: dict[Type, list[int]] = {}
        self.holders: Counter[int] = Counter()

    def write(self) -> Text:
        """Return the text."""
        body = self._destine()
        for i in self.program.instrs:
            self.text.instrs[len(body)] = i
            body.append(self._line(i))
            for a, uses in Counter(i.args).items():
                self.left[a] -= uses
                if not self.left[a] and a not in self.outputs:
                    self._drop(a)
            if not self.left[i.out] and i.out not in self.outputs:
                self._drop(i.out)
        results = [f"v{v}.copy()" if self.held.get(v) else f"v{v}" for v in self.program.outputs.values()]
        parameters = ", ".join(["frame", "wholes", *(f"v{i.var}" for i in self.program.inputs)])
        head = [f"def run({parameters}):"]
        head += [f" {''.join(f'b{k}, ' for k in range(len(self.text.frame)))}= frame"] if self.text.frame else []
        self.text.instrs = {at + len(head) + 1: i for at, i in self.text.instrs.items()}
        self.text.lines = [*head, *(" " + line for line in body), f" return ({''.join(r + ', ' for r in results)})"]
        return self.text

    # -- where values lie ---------------------------------------------------------------------------------------

    def _destine(self) -> list[str]:
        """Let the pieces of outputs that they tile, such as the flat gradient, be written where they belong."""
        lines = []
        makers = {i.out: i for i in self.program.instrs}
        for name, var in self.program.outputs.items():
            final = makers.get(var)
            if final is None or final.verb != "scatter" or var in self.place or not self.program.tiles(final):
                continue
            whole = f"wholes[{len(self.text.wholes)}]"
            self.text.wholes.append((name, self.program.types[var]))
            self.place[var] = whole
            for piece, start in zip(final.args, dict(final.attrs)["starts"]):
                maker = makers.get(piece)
                if self.uses[piece] == 1 and piece not in self.outputs and maker is not None and self._writes(maker):
                    self.place[piece] = f"p{piece}"
                    stop = start + self.program.types[piece].dim
                    lines.append(f"p{piece} = {whole}[:, :, {start}:{stop}]")
        return lines

    def _writes(self, i: Instr) -> bool:
        """Return whether an instruction can write where it is told to."""
        if i.verb == "apply":
            if i.op not in self.takes_out:
                self.takes_out[i.op] = "out" in inspect.signature(i.op.apply).parameters
            return self.takes_out[i.op]
        if i.verb in ("pull", "pull_sum"):
            return is_own(i.op) and not self._is_alias(i) and not (i.op is Vectorize and i.verb == "pull")
        return i.verb in ("add", "scatter")

    def _is_alias(self, i: Instr) -> bool:
        return i.verb == "pull" and is_own(i.op) and i.op.kind(i.slot) is Identity

    def _target(self, i: Instr) -> str:
        """Return where an instruction writes, or nothing: NumPy makes an array."""
        if i.out in self.place:
            return self.place[i.out]
        if i.out in self.outputs or not self._writes(i):
            return ""
        type_ = self.program.types[i.out]
        free = self.free.setdefault(type_, [])
        if free:
            buffer = free.pop()
        else:
            buffer = len(self.text.frame)
            self.text.frame.append(type_)
        self._hold(i.out, frozenset([buffer]))
        return f"b{buffer}"

    def _hold(self, var: int, buffers: frozenset[int]) -> None:
        self.held[var] = buffers
        self.holders.update(buffers)

    def _drop(self, var: int) -> None:
        for buffer in self.held.pop(var, ()):
            self.holders[buffer] -= 1
            if not self.holders[buffer]:
                self.free[self.text.frame[buffer]].append(buffer)

    # -- instructions -------------------------------------------------------------------------------------------

    def _line(self, i: Instr) -> str:
        out = self._target(i)
        if not out:  # it may be a view of what it was made from
            self._hold(i.out, frozenset().union(*(self.held.get(a, frozenset()) for a in i.args)))
        if i.verb == "add":
            return self._add(i, out)
        if i.verb == "scatter":
            return self._scatter(i, out)
        if self._is_alias(i):
            return f"v{i.out} = v{i.args[0]}"
        if i.verb not in ("apply", "pull", "pull_sum"):
            self.text.names[f"i{i.out}"] = i
            return f"v{i.out} = run_one(i{i.out}, ({''.join(f'v{a}, ' for a in i.args)}))"
        if i.op is Vectorize and i.verb != "apply":  # it may have very many operands: do not list them once per operand
            start, stop = stretch(i)
            part = f"v{i.args[0]}[:, :, {start}:{stop}]"
            if i.verb == "pull_sum":
                part = f"add.reduce({part}, axis=1, keepdims=True, out={out or None})"
            return f"v{i.out} = {part}"
        attrs = ""
        if i.attrs:
            self.text.names[f"a{i.out}"] = dict(i.attrs)
            attrs = f", **a{i.out}"
        into = f", out={out}" if out else ""
        op = self._name(i.op)
        read = ", ".join(f"v{a}" for a in i.args)
        if i.verb == "apply" and i.op.both is not None and _applied(i) in self.wanted:
            self.known[_applied(i)] = f"j{i.out}"
            return f"v{i.out}, j{i.out} = {op}_both({read}{attrs})"
        if i.verb == "apply":
            return f"v{i.out} = {op}_value({read}{into}{attrs})"
        return f"v{i.out} = {self._pull(i, op, into, attrs)}"

    def _pull(self, i: Instr, op: str, into: str, attrs: str) -> str:
        known = None if i.slot else self.known.get(_applied(i))
        used = ["None"] * (i.arity + 1)
        for need, var in zip(i.op.needs(i.slot, i.arity), i.args[1:]):
            used[need] = f"v{var}"
        local = known or f"{op}_jacobian({i.slot}, {', '.join([used[-1], *used[:-1]])}{attrs})"
        if is_own(i.op):
            return f"{local}.{i.verb}(v{i.args[0]}{into})"
        values = "".join(f"v{a}, " for a in i.args[1:])
        return f"carry({local}, {i.verb!r}, v{i.args[0]}, {i.dim}, ({values}))"

    def _name(self, op: type[Op]) -> str:
        key = f"{op.__name__}_{id(op):x}"
        self.text.names.setdefault(f"{key}_value", value_rule(op))
        self.text.names.setdefault(f"{key}_jacobian", jacobian_rule(op))
        if op.both is not None:
            self.text.names.setdefault(f"{key}_both", both_rule(op))
        return key

    def _add(self, i: Instr, out: str) -> str:
        if not out:
            return f"v{i.out} = reduce(add, ({', '.join(f'v{a}' for a in i.args)}))"
        line = f"v{i.out} = add(v{i.args[0]}, v{i.args[1]}, out={out})"
        return "; ".join([line, *(f"add({out}, v{a}, out={out})" for a in i.args[2:])])

    def _scatter(self, i: Instr, out: str) -> str:
        types, starts = self.program.types, dict(i.attrs)["starts"]
        if not out.startswith("wholes"):
            pieces = "".join(f"v{a}, " for a in i.args)
            return f"v{i.out} = join(({pieces}), {starts}, {types[i.out].dim}{f', {out}' if out else ''})"
        rest = [(a, start) for a, start in zip(i.args, starts) if a not in self.place]
        return "; ".join([f"v{i.out} = {out}", *(f"{out}[:, :, {s}:{s + types[a].dim}] = v{a}" for a, s in rest)])


def join(pieces: Sequence[Array], starts: tuple[int, ...], dim: int, out: Array | None = None) -> Array:
    """Add cotangents of ranges into a zero cotangent of length `dim`."""
    if out is None:
        rows, samples = (max([p.shape[k] for p in pieces], default=1) for k in (0, 1))
        out = np.empty((rows, samples, dim), pieces[0].dtype if pieces else np.float32)
    ends = [start + p.shape[2] for start, p in zip(starts, pieces)]
    if [0, *ends] == [*starts, dim]:  # the pieces tile the vector: nothing to add up
        for start, end, piece in zip(starts, ends, pieces):
            out[:, :, start:end] = piece
        return out
    out[...] = 0
    for start, end, piece in zip(starts, ends, pieces):
        out[:, :, start:end] += piece
    return out


def stretch(i: Instr) -> tuple[int, int]:
    """Return which entries of a `Vectorize` belong to the operand of a pull."""
    ends = dict(i.attrs)["ends"]
    return ends[i.slot - 1] if i.slot else 0, ends[i.slot]


def _applied(i: Instr) -> tuple[Any, ...]:
    """Return the op of an instruction and what it was applied to, as far as the instruction reads it."""
    read = dict(zip(range(i.arity) if i.verb == "apply" else i.op.needs(i.slot, i.arity), i.args[i.verb != "apply" :]))
    return i.op, token(i.attrs) if i.attrs else "", *(read.get(k) for k in range(i.arity))

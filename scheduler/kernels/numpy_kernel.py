"""Running a program with NumPy: its text is compiled once, its buffers are made once for each number of samples."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import reduce
from types import TracebackType
from typing import Any

import numpy as np

from flowgrad.check import STEP
from flowgrad.errors import NodeFailed
from flowgrad.jacobians import LocalJacobian
from flowgrad.ops import Vectorize
from flowgrad.program import Instr, Program, Type
from flowgrad.returned import carry, jacobian_rule, like, local_of, value_rule
from flowgrad.tangents import bent_slots
from flowgrad.typing import Array

from ..machine import canonical, frames
from .numpy_text import KernelWriter, join, stretch

FILE = "<flowgrad kernel>"
_numbers = itertools.count()
# Programs with more instructions run one by one: to compile their text takes longer than to run them many times.
LARGE = 20_000


def run_instr(instr: Instr, *args: Array) -> Array:
    """Run one instruction on its arguments; the task of grain ``node``."""
    try:
        return canonical(_run(instr, [canonical(a) for a in args]))
    except Exception as error:
        raise _named(instr, error) from error


def _run(i: Instr, args: Sequence[Array]) -> Array:
    attrs = dict(i.attrs)
    if i.verb == "apply":
        return value_rule(i.op)(*args, **attrs)
    if i.verb == "add":
        return reduce(np.add, args)
    if i.verb == "scatter":
        return join(args, attrs["starts"], attrs["dim"])
    if i.verb.startswith("bend"):
        return like(_bend(i, args), args[0])
    if i.op is Vectorize:
        start, stop = stretch(i)
        part = args[0][:, :, start:stop]
        return part.sum(axis=1, keepdims=True) if i.verb == "pull_sum" else part
    local = _local_jacobian(i, i.op.needs(i.slot, i.arity), args[1:])
    return carry(local, i.verb, args[0], i.dim, args[1:])


def _local_jacobian(i: Instr, slots: Sequence[int], values: Sequence[Array]) -> LocalJacobian:
    own, *operands = _by_slot(i, slots, values)
    return jacobian_rule(i.op)(i.slot, own, *operands, **dict(i.attrs))


def _by_slot(i: Instr, slots: Sequence[int], values: Sequence[Array]) -> list[Any]:
    """Return values in the order in which rules take them, an op's own first; None where there is none."""
    known = dict(zip(slots, values))
    return [known.get(slot) for slot in range(-1, i.arity)]


def _bend(i: Instr, args: Sequence[Array]) -> Array:
    """Return the pull of a cotangent by the tangent of the local Jacobian; by central differences where an op states no rule."""
    g, slots = args[0], bent_slots(i)
    values, tangents = args[1 : 1 + len(slots)], args[1 + len(slots) :]
    # Samples that move make what stands still, or is shared, one for each sample.
    moved = [np.broadcast_to(t[0], np.broadcast_shapes(t[0].shape, v.shape)) for v, t in zip(values, tangents)]
    needs, verb = i.op.needs(i.slot, i.arity), i.verb.replace("bend", "pull")
    if i.op.jacobian_tangent is not None and (-1 not in needs or len(slots) == 1 + i.arity):
        local = i.op.jacobian_tangent(
            i.slot, tuple(_by_slot(i, slots, values)), tuple(_by_slot(i, slots, moved)), **dict(i.attrs)
        )
        if local is None:
            return np.zeros((1, 1 if verb == "pull_sum" else g.shape[1], i.dim))
        return carry(local_of(i.op, i.slot, local, "jacobian_tangent "), verb, g, i.dim, moved)
    wide = np.float64
    h = STEP * max(1.0, *(float(np.abs(v).max()) for v in values)) / max(
        1e-30, *(float(np.abs(t).max()) for t in moved))  # fmt: skip
    ends = []
    for sign in (1.0, -1.0):
        at = [v.astype(wide) + sign * h * t.astype(wide) for v, t in zip(values, moved)]
        local = _local_jacobian(i, slots, at)
        ends.append(carry(local, verb, g.astype(wide), i.dim, at))
    return (ends[0] - ends[1]) / (2 * h)


def _named(i: Instr, error: Exception) -> NodeFailed:
    return NodeFailed(f"{i.verb} of {i.op.__name__} {i.label!r} failed: {type(error).__name__}: {error}")


class Kernel:
    """A program made ready to run."""

    def __init__(self, program: Program):
        self.program = program
        self.large = len(program.instrs) > LARGE
        if self.large:
            self.dead = _last_uses(program)
            return
        self.text = KernelWriter(program).write()
        names = self.text.names | {"run_one": _run}
        exec(compile("\n".join(self.text.lines), FILE, "exec"), names)
        self.run = names["run"]
        self.batched = [(at, program.types[i.var].cotangent) for at, i in enumerate(program.inputs)]
        self.number = next(_numbers)

    def __call__(self, inputs: Sequence[Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run on the inputs, in the order of ``program.inputs``; return the outputs by name.

        Parameters
        ----------
        into : dict, optional
            Arrays for outputs that are put together of pieces (see `Text.wholes`); else they are made.
        """
        if self.large:
            return self._one_by_one(inputs)
        rows, samples = 1, 1
        for at, cotangent in self.batched:
            shape = inputs[at].shape
            samples = max(samples, shape[cotangent])
            rows = shape[0] if cotangent else rows
        dtype = inputs[0].dtype if inputs else np.dtype(float)
        key = (self.number, rows, samples, dtype)
        frame = frames.take(key) or [_make(t, rows, samples, dtype) for t in self.text.frame]
        targets = into or {}
        wholes = [targets[name] if name in targets else _make(t, rows, samples, dtype) for name, t in self.text.wholes]
        try:
            outputs = self.run(frame, wholes, *inputs)
        except Exception as error:
            raise self._failed(error) from error
        frames.give(key, frame)  # for the next call with as many samples
        return dict(zip(self.program.outputs, outputs))

    def _one_by_one(self, inputs: Sequence[Array]) -> dict[str, Array]:
        env: dict[int, Array] = {i.var: value for i, value in zip(self.program.inputs, inputs)}
        for i, dead in zip(self.program.instrs, self.dead):
            try:
                env[i.out] = _run(i, [env[a] for a in i.args])
            except Exception as error:
                raise _named(i, error) from error
            for var in dead:
                del env[var]
        return {name: env[var] for name, var in self.program.outputs.items()}

    def _failed(self, error: Exception) -> Exception:
        """Return the error with the instruction's name."""
        trace: TracebackType | None = error.__traceback__
        line = 0
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == FILE:
                line = trace.tb_lineno
            trace = trace.tb_next
        i = self.text.instrs.get(line)
        if i is None:
            return error
        return _named(i, error)


def _last_uses(program: Program) -> list[list[int]]:
    """Return, by instruction, the variables that nothing reads after it."""
    last = {var: k for k, i in enumerate(program.instrs) for var in (*i.args, i.out)}
    kept = {*(i.var for i in program.inputs), *program.outputs.values()}
    dead: list[list[int]] = [[] for _ in program.instrs]
    for var, k in last.items():
        if var not in kept:
            dead[k].append(var)
    return dead


def _make(type_: Type, rows: int, samples: int, dtype: Any) -> Array:
    shape = (samples if type_.batched else 1, type_.dim)
    return np.empty((rows, *shape) if type_.cotangent else shape, dtype)

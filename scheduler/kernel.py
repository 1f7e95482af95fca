"""Running a program with NumPy: the steps are prepared once, then run without looking anything up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from flowgrad.errors import NodeFailed, ShapeError
from flowgrad.jacobian import Array
from flowgrad.node import Op
from flowgrad.program import Instr, Program

Step = Callable[[list[Any]], Any]


def canonical(x: Array) -> Array:
    """Return `x` aligned and C-contiguous: other memory layouts give other bits in sums and matrix products."""
    return x if x.flags.aligned and x.flags.c_contiguous else np.array(x, order="C")


def run_instr(instr: Instr, *args: Array) -> Array:
    """Run one instruction on its arguments; the task of grain ``node``."""
    return canonical(_step(instr._replace(args=tuple(range(len(args)))))([canonical(a) for a in args]))


@lru_cache(maxsize=256)
def kernel_of(program: Program) -> Kernel:
    """Return the kernel of a program; made once per process."""
    return Kernel(program)


class Kernel:
    """A program made ready to run.

    Parameters
    ----------
    program : Program
    """

    def __init__(self, program: Program):
        self.program = program
        self.slots = [i.var for i in program.inputs]
        self.outputs = program.outputs
        last: dict[int, int] = {}
        for k, i in enumerate(program.instrs):
            for var in (*i.args, i.out):
                last[var] = k
        kept = {*self.slots, *program.outputs.values()}
        dead: list[list[int]] = [[] for _ in program.instrs]
        for var, k in last.items():
            if var not in kept:
                dead[k].append(var)
        self.steps = [(i.out, _step(i), d) for i, d in zip(program.instrs, dead)]

    def __call__(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Run on the inputs, in the order of ``program.inputs``; return the outputs by name."""
        env: list[Any] = [None] * len(self.program.types)
        for var, value in zip(self.slots, inputs):
            env[var] = value
        for out, step, dead in self.steps:
            env[out] = step(env)
            for var in dead:
                env[var] = None
        return {name: env[var] for name, var in self.outputs.items()}


def _step(i: Instr) -> Step:
    attrs = dict(i.attrs)
    args = i.args
    if i.verb == "apply":
        run = _apply(i, attrs)
    elif i.verb == "add":

        def run(env: list[Any]) -> Any:
            total = env[args[0]] + env[args[1]]
            for a in args[2:]:
                total = total + env[a]
            return total

    elif i.verb == "scatter":
        run = _scatter(args, attrs["starts"], attrs["dim"])
    else:
        run = _pull(i, attrs)

    def guarded(env: list[Any]) -> Any:
        try:
            return run(env)
        except Exception as error:
            raise NodeFailed(
                f"{i.verb} of {i.op.__name__} {i.label!r} failed: {type(error).__name__}: {error}"
            ) from error

    return guarded


def _apply(i: Instr, attrs: dict[str, Any]) -> Step:
    apply, args = i.op.apply, i.args
    if not i.op.__module__.startswith("flowgrad.ops."):
        apply = _checked(i.op)
    if len(args) == 1:
        a = args[0]
        return lambda env: apply(env[a], **attrs)
    if len(args) == 2:
        a, b = args
        return lambda env: apply(env[a], env[b], **attrs)
    return lambda env: apply(*[env[a] for a in args], **attrs)


def _checked(op: type[Op]) -> Callable[..., Array]:
    """Return the value rule of a user's op, with a look at the shape of what it gives."""

    def apply(*values: Array, **attrs: Any) -> Array:
        result = op.apply(*values, **attrs)
        wanted = (max(map(len, values)), op.shape(*(v.shape[1] for v in values), **attrs))
        if np.shape(result) != wanted:
            raise ShapeError(f"gave shape {np.shape(result)}, it must be {wanted}")
        return result

    return apply


def _pull(i: Instr, attrs: dict[str, Any]) -> Step:
    jacobian, slot, arity, g = i.op.jacobian, i.slot, i.arity, i.args[0]
    needs = i.op.needs(slot, arity)
    where = list(zip(needs, i.args[1:]))
    summed = i.verb == "pull_sum"

    def run(env: list[Any]) -> Any:
        values: list[Any] = [None] * (arity + 1)
        for need, var in where:
            values[need] = env[var]
        local = jacobian(slot, values[-1], *values[:-1], **attrs)
        return local.pull_sum(env[g]) if summed else local.pull(env[g])

    return run


def _scatter(args: tuple[int, ...], starts: tuple[int, ...], dim: int) -> Step:
    def run(env: list[Any]) -> Any:
        pieces = [env[a] for a in args]
        rows, samples = len(pieces[0]), max(p.shape[1] for p in pieces)
        ends = [start + p.shape[2] for start, p in zip(starts, pieces)]
        if [0, *ends] == [*starts, dim]:  # the pieces tile the vector: nothing to add up
            out = np.empty((rows, samples, dim), pieces[0].dtype)
            for start, end, piece in zip(starts, ends, pieces):
                out[:, :, start:end] = piece
            return out
        out = np.zeros((rows, samples, dim), pieces[0].dtype)
        for start, end, piece in zip(starts, ends, pieces):
            out[:, :, start:end] += piece
        return out

    return run

"""Forward mode: tangents through a program that may hold its own backward part.

Through a forward part, tangents are what Jacobians push (jvp, Jacobians of few inputs). Through a backward part, they give second
derivatives: the tangent of ``pull(g)`` is the pull of g's tangent plus the pull by the tangent of the local Jacobian, so the
tangent of a gradient along `d` is the Hessian times `d` (B. Pearlmutter, *Fast exact multiplication by the Hessian*, 1994).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowgrad.check import STEP
from flowgrad.jacobians import Dense, LocalJacobian, Outer
from flowgrad.program import Instr, Program
from flowgrad.typing import Array

from ..kernels import run_instr
from ..machine import canonical
from ..programs import seed_of
from ..tasks import Ref, token
from .lower import Request
from .recipe import Recipe
from .work import Span, local_jacobian, naming

Tangents = dict[int, Array]


def push_through(instrs: Sequence[Instr], env: Sequence[Any], dims: Sequence[int], tangents: Tangents) -> Tangents:
    """Return the tangents ``(V, N, dim)`` of everything that depends on what `tangents` holds.

    Parameters
    ----------
    env : sequence
        Values by variable, of all that the instructions' rules read.
    dims : sequence of int
        Length of each variable.
    tangents : dict
        By variable; variables that are not in it stand still.
    """
    tangents = dict(tangents)
    makers: dict[int, Instr] = {}  # a slope that names its value alone still moves with the operands
    for i in instrs:
        if i.verb == "apply":
            makers[i.out] = i
        with naming("tangent", i):
            tangent = _tangent(i, env, dims, tangents, makers)
        if tangent is not None:
            tangents[i.out] = tangent
    return tangents


def _tangent(
    i: Instr, env: Sequence[Any], dims: Sequence[int], tangents: Tangents, makers: Mapping[int, Instr]
) -> Array | None:
    if i.verb == "add":
        return _sum([tangents.get(a) for a in i.args])
    if i.verb == "scatter":
        return _scatter(i, tangents)
    if i.verb == "apply":
        parts = []
        for slot, a in enumerate(i.args):
            if a in tangents:
                needs = [i.out if n < 0 else i.args[n] for n in i.op.needs(slot, i.arity)]
                local = local_jacobian(i._replace(slot=slot), [env[v] for v in needs])
                parts.append(local.push(tangents[a], dims[i.out]).astype(tangents[a].dtype, copy=False))
        return _sum(parts)
    g, values = i.args[0], [env[a] for a in i.args[1:]]
    summed = i.verb == "pull_sum"
    shares: list[Array | None] = []
    if g in tangents:
        shares.append(_pull(local_jacobian(i, values), tangents[g], summed))
    if any(a in tangents for a in i.args[1:]):
        read = dict(zip(i.op.needs(i.slot, i.arity), i.args[1:]))
        maker = makers.get(read.get(-1, -1))
        if maker is not None and maker.op is i.op:
            read = {**dict(enumerate(maker.args)), **read}
        shares.append(_bend(i, {slot: (env[a], tangents.get(a)) for slot, a in read.items()}, env[g], summed))
    return _sum(shares)


def _pull(local: LocalJacobian, g: Array, summed: bool) -> Array:
    cotangent = local.pull_sum(g) if summed else local.pull(g)
    return cotangent.astype(g.dtype, copy=False)


def _bend(i: Instr, moving: Mapping[int, tuple[Array, Array | None]], g: Array, summed: bool) -> Array | None:
    """Return the pull of `g` by the tangent of the local Jacobian; values, by slot, move along one direction each."""
    values: list[Any] = [None] * (i.arity + 1)
    tangents: list[Any] = [None] * (i.arity + 1)
    for slot, (value, t) in moving.items():
        values[slot] = value
        # A variable that stands still has tangent zero; samples that move make the others batched too.
        tangents[slot] = (
            np.zeros_like(value) if t is None else np.broadcast_to(t[0], np.broadcast_shapes(t[0].shape, value.shape))
        )
    rule, needs = i.op.jacobian_tangent, i.op.needs(i.slot, i.arity)
    if rule is not None and (-1 not in needs or all(v is not None for v in values)):
        local = rule(i.slot, (values[-1], *values[:-1]), (tangents[-1], *tangents[:-1]), **dict(i.attrs))
        return None if local is None else _pull(local, g, summed)
    wide = np.float64
    h = STEP * max(1.0, *(float(np.abs(values[n]).max()) for n in needs)) / max(
        1e-30, *(float(np.abs(tangents[n]).max()) for n in needs))  # fmt: skip
    ends = []
    for sign in (1.0, -1.0):
        at = [values[n].astype(wide) + sign * h * tangents[n].astype(wide) for n in needs]
        ends.append(_pull(local_jacobian(i, at), g.astype(wide), summed))
    return ((ends[0] - ends[1]) / (2 * h)).astype(g.dtype)


def _scatter(i: Instr, tangents: Tangents) -> Array | None:
    attrs = dict(i.attrs)
    parts = [(start, tangents[a]) for start, a in zip(attrs["starts"], i.args) if a in tangents]
    if not parts:
        return None
    first = parts[0][1]
    out = np.zeros((len(first), max(t.shape[1] for _, t in parts), attrs["dim"]), first.dtype)
    for start, t in parts:
        out[:, :, start : start + t.shape[2]] += t
    return out


def _sum(parts: Sequence[Array | None]) -> Array | None:
    there = [part for part in parts if part is not None]
    return sum(there[1:], there[0]) if there else None


# -- what tasks run ---------------------------------------------------------------------------------------------------


def jvp_block(program: Program, samples: int, directions: dict[int, Array], *inputs: Array) -> Array:
    """Return the tangent of output ``"0"`` for some samples, ``(samples, dim)``."""
    moved = _moved(program, "0", directions, inputs)
    return np.array(np.broadcast_to(moved[0], (samples, moved.shape[2])))


def hvp_block(
    program: Program, name: str, batch: int, samples: int, directions: dict[int, Array], *inputs: Array
) -> Array:
    """Return some samples' share of the Hessian of the mean loss times a direction, laid end to end."""
    seed = seed_of(program, inputs[0].dtype, samples, batch)
    return _moved(program, name, directions, (*inputs, seed)).sum(axis=1)[0]


def _moved(program: Program, name: str, directions: dict[int, Array], inputs: Sequence[Array]) -> Array:
    """Return the tangent ``(1, N, dim)`` of an output."""
    env: list[Any] = [None] * len(program.types)
    for entry, value in zip(program.inputs, inputs):
        env[entry.var] = canonical(value)
    for i in program.instrs:
        env[i.out] = run_instr(i, *(env[a] for a in i.args))
    dims, target = [t.dim for t in program.types], program.outputs[name]
    moved = push_through(program.instrs, env, dims, {var: t[None] for var, t in directions.items()})
    return moved[target] if target in moved else np.zeros((1, 1, dims[target]), inputs[0].dtype)


@dataclass(frozen=True, eq=False)
class Pushes:
    """The forward part of a recipe, numbered as the program is.

    Attributes
    ----------
    instrs : tuple of Instr
        What lies between the inputs and the result.
    dims : tuple of int
        Length of each variable.
    reads : tuple of int
        The variables whose values the task gets.
    variables : tuple of int
        Those that are differentiated by.
    """

    instrs: tuple[Instr, ...]
    dims: tuple[int, ...]
    reads: tuple[int, ...]
    variables: tuple[int, ...]
    target: int
    token: str


def pushes_of(recipe: Recipe) -> Pushes:
    """Return what forward mode runs; made once per recipe."""
    if recipe.pushes is None:
        active = set(recipe.variables)
        instrs, reads = [], {}
        for i in recipe.program.instrs:
            if i.verb != "apply":
                break
            slots = [slot for slot, a in enumerate(i.args) if a in active]
            if slots:
                active.add(i.out)
                instrs.append(i)
                for slot in slots:
                    reads.update(dict.fromkeys(i.out if n < 0 else i.args[n] for n in i.op.needs(slot, i.arity)))
        identity = token([(i.op, i.attrs, i.args, i.out) for i in instrs], list(reads), recipe.variables, recipe.target)
        dims = tuple(t.dim for t in recipe.program.types)
        recipe.pushes = Pushes(tuple(instrs), dims, tuple(reads), tuple(recipe.variables), recipe.target, identity)
    return recipe.pushes


def cheaper_mode(recipe: Recipe) -> str:
    """Return ``"forward"`` or ``"reverse"``, whichever takes fewer operations.

    A push and a pull cost the same; reverse mode has a row per entry of the result, forward mode a column per entry of the nodes
    differentiated by.
    """
    if recipe.mode is None:
        pushes = pushes_of(recipe)
        reverse = recipe.result.dim * _work(pushes.instrs, set(pushes.variables), pushes.dims)
        forward = sum(
            (hi - lo) * _work(pushes.instrs, set(pushes.variables[k : k + 1]), pushes.dims)
            for k, lo, hi in recipe.spans
        )
        recipe.mode = "forward" if forward < reverse else "reverse"
    return recipe.mode


def _work(instrs: Sequence[Instr], active: set[int], dims: Sequence[int]) -> float:
    """Return operations per row or column on the way from the variables in `active`."""
    total = 0.0
    for i in instrs:
        for slot, a in enumerate(i.args):
            if a in active:
                active.add(i.out)
                kind = i.op.kind(slot)
                total += dims[a] * (dims[i.out] if kind is Dense else 1) if kind in (Dense, Outer) else dims[i.out]
    return total


def lower_push(request: Request, start: int, stop: int) -> Ref:
    """Add the task that pushes all columns for samples ``start:stop``."""
    pushes, dtype = pushes_of(request.recipe), request.feeds.dtype
    refs = request.refs(start, stop, pushes.reads)
    return request.task("push", push_block, pushes, request.recipe.spans, stop - start, dtype.str, *refs)


def push_block(pushes: Pushes, spans: Sequence[Span], samples: int, dtype: str, *args: Array) -> list[Array]:
    """Return the Jacobians ``(samples, result.dim, dim)`` by several nodes; see `jacobian_block`."""
    env: list[Any] = [None] * len(pushes.dims)
    for var, value in zip(pushes.reads, args):
        env[var] = canonical(value)
    blocks = []
    for wrt, lo, hi in spans:
        out = np.zeros((samples, pushes.dims[pushes.target], hi - lo), dtype)
        for var in pushes.variables[wrt : wrt + 1]:  # none that the result does not depend on
            seed = np.eye(pushes.dims[var], dtype=dtype)[lo:hi, None, :]
            moved = push_through(pushes.instrs, env, pushes.dims, {var: seed}).get(pushes.target)
            if moved is not None:
                out[...] = moved.transpose(1, 2, 0)
        blocks.append(out)
    return blocks

"""Jacobians in forward mode: identity columns are pushed from the inputs to the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowgrad.jacobians import Dense, Outer
from flowgrad.program import Instr
from flowgrad.typing import Array

from ..kernels.numpy_kernel import canonical
from ..tasks.records import Ref, token
from .forward import push_through
from .lower import Request
from .recipe import Recipe


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
    target : int
    token : str
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
        told = token([(i.op, i.attrs, i.args, i.out) for i in instrs], list(reads), recipe.variables, recipe.target)
        dims = tuple(t.dim for t in recipe.program.types)
        recipe.pushes = Pushes(tuple(instrs), dims, tuple(reads), tuple(recipe.variables), recipe.target, told)
    return recipe.pushes


def cheaper_mode(recipe: Recipe) -> str:
    """Return ``"forward"`` or ``"reverse"``, whichever takes fewer operations.

    A push and a pull cost the same; reverse mode has a row per entry of the result, forward mode a column per entry of the nodes
    differentiated by.
    """
    if recipe.mode is None:
        pushes = pushes_of(recipe)
        reverse = recipe.result.dim * _work(pushes.instrs, set(pushes.variables), pushes.dims)
        forward = 0.0
        for node in recipe.wrt:
            place = recipe.places.get(node)
            if place is not None:
                forward += node.dim * _work(pushes.instrs, {recipe.variables[place.wrt]}, pushes.dims)
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
    recipe = request.recipe
    pushes = pushes_of(recipe)
    refs = request.refs(start, stop, pushes.reads)
    places = recipe.place
    dtype = request.known.feeds.dtype
    return request.task(
        "push", push_block, pushes, places, stop - start, dtype.str, *[refs[var] for var in pushes.reads]
    )


def push_block(
    pushes: Pushes, places: Sequence[tuple[int, int, int] | int], samples: int, dtype: str, *args: Array
) -> list[Array]:
    """Return the Jacobians ``(samples, result.dim, dim)`` by several nodes; see `jacobian_block`."""
    env: list[Any] = [None] * len(pushes.dims)
    for var, value in zip(pushes.reads, args):
        env[var] = canonical(value)
    found = []
    for place in places:
        rows, columns = pushes.dims[pushes.target], place if isinstance(place, int) else place[2] - place[1]
        out = np.zeros((samples, rows, columns), dtype)
        if not isinstance(place, int):
            wrt, lo, hi = place
            var = pushes.variables[wrt]
            seed = np.eye(pushes.dims[var], dtype=dtype)[lo:hi, None, :]
            moved = push_through(pushes.instrs, env, pushes.dims, {var: seed}).get(pushes.target)
            if moved is not None:
                out[...] = moved.transpose(1, 2, 0)
        found.append(out)
    return found

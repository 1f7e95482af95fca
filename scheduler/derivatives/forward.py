"""Forward mode: Jacobians of few inputs, and products of Jacobians and Hessians with vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowgrad.jacobians import Dense, Outer
from flowgrad.program import Builder, Instr, Program, verify
from flowgrad.tangents import linearize
from flowgrad.typing import Array

from ..kernels import kernel_named
from ..machine import canonical
from ..programs import prune, run_program, seed_of
from ..tasks import Ref, token
from .lower import Request
from .recipe import Recipe
from .work import Span


@dataclass(frozen=True, eq=False)
class Pushes:
    """The forward part of a recipe as programs of tangents; values are given, or computed once more where they are compiled.

    Attributes
    ----------
    programs : tuple of Program
        By variable that is differentiated by; their inputs are values, then the tangent. None: the result does not depend on it.
    places : tuple of tuple of int
        Which of the task's values each of them reads.
    reads : tuple of int
        The variables whose values the task gets.
    dim : int
        Length of the result.
    """

    programs: tuple[Program | None, ...]
    places: tuple[tuple[int, ...], ...]
    reads: tuple[int, ...]
    dim: int
    token: str


def pushes_of(recipe: Recipe) -> Pushes:
    """Return what forward mode runs; made once per recipe."""
    if recipe.pushes is None:
        made = [_pushing(recipe, var) for var in recipe.variables]
        reads = tuple(dict.fromkeys(var for _, read in made for var in read))
        places = tuple(tuple(map(reads.index, read)) for _, read in made)
        programs = tuple(recipe.choose(program) if program else None for program, _ in made)
        recipe.pushes = Pushes(programs, places, reads, recipe.result.dim, token(*programs, places))
    return recipe.pushes


def _pushing(recipe: Recipe, var: int) -> tuple[Program | None, list[int]]:
    """Return the program that pushes the tangent of one variable, and the variables whose values it is given."""
    program = linearize(recipe.forward, {var: False}, ["0"])
    if not program.outputs:
        return None, []
    program = prune(program)
    types, tangent = program.types, program.inputs[-1].var
    # What is left when the rest is given: of a compiled program only what is cut out of the flat vectors.
    given = {i.out for i in recipe.cuts}
    run = [i for i in program.instrs if types[i.out].cotangent or (recipe.program.compiled and i.out not in given)]
    args = [[a if a >= tangent else recipe.through(a) for a in i.args] for i in run]
    made = {i.out for i in run}
    reads = list(dict.fromkeys(a for each in args for a in each if a not in made and a != tangent))
    builder = Builder()
    at = {a: builder.input(types[a], "feed", a) for a in reads}
    at[tangent] = builder.input(types[tangent], "tangent")
    for i, each in zip(run, args):
        at[i.out] = builder.copy(i, types[i.out], [at[a] for a in each])
    return verify(prune(builder.build({"0": at[program.outputs["0"]]}))), reads


def cheaper_mode(recipe: Recipe) -> str:
    """Return ``"forward"`` or ``"reverse"``, whichever takes fewer operations.

    A push and a pull cost the same; reverse mode has a row per entry of the result, forward mode a column per entry of the nodes
    differentiated by.
    """
    if recipe.mode is None:
        program = recipe.forward
        dims = [t.dim for t in program.types]
        reverse = recipe.result.dim * _work(program.instrs, set(recipe.variables), dims)
        forward = sum(
            (hi - lo) * _work(program.instrs, set(recipe.variables[k : k + 1]), dims) for k, lo, hi in recipe.spans
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


# -- what tasks run ---------------------------------------------------------------------------------------------------


def push_block(pushes: Pushes, spans: Sequence[Span], samples: int, dtype: str, *args: Array) -> list[Array]:
    """Return the Jacobians ``(samples, result.dim, dim)`` by several nodes; see `jacobian_block`."""
    values = [canonical(value) for value in args]
    blocks = []
    for wrt, lo, hi in spans:
        out = np.zeros((samples, pushes.dim, hi - lo), dtype)
        for program, places in zip(pushes.programs[wrt : wrt + 1], pushes.places[wrt : wrt + 1]):
            if program is not None:
                size = program.types[program.inputs[-1].var].dim
                seed = np.eye(size, dtype=dtype)[lo:hi, None, :]
                run = kernel_named(f"{pushes.token} {wrt}", program)
                out[...] = run([*(values[k] for k in places), seed])["0"].transpose(1, 2, 0)
        blocks.append(out)
    return blocks


def jvp_block(program: Program, samples: int, inputs: int, *given: Array) -> Array:
    """Return the tangent of output ``"0"`` for some samples, ``(samples, dim)``; tangents come after so many inputs."""
    moved = run_program(program, ("0",), *given)[0]
    return np.array(np.broadcast_to(moved, (samples, moved.shape[1])))


def hvp_block(program: Program, name: str, batch: int, samples: int, inputs: int, *given: Array) -> Array:
    """Return some samples' share of the Hessian of the mean loss times a direction, laid end to end.

    The seed comes after so many inputs, tangents after it.
    """
    seed = seed_of(program, given[0].dtype, samples, batch)
    moved = run_program(program, (name,), *given[:inputs], seed, *given[inputs:])
    return np.asarray(moved.sum(axis=1)[0])

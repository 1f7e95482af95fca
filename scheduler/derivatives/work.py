"""What the tasks of derivatives run: units of a program, then the last edges. Functions of a module, on plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import iadd
from typing import Any

import numpy as np

from flowgrad.autodiff import Edge
from flowgrad.errors import NodeFailed
from flowgrad.jacobians import Factors, LocalJacobian, OuterShare
from flowgrad.program import Instr, Program
from flowgrad.returned import carry, is_own, jacobian_rule, split
from flowgrad.typing import Array

from ..kernels import kernel_named, kernel_of, run_instr
from ..machine import canonical, each_side_by_side, empty_array, spread

# By variable.
FactorList = list[Factors]
# Where the derivative by a node lies: number of a variable, and the range in it.
Span = tuple[int, int, int]
# Entries of a result from which on it is worth several threads.
THREADED = 1 << 20


def run_unit(
    instrs: tuple[Instr, ...], reads: Sequence[tuple[int, int | None]], results: Sequence[int] | None, *args: Any
) -> Any:
    """Run instructions on what they read; return the result of the only one, or a list of those that are wanted.

    Parameters
    ----------
    reads : sequence
        Per variable that is read, which of `args` it is, or which of the results that are in it.
    """
    env = _given(reads, args)
    for i in instrs:
        env.append(run_instr(i, *(env[a] for a in i.args)))
    return env[-1] if results is None else [env[k] for k in results]


def run_block(block: tuple[str, Program], reads: Sequence[tuple[int, int | None]], many: bool, *args: Any) -> Any:
    """Run compiled instructions, a name and a program, as `run_unit` does."""
    outputs = list(kernel_named(*block)(_given(reads, args)).values())
    return outputs if many else outputs[0]


def run_spread(threads: int, samples: int, instr: Instr, reads: Sequence[tuple[int, int | None]], *args: Any) -> Array:
    """Run a single instruction as `run_unit` does, its samples dealt out to threads."""
    if samples < 2 * threads:
        return run_unit((instr,), reads, None, *args)
    env = _given(reads, args)

    def run(start: int, stop: int) -> Array:
        cut = [v if v.shape[-2] == 1 else v[..., start:stop, :] for v in env]
        return run_instr(instr, *(cut[a] for a in instr.args))

    parts = spread(run, samples, threads)
    # One row for several samples: nothing has told them apart yet.
    return parts[0] if parts[0].shape[-2] == 1 else np.concatenate(parts, axis=-2)


def _given(reads: Sequence[tuple[int, int | None]], args: Sequence[Any]) -> list[Array]:
    return [canonical(args[k] if position is None else args[k][position]) for k, position in reads]


@contextmanager
def naming(what: str, i: Instr) -> Iterator[None]:
    """Raise errors as `NodeFailed`, which names the node."""
    try:
        yield
    except NodeFailed:
        raise
    except Exception as error:
        raise NodeFailed(f"{what} of {i.op.__name__} {i.label!r} failed: {type(error).__name__}: {error}") from error


def local_jacobian(i: Instr, values: Sequence[Array]) -> LocalJacobian:
    """Return the local Jacobian of a ``pull`` from the forward values that follow its cotangent."""
    operands: list[Any] = [None] * (i.arity + 1)
    for need, value in zip(i.op.needs(i.slot, i.arity), values):
        operands[need] = value
    with naming("jacobian", i):
        return jacobian_rule(i.op)(i.slot, operands[-1], *operands[:-1], **dict(i.attrs))


@dataclass(frozen=True, eq=False)
class LastEdges:
    """The last edges of a recipe, numbered by what a task reads.

    Attributes
    ----------
    edges : tuple of Edge
        Their pulls read positions among the task's arguments.
    sizes : tuple of int
        Length of each variable that edges lead to.
    rows : int
        Rows of the seed.
    token : str
        Stands for all of it.
    """

    edges: tuple[Edge, ...]
    sizes: tuple[int, ...]
    rows: int
    dtype: Any
    token: str

    def factors(self, wrt: int, samples: int, args: Sequence[Array]) -> Factors:
        """Return the derivative by variable number `wrt` as factors."""
        shares = []
        for e in self.edges:
            if e.wrt != wrt:
                continue
            entries = None if e.entries is None else np.array(e.entries)
            for delta, row in _guarded(e, args, lambda local, g: local.split(g), split):
                row = row if row is None else row.astype(self.dtype, copy=False)
                shares.append(OuterShare(delta.astype(self.dtype, copy=False), row, e.start, entries))
        return Factors(shares, self.rows, samples, self.sizes[wrt], self.dtype)

    def write(self, wrt: int, lo: int, hi: int, out: Array, args: Sequence[Array]) -> None:
        """Write the derivative by entries ``lo:hi`` of a variable into `out` ``(V, N, hi - lo)``."""
        mine = [e for e in self.edges if e.wrt == wrt]
        if len(mine) == 1 and mine[0].entries is None and mine[0].dim == self.sizes[wrt] == hi - lo:
            # The only edge: the last product goes straight into the result.
            _guarded(mine[0], args, lambda local, g: _pull_into(local, g, out), partial(_carry_into, out))
        else:
            self.factors(wrt, out.shape[1], args).write(lo, hi, out)


def _pull_into(local: LocalJacobian, g: Array, out: Array) -> None:
    if g.shape[1] == out.shape[1]:
        local.pull(g, out)
    else:  # one cotangent for all samples
        out[...] = local.pull(g)


def _carry_into(out: Array, local: LocalJacobian, g: Array, dim: int, values: Sequence[Array]) -> None:
    out[...] = carry(local, "pull", g, dim, values)


def _guarded(e: Edge, args: Sequence[Array], use: Callable[[Any, Array], Any], of_users: Callable[..., Any]) -> Any:
    """Use the local Jacobian of an edge and its cotangent; `of_users` looks at what that of a user's op gives."""
    g, *values = (args[a] for a in e.reads)
    local = local_jacobian(e.pull, values)
    with naming("pull", e.pull):
        return use(local, g) if is_own(e.pull.op) else of_users(local, g, e.dim, values)


def jacobian_block(ends: LastEdges, spans: Sequence[Span], samples: int, *args: Array) -> list[Array]:
    """Return the Jacobians ``(samples, V, dim)`` by several variables.

    Parameters
    ----------
    spans : sequence of Span
    """
    args = tuple(canonical(a) for a in args)
    blocks = []
    for wrt, lo, hi in spans:
        out = empty_array((samples, ends.rows, hi - lo), ends.dtype)
        ends.write(wrt, lo, hi, np.swapaxes(out, 0, 1), args)
        blocks.append(out)
    return blocks


def factors_block(ends: LastEdges, samples: int, *args: Array) -> list[Factors]:
    """Return the derivative by each variable as factors."""
    args = tuple(canonical(a) for a in args)
    return [ends.factors(k, samples, args) for k in range(len(ends.sizes))]


def jacobian_chunk(
    plan: tuple[Program, LastEdges], span: Span, rows: tuple[int, int], samples: int, *leaves: Array
) -> Array:
    """Return rows of the Jacobians of some samples, from what is given on; the last edges read the outputs of `plan`."""
    program, ends = plan
    first, last = rows
    seed = np.eye(ends.rows, dtype=ends.dtype)[first:last, None, :]
    return jacobian_block(replace(ends, rows=last - first), [span], samples, *run_all(program, *leaves, seed))[0]


def run_all(program: Program, *inputs: Array) -> list[Array]:
    """Return the outputs of a program, in their order."""
    env = list(map(canonical, inputs))
    if program.compiled:
        return list(kernel_of(program)(env).values())
    for i in program.instrs:  # one by one: a seed may have one row for all samples, which buffers have not
        env.append(run_instr(i, *(env[a] for a in i.args)))
    return [env[var] for var in program.outputs.values()]


def join(parts: list[list[Array]], k: int) -> Array:
    """Return result number `k` of all blocks, one after the other."""
    return parts[0][k] if len(parts) == 1 else np.concatenate([p[k] for p in parts])


def array_of(part: FactorList, spans: Sequence[Span], threads: int = 1) -> Array:
    """Return the gradients by several nodes, laid end to end, ``(N, sum of dims)``."""
    size = sum(hi - lo for _, lo, hi in spans)
    samples = part[0].samples
    out = empty_array((samples, size), part[0].dtype)
    if threads == 1 or out.size < THREADED:
        _write(part, spans, out)
    else:
        spread(lambda lo, hi: _write([f.of(lo, hi) for f in part], spans, out[lo:hi]), samples, threads)
    return out


def _write(part: FactorList, spans: Sequence[Span], out: Array) -> None:
    start = 0
    for wrt, lo, hi in spans:
        part[wrt].write(lo, hi, out[None, :, start : start + hi - lo])
        start += hi - lo


def norms_of(part: FactorList) -> Array:
    """Return the norms ``(N,)``."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = reduce(iadd, (factors.squared_norms() for factors in part))
        # Rounding may leave a sum of cross terms a little below zero.
        norms: Array = np.sqrt(np.maximum(total, 0, out=total), out=total)
        far = np.flatnonzero(~np.isfinite(norms))
        if len(far):  # squares that are too large for a number, of entries that may not be
            norms[far] = _scaled_norms([f.of(far[0], far[-1] + 1) for f in part])[far - far[0]]
    return norms


def _scaled_norms(part: FactorList) -> Array:
    """Return the norms by entries over the largest of each sample; inf or nan where an entry is."""
    largest, total = np.zeros((2, part[0].samples), part[0].dtype)
    for factors in part:
        for _, block in factors.stretches(0, factors.size):
            np.maximum(largest, np.abs(block).max(axis=(0, 2)), out=largest)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1)[:, None]
    for factors in part:
        for _, block in factors.stretches(0, factors.size):
            block /= scale
            total += np.einsum("vnc,vnc->n", block, block)
    norms: Array = np.sqrt(total) * scale[:, 0]
    return norms


def dot_of(part: FactorList, other: FactorList | None, each: Callable[..., Iterable[Any]] = map) -> Array:
    """Return the scalar products ``(N, M)``; `each` is like ``map``."""
    shape = (part[0].samples, (other or part)[0].samples)
    total = part[0].dot(None if other is None else other[0], each, empty_array(shape, part[0].dtype))
    for k, more in enumerate(part[1:], 1):
        total += more.dot(None if other is None else other[k], each)
    return total


def dot_here(part: FactorList, other: FactorList | None, threads: int) -> Array:
    """Return the scalar products ``(N, M)``, many of them tile by tile in several threads."""
    alone = threads == 1 or part[0].samples * (other or part)[0].samples < THREADED
    return dot_of(part, other, map if alone else each_side_by_side)


def project_of(part: FactorList, ranges: Sequence[Sequence[tuple[int, int, int]]], k: int, seed: int) -> Array:
    """Return the projections ``(N, k)``."""
    return reduce(iadd, (factors.project(its, k, seed) for factors, its in zip(part, ranges)))


def sum_of(part: FactorList, max_norm: float | None, scale: float) -> Array:
    """Return the sum over the samples, clipped if asked for, times `scale`, all variables laid end to end."""
    if max_norm is None:
        weights = np.full(part[0].samples, scale, part[0].dtype)
    else:
        weights = clip_weights(norms_of(part), max_norm) * scale
    return np.concatenate([factors.sum(weights)[0] for factors in part])


def squares_of(part: FactorList, scale: float) -> Array:
    """Return the sum of the squared entries over rows and samples times `scale`, all variables laid end to end."""
    return np.concatenate([factors.square_sum() for factors in part]) * part[0].dtype.type(scale)


def clip_weights(norms: Array, max_norm: float) -> Array:
    """Return ``min(1, max_norm / norm)``."""
    return max_norm / np.maximum(norms, max_norm)

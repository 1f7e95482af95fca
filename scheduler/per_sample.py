"""Per-sample gradients, kept as factors: block by block of samples, here or on workers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from flowgrad.errors import GraphError
from flowgrad.factors import Factors
from flowgrad.jacobian import Array
from flowgrad.node import Node

from . import buffers
from .executors import Executor
from .spread import each_side_by_side, spread

Part = list[Factors]
# Entries of a result from which on it is worth several threads.
THREADED = 1 << 20

Places = Sequence[tuple[int, int, int] | int]


# -- what tasks run, on the factors of one block of samples -----------------------------------------------------------


def array_of(part: Part, places: Places, threads: int = 1) -> Array:
    """Return the gradients by several nodes, laid end to end, ``(N, sum of dims)``."""
    size = sum(p if isinstance(p, int) else p[2] - p[1] for p in places)
    samples = part[0].samples
    out = buffers.empty((samples, size), part[0].dtype)
    if threads == 1 or out.size < THREADED:
        _write(part, places, out)
    else:
        spread(lambda lo, hi: _write([f.of(lo, hi) for f in part], places, out[lo:hi]), samples, threads)
    return out


def _write(part: Part, places: Places, out: Array) -> None:
    start = 0
    for place in places:
        if isinstance(place, int):
            out[:, start : start + place] = 0
            start += place
        else:
            wrt, lo, hi = place
            part[wrt].write(lo, hi, out[None, :, start : start + hi - lo])
            start += hi - lo


def norms_of(part: Part) -> Array:
    """Return the norms ``(N,)``."""
    total = part[0].squared_norms()
    for more in part[1:]:
        total += more.squared_norms()
    # Rounding may leave a sum of cross terms a little below zero.
    return np.sqrt(np.maximum(total, 0, out=total), out=total)


def dot_of(part: Part, other: Part | None, each: Callable[..., Iterable[Any]] = map) -> Array:
    """Return the scalar products ``(N, M)``; `each` is like ``map``."""
    shape = (part[0].samples, (other or part)[0].samples)
    total = part[0].dot(None if other is None else other[0], each, buffers.empty(shape, part[0].dtype))
    for k, more in enumerate(part[1:], 1):
        total += more.dot(None if other is None else other[k], each)
    return total


def dot_here(part: Part, other: Part | None, threads: int) -> Array:
    """Return the scalar products ``(N, M)``, many of them tile by tile in several threads."""
    alone = threads == 1 or part[0].samples * (other or part)[0].samples < THREADED
    return dot_of(part, other, map if alone else each_side_by_side)


def project_of(part: Part, ranges: Sequence[Sequence[tuple[int, int, int]]], k: int, seed: int) -> Array:
    """Return the projections ``(N, k)``."""
    total = part[0].project(ranges[0], k, seed)
    for more, its in zip(part[1:], ranges[1:]):
        total += more.project(its, k, seed)
    return total


def sum_of(part: Part, max_norm: float | None, scale: float) -> Array:
    """Return the sum over the samples, clipped if asked for, times `scale`, all variables laid end to end."""
    if max_norm is None:
        weights = np.full(part[0].samples, scale, part[0].dtype)
    else:
        weights = clip_weights(norms_of(part), max_norm) * scale
    return np.concatenate([factors.sum(weights)[0] for factors in part])


def squares_of(part: Part, scale: float) -> Array:
    """Return the sum of the squared entries over rows and samples times `scale`, all variables laid end to end."""
    return np.concatenate([factors.square_sum() for factors in part]) * part[0].dtype.type(scale)


def clip_weights(norms: Array, max_norm: float) -> Array:
    """Return ``min(1, max_norm / norm)``."""
    return max_norm / np.maximum(norms, max_norm)


def _dask() -> Any:
    return import_module(".dask_arrays", __package__)


class PerSampleGradients:
    """Gradients of a scalar for each sample, as factors; nothing of the size ``N x P`` is built unless asked for.

    Made by ``engine.per_sample_gradients``. `N` is the number of samples, `P` the number of entries of all nodes differentiated
    by. Every method takes ``compute=False`` and then returns dask arrays.

    Attributes
    ----------
    wrt : tuple of Node
    samples : int

    Examples
    --------
    >>> import flowgrad as fg, numpy as np
    >>> with fg.Graph():
    ...     x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 1.0])
    ...     loss = fg.Dot(w, x)
    >>> gradients = fg.Engine("sync").per_sample_gradients(loss, {x: [[3.0, 4.0], [0.0, 1.0]]})
    >>> gradients.array(w).tolist()
    [[3.0, 4.0], [0.0, 1.0]]
    >>> gradients.norms().tolist()
    [5.0, 1.0]
    >>> gradients.gram().tolist()
    [[25.0, 4.0], [4.0, 1.0]]
    """

    def __init__(
        self,
        executor: Executor,
        wrt: Sequence[Node],
        places: Places,
        sizes: Sequence[int],
        parts: Sequence[Any],
        lengths: Sequence[int],
        dtype: Any,
        release: Callable[[], None] | None = None,
    ):
        self.wrt, self.samples, self.dtype = tuple(wrt), sum(lengths), np.dtype(dtype)
        self._executor, self._parts, self._lengths = executor, list(parts), list(lengths)
        self._places, self._sizes = dict(zip(wrt, places)), list(sizes)
        self._here = len(self._parts) == 1 and isinstance(self._parts[0], list)
        if release is not None:
            weakref.finalize(self, release)

    # -- one row per sample -------------------------------------------------------------------------------------

    def array(self, node: Node | None = None, compute: bool = True) -> Any:
        """Build the gradients.

        Parameters
        ----------
        node : Node, optional
            By this node ``(N, dim)``; all of them, laid end to end in the order of `wrt`, ``(N, P)`` if not given.
        compute : bool
            False: a dask array.
        """
        if node is not None and node not in self._places:
            raise GraphError(f"{node} is not among the nodes that were differentiated by: {self._told()}")
        nodes = self.wrt if node is None else (node,)
        places = self._merged(nodes)
        if self._here and compute:
            return array_of(self._parts[0], places, self._executor.threads)
        return self._rows(array_of, (sum(n.dim for n in nodes),), compute, places)

    def norms(self, compute: bool = True) -> Any:
        """Return the Euclidean norm of each sample's gradient by all nodes together, ``(N,)``."""
        return self._rows(norms_of, (), compute)

    def project(self, k: int, seed: int = 0, compute: bool = True) -> Any:
        """Project each gradient on `k` random directions, ``(N, k)``: scalar products are kept, up to ``1/sqrt(k)``.

        Parameters
        ----------
        k : int
        seed : int
            The matrix ``(P, k)`` of normal numbers of variance ``1/k`` depends on it and on `wrt` alone; it is drawn in blocks
            and never whole.

        Notes
        -----
        W. Johnson, J. Lindenstrauss, *Extensions of Lipschitz mappings into a Hilbert space*, 1984.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise GraphError(f"project(k): k is the number of directions, at least 1, not {k!r}")
        ranges: list[list[tuple[int, int, int]]] = [[] for _ in self._sizes]
        for position, node in enumerate(self.wrt):
            place = self._places[node]
            if not isinstance(place, int):
                ranges[place[0]].append((position, place[1], place[2]))
        return self._rows(project_of, (int(k),), compute, ranges, int(k), int(seed))

    # -- pairs of samples ---------------------------------------------------------------------------------------

    def dot(self, other: PerSampleGradients, compute: bool = True) -> Any:
        """Return the scalar products with the gradients of other samples, ``(N, M)``.

        Parameters
        ----------
        other : PerSampleGradients
            By the same nodes; the target may be another one.
        """
        if not isinstance(other, PerSampleGradients) or set(other.wrt) != set(self.wrt):
            raise GraphError(f"dot needs per-sample gradients by the same nodes: {self._told()}")
        if not self._same_layout(other):
            raise GraphError(
                "dot: the two sets were made with other feeds or another grain, so that their variables lie otherwise"
            )
        if self._here and other._here and compute:
            return dot_here(self._parts[0], other._parts[0], self._executor.threads)
        found = _dask().pairs(dot_of, self._parts, other._parts, self._lengths, other._lengths, self.dtype)
        return self._done(found, compute)

    def gram(self, compute: bool = True) -> Any:
        """Return the scalar products of all pairs of samples, ``(N, N)``: the empirical neural tangent kernel.

        Notes
        -----
        A. Jacot, F. Gabriel, C. Hongler, *Neural tangent kernel*, NeurIPS 2018.
        """
        if self._here and compute:
            return dot_here(self._parts[0], None, self._executor.threads)
        found = _dask().pairs(dot_of, self._parts, None, self._lengths, self._lengths, self.dtype)
        return self._done(found, compute)

    # -- sums over the samples ----------------------------------------------------------------------------------

    def mean(self, compute: bool = True) -> dict[Node, Any]:
        """Return the mean over the samples, ``{node: (dim,)}``."""
        return self._sums(sum_of, compute, None, 1.0 / self.samples)

    def clipped_sum(self, max_norm: float, compute: bool = True) -> dict[Node, Any]:
        """Return the sum of ``g min(1, max_norm / ‖g‖)``, ``{node: (dim,)}``; the norm is of all nodes together."""
        if not isinstance(max_norm, (int, float, np.number)) or not np.isfinite(max_norm) or max_norm <= 0:
            raise GraphError(f"clipped_sum: max_norm must be a positive number, not {max_norm!r}")
        return self._sums(sum_of, compute, float(max_norm), 1.0)

    def _squares(self) -> dict[Node, Array]:
        return self._sums(squares_of, True, 1.0 / self.samples)

    # -- how ----------------------------------------------------------------------------------------------------

    def _told(self) -> str:
        names = ", ".join(repr(n.name) for n in self.wrt[:5])
        return names + (", ..." if len(self.wrt) > 5 else "")

    def _same_layout(self, other: PerSampleGradients) -> bool:
        return self._sizes == other._sizes and all(self._places[n] == other._places[n] for n in self.wrt)

    def _merged(self, nodes: Sequence[Node]) -> list[tuple[int, int, int] | int]:
        """Return the places of nodes; those that lie end to end are one."""
        found: list[tuple[int, int, int] | int] = []
        for place in (self._places[n] for n in nodes):
            last = found[-1] if found else 0
            if not isinstance(place, int) and not isinstance(last, int) and (place[0], place[1]) == (last[0], last[2]):
                found[-1] = (last[0], last[1], place[2])
            else:
                found.append(place)
        return found

    def _rows(self, func: Callable[..., Array], tail: tuple[int, ...], compute: bool, *args: Any) -> Any:
        if self._here and compute:
            return func(self._parts[0], *args)
        return self._done(_dask().rows(func, self._parts, self._lengths, tail, self.dtype, *args), compute)

    def _sums(self, func: Callable[..., Array], compute: bool, *args: Any) -> dict[Node, Any]:
        if self._here and compute:
            total = func(self._parts[0], *args)
        else:
            total = self._done(_dask().total(func, self._parts, sum(self._sizes), self.dtype, *args), compute)
        starts = np.cumsum([0, *self._sizes])
        found = {}
        for node in self.wrt:
            place = self._places[node]
            if isinstance(place, int):
                found[node] = np.zeros(place, self.dtype) if compute else _dask().zeros(place, self.dtype)
            else:
                found[node] = total[starts[place[0]] + place[1] : starts[place[0]] + place[2]]
        return found

    def _done(self, array: Any, compute: bool) -> Any:
        return self._executor.compute(array) if compute else array

    def __repr__(self) -> str:
        return f"<PerSampleGradients of {self.samples} samples by {len(self.wrt)} nodes, {sum(self._sizes)} entries>"

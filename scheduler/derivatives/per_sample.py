"""Per-sample gradients, kept as factors: block by block of samples, here or on workers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np

from flowgrad.errors import FeedError, GraphError
from flowgrad.graph import Node
from flowgrad.inputs import integer, real, without_underflow
from flowgrad.typing import Array

from ..executors import Executor, Lost
from .work import Span, array_of, dot_here, dot_of, norms_of, project_of, squares_of, sum_of

# By block a list of `Factors`, a future of one, or, for dask arrays that were fed, dask's promise; and what lets go of them
# where an executor keeps them.
Blocks = tuple[list[Any], Callable[[], None] | None]


def _dask() -> Any:
    return import_module(".arrays", __package__)


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
        spans: Sequence[Span],
        sizes: Sequence[int],
        dtype: Any,
        lengths: Sequence[int],
        blocks: Blocks,
        again: Callable[[], Blocks] | None = None,
        check: Callable[[Callable[[Any], Any]], None] | None = None,
    ):
        self.wrt, self.samples, self.dtype = tuple(wrt), sum(lengths), np.dtype(dtype)
        self._executor, self._lengths = executor, list(lengths)
        self._spans, self._sizes = dict(zip(wrt, spans)), list(sizes)
        self._again = again  # makes the blocks once more, if values were lost with a worker
        self._check = (
            check  # finds what is wrong with feeds first, by what computes a promise: chunks are read in any order
        )
        self._take(blocks)

    # -- one row per sample -------------------------------------------------------------------------------------

    @without_underflow
    def array(self, node: Node | None = None, compute: bool = True) -> Any:
        """Build the gradients.

        Parameters
        ----------
        node : Node, optional
            By this node ``(N, dim)``; all of them, laid end to end in the order of `wrt`, ``(N, P)`` if not given.
        compute : bool
            False: a dask array.
        """
        if node is not None and node not in self._spans:
            raise GraphError(f"{node} is not among the nodes that were differentiated by: {self._told()}")
        nodes = self.wrt if node is None else (node,)
        spans = self._merged(nodes)
        if self._here and compute:
            return array_of(self._here, spans, self._executor.threads)
        return self._rows(array_of, (sum(n.dim for n in nodes),), compute, spans)

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
        k, seed = integer(k, "project: k, the number of directions,"), integer(seed, "project: seed", 0)
        ranges: list[list[tuple[int, int, int]]] = [[] for _ in self._sizes]
        for position, (wrt, lo, hi) in enumerate(self._spans.values()):
            ranges[wrt].append((position, lo, hi))
        return self._rows(project_of, (k,), compute, ranges, k, seed)

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
        if (self._sizes, self._spans) != (other._sizes, other._spans):
            raise GraphError(
                "dot: the two sets were made with other feeds or another grain, so that their variables lie otherwise"
            )
        return self._pairs(other, compute)

    def gram(self, compute: bool = True) -> Any:
        """Return the scalar products of all pairs of samples, ``(N, N)``: the empirical neural tangent kernel.

        Notes
        -----
        A. Jacot, F. Gabriel, C. Hongler, *Neural tangent kernel*, NeurIPS 2018.
        """
        return self._pairs(None, compute)

    # -- sums over the samples ----------------------------------------------------------------------------------

    def mean(self, compute: bool = True) -> dict[Node, Any]:
        """Return the mean over the samples, ``{node: (dim,)}``."""
        return self._sums(sum_of, compute, None, 1.0 / self.samples)

    def clipped_sum(self, max_norm: float, compute: bool = True) -> dict[Node, Any]:
        """Return the sum of ``g min(1, max_norm / ‖g‖)``, ``{node: (dim,)}``; the norm is of all nodes together."""
        return self._sums(sum_of, compute, real(max_norm, "clipped_sum: max_norm", 0, above=True), 1.0)

    def _squares(self) -> dict[Node, Array]:
        return self._sums(squares_of, True, 1.0 / self.samples)

    # -- how ----------------------------------------------------------------------------------------------------

    def _told(self) -> str:
        names = ", ".join(repr(n.name) for n in self.wrt[:5])
        return names + (", ..." if len(self.wrt) > 5 else "")

    def _merged(self, nodes: Sequence[Node]) -> list[Span]:
        """Return the spans of nodes; those that lie end to end are one."""
        runs: list[Span] = []
        for wrt, lo, hi in (self._spans[n] for n in nodes):
            if runs and (runs[-1][0], runs[-1][2]) == (wrt, lo):
                runs[-1] = (wrt, runs[-1][1], hi)
            else:
                runs.append((wrt, lo, hi))
        return runs

    @property
    def _here(self) -> list[Any] | None:
        """The factors of the only block, if they are in this process."""
        return self._values[0] if len(self._values) == 1 and isinstance(self._values[0], list) else None

    def _take(self, blocks: Blocks) -> None:
        self._values, release = blocks
        if release is not None:
            weakref.finalize(self, release)

    @without_underflow
    def _rows(self, func: Callable[..., Array], tail: tuple[int, ...], compute: bool, *args: Any) -> Any:
        if self._here and compute:
            return func(self._here, *args)
        return self._done(lambda: _dask().rows(func, self._values, self._lengths, tail, self.dtype, *args), compute)

    @without_underflow
    def _pairs(self, other: PerSampleGradients | None, compute: bool) -> Any:
        right = other or self
        if self._here and right._here and compute:
            return dot_here(self._here, None if other is None else right._here, self._executor.threads)

        def pairs() -> Any:
            values = None if other is None else right._values
            return _dask().pairs(dot_of, self._values, values, self._lengths, right._lengths, self.dtype)

        return self._done(pairs, compute, right)

    @without_underflow
    def _sums(self, func: Callable[..., Array], compute: bool, *args: Any) -> dict[Node, Any]:
        if self._here and compute:
            total = func(self._here, *args)
        else:
            size = sum(self._sizes)
            total = self._done(lambda: _dask().total(func, self._values, size, self.dtype, *args), compute)
        starts = np.cumsum([0, *self._sizes])
        return {n: total[starts[wrt] + lo : starts[wrt] + hi] for n, (wrt, lo, hi) in self._spans.items()}

    def _done(self, array: Callable[[], Any], compute: bool, other: PerSampleGradients | None = None) -> Any:
        """Return a dask array of the blocks, or its value, computed where they are; lost ones are made again, once."""
        if not compute:
            return array()
        every = {self, other or self}
        executor = next((g._executor for g in (self, *every) if g._executor.remote), self._executor)
        try:
            with suppress(Lost):
                return executor.compute(array())
            for gradients in every:
                if gradients._again is not None:
                    gradients._take(gradients._again())
            return executor.compute(array())
        except FeedError:
            for gradients in (self, other or self):
                if gradients._check is not None:
                    gradients._check(executor.compute)
            raise

    def __getstate__(self) -> dict[str, Any]:
        if self._executor.remote:
            raise GraphError(
                f"{self!r} cannot be pickled: its factors lie on {self._executor.name}; send what you need of them, "
                f"such as norms() or mean()"
            )
        return vars(self)

    def __repr__(self) -> str:
        return f"<PerSampleGradients of {self.samples} samples by {len(self.wrt)} nodes, {sum(self._sizes)} entries>"

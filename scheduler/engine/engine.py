"""The engine: values, gradients and Jacobians of nodes over many samples, on dask."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flowgrad.errors import ClusterError, GraphError
from flowgrad.graph import Node, Variable
from flowgrad.inputs import integer
from flowgrad.optim import warn_independent
from flowgrad.typing import Array

from .. import executors
from ..costs import blas_threads_of
from ..derivatives import DEFAULT_BYTES
from ..executors import Executor, LocalExecutor
from ..feeds import check_feeds, check_nodes
from ..programs import Computation, check_grain, lower_forward, lower_gradient
from .lowered import Lowered
from .products import Products
from .session import nodes_of


class Engine(Products):
    """Runs graphs over many samples.

    Parameters
    ----------
    where : optional
        None: the current dask client if there is one, else threads. ``"sync"``, ``"threads"``, an address such as
        ``"tcp://..."``, a ``distributed.Client`` or a cluster.
    dtype : optional
        float32 or float64; by default that of the feeds.
    grain : str
        How much goes into a task: ``"node"``, ``"sample"``, ``"shard"``, ``"round"`` or ``"auto"``.
    shards : int, optional
        Into how many parts samples are cut; a property of the plan, never of how many workers there are.
    cache_bytes : int
        Bytes of intermediate values and cotangents of Jacobians that are kept for later calls; 0 keeps nothing.
    kernel : str
        What runs optimizer steps: ``"numba"`` (compiled), ``"numpy"``, or ``"auto"``: compiled where it pays.

    Raises
    ------
    ClusterError
        If the scheduler cannot be reached.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     x = fg.Variable(2, trainable=False, name="x")
    ...     w = fg.Variable(2, [1.0, -1.0], name="w")
    ...     y = fg.Dot(w, x)
    >>> engine = fg.Engine("threads")
    >>> engine.forward(y, {x: [[3.0, 1.0], [5.0, 5.0]]}).tolist()
    [[2.0], [0.0]]
    >>> engine.gradient(y, {x: [[3.0, 1.0], [5.0, 5.0]]})[w].tolist()
    [4.0, 3.0]
    """

    def __init__(
        self,
        where: Any = None,
        dtype: Any = None,
        grain: str = "auto",
        shards: int | None = None,
        kernel: str = "auto",
        cache_bytes: int = DEFAULT_BYTES,
    ):
        if kernel not in ("auto", "numba", "numpy"):
            raise GraphError(f"unknown kernel {kernel!r}: choose auto, numba or numpy")
        self.kernel = kernel
        if dtype is not None and dtype not in (np.float32, np.float64, "float32", "float64", "f4", "f8", float):
            raise GraphError(f"dtype must be float32 or float64, not {dtype!r}")
        self.dtype = dtype
        self.grain = check_grain(grain)
        self.shards = shards if shards is None else integer(shards, "shards")
        self.executor: Executor = where if isinstance(where, Executor) else _executor(where)
        self._begin(cache_bytes)

    # -- results ------------------------------------------------------------------------------------------------

    def forward(self, nodes: Node | Sequence[Node], feeds: Mapping[Any, Any] | None = None) -> Any:
        """Compute values for every sample.

        Parameters
        ----------
        nodes : Node or list of Node
        feeds : dict, optional
            ``{variable: array (N, dim)}``, NumPy or dask; integers ``(N,)`` for a variable of dim > 1 are class indices.

        Returns
        -------
        ndarray (N, dim), or a list of them

        Raises
        ------
        FeedError
            If a feed is missing or cannot be used.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, -1.0])
        ...     y = fg.Dot(w, x)
        >>> feeds = {x: [[3.0, 1.0], [5.0, 5.0]]}
        >>> fg.Engine("sync").forward(y, feeds).tolist()
        [[2.0], [0.0]]
        """
        return self._run(self._forward_job(nodes, feeds, None), isinstance(nodes, Node))

    def gradient(
        self, target: Node, feeds: Mapping[Any, Any] | None = None, wrt: Sequence[Variable] | Variable | None = None
    ) -> dict[Variable, Array]:
        """Compute the gradient of the mean of a scalar over the samples.

        Parameters
        ----------
        target : Node
            Of dim 1.
        feeds : dict, optional
        wrt : list of Variable, optional
            All trainable variables that are not fed, if not given.

        Returns
        -------
        dict
            ``{variable: ndarray (dim,)}``; zeros for a variable that the target does not depend on.

        Raises
        ------
        GraphError
            If the target is not scalar.
        FeedError
            If a feed is missing or cannot be used.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, -1.0])
        ...     y = fg.Dot(w, x)
        >>> feeds = {x: [[3.0, 1.0], [5.0, 5.0]]}
        >>> fg.Engine("sync").gradient(y, feeds)[w].tolist()
        [4.0, 3.0]
        """
        return self._run(self._gradient_job(target, feeds, wrt, None))

    def lower(
        self,
        targets: Node | Sequence[Node],
        feeds: Mapping[Any, Any] | None = None,
        gradient: bool = False,
        grain: str | None = None,
    ) -> Lowered:
        """Return what would run, as a dask collection, without running it.

        Parameters
        ----------
        targets : Node or list of Node
        feeds : dict, optional
        gradient : bool
            True: the mean gradient of one scalar target by all trainable variables.
        grain : str, optional
            Overrides the engine's.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, -1.0])
        ...     y = fg.Dot(w, x)
        >>> feeds = {x: [[3.0, 1.0], [5.0, 5.0]]}
        >>> lowered = fg.Engine("sync").lower(y, feeds)
        >>> lowered.tasks(), lowered.compute().tolist()
        ({'forward': 1}, [[2.0], [0.0]])
        """
        if not gradient:
            single = isinstance(targets, Node)

            def lower(grain: str | None) -> Computation:
                job = self._forward_job(targets, feeds, grain)
                return replace(job, finish=_First(job.finish)) if single else job

        elif isinstance(targets, Node):

            def lower(grain: str | None) -> Computation:
                return self._gradient_job(targets, feeds, None, grain)

        else:
            raise GraphError("a gradient is of one scalar node, not of a list")
        return Lowered(lower(grain), executor=self.executor, lower=lower)

    # -- jobs ---------------------------------------------------------------------------------------------------

    def _grain(self, grain: str | None) -> str:
        chosen = check_grain(grain or self.grain)
        return "shard" if chosen in ("auto", "round") else chosen

    def _forward_job(self, nodes: Any, feeds: Any, grain: str | None) -> Computation:
        graph, targets = check_nodes(nodes, "forward")
        return lower_forward(targets, graph, check_feeds(graph, feeds, self.dtype), self._grain(grain), self.shards)

    def _gradient_job(self, target: Node, feeds: Any, wrt: Any, grain: str | None) -> Computation:
        graph, _ = check_nodes(target, "gradient")
        if target.dim != 1:
            raise GraphError(
                f"the target {target} is not a scalar: it has dim {target.dim}, a gradient needs dim 1; use jacobian"
            )
        checked = check_feeds(graph, feeds, self.dtype)
        if wrt is None:
            variables = [v for v in graph.nodes if isinstance(v, Variable) and v.trainable and v not in checked.arrays]
        else:
            variables = _variables(wrt, graph)
        warn_independent(target, variables)
        return lower_gradient(target, graph, checked, variables, self._grain(grain), self.shards)

    def _run(self, job: Computation, single: bool = False) -> Any:
        blas_threads = blas_threads_of(job, self.executor.threads)
        handles = self.executor.submit(job.graph.records, [ref.key for ref in job.keys], blas_threads=blas_threads)
        try:
            result = job.finish(self.executor.result(handles))
        finally:
            self.executor.release(handles)
        return result[0] if single else result

    def __repr__(self) -> str:
        return f"<Engine on {self.executor.name}, grain {self.grain}>"


class _First:
    """Finish a job of one target: its only array."""

    def __init__(self, finish: Any):
        self.finish = finish

    def __call__(self, values: list[Any]) -> Any:
        return self.finish(values)[0]


def _variables(wrt: Any, graph: Any) -> list[Variable]:
    found = []
    for v in nodes_of(wrt, graph):
        if not isinstance(v, Variable):
            raise GraphError(f"gradients are by variables; {v} is computed from others: use jacobian")
        found.append(v)
    return found


def _executor(where: Any) -> Executor:
    if isinstance(where, str) and where in ("sync", "threads"):
        return LocalExecutor(where == "threads")
    if where is None and "distributed" not in sys.modules:  # nobody can have made a client
        return LocalExecutor(threads=True)
    if isinstance(where, str) and "://" not in where and ":" not in where:
        raise ClusterError(
            f"unknown engine {where!r}: give 'sync', 'threads', an address such as 'tcp://host:8786', a Client or a cluster"
        )
    # `distributed` takes a second to import; those who stay in this process do not pay for it.
    found: Executor | None = executors.connect(where)
    return found or LocalExecutor(threads=True)

"""The engine: values, gradients and Jacobians of nodes over many samples, on dask."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from flowgrad.draw import Shown
from flowgrad.errors import ClusterError, GraphError
from flowgrad.graph import Node, Variable
from flowgrad.inputs import Settled, brief, flag, integer, one_of, without_underflow
from flowgrad.ops import CrossEntropyWithSoftMax, LogisticCrossEntropy, MeanSquaredError
from flowgrad.typing import Array

from .. import executors
from ..derivatives import DEFAULT_BYTES, CacheInfo, PerSampleGradients
from ..executors import Executor, LocalExecutor
from ..programs import Computation, check_grain
from . import jacobian as derived
from . import products, values
from .lowered import Lowered
from .session import Session


class Engine(Shown, Settled):
    """Runs graphs over many samples.

    What all methods take: `feeds`, ``{variable: array (N, dim)}``, lists, NumPy's, frames or dask's, where integers ``(N,)`` or
    ``(N, 1)`` for a variable of dim > 1 are class indices (docs/feeds.md lists what is taken); `wrt`, a node or its name
    or a list of them to differentiate by, all trainable variables that are not fed if not given.

    Parameters
    ----------
    where : optional
        None: the current dask client if there is one, else threads; within a dask task always threads, as many as its worker has.
        ``"sync"``, ``"threads"``, an address such as ``"tcp://..."``, a ``distributed.Client`` or a cluster. Close a client before
        its cluster, or call `clear_cache` before: dask warns of what is kept for later calls and lost.
    dtype : optional
        float32 or float64; by default that of the feeds.
    grain : str
        How much goes into a task: ``"node"``, ``"sample"``, ``"shard"``, ``"round"``, ``"collective"`` or ``"auto"``.
    shards : int, optional
        Into how many parts samples are cut; a property of the plan, never of how many workers there are.
    cache_bytes : int
        Bytes of intermediate values and cotangents of Jacobians that are kept for later calls; 0 keeps nothing.
    kernel : str
        What runs steps, values and gradients: ``"numba"`` (compiled), ``"numpy"``, or ``"auto"``: compiled if numba is
        installed; values and gradients of small graphs by NumPy.

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
        one_of(kernel, "kernel", ("auto", "numba", "numpy"))
        known = (np.float32, np.float64, "float32", "float64", "f4", "f8", float)
        if dtype is not None and (not isinstance(dtype, (str, type, np.dtype)) or dtype not in known):
            raise GraphError(f"dtype must be float32 or float64, not {brief(dtype)}")
        check_grain(grain)
        shards = shards if shards is None else integer(shards, "shards")
        self._where, self._settings = where, (dtype, grain, shards, kernel, cache_bytes)
        self.session = Session(_executor(where), *self._settings)

    @cached_property
    def session(self) -> Session:
        """What it runs on, and what it keeps; of a pickled engine made at the first use, within a task with its client."""
        return Session(_executor(self._where), *self._settings)

    def __getstate__(self) -> dict[str, Any]:
        """Send the name or address of where it runs, and the settings; None means None there too."""
        state = {**vars(self)}
        session = state.pop("session", None)
        if session is not None and (session.executor.remote or self._where is not None):
            state["_where"] = session.executor.address
        return state

    def __copy__(self) -> Engine:
        """Return an engine that runs where this one does and has kept nothing yet."""
        twin = type(self).__new__(type(self))
        vars(twin).update({**vars(self), "session": Session(self.executor, *self._settings)})
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return self.__copy__()

    @property
    def executor(self) -> Executor:
        """Where tasks run."""
        return self.session.executor

    @property
    def dtype(self) -> Any:
        """Of results; None: that of the feeds."""
        return self.session.dtype

    @property
    def grain(self) -> str:
        """How much goes into a task."""
        return self.session.grain

    @property
    def kernel(self) -> str:
        """What runs programs."""
        return self.session.kernel

    @property
    def shards(self) -> int | None:
        """Into how many parts samples are cut, if that was given."""
        return self.session.shards

    # -- results ------------------------------------------------------------------------------------------------

    @without_underflow
    def forward(self, nodes: Node | Sequence[Node], feeds: Mapping[Any, Any] | None = None) -> Any:
        """Compute values for every sample: ``(N, dim)``, or a list of them for a list; see `Engine` for `feeds`.

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
        >>> fg.Engine("sync").forward(y, {x: [[3.0, 1.0], [5.0, 5.0]]}).tolist()
        [[2.0], [0.0]]
        """
        return values.run(self.session, values.lower_values(self.session, nodes, feeds))

    @without_underflow
    def gradient(
        self, target: Node, feeds: Mapping[Any, Any] | None = None, wrt: Sequence[Variable] | Variable | None = None
    ) -> dict[Variable, Array]:
        """Compute the gradient of the mean of a scalar over the samples; see `Engine` for `feeds` and `wrt`, here variables.

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
        >>> fg.Engine("sync").gradient(y, {x: [[3.0, 1.0], [5.0, 5.0]]})[w].tolist()
        [4.0, 3.0]
        """
        return values.run(self.session, values.lower_mean_gradient(self.session, target, feeds, wrt))

    @without_underflow
    def lower(
        self,
        targets: Node | Sequence[Node],
        feeds: Mapping[Any, Any] | None = None,
        gradient: bool = False,
        grain: str | None = None,
    ) -> Lowered:
        """Return what would run, as a dask collection, without running it; what is written to feeds later does not count.

        Parameters
        ----------
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
        >>> lowered = fg.Engine("sync").lower(y, {x: [[3.0, 1.0], [5.0, 5.0]]})
        >>> lowered.tasks(), lowered.compute().tolist()
        ({'forward': 1}, [[2.0], [0.0]])
        """
        gradient = flag(gradient, "gradient")

        def lower(grain: str | None) -> Computation:
            if gradient:
                return values.lower_mean_gradient(self.session, targets, feeds, None, grain, later=True)
            return values.lower_values(self.session, targets, feeds, grain, later=True)

        return Lowered(lower(grain), executor=self.executor, lower=lower)

    # -- derivatives --------------------------------------------------------------------------------------------

    @without_underflow
    def jacobian(
        self,
        result: Node,
        wrt: Node | Sequence[Node],
        feeds: Mapping[Any, Any] | None = None,
        compute: bool = True,
        memory_budget: int | None = None,
        mode: str = "auto",
    ) -> Any:
        """Compute the Jacobian of `result`, vector or scalar, by other nodes, for every sample; see `Engine` for `feeds`.

        Forward values and cotangents stay where they were computed, under keys that name their content: a second call computes
        only what is new. See `cache_info`.

        Parameters
        ----------
        wrt : Node or list of Node
            Variables or inner nodes; cotangents that they share are computed once.
        compute : bool
            False: return futures. On a cluster these are dask Futures; without one, objects whose ``result()`` is there.
        memory_budget : int, optional
            Bytes that the result, and one block of work, may take; half of the free memory if not given. A larger result comes
            back as a dask array, chunked over samples and, if need be, rows, and nothing is computed yet.
        mode : str
            ``"reverse"``, ``"forward"``, or ``"auto"``: whichever takes fewer operations; forward pays where `wrt` has fewer
            entries than `result`. The numbers are the same up to rounding.

        Returns
        -------
        ndarray or dask array (N, result.dim, wrt.dim), or for a list a dict of them
            Zeros, with a warning, where the result does not depend on a node.

        Raises
        ------
        GraphError
            If a node is of another graph, or one row of one sample does not fit the memory budget.
        FeedError
            If a feed is missing or cannot be used.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x = fg.Variable(2, trainable=False)
        ...     y = x * x
        >>> fg.Engine("sync").jacobian(y, x, {x: [[1.0, 3.0]]}).tolist()
        [[[2.0, 0.0], [0.0, 6.0]]]
        """
        return derived.jacobian(self.session, result, wrt, feeds, compute, memory_budget, mode)

    @without_underflow
    def per_sample_gradients(
        self, target: Node, feeds: Mapping[Any, Any] | None = None, wrt: Node | Sequence[Node] | None = None
    ) -> PerSampleGradients:
        """Compute the gradient of a scalar for each sample, as factors: norms, scalar products and sums need no more.

        See `Engine` for `feeds` and `wrt`. dask arrays may be larger than memory: their chunks are read when a result needs them.

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
        >>> gradients = fg.Engine("sync").per_sample_gradients(y, {x: [[3.0, 1.0], [5.0, 5.0]]})
        >>> gradients.array(w).tolist(), gradients.mean()[w].tolist()
        ([[3.0, 1.0], [5.0, 5.0]], [4.0, 3.0])
        """
        return derived.per_sample_gradients(self.session, target, feeds, wrt)

    @without_underflow
    def vjp(
        self,
        result: Node,
        cotangent: Any,
        feeds: Mapping[Any, Any] | None = None,
        wrt: Node | Sequence[Node] | None = None,
    ) -> dict[Node, Array]:
        """Multiply a cotangent by the Jacobian: ``Σₙ cotangentₙᵀ Jₙ``, one sweep of reverse mode.

        The cotangent is ``(N, result.dim)`` or ``(result.dim,)``; see `Engine` for `feeds` and `wrt`.

        Returns
        -------
        dict
            ``(dim,)`` for a variable that all samples share; ``(N, dim)`` for one that is fed and for an inner node, which have
            a value per sample.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 2.0])
        ...     y = x * w
        >>> fg.Engine("sync").vjp(y, [[1.0, 1.0], [0.0, 1.0]], {x: [[3.0, 4.0], [5.0, 6.0]]})[w].tolist()
        [3.0, 10.0]
        """
        recipe, checked = self.session.recipe(result, wrt, feeds, "vjp")
        seed = products.vectors_of("the cotangent", result, cotangent, checked)
        if len(seed) == 1:
            seed = np.repeat(seed, checked.samples, axis=0)
        factors = derived.keep_factors(self.session, recipe, checked, seed[None])
        shared = [n for n in factors.wrt if isinstance(n, Variable) and n not in checked.arrays]
        total = factors.mean()
        return {n: total[n] * factors.samples if n in shared else factors.array(n) for n in factors.wrt}

    @without_underflow
    def jvp(self, result: Node, tangents: Mapping[Variable, Any], feeds: Mapping[Any, Any] | None = None) -> Array:
        """Multiply the Jacobian by tangents: ``J · tangent`` for each sample, ``(N, result.dim)``, one sweep of forward mode.

        Tangents are ``{variable: (dim,)}``, or ``(N, dim)`` for a variable that is fed; the others stand still.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 2.0])
        ...     y = x * w
        >>> fg.Engine("sync").jvp(y, {w: [1.0, 0.0]}, {x: [[3.0, 4.0], [5.0, 6.0]]}).tolist()
        [[3.0, 0.0], [5.0, 0.0]]
        """
        return products.jvp(self.session, result, tangents, feeds)

    @without_underflow
    def hvp(
        self, loss: Node, direction: Mapping[Variable, Any], feeds: Mapping[Any, Any] | None = None
    ) -> dict[Variable, Array]:
        """Multiply the Hessian of the mean loss, a scalar, by a direction, without building it: forward mode over reverse mode.

        The direction and the product are ``{variable: (dim,)}``, of variables that are not fed; the Hessian is that by these.

        Notes
        -----
        Exact up to rounding, but for ops of your own that state no ``jacobian_tangent``: their `jacobian` is differentiated by
        central differences. B. Pearlmutter, *Fast exact multiplication by the Hessian*, Neural Computation 6, 1994.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     w = fg.Variable(2, [1.0, 2.0])
        ...     loss = fg.Sum(w * w * w)
        >>> fg.Engine("sync").hvp(loss, {w: [1.0, 1.0]})[w].tolist()
        [6.0, 12.0]
        """
        return products.hvp(self.session, loss, direction, feeds)

    @without_underflow
    def fisher_diagonal(
        self, loss: Node, feeds: Mapping[Any, Any] | None = None, wrt: Node | Sequence[Node] | None = None
    ) -> dict[Node, Array]:
        """Return the diagonal of the empirical Fisher matrix, the mean of the squared per-sample gradients, ``{node: (dim,)}``.

        The loss is a scalar, for one sample; see `Engine` for `feeds` and `wrt`.

        Notes
        -----
        It takes the labels that were given. The Fisher matrix proper, for labels that the model would draw, is the Gauss-Newton
        matrix of `ggn_diagonal` (J. Martens, *New insights and perspectives on the natural gradient method*, JMLR 21, 2020).

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, -1.0])
        ...     y = fg.Dot(w, x)
        >>> fg.Engine("sync").fisher_diagonal(y, {x: [[3.0, 1.0], [5.0, 5.0]]})[w].tolist()
        [17.0, 13.0]
        """
        values.check_scalar(loss, "loss")
        recipe, checked = self.session.recipe(loss, wrt, feeds, "fisher_diagonal")
        return derived.keep_factors(self.session, recipe, checked)._squares()

    @without_underflow
    def ggn_diagonal(
        self, loss: Node, feeds: Mapping[Any, Any] | None = None, wrt: Node | Sequence[Node] | None = None
    ) -> dict[Node, Array]:
        """Return the diagonal of the generalised Gauss-Newton matrix of the mean loss, ``diag(mean Jᵀ H J)``, ``{node: (dim,)}``.

        `J` is the Jacobian of what the loss compares with the labels (its first operand), `H` the loss's Hessian by that. For a
        cross entropy with one-hot labels this is the Fisher matrix. The loss is a `CrossEntropyWithSoftMax`, a
        `LogisticCrossEntropy` or a `MeanSquaredError`; see `Engine` for `feeds` and `wrt`.

        Notes
        -----
        N. Schraudolph, *Fast curvature matrix-vector products for second-order gradient descent*, Neural Computation 14, 2002.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x, t = fg.Variable(2, trainable=False), fg.Variable(1, trainable=False)
        ...     w = fg.Variable(2, [1.0, -1.0])
        ...     loss = fg.MeanSquaredError(fg.Dot(w, x), t)
        >>> fg.Engine("sync").ggn_diagonal(loss, {x: [[3.0, 1.0], [5.0, 5.0]], t: [1.0, 2.0]})[w].round(9).tolist()
        [34.0, 26.0]
        """
        losses = (CrossEntropyWithSoftMax, LogisticCrossEntropy, MeanSquaredError)
        if not isinstance(loss, losses):
            raise GraphError(f"ggn_diagonal is of a {' or '.join(op.__name__ for op in losses)}, not of {brief(loss)}")
        values.check_scalar(loss, "loss")
        outputs, labels = loss.parents
        recipe, checked = self.session.recipe(outputs, wrt, feeds, "ggn_diagonal")
        seed = products.hessian_root(loss, *values.forward_of(self.session, [outputs, labels], outputs.graph, checked))
        return derived.keep_factors(self.session, recipe, checked, seed)._squares()

    # -- what is kept -------------------------------------------------------------------------------------------

    def cache_info(self) -> CacheInfo:
        """Return what is kept: hits, misses, bytes and limit of values and feeds, and the room for arrays of this process.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x = fg.Variable(2, [1.0, 2.0])
        ...     y = fg.Exp(x * x)
        >>> engine = fg.Engine("sync")
        >>> _ = engine.jacobian(y, x), engine.jacobian(y, x)
        >>> engine.cache_info().hits > 0
        True
        """
        return self.session.cache.info(self.session.memory.nbytes)

    def clear_cache(self) -> None:
        """Drop all values that are kept, and forget feeds, graphs and kernels; the counts start again.

        The memory in this process that is kept to be used again, of results and of kernels, goes too.
        """
        self.session.clear()

    def _shows(self) -> dict[str, Any]:
        session = vars(self).get("session")  # an unpickled one has none before its first use
        dtype, grain, shards, kernel, _ = self._settings
        found = {
            "runs on": self._where if session is None else session.executor.name,
            "dtype": dtype and np.dtype(dtype).name,
        }
        found |= {"grain": grain, "shards": shards, "kernel": kernel}
        return found | ({} if session is None else self.cache_info()._asdict())

    def __repr__(self) -> str:
        return f"<Engine on {self.executor.name}, grain {self.grain}>"


def _executor(where: Any) -> Executor:
    if isinstance(where, Executor):
        return where
    if isinstance(where, str) and where in ("sync", "threads"):
        return LocalExecutor(where == "threads")
    if where is None and "distributed" not in sys.modules:  # nobody can have made a client
        return LocalExecutor(threads=True)
    if isinstance(where, str) and "://" not in where and ":" not in where:
        raise ClusterError(
            f"unknown engine {where!r}: give 'sync', 'threads', an address such as 'tcp://host:8786', a Client or a cluster"
        )
    # `distributed` takes a second to import; those who stay in this process do not pay for it.
    executor: Executor | None = executors.connect(where)
    return executor or LocalExecutor(threads=True)

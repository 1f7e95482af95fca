"""Products of derivatives with vectors, and diagonals of curvature: jvp, vjp, hvp, Fisher, Gauss-Newton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowgrad.errors import FeedError, GraphError
from flowgrad.graph import Node, Variable
from flowgrad.ops import CrossEntropyWithSoftMax, MeanSquaredError
from flowgrad.ops.loss import softmax
from flowgrad.program import Program
from flowgrad.typing import Array

from ..derivatives import hvp_block, jvp_block
from ..feeds import Feeds, check_nodes
from ..programs import JobInputs, compile_forward, compile_gradient, input_var
from ..tasks import Ref, TaskGraph
from .jacobian import Derivatives


class Products(Derivatives):
    """Base of `Engine`: what needs a derivative only times a vector, or only its diagonal."""

    def vjp(
        self,
        result: Node,
        cotangent: Any,
        feeds: Mapping[Any, Any] | None = None,
        wrt: Node | Sequence[Node] | None = None,
    ) -> dict[Node, Array]:
        """Multiply a cotangent by the Jacobian: ``Σₙ cotangentₙᵀ Jₙ``, one sweep of reverse mode.

        Parameters
        ----------
        result : Node
        cotangent : array-like (N, result.dim) or (result.dim,)
        feeds : dict, optional
        wrt : Node or list of Node, optional
            All trainable variables that are not fed, if not given.

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
        graph, _ = check_nodes(result, "vjp")
        known = self.memory.check(graph, feeds, self.dtype)
        seed = vectors_of("the cotangent", result, cotangent, known.feeds)
        if len(seed) == 1:
            seed = np.repeat(seed, known.feeds.samples, axis=0)
        found = self._per_sample(result, feeds, wrt, seed[None])
        shared = [n for n in found.wrt if isinstance(n, Variable) and n not in known.feeds.arrays]
        total = found.mean()
        return {n: total[n] * found.samples if n in shared else found.array(n) for n in found.wrt}

    def jvp(self, result: Node, tangents: Mapping[Variable, Any], feeds: Mapping[Any, Any] | None = None) -> Array:
        """Multiply the Jacobian by tangents: ``J · tangent`` for each sample, one sweep of forward mode.

        Parameters
        ----------
        result : Node
        tangents : dict
            ``{variable: (dim,)}``, or ``(N, dim)`` for a variable that is fed; the others stand still.
        feeds : dict, optional

        Returns
        -------
        ndarray (N, result.dim)

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 2.0])
        ...     y = x * w
        >>> fg.Engine("sync").jvp(y, {w: [1.0, 0.0]}, {x: [[3.0, 4.0], [5.0, 6.0]]}).tolist()
        [[3.0, 0.0], [5.0, 0.0]]
        """
        graph, _ = check_nodes(result, "jvp")
        checked = self.memory.check(graph, feeds, self.dtype).feeds
        moved = tangents_of(graph, tangents, checked)
        params = [v for v in moved if v not in checked.arrays]
        program = compile_forward([result], checked, params, self.grain)
        records = TaskGraph()
        placed = JobInputs(records, program, graph, checked, self.grain, self.shards)
        flat = flat_tangents(program, moved, checked)
        keys = []
        for start, stop in placed.bounds:
            inputs = placed.inputs(start, stop)
            given = [inputs[i.var] for i in program.inputs]
            directions = cut_tangents(flat, start, stop, checked.samples)
            keys.append(records.task("jvp", jvp_block, program, stop - start, directions, *given))
        return np.concatenate(self._values(records, keys))

    def hvp(
        self, loss: Node, direction: Mapping[Variable, Any], feeds: Mapping[Any, Any] | None = None
    ) -> dict[Variable, Array]:
        """Multiply the Hessian of the mean loss by a direction, without building it: forward mode over reverse mode.

        Parameters
        ----------
        loss : Node
            Of dim 1.
        direction : dict
            ``{variable: (dim,)}``, variables that are not fed. The Hessian is that by these variables.
        feeds : dict, optional

        Returns
        -------
        dict
            ``{variable: (dim,)}``.

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
        graph, _ = check_nodes(loss, "hvp")
        _scalar(loss)
        checked = self.memory.check(graph, feeds, self.dtype).feeds
        moved = tangents_of(graph, direction, checked)
        fed = [v for v in moved if v in checked.arrays]
        if fed:
            raise GraphError(f"hvp: {fed[0]} is fed; a direction is given for variables that all samples share")
        program, named = compile_gradient(loss, checked, list(moved), "shard" if self.grain == "node" else self.grain)
        out = {v: np.zeros(v.dim, checked.dtype) for v in moved}
        if not named:
            return out
        records = TaskGraph()
        placed = JobInputs(records, program, graph, checked, self.grain, self.shards)
        flat = flat_tangents(program, moved, checked)
        keys = []
        for start, stop in placed.bounds:
            inputs = placed.inputs(start, stop)
            given = [inputs[i.var] for i in program.inputs[:-1]]
            keys.append(
                records.task("hvp", hvp_block, program, named[0][0], checked.samples, stop - start, flat, *given)
            )
        parts = self._values(records, keys)
        total = parts[0]
        for more in parts[1:]:
            total = total + more
        for v in moved:
            if v.index in program.layout:
                out[v] = total[slice(*program.layout[v.index][1:])].copy()
        return out

    def fisher_diagonal(
        self, loss: Node, feeds: Mapping[Any, Any] | None = None, wrt: Node | Sequence[Node] | None = None
    ) -> dict[Node, Array]:
        """Return the diagonal of the empirical Fisher matrix, the mean of the squared per-sample gradients.

        Parameters
        ----------
        loss : Node
            Of dim 1, for one sample.
        feeds : dict, optional
        wrt : Node or list of Node, optional
            All trainable variables that are not fed, if not given.

        Returns
        -------
        dict
            ``{node: (dim,)}``.

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
        >>> feeds = {x: [[3.0, 1.0], [5.0, 5.0]]}
        >>> fg.Engine("sync").fisher_diagonal(y, feeds)[w].tolist()
        [17.0, 13.0]
        """
        _scalar(loss)
        return self._per_sample(loss, feeds, wrt, None)._squares()

    def ggn_diagonal(
        self, loss: Node, feeds: Mapping[Any, Any] | None = None, wrt: Node | Sequence[Node] | None = None
    ) -> dict[Node, Array]:
        """Return the diagonal of the generalised Gauss-Newton matrix of the mean loss, ``diag(mean Jᵀ H J)``.

        `J` is the Jacobian of what the loss compares with the labels (its first operand), `H` the loss's Hessian by that. For a
        cross entropy with one-hot labels this is the Fisher matrix.

        Parameters
        ----------
        loss : Node
            A `CrossEntropyWithSoftMax` or a `MeanSquaredError`.
        feeds : dict, optional
        wrt : Node or list of Node, optional
            All trainable variables that are not fed, if not given.

        Returns
        -------
        dict
            ``{node: (dim,)}``.

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
        if not isinstance(loss, (CrossEntropyWithSoftMax, MeanSquaredError)):
            raise GraphError(f"ggn_diagonal is of a CrossEntropyWithSoftMax or a MeanSquaredError, not of {loss}")
        outputs, labels = loss.parents
        values = self.forward([outputs, labels], feeds)  # type: ignore[attr-defined]
        return self._per_sample(outputs, feeds, wrt, _hessian_root(loss, *values))._squares()

    def _values(self, records: TaskGraph, keys: list[Ref]) -> list[Any]:
        submit = self.executor.submit_line if len(keys) == 1 else self.executor.submit
        handles = submit(records.records, [ref.key for ref in keys])
        try:
            return self.executor.result(handles)
        finally:
            self.executor.release(handles)


def _scalar(loss: Node) -> None:
    if isinstance(loss, Node) and loss.dim != 1:
        raise GraphError(f"the loss {loss} is not a scalar: it has dim {loss.dim}, it must have dim 1")


def _hessian_root(loss: Node, outputs: Array, labels: Array) -> Array:
    """Return ``S`` as a seed ``(V, N, dim)``, one row per column of it, with ``S Sᵀ`` the loss's Hessian by its first operand."""
    samples, dim = outputs.shape
    eye = np.eye(dim, dtype=outputs.dtype)[:, None, :]
    if isinstance(loss, MeanSquaredError):
        return np.array(np.broadcast_to(eye * np.sqrt(2.0 / dim).astype(eye.dtype), (dim, samples, dim)))
    p = softmax(outputs)
    weight = np.sqrt(p.T * labels.sum(axis=1))[..., None]  # (dim, N, 1)
    return weight * (eye - p)


def vectors_of(what: str, node: Node, value: Any, feeds: Feeds) -> Array:
    """Return a vector that is given for a node, ``(1, dim)`` or ``(N, dim)``, checked."""
    try:
        array = np.asarray(value, feeds.dtype)
    except (TypeError, ValueError):
        raise FeedError(f"{what} is not an array of numbers") from None
    if array.shape == (node.dim,):
        return array[None]
    if array.shape != (feeds.samples, node.dim):
        raise FeedError(
            f"{what} for {node} has shape {array.shape}; it must be ({node.dim},) or ({feeds.samples}, {node.dim})"
        )
    return array


def tangents_of(graph: Any, given: Any, feeds: Feeds) -> dict[Variable, Array]:
    """Return directions by variable, checked."""
    if not isinstance(given, Mapping) or not given:
        raise FeedError("directions are given as a dict {variable: array (dim,)} of at least one variable")
    found = {}
    for v, value in given.items():
        if not isinstance(v, Variable) or v.graph is not graph:
            raise FeedError(f"a direction is given for a variable of the graph, not for {v!r}")
        found[v] = vectors_of("the direction", v, value, feeds)
        if len(found[v]) > 1 and v not in feeds.arrays:
            raise FeedError(f"{v} is shared by all samples: its direction must be ({v.dim},), not {found[v].shape}")
    return found


def flat_tangents(program: Program, moved: Mapping[Variable, Array], feeds: Feeds) -> dict[int, Array]:
    """Return the tangents of the program's inputs, by variable."""
    found: dict[int, Array] = {}
    param = input_var(program, "param")
    if param is not None:
        flat = found[param] = np.zeros((1, program.types[param].dim), feeds.dtype)
        for v, tangent in moved.items():
            if v.index in program.layout and v not in feeds.arrays:
                flat[:, slice(*program.layout[v.index][1:])] = tangent
    for v in moved:
        var = input_var(program, "feed", v.index)
        if var is not None:
            found[var] = moved[v]
    return found


def cut_tangents(flat: dict[int, Array], start: int, stop: int, samples: int) -> dict[int, Array]:
    """Return the tangents of some samples."""
    return {var: t[start:stop] if len(t) == samples and samples > 1 else t for var, t in flat.items()}

"""Local Jacobians: the derivative of one node by one of its parents, kept as kind + factor.

Notation used throughout: a *cotangent* ``g`` has shape ``(V, N, out)``: ``V`` rows of the result's Jacobian, ``N`` samples.
Factors carry the samples on axis 0; ``N == 1`` means the factor is shared by all samples. The kind is known before any
data exists, the factor is a small array made from forward values. Dense local Jacobians are never built on the way.

Reverse mode pulls cotangents from a node to its parents; forward mode pushes tangents ``(V, N, in)`` from parents to the node.
A pulled cotangent can stay *split* into two factors, ``delta ⊗ row``: the per-sample gradient of a layer is never built unless
somebody wants to see it.

For the algebra see A. Griewank and A. Walther, *Evaluating Derivatives*, 2nd ed., SIAM 2008, chapter 3 (vector modes).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Index = slice | Array


class LocalJacobian(ABC):
    """Derivative of a node by one parent, ``(out, in)`` for each sample, stored as a small factor."""

    @abstractmethod
    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Pull a cotangent back through the node: ``(V, N, out) -> (V, N, in)``, each sample by itself; into `out`, if given."""

    def pull_sum(self, g: Array, out: Array | None = None) -> Array:
        """Pull back and sum over the samples: ``(V, N, out) -> (V, 1, in)``.

        Kinds whose per-sample block would be large override this with one matrix product.
        """
        return self.pull(g).sum(axis=1, keepdims=True, out=out)

    def split(self, g: Array) -> list[tuple[Array, Array | None]]:
        """Return the pulled cotangent as factors: per row and sample it is the sum of ``delta ⊗ row``, row-major.

        Returns
        -------
        list of (delta, row)
            ``delta`` is ``(V, N, k)``, ``row`` is ``(N, n)`` or None; ``k * n`` is the length of the parent. None stands for
            ``n == 1`` and a row of ones.
        """
        return [(self.pull(g), None)]

    def push(self, t: Array, out_dim: int) -> Array:
        """Push a tangent forward through the node: ``(V, N, in) -> (V, N, out)``.

        The general rule builds the dense Jacobian; every kind here has a better one.
        """
        m = self.dense(out_dim)
        samples = max(len(m), t.shape[1])
        m, t = np.broadcast_to(m, (samples, *m.shape[1:])), np.broadcast_to(t, (len(t), samples, t.shape[2]))
        return np.einsum("noi,vni->vno", m, t).astype(t.dtype, copy=False)

    def dense(self, out_dim: int) -> Array:
        """Return the Jacobian as an array ``(N, out, in)``; for looking at, never used on the way.

        Parameters
        ----------
        out_dim : int
            Length of the node's value; kinds such as `Identity` do not store it.
        """
        rows = self.pull(np.eye(out_dim)[:, None, :])
        return np.swapaxes(rows, 0, 1)


class Identity(LocalJacobian):
    """``dy/dx = I``: the cotangent passes through unchanged (Add).

    Examples
    --------
    >>> Identity().dense(2)[0].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return `g` itself."""
        if out is None:
            return g
        out[...] = g
        return out

    def push(self, t: Array, out_dim: int) -> Array:
        """Return `t` itself."""
        return t


class Diagonal(LocalJacobian):
    """``dy/dx = diag(d)`` (every elementwise op).

    Parameters
    ----------
    d : ndarray (N, n) or number
        Diagonal per sample; a number stands for a multiple of the identity.
    """

    def __init__(self, d: Array | float):
        self.d = d

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return ``g * d``."""
        return np.multiply(g, self.d, out)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return ``t * d``."""
        return t * self.d


class Selection(LocalJacobian):
    """``y[rows] = x[cols]``: entries are picked or placed (Slice, Vectorize).

    Parameters
    ----------
    in_dim : int
        Length of the parent.
    rows, cols : slice or int array
        Positions in the node's value and in the parent's value; an entry of `cols` may repeat, its cotangents add up.
    """

    def __init__(self, in_dim: int, rows: Index = slice(None), cols: Index = slice(None)):
        self.in_dim = in_dim
        self.rows = rows
        self.cols = cols

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Read the rows of `g`, scatter them to the columns of a zero cotangent."""
        picked = g[:, :, self.rows]
        if isinstance(self.cols, slice) and self.cols == slice(None):
            return Identity().pull(picked, out)
        if out is None:
            out = np.zeros((*g.shape[:2], self.in_dim), g.dtype)
        else:
            out[...] = 0
        if isinstance(self.cols, slice):
            out[:, :, self.cols] = picked
        else:
            index: Any = (slice(None), slice(None), self.cols)
            np.add.at(out, index, picked)
        return out

    def push(self, t: Array, out_dim: int) -> Array:
        """Read the columns of `t`, place them at the rows of a zero tangent."""
        picked = t[:, :, self.cols]
        if picked.shape[2] == out_dim and isinstance(self.rows, slice):
            return picked
        out = np.zeros((*t.shape[:2], out_dim), t.dtype)
        out[:, :, self.rows] = picked
        return out


class Outer(LocalJacobian):
    """``dy/dx = I_k ⊗ row``: the node is ``k`` dot products with one row (Dot, Sum, MatVec by its matrix).

    Per sample the pulled cotangent is the outer product ``g ⊗ row``; summed over the samples it is ONE matrix product.

    Parameters
    ----------
    row : ndarray (N, n)
        The row shared by the ``k`` outputs; the parent has length ``k * n``, row-major.
    """

    def __init__(self, row: Array):
        self.row = row

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return the outer product of each sample's cotangent with its row."""
        return _blocks(g, self.row[:, None, :], out)

    def pull_sum(self, g: Array, out: Array | None = None) -> Array:
        """Return ``sum_n g_n ⊗ row_n`` as one matrix product ``gᵀ @ row``."""
        v, _, k = g.shape
        if len(self.row) == 1:
            return self.pull(g.sum(axis=1, keepdims=True), out)
        n = self.row.shape[1]
        target = None if out is None else out.reshape(v, k, n)
        return np.matmul(np.swapaxes(g, 1, 2), self.row, target).reshape(v, 1, k * n)

    def split(self, g: Array) -> list[tuple[Array, Array | None]]:
        """Return `g` and the row: they are the factors."""
        return [(g, self.row)]

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the `k` dot products of the tangent with the row."""
        v, n = t.shape[:2]
        wide = t.reshape(v, n, out_dim, -1)
        if len(self.row) == 1:
            return wide @ self.row[0]
        return np.einsum("vnki,ni->vnk", np.broadcast_to(wide, (v, len(self.row), *wide.shape[2:])), self.row)


class Dense(LocalJacobian):
    """``dy/dx = m``, an explicit matrix per sample (MatVec by its vector).

    Parameters
    ----------
    m : ndarray (N, out, in)
        For `MatVec` this is a view of the matrix, no copy.
    """

    def __init__(self, m: Array):
        self.m = m

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return ``g @ m``; one plain matrix product when `m` is shared by the samples."""
        if len(self.m) == 1:
            if out is None or len(out) == 1 or not np.swapaxes(out, 0, 1).flags.c_contiguous:
                return np.matmul(g, self.m[0], out)
            # Laid out sample by sample: one product over samples and rows, not one for each row with gaps between its results.
            left = np.ascontiguousarray(np.swapaxes(g, 0, 1)).reshape(-1, g.shape[2])
            np.matmul(left, self.m[0], np.swapaxes(out, 0, 1).reshape(-1, out.shape[2]))
            return out
        return np.einsum("vno,noi->vni", np.broadcast_to(g, (len(g), len(self.m), g.shape[2])), self.m, out=out)

    def pull_sum(self, g: Array, out: Array | None = None) -> Array:
        """Return the sum over the samples as one matrix product."""
        samples, k, n = self.m.shape
        if samples == 1:
            return self.pull(g.sum(axis=1, keepdims=True), out)
        return np.matmul(g.reshape(len(g), 1, samples * k), self.m.reshape(-1, n), out)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return ``m @ t``; one plain matrix product when `m` is shared by the samples."""
        if len(self.m) == 1:
            return t @ self.m[0].T
        return np.einsum("noi,vni->vno", self.m, np.broadcast_to(t, (len(t), len(self.m), t.shape[2])))


class Rows(LocalJacobian):
    """``y_i`` depends on the ``i``-th stretch of the parent alone, by the row ``m_i`` (RowDot).

    Parameters
    ----------
    m : ndarray (N, k, n)
        One row per output; the parent has length ``k * n``.
    """

    def __init__(self, m: Array):
        self.m = m

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return each row times its entry of the cotangent."""
        return _blocks(g, self.m, out)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the dot product of each stretch of the tangent with its row."""
        return (t.reshape(*t.shape[:2], *self.m.shape[1:]) * self.m).sum(axis=3)


class OuterSum(LocalJacobian):
    """The node is ``r`` products of one matrix with ``r`` vectors, this is its derivative by the matrix (BatchMatVec).

    Per sample the pulled cotangent is a sum of ``r`` outer products, summed over the samples ONE matrix product.

    Parameters
    ----------
    rows : ndarray (N, r, n)
        The vectors; the node has length ``r * k``, the parent ``k * n``.
    """

    def __init__(self, rows: Array):
        self.rows = rows

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return the sum of the outer products of each sample."""
        _, r, n = self.rows.shape
        turned = np.swapaxes(g.reshape(*g.shape[:2], r, -1), 2, 3)
        target = None if out is None else out.reshape(*out.shape[:2], turned.shape[2], n)
        found = np.matmul(turned, self.rows, target)
        return found.reshape(*found.shape[:2], -1)

    def pull_sum(self, g: Array, out: Array | None = None) -> Array:
        """Return the sum over samples and vectors as one matrix product."""
        samples, r, n = self.rows.shape
        if samples == 1:
            return self.pull(g.sum(axis=1, keepdims=True), out)
        turned = np.swapaxes(g.reshape(len(g), samples * r, -1), 1, 2)
        target = None if out is None else out.reshape(len(g), turned.shape[1], n)
        return np.matmul(turned, self.rows.reshape(-1, n), target).reshape(len(g), 1, -1)

    def split(self, g: Array) -> list[tuple[Array, Array | None]]:
        """Return a pair for each vector."""
        r = self.rows.shape[1]
        stretches = g.reshape(*g.shape[:2], r, -1)
        return [(stretches[:, :, k], self.rows[:, k]) for k in range(r)]

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the tangent of the matrix times every vector."""
        n = self.rows.shape[2]
        found = np.matmul(self.rows, np.swapaxes(t.reshape(*t.shape[:2], -1, n), 2, 3))
        return found.reshape(*found.shape[:2], out_dim)


class Blocks(LocalJacobian):
    """``dy/dx = I_r ⊗ m``: the same matrix for each of ``r`` vectors laid end to end (BatchMatVec by its vectors).

    Parameters
    ----------
    m : ndarray (N, k, n)
        The node has length ``r * k``, the parent ``r * n``.
    """

    def __init__(self, m: Array):
        self.m = m

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return every stretch of the cotangent times the matrix."""
        _, k, n = self.m.shape
        stretches = g.reshape(*g.shape[:2], -1, k)
        if len(self.m) == 1 and (out is None or out.flags.c_contiguous):  # one plain matrix product
            target = None if out is None else out.reshape(-1, n)
            return np.matmul(stretches.reshape(-1, k), self.m[0], target).reshape(*g.shape[:2], -1)
        found = np.matmul(stretches, self.m, None if out is None else out.reshape(*out.shape[:2], -1, n))
        return found.reshape(*found.shape[:2], -1)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the matrix times every stretch of the tangent."""
        n = self.m.shape[2]
        found = np.matmul(t.reshape(*t.shape[:2], -1, n), np.swapaxes(self.m, 1, 2))
        return found.reshape(*found.shape[:2], -1)


class SoftMaxJacobian(LocalJacobian):
    """``dy/dx = diag(p) - p pᵀ`` for ``p = softmax(x)``; pulled as ``p * (g - (g·p))``.

    Parameters
    ----------
    p : ndarray (N, n)
        The probabilities.
    """

    def __init__(self, p: Array):
        self.p = p

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return ``p * (g - g·p)`` without building the ``n x n`` matrix."""
        return np.multiply(self.p, g - (g * self.p).sum(axis=2, keepdims=True), out)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the same: the matrix is symmetric."""
        return self.pull(t)


class SoftMaxTangent(LocalJacobian):
    """Tangent of `SoftMaxJacobian`: ``diag(q) - q pᵀ - p qᵀ`` for the tangent `q` of the probabilities `p`.

    Parameters
    ----------
    p, q : ndarray (N, n)
    """

    def __init__(self, p: Array, q: Array):
        self.p = p
        self.q = q

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return ``q * (g - g·p) - p * (g·q)``."""
        along_p, along_q = ((g * v).sum(axis=2, keepdims=True) for v in (self.p, self.q))
        return np.subtract(self.q * (g - along_p), self.p * along_q, out)


def _blocks(g: Array, rows: Array, out: Array | None) -> Array:
    """Return ``g_i row_i`` for every entry of the cotangent, end to end."""
    if out is None:
        block = g[..., None] * rows
        return block.reshape(*block.shape[:2], -1)
    np.multiply(g[..., None], rows, out.reshape(*out.shape[:2], g.shape[2], -1))
    return out

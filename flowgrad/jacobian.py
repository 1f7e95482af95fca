"""Local Jacobians: the derivative of one node by one of its parents, kept as kind + factor.

Notation used throughout: a *cotangent* ``g`` has shape ``(V, N, out)``: ``V`` rows of the result's Jacobian, ``N`` samples.
Factors carry the samples on axis 0; ``N == 1`` means the factor is shared by all samples. The kind is known before any
data exists, the factor is a small array made from forward values. Dense local Jacobians are never built on the way.

For the algebra see A. Griewank and A. Walther, *Evaluating Derivatives*, 2nd ed., SIAM 2008, chapter 3 (vector reverse mode).
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
            return np.matmul(g, self.m[0], out)
        return np.einsum("vno,noi->vni", np.broadcast_to(g, (len(g), len(self.m), g.shape[2])), self.m, out=out)

    def pull_sum(self, g: Array, out: Array | None = None) -> Array:
        """Return the sum over the samples as one matrix product."""
        samples, k, n = self.m.shape
        if samples == 1:
            return self.pull(g.sum(axis=1, keepdims=True), out)
        return np.matmul(g.reshape(len(g), 1, samples * k), self.m.reshape(-1, n), out)


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
        target = None if out is None else out.reshape(*out.shape[:2], -1, n)
        if len(self.m) == 1:
            plain = None if target is None else target.reshape(-1, n)
            return np.matmul(stretches.reshape(-1, k), self.m[0], plain).reshape(*g.shape[:2], -1)
        found = np.matmul(stretches, self.m, target)
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


def _blocks(g: Array, rows: Array, out: Array | None) -> Array:
    """Return ``g_i row_i`` for every entry of the cotangent, end to end."""
    if out is None:
        block = g[..., None] * rows
        return block.reshape(*block.shape[:2], -1)
    np.multiply(g[..., None], rows, out.reshape(*out.shape[:2], g.shape[2], -1))
    return out

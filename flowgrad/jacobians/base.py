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
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from ..typing import Array

Index = slice | Array


class LocalJacobian(ABC):
    """Derivative of a node by one parent, ``(out, in)`` for each sample, stored as a small factor.

    Attributes
    ----------
    out_dim : int, or None
        Length of the node's value, where a node returned it.
    row_pull, row_push : static methods, or None
        For compiled kernels, where the factor is the one value that the op uses: ``row_pull(out, g, factor)`` writes what one
        sample pulls back, ``row_push(out, t, factor)`` what it pushes; plain loops over 1-d arrays.
    row_add : static method, or None
        In place of `row_pull`, where a sample reaches few entries of a large parent: ``row_add(out, g, factor)`` adds what it pulls
        back, so that a sum over samples is made in one place.
    """

    out_dim: int | None = None
    row_pull: ClassVar[Callable[..., None] | None] = None
    row_add: ClassVar[Callable[..., None] | None] = None
    row_push: ClassVar[Callable[..., None] | None] = None

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

    def dense(self, out_dim: int | None = None) -> Array:
        """Return the Jacobian as an array ``(N, out, in)``; for looking at, never used on the way.

        Parameters
        ----------
        out_dim : int, optional
            Length of the node's value; kinds such as `Identity` do not store it, but those that a node returned know it.
        """
        out_dim = self.out_dim if out_dim is None else out_dim
        if out_dim is None:
            raise ValueError(f"{self!r}: give dense(out_dim), the length of the node's value")
        rows = self.pull(np.eye(out_dim)[:, None, :])
        return np.swapaxes(rows, 0, 1)

    def __repr__(self) -> str:
        fields = [
            f"{name} {np.shape(value)}" if np.ndim(value) else f"{name}={value!r}"
            for name, value in vars(self).items()
            if name != "out_dim"
        ]
        return f"<{' '.join([type(self).__name__, ', '.join(fields)]).strip()}>"


class Symmetric(LocalJacobian):
    """A Jacobian that is its own transpose: tangents are pushed as cotangents are pulled."""

    def push(self, t: Array, out_dim: int) -> Array:
        """Return what is pulled for `t`."""
        return self.pull(t)


class Identity(Symmetric):
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


class Diagonal(Symmetric):
    """``dy/dx = diag(d)`` (every elementwise op).

    Parameters
    ----------
    d : ndarray (N, n) or number
        Diagonal per sample; a number stands for a multiple of the identity.

    Examples
    --------
    >>> Diagonal(np.array([[2.0, 3.0]])).pull(np.ones((1, 1, 2))).tolist()
    [[[2.0, 3.0]]]
    """

    def __init__(self, d: Array | float):
        self.d = d

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return ``g * d``."""
        d = self.d
        if isinstance(d, np.ndarray) and d.dtype == np.bool_ and len(g) > 1:
            d = d.astype(g.dtype)  # NumPy would do so once per row of `g`
        return np.multiply(g, d, out)


# Entries for each place from which on they are added up in one sum.
PASSES = 8


def add_at(out: Array, cols: Array, values: Array) -> None:
    """Add entries to those at `cols` of the last axis, in their order; `np.add.at` takes many times as long.

    What goes to one place is added up in as many passes as there are entries for it; in one sum where these are many, and for all
    places as many.
    """
    order = np.argsort(cols, kind="stable")
    placed = cols[order]
    first = np.flatnonzero(np.r_[True, placed[1:] != placed[:-1]])
    each = len(placed) // max(1, len(first))
    if each > PASSES and len(first) > 1 and (np.diff(np.r_[first, len(placed)]) == each).all():
        # Along an axis that is not the last one, and not alone, NumPy adds in order.
        out[..., placed[first]] += np.take(values, order.reshape(-1, each).T, axis=-1).sum(axis=-2)
        return
    rank = np.arange(len(placed)) - np.repeat(first, np.diff(np.r_[first, len(placed)]))
    for k in range(int(rank.max(initial=-1)) + 1):
        some = order[rank == k]
        out[..., cols[some]] += values[..., some]


class Still(LocalJacobian):
    """``dy/dx = 0``: the value moves in steps, if at all (Embedding by its index).

    Parameters
    ----------
    in_dim : int
        Length of the parent.
    """

    def __init__(self, in_dim: int):
        self.in_dim = in_dim

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return zeros."""
        if out is None:
            return np.zeros((*g.shape[:2], self.in_dim), g.dtype)
        out[...] = 0
        return out

    def push(self, t: Array, out_dim: int) -> Array:
        """Return zeros."""
        return np.zeros((*t.shape[:2], out_dim), t.dtype)

    @staticmethod
    def row_pull(out: Array, g: Array) -> None:
        """Write zeros."""
        for j in range(out.shape[0]):
            out[j] = 0

    row_push = row_pull


class Selection(LocalJacobian):
    """``y[rows] = x[cols]``: entries are picked or placed (Slice, Vectorize).

    Parameters
    ----------
    in_dim : int
        Length of the parent.
    rows, cols : slice or int array
        Positions in the node's value and in the parent's value; an entry of `cols` may repeat, its cotangents add up.

    Examples
    --------
    >>> Selection(3, cols=slice(1, 3)).pull(np.ones((1, 1, 2))).tolist()
    [[[0.0, 1.0, 1.0]]]
    """

    def __init__(self, in_dim: int, rows: Index = slice(None), cols: Index = slice(None)):
        self.in_dim = in_dim
        self.rows = rows
        self.cols = cols

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Read the rows of `g`, scatter them to the columns of a zero cotangent."""
        picked = g[:, :, self.rows]
        if isinstance(self.cols, slice) and self.cols == slice(None):
            return picked if out is None else Identity().pull(picked, out)
        if out is None:
            out = np.zeros((*g.shape[:2], self.in_dim), g.dtype)
        else:
            out[...] = 0
        if isinstance(self.cols, slice):
            out[:, :, self.cols] = picked
        else:
            add_at(out, self.cols, picked)
        return out

    def push(self, t: Array, out_dim: int) -> Array:
        """Read the columns of `t`, place them at the rows of a zero tangent."""
        picked = t[:, :, self.cols]
        if picked.shape[2] == out_dim and isinstance(self.rows, slice):
            return picked
        out = np.zeros((*t.shape[:2], out_dim), t.dtype)
        out[:, :, self.rows] = picked
        return out

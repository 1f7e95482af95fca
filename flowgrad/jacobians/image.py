"""Local Jacobians of convolutions and pooling: entries are picked into windows, and products are those of windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..typing import Array
from .base import Identity, LocalJacobian, add_at


def unfold(x: Array, index: Array) -> Array:
    """Return ``x[..., index]``, where a position beyond the last entry is zero."""
    padded = np.concatenate([x, np.zeros((*x.shape[:-1], 1), x.dtype)], axis=-1)
    return np.asarray(padded[..., index])


def fold(windows: Array, index: Array, dim: int) -> Array:
    """Add entries of windows to where `index` has them from: the transpose of `unfold`."""
    before = windows.shape[: windows.ndim - index.ndim]
    out = np.zeros((*before, dim + 1), windows.dtype)
    add_at(out, index.ravel(), windows.reshape(*before, -1))
    return out[..., :-1]


class ByKernel(LocalJacobian):
    """A convolution by its kernel: the transpose of its patches, in each group.

    Parameters
    ----------
    patches : ndarray (N, groups, positions, n)
    """

    def __init__(self, patches: Array):
        self.patches = patches

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return, in each group, the cotangents ``(channels, positions)`` times the patches."""
        _, groups, positions, _ = self.patches.shape
        product = g.reshape(*g.shape[:2], groups, -1, positions) @ self.patches
        return Identity().pull(product.reshape(*product.shape[:2], -1), out)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the convolution by the tangent."""
        _, groups, _, n = self.patches.shape
        product = t.reshape(*t.shape[:2], groups, -1, n) @ np.swapaxes(self.patches, 2, 3)
        return product.reshape(*product.shape[:2], -1)


class ByImage(LocalJacobian):
    """A convolution by what it is applied to: the kernel, from each position back to where its patch lies.

    Parameters
    ----------
    kernel : ndarray (N, groups, channels, n)
    index : int array (groups, positions, n)
        Where the patches' entries lie; `dim`, the length of the image, is zero around it.
    dim : int
    """

    def __init__(self, kernel: Array, index: Array, dim: int):
        self.kernel, self.index, self.dim = kernel, index, dim

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return the cotangents of all patches, added up where they overlap."""
        groups, positions, _ = self.index.shape
        wide = g.reshape(*g.shape[:2], groups, -1, positions)
        return Identity().pull(fold(np.swapaxes(wide, 3, 4) @ self.kernel, self.index, self.dim), out)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the convolution of the tangent."""
        product = self.kernel @ np.swapaxes(unfold(t, self.index), 3, 4)
        return product.reshape(*product.shape[:2], -1)


class Chosen(LocalJacobian):
    """``y_i = x[cols_i]``, where each sample chooses for itself (maxima of windows).

    Parameters
    ----------
    cols : int array (N, out)
    dim : int
        Length of the parent.
    """

    def __init__(self, cols: Array, dim: int):
        self.cols, self.dim = cols, dim

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Add entries to where they were chosen from."""
        samples = max(g.shape[1], len(self.cols))
        pulled = np.zeros((len(g), samples, self.dim), g.dtype)
        cols = np.broadcast_to(self.cols, (samples, g.shape[2]))
        where: Any = (slice(None), np.arange(samples)[:, None], cols)
        np.add.at(pulled, where, np.broadcast_to(g, (len(g), samples, g.shape[2])))
        return Identity().pull(pulled, out)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the entries that were chosen."""
        samples = max(t.shape[1], len(self.cols))
        wide, cols = np.broadcast_to(t, (len(t), samples, t.shape[2])), np.broadcast_to(self.cols, (samples, out_dim))
        return np.take_along_axis(wide, cols[None], axis=2)


class Averages(LocalJacobian):
    """``y_i = mean(x[index_i])`` (means of windows).

    Parameters
    ----------
    index : int array (out, size)
    dim : int
        Length of the parent.
    """

    def __init__(self, index: Array, dim: int):
        self.index, self.dim = index, dim

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Add an equal share to each entry of a window."""
        share = np.broadcast_to(g[..., None] / self.index.shape[1], (*g.shape, self.index.shape[1]))
        return Identity().pull(fold(share, self.index, self.dim), out)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the means of the tangent."""
        return np.asarray(t[..., self.index].mean(axis=-1))

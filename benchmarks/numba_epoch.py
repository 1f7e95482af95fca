"""The hand-written numba peer: forward, backward and Adam for one hidden layer, as loops around BLAS calls."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from benchmarks.setting import BETA_1, BETA_2, EPSILON, RATE

Array = np.ndarray[Any, Any]

LR, B1, B2, EPS = (np.float32(value) for value in (RATE, BETA_1, BETA_2, EPSILON))
ONE = np.float32(1.0)


@njit(error_model="numpy", nogil=True)
def _softmax_gradient(z: Array, y: Array, rows: Array) -> None:
    """Replace logits by the derivative of the mean loss."""
    share = ONE / np.float32(len(rows))
    for i in range(z.shape[0]):
        largest = z[i].max()
        total = np.float32(0.0)
        for j in range(z.shape[1]):
            z[i, j] = np.exp(z[i, j] - largest)
            total += z[i, j]
        for j in range(z.shape[1]):
            z[i, j] *= share / total
        z[i, y[rows[i]]] -= share


@njit(error_model="numpy", nogil=True)
def _adam(w: Array, g: Array, v: Array, s: Array) -> None:
    for i in range(w.size):
        v[i] = B1 * v[i] + (ONE - B1) * g[i]
        s[i] = B2 * s[i] + (ONE - B2) * (g[i] * g[i])
        w[i] -= LR * v[i] / np.sqrt(s[i] + EPS)


@njit(error_model="numpy", nogil=True)
def train(
    data: Array, y: Array, order: Array, hidden: int, classes: int, w: Array, g: Array, v: Array, s: Array
) -> None:
    """Train for one epoch; `w`, `g`, `v`, `s` are flat and change in place."""
    inputs, batch = data.shape[1], order.shape[1]
    i1, i2, i3 = inputs * hidden, inputs * hidden + hidden, inputs * hidden + hidden + hidden * classes
    w1, b1, w2, b2 = w[:i1].reshape(inputs, hidden), w[i1:i2], w[i2:i3].reshape(hidden, classes), w[i3:]
    g1, c1, g2, c2 = g[:i1].reshape(inputs, hidden), g[i1:i2], g[i2:i3].reshape(hidden, classes), g[i3:]
    x = np.empty((batch, inputs), np.float32)
    a, d = np.empty((batch, hidden), np.float32), np.empty((batch, hidden), np.float32)
    z = np.empty((batch, classes), np.float32)
    for k in range(order.shape[0]):
        rows = order[k]
        for i in range(batch):
            x[i] = data[rows[i]]
        np.dot(x, w1, a)
        for i in range(batch):
            for j in range(hidden):
                a[i, j] = max(a[i, j] + b1[j], np.float32(0.0))
        np.dot(a, w2, z)
        for i in range(batch):
            for j in range(classes):
                z[i, j] += b2[j]
        _softmax_gradient(z, y, rows)
        np.dot(a.T, z, g2)
        np.dot(z, w2.T, d)
        c1[:], c2[:] = 0.0, 0.0
        for i in range(batch):
            for j in range(classes):
                c2[j] += z[i, j]
            for j in range(hidden):
                d[i, j] = d[i, j] if a[i, j] > 0 else np.float32(0.0)
                c1[j] += d[i, j]
        np.dot(x.T, d, g1)
        _adam(w, g, v, s)

"""Every op once more in plain NumPy, and central differences of that: an oracle that shares no code."""

import math
from functools import reduce

import numpy as np


def _softmax(a):
    e = np.exp(a - a.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _log_softmax(a):
    return a - np.logaddexp.reduce(a, axis=1, keepdims=True)


def _vectorize(*parts, **_):
    n = max(len(part) for part in parts)
    return np.concatenate([np.broadcast_to(part, (n, part.shape[1])) for part in parts], axis=1)


def _matvec(w, x, **_):
    matrices = w.reshape(len(w), -1, x.shape[1])
    return np.stack([matrices[i % len(w)] @ x[i % len(x)] for i in range(max(len(w), len(x)))])


def _batch_matvec(w, xs, count, **_):
    return np.concatenate([_matvec(w, x) for x in np.split(xs, count, axis=1)], axis=1)


def _row_dot(a, b, rows):
    products = a * b
    return np.stack([part.sum(axis=1) for part in np.split(products, rows, axis=1)], axis=1)


def _matmul(a, b, k):
    a, b = _same_samples(a.reshape(len(a), -1, k), b.reshape(len(b), k, -1))
    return np.einsum("nik,nkj->nij", a, b).reshape(len(a), -1)


def _same_samples(*arrays):
    n = max(map(len, arrays))
    return [np.broadcast_to(a, (n, *a.shape[1:])) for a in arrays]


def _concat(*parts, axis, shapes):
    shaped = [part.reshape(len(part), *shape) for part, shape in zip(_same_samples(*parts), shapes)]
    return np.concatenate(shaped, axis + 1 if axis >= 0 else axis).reshape(len(shaped[0]), -1)


def _transpose(a, axes, order):
    order = range(len(axes))[::-1] if order is None else [k % len(axes) for k in order]
    return a.reshape(len(a), *axes).transpose(0, *(k + 1 for k in order)).reshape(len(a), -1)


def _broadcast(a, axes, to):
    inner = a.reshape(len(a), *(1,) * (len(to) - len(axes)), *axes)
    return np.broadcast_to(inner, (len(a), *to)).reshape(len(a), -1)


def _rows(f):
    return lambda a, rows=1: f(a.reshape(len(a) * rows, -1)).reshape(len(a), -1)


def _standardize(a):
    return (a - a.mean(axis=1, keepdims=True)) / np.sqrt(a.var(axis=1, keepdims=True) + 1e-5)


def _conv2d(w, x, image, kernel, stride, around, groups):
    """By loops over what the definition sums."""
    w, x = _same_samples(w.reshape(len(w), *kernel), x.reshape(len(x), *image))
    x = np.pad(x, ((0, 0), (0, 0), *around))
    out, inner, height, width = kernel
    rows, columns = ((x.shape[k + 2] - kernel[k + 2]) // stride[k] + 1 for k in (0, 1))
    y = np.empty((len(x), out, rows, columns))
    for o, r, c in np.ndindex(out, rows, columns):
        group = o // (out // groups)
        top, left = r * stride[0], c * stride[1]
        patch = x[:, group * inner : (group + 1) * inner, top : top + height, left : left + width]
        y[:, o, r, c] = (w[:, o] * patch).sum(axis=(1, 2, 3))
    return y.reshape(len(x), -1)


def _pool(reduce_):
    def pool(x, image, size, stride):
        x = x.reshape(len(x), *image)
        rows, columns = ((image[k + 1] - size[k]) // stride[k] + 1 for k in (0, 1))
        y = np.empty((len(x), image[0], rows, columns))
        for r, c in np.ndindex(rows, columns):
            top, left = r * stride[0], c * stride[1]
            y[:, :, r, c] = reduce_(x[:, :, top : top + size[0], left : left + size[1]], axis=(2, 3))
        return y.reshape(len(x), -1)

    return pool


def _embedding(table, index, sizes):
    tables, index = _same_samples(table.reshape(len(table), *sizes[:2]), np.rint(index).astype(int))
    return np.stack([rows[k].ravel() for rows, k in zip(tables, index)])


def _normal(a):
    return 0.5 * np.vectorize(math.erfc)(-a / math.sqrt(2.0))


# By op, on arrays (N, dim) of the parents and the attributes that the user gave.
FUNCTIONS = {
    "Add": lambda *values: reduce(np.add, values),
    "Subtract": lambda a, b: a - b,
    "Multiply": lambda *values: reduce(np.multiply, values),
    "Scale": lambda a, *, c: a * c,
    "Negative": lambda a: -a,
    "Exp": lambda a: np.exp(a),
    "Log": lambda a: np.log(a),
    "Reciprocal": lambda a: 1.0 / a,
    "Logistic": lambda a: 0.5 * (1.0 + np.tanh(0.5 * a)),
    "Tanh": lambda a: np.tanh(a),
    "ReLU": lambda a: np.where(a > 0, a, 0.0),
    "LeakyReLU": lambda a, *, slope: np.where(a > 0, a, slope * a),
    "Softplus": lambda a: np.logaddexp(0.0, a),
    "SiLU": lambda a: a / (1.0 + np.exp(-a)),
    "GELU": lambda a: a * _normal(a),
    "Step": lambda a: np.heaviside(a, 0.0),
    "Sqrt": lambda a: np.sqrt(a),
    "Abs": lambda a: np.abs(a),
    "Power": lambda a, *, p: np.power(a, p),
    "Maximum": lambda a, b: np.where(a > b, a, b),
    "Minimum": lambda a, b: np.where(a < b, a, b),
    "Mean": lambda a, **_: a.mean(axis=1, keepdims=True),
    "MatMul": _matmul,
    "OuterProduct": _matmul,
    "Concat": _concat,
    "Transpose": _transpose,
    "Broadcast": _broadcast,
    "Reshape": lambda a, **_: a,
    "Dot": lambda a, b: (a * b).sum(axis=1, keepdims=True),
    "MatVec": _matvec,
    "BatchMatVec": _batch_matvec,
    "Vectorize": _vectorize,
    "RowDot": _row_dot,
    "Slice": lambda a, start, stop, **_: a[:, start:stop],
    "Gather": lambda a, index, **_: np.stack([a[:, i] for i in index], axis=1),
    "Sum": lambda a, **_: a.sum(axis=1, keepdims=True),
    "SoftMax": _rows(_softmax),
    "LogSoftMax": _rows(_log_softmax),
    "Standardize": _rows(_standardize),
    "Conv2D": _conv2d,
    "MaxPool2D": _pool(np.max),
    "AveragePool2D": _pool(np.mean),
    "Embedding": _embedding,
    "Max": lambda a: a.max(axis=1, keepdims=True),
    "StopGradient": lambda a: a,
    "CrossEntropyWithSoftMax": lambda a, y: -(y * _log_softmax(a)).sum(axis=1, keepdims=True),
    "LogisticCrossEntropy": lambda a, y: y * np.logaddexp(0.0, -a) + (1.0 - y) * np.logaddexp(0.0, a),
    "Huber": lambda a, *, delta: np.where(np.abs(a) <= delta, a * a / 2, delta * (np.abs(a) - delta / 2)),
    "KullbackLeibler": lambda a, b: a * np.log(a / b),
    "MeanSquaredError": lambda a, b: ((a - b) ** 2).mean(axis=1, keepdims=True),
}

STEP = 1e-4


def central_differences(f, arrays, slot, step=STEP):
    """Return the Jacobian ``(N, out, in)`` of ``f(*arrays)`` by array `slot`, to fourth order."""
    columns = []
    for j in range(arrays[slot].shape[1]):

        def at(h, j=j):
            moved = [np.array(a, dtype=np.float64) for a in arrays]
            moved[slot][:, j] += h
            return f(*moved)

        columns.append((8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step))
    return np.stack(columns, axis=2)


def apply(node, values):
    """Return the value of `node` for the ``(N, dim)`` arrays of its parents."""
    return FUNCTIONS[type(node).__name__](*values, **node.attrs)


def evaluate(result, variables):
    """Return the value ``(N, dim)`` of node `result` for ``{variable: (N, dim)}``."""
    values = {}
    for node in result.graph.nodes[: result.index + 1]:
        values[node] = apply(node, [values[p] for p in node.parents]) if node.parents else variables[node]
    return values[result]


def jacobian(result, variable, variables, step=STEP):
    """Return d result / d variable ``(N, result.dim, variable.dim)`` at ``{variable: (N, dim)}``."""
    names = list(variables)
    return central_differences(
        lambda *arrays: evaluate(result, dict(zip(names, arrays))),
        list(variables.values()),
        names.index(variable),
        step,
    )

"""Every op once more in plain NumPy, and central differences of that: an oracle that shares no code."""

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


# By op, on arrays (N, dim) of the parents and the attributes that the user gave.
FUNCTIONS = {
    "Add": lambda a, b: a + b,
    "Subtract": lambda a, b: a - b,
    "Multiply": lambda a, b: a * b,
    "Scale": lambda a, *, c: a * c,
    "Negative": lambda a: -a,
    "Exp": lambda a: np.exp(a),
    "Log": lambda a: np.log(a),
    "Reciprocal": lambda a: 1.0 / a,
    "Logistic": lambda a: 0.5 * (1.0 + np.tanh(0.5 * a)),
    "Tanh": lambda a: np.tanh(a),
    "ReLU": lambda a: np.where(a > 0, a, 0.0),
    "Dot": lambda a, b: (a * b).sum(axis=1, keepdims=True),
    "MatVec": _matvec,
    "BatchMatVec": _batch_matvec,
    "Vectorize": _vectorize,
    "RowDot": _row_dot,
    "Slice": lambda a, start, stop, **_: a[:, start:stop],
    "Gather": lambda a, index, **_: np.stack([a[:, i] for i in index], axis=1),
    "Sum": lambda a, **_: a.sum(axis=1, keepdims=True),
    "SoftMax": _softmax,
    "LogSoftMax": lambda a: _log_softmax(a),
    "CrossEntropyWithSoftMax": lambda a, y: -(y * _log_softmax(a)).sum(axis=1, keepdims=True),
    "LogisticCrossEntropy": lambda a, y: y * np.logaddexp(0.0, -a) + (1.0 - y) * np.logaddexp(0.0, a),
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

"""Oracles for derivatives: the same graphs written for HIPS autograd, and helpers that count what ran."""

from functools import reduce

import autograd
import autograd.numpy as anp
import numpy as np
import strategies
from autograd.scipy.special import erf
from autograd.tracer import getval

import flowgrad as fg
from flowgrad.scheduler.executors import LocalExecutor
from flowgrad.scheduler.tasks.records import Task


def _softmax(a):
    e = anp.exp(a - anp.max(a))
    return e / anp.sum(e)


def _matvec(w, x, **_):
    return anp.dot(anp.reshape(w, (-1, x.shape[0])), x)


def _log_softmax(a):
    return a - anp.max(a) - anp.log(anp.sum(anp.exp(a - anp.max(a))))


def _softplus(a):
    return anp.logaddexp(0.0, a)


def _standardize(a):
    centred = a - anp.mean(a)
    return centred / anp.sqrt(anp.mean(centred**2) + 1e-5)


def _rows(f):
    """Apply to each of `rows` stretches."""
    return lambda a, rows=1: anp.concatenate([f(row) for row in anp.split(a, rows)])


def _concat(*parts, axis, shapes):
    return anp.ravel(anp.concatenate([anp.reshape(part, shape) for part, shape in zip(parts, shapes)], axis))


def _matmul(a, b, k):
    return anp.ravel(anp.dot(anp.reshape(a, (-1, k)), anp.reshape(b, (k, -1))))


def _conv2d(w, x, image, kernel, stride, around, groups):
    w, x = anp.reshape(w, kernel), anp.pad(anp.reshape(x, image), ((0, 0), *around), mode="constant")
    sizes = [(x.shape[k + 1] - kernel[k + 2]) // stride[k] + 1 for k in (0, 1)]
    y = []
    for o, r, c in np.ndindex(kernel[0], *sizes):
        first, (top, left) = o // (kernel[0] // groups) * kernel[1], (r * stride[0], c * stride[1])
        y.append(anp.sum(w[o] * x[first : first + kernel[1], top : top + kernel[2], left : left + kernel[3]]))
    return anp.array(y)


def _pool(reduce_):
    def pool(x, image, size, stride):
        x = anp.reshape(x, image)
        sizes = [(image[k + 1] - size[k]) // stride[k] + 1 for k in (0, 1)]
        y = []
        for k, r, c in np.ndindex(image[0], *sizes):
            y.append(reduce_(x[k, r * stride[0] : r * stride[0] + size[0], c * stride[1] : c * stride[1] + size[1]]))
        return anp.array(y)

    return pool


def _embedding(table, index, sizes):
    rows = anp.reshape(table, sizes[:2])[np.rint(getval(index)).astype(int)]
    return anp.ravel(rows) + 0.0 * anp.sum(index)


# On one sample: vectors.
FUNCTIONS = {
    "Add": lambda *values: reduce(anp.add, values),
    "Softplus": _softplus,
    "SiLU": lambda a: a * 0.5 * (1.0 + anp.tanh(0.5 * a)),
    "GELU": lambda a: 0.5 * a * (1.0 + erf(a / np.sqrt(2.0))),
    "LeakyReLU": lambda a, *, slope: a * ((a > 0) + slope * (a <= 0)),
    "Abs": lambda a: a * anp.sign(a),
    "Step": lambda a: (a > 0) + 0.0 * a,
    "StopGradient": lambda a: anp.array(getval(a)),
    "Sqrt": anp.sqrt,
    "Power": lambda a, *, p: a**p,
    "Maximum": lambda a, b: a * (a > b) + b * (a <= b),
    "Minimum": lambda a, b: a * (a < b) + b * (a >= b),
    "Mean": lambda a, **_: anp.reshape(anp.mean(a), (1,)),
    "Max": lambda a: anp.reshape(anp.max(a), (1,)),
    "MatMul": _matmul,
    "OuterProduct": _matmul,
    "Concat": _concat,
    "Transpose": lambda a, axes, order: anp.ravel(anp.transpose(anp.reshape(a, axes), order)),
    "Broadcast": lambda a, axes, to: anp.ravel(anp.reshape(a, axes) + np.zeros(to)),
    "Reshape": lambda a, **_: a,
    "Standardize": _rows(_standardize),
    "Embedding": _embedding,
    "Conv2D": _conv2d,
    "MaxPool2D": _pool(anp.max),
    "AveragePool2D": _pool(anp.mean),
    "Subtract": lambda a, b: a - b,
    "Multiply": lambda *values: reduce(anp.multiply, values),
    "Scale": lambda a, *, c: a * c,
    "Negative": lambda a: -a,
    "Exp": anp.exp,
    "Log": anp.log,
    "Reciprocal": lambda a: 1.0 / a,
    "Logistic": lambda a: 0.5 * (1.0 + anp.tanh(0.5 * a)),
    "Tanh": anp.tanh,
    "ReLU": lambda a: a * (a > 0),
    "Dot": lambda a, b: anp.reshape(anp.dot(a, b), (1,)),
    "MatVec": _matvec,
    "BatchMatVec": lambda w, xs, count, **_: anp.concatenate([_matvec(w, x) for x in anp.split(xs, count)]),
    "Vectorize": lambda *parts, **_: anp.concatenate(parts),
    "RowDot": lambda a, b, rows: anp.sum(anp.reshape(a * b, (rows, -1)), axis=1),
    "Slice": lambda a, start, stop, **_: a[start:stop],
    "Gather": lambda a, index, **_: a[np.array(index)],
    "Sum": lambda a, **_: anp.reshape(anp.sum(a), (1,)),
    "SoftMax": _rows(_softmax),
    "LogSoftMax": _rows(_log_softmax),
    "CrossEntropyWithSoftMax": lambda a, y: anp.reshape(-anp.sum(y * _log_softmax(a)), (1,)),
    "LogisticCrossEntropy": lambda a, y: anp.logaddexp(0.0, a) - a * y,
    "Huber": lambda a, *, delta: anp.where(anp.abs(a) <= delta, a * a / 2, delta * (anp.abs(a) - delta / 2)),
    "KullbackLeibler": lambda a, b: a * (anp.log(a) - anp.log(b)),
    "MeanSquaredError": lambda a, b: anp.reshape(anp.mean((a - b) ** 2), (1,)),
}


def evaluate(result, values):
    """Return the value of `result` on one sample for ``{node: vector}``; nodes in it are not computed."""
    found = dict(values)
    for node in result.graph.nodes[: result.index + 1]:
        if node not in found:
            if not node.parents:
                continue
            found[node] = FUNCTIONS[type(node).__name__](*(found[p] for p in node.parents), **node.attrs)
    return found[result]


def jacobians(made, result, wrt):
    """Return the Jacobians ``(N, result.dim, wrt.dim)`` of a random graph by HIPS autograd."""
    rows = []
    for i in range(made.samples):
        values = {v: a[i if len(a) > 1 else 0] for v, a in made.variables.items()}
        at = np.array(evaluate(wrt, values)) if wrt.parents else values[wrt].astype(float)
        rows.append(autograd.jacobian(lambda x, values=values: evaluate(result, {**values, wrt: x}))(at))
    return np.stack(rows).reshape(made.samples, result.dim, wrt.dim)


def mean_loss(made, loss, flat, wrt):
    """Return the mean of `loss` over the samples at the flat vector of the variables `wrt`."""
    total, start, moved = 0.0, 0, {}
    for v in wrt:
        moved[v] = flat[start : start + v.dim]
        start += v.dim
    for i in range(made.samples):
        values = {v: a[i if len(a) > 1 else 0] for v, a in made.variables.items()}
        total = total + evaluate(loss, {**values, **moved})[0]
    return total / made.samples


class Counting(LocalExecutor):
    """The local executor, which remembers the keys of the tasks that it ran."""

    def __init__(self, threads=True):
        super().__init__(threads)
        self.ran = []

    def _count(self, records):
        self.ran += [key for key, r in records.items() if isinstance(r, Task)]

    def submit(self, records, keys):
        self._count(records)
        return super().submit(records, keys)

    def submit_line(self, records, keys, **how):
        self._count(records)
        return super().submit_line(records, keys, **how)

    def take(self):
        """Return the keys since the last time."""
        ran, self.ran = self.ran, []
        return ran


OPS = {
    "Add": ("ab",), "Subtract": ("ab",), "Multiply": ("ab",), "Dot": ("ab",), "MeanSquaredError": ("ab",),
    "CrossEntropyWithSoftMax": ("ab",), "Negative": ("a",), "Exp": ("a",), "Log": ("a",), "Reciprocal": ("a",),
    "Logistic": ("a",), "Tanh": ("a",), "ReLU": ("a",), "Sum": ("a",), "SoftMax": ("a",), "LogSoftMax": ("a",),
    "LogisticCrossEntropy": ("ab",), "Scale": ("a", -1.5),
    "Slice": ("a", 1, 3), "Gather": ("a", (2, 0, 2)), "RowDot": ("ab", 2), "MatVec": ("ma",), "Vectorize": ("aba",),
    "BatchMatVec": ("ma", 2), "Softplus": ("a",), "SiLU": ("a",), "GELU": ("a",), "LeakyReLU": ("a", 0.2), "Abs": ("a",),
    "Step": ("a",), "Power": ("a", 2), "Maximum": ("ab",), "Minimum": ("ab",), "Mean": ("a",), "Max": ("a",),
    "OuterProduct": ("ab",), "Standardize": ("a",), "Broadcast": ("a", (2, 4)), "Reshape": ("a", (2, 2)),
    "Transpose": ("a", lambda a: fg.Transpose(a.reshape(2, 2))), "MatMul": ("ma", lambda m, a: m.reshape(4, 2) @ a.reshape(2, 2)),
    "Concat": ("ab", lambda a, b: fg.Concat(a.reshape(2, 2), b.reshape(2, 2), axis=1)),
    "Conv2D": ("ma", lambda m, a: fg.Conv2D(m.reshape(2, 1, 2, 2), a.reshape(1, 2, 2), padding=1)),
    "MaxPool2D": ("a", lambda a: fg.MaxPool2D(a.reshape(1, 2, 2), (1, 2), 1)),
    "AveragePool2D": ("a", lambda a: fg.AveragePool2D(a.reshape(1, 2, 2), (2, 1), 1)),
    "Huber": ("a", 0.7), "KullbackLeibler": ("ab", lambda a, b: fg.KullbackLeibler(a * a, b * b)),
    "Sqrt": ("a", lambda a: fg.Sqrt(a * a)), "Embedding": ("mk", lambda m, k: fg.Embedding(m.reshape(4, 2), k)),
}  # fmt: skip


def same(actual, desired, tolerance=1e-9):
    scale = max(1.0, np.abs(desired).max())
    np.testing.assert_allclose(actual / scale, desired / scale, rtol=0, atol=tolerance)


def built(op, *operands):
    rest = OPS[op][1:]
    return rest[0](*operands) if rest and callable(rest[0]) else getattr(fg, op)(*operands, *rest)


def one_op(op, fed, samples=3):
    rng = np.random.default_rng(3)
    made = strategies.RandomGraph(fg.Graph(), {}, samples)
    with made.graph:
        variables = {}
        for name, dim in {"a": 4, "b": 4, "m": 8, "k": 3}.items():
            n = samples if name in fed else 1
            array = rng.uniform(0.5, 1.5, (n, dim)) * rng.choice([1, 1] if op == "Log" else [-1, 1], (n, dim))
            array = rng.integers(0, 4, (n, dim)) if name == "k" else array
            variables[name] = fg.Variable(dim, array[0], trainable=name not in fed, name=name)
            made.values[variables[name]] = array
            if name in fed:
                made.feeds[variables[name]] = array
        made.result = made.loss = built(op, *(variables[c] for c in OPS[op][0]))
    if not made.feeds:
        made.samples = 1
    return made, variables


def explicit(made, wrt):
    """Return the gradients by HIPS autograd, laid end to end, ``(N, P)``."""
    return np.concatenate([jacobians(made, made.loss, v)[:, 0] for v in wrt], axis=1)


class Shared:
    """Four patches share weights and biases; a dense layer follows. 9 samples."""

    def __init__(self, units):
        rng = np.random.default_rng(0)
        self.samples = 9
        with fg.Graph(seed=0) as self.graph:
            self.x = [fg.Variable(5, trainable=False) for _ in range(4)]
            self.label = fg.Variable(2, trainable=False)
            w = [fg.Variable(5, rng.normal(size=5)) for _ in range(units)]
            b = fg.Variable(1, [0.3])
            hidden = fg.Tanh(fg.Vectorize(*(fg.Dot(wj, x) + b for wj in w for x in self.x)))
            out = fg.Vectorize(
                *(fg.Dot(fg.Variable(hidden.dim, rng.normal(size=hidden.dim)), hidden) for _ in range(2))
            )
            self.loss = fg.CrossEntropyWithSoftMax(out, self.label)
        self.feeds = {x: rng.normal(size=(9, 5)) for x in self.x} | {self.label: np.eye(2)[rng.integers(0, 2, 9)]}

    @property
    def variables(self):
        every = [v for v in self.graph.nodes if isinstance(v, fg.Variable)]
        return {v: self.feeds[v] if v in self.feeds else v.value[None] for v in every}

"""Oracles for derivatives: the same graphs written for HIPS autograd, and helpers that count what ran."""

import autograd
import autograd.numpy as anp
import numpy as np
import strategies

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


# On one sample: vectors.
FUNCTIONS = {
    "Add": lambda a, b: a + b,
    "Subtract": lambda a, b: a - b,
    "Multiply": lambda a, b: a * b,
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
    "SoftMax": _softmax,
    "LogSoftMax": _log_softmax,
    "CrossEntropyWithSoftMax": lambda a, y: anp.reshape(-anp.sum(y * _log_softmax(a)), (1,)),
    "LogisticCrossEntropy": lambda a, y: anp.logaddexp(0.0, a) - a * y,
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
        at = np.array(evaluate(wrt, values)) if wrt.parents else values[wrt]
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
    "BatchMatVec": ("ma", 2),
}  # fmt: skip


def same(actual, desired, tolerance=1e-9):
    scale = max(1.0, np.abs(desired).max())
    np.testing.assert_allclose(actual / scale, desired / scale, rtol=0, atol=tolerance)


def one_op(op, fed, samples=3):
    rng = np.random.default_rng(3)
    made = strategies.RandomGraph(fg.Graph(), {}, samples)
    with made.graph:
        variables = {}
        for name, dim in {"a": 4, "b": 4, "m": 8}.items():
            n = samples if name in fed else 1
            array = rng.uniform(0.5, 1.5, (n, dim)) * rng.choice([1, 1] if op == "Log" else [-1, 1], (n, dim))
            variables[name] = fg.Variable(dim, array[0], trainable=name not in fed, name=name)
            made.values[variables[name]] = array
            if name in fed:
                made.feeds[variables[name]] = array
        operands, *rest = OPS[op]
        made.result = made.loss = getattr(fg, op)(*(variables[c] for c in operands), *rest)
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

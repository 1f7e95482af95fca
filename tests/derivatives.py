"""Oracles for derivatives: the same graphs written for HIPS autograd, and helpers that count what ran."""

import autograd
import autograd.numpy as anp
import numpy as np
from autograd.tracer import getval

from flowgrad.scheduler.executors import LocalExecutor
from flowgrad.scheduler.tasks.records import Task


def _softmax(a):
    e = anp.exp(a - anp.max(a))
    return e / anp.sum(e)


def _matvec(w, x, **_):
    return anp.dot(anp.reshape(w, (-1, x.shape[0])), x)


def _cross_entropy(a, y):
    """The 1e-10 under the logarithm counts in the value and in the Jacobian by the labels; that by the logits leaves it out."""
    p, fixed = _softmax(a), getval(y)
    there = np.log(getval(p) + 1e-10)
    left_out = getval(fixed) * (np.log(getval(p)) - there)
    return -anp.sum(fixed * anp.log(p)) - anp.sum((y - fixed) * there) + np.sum(left_out)


def plain_cross_entropy(a, y):
    """The value, with the 1e-10, for second derivatives: the constants above hide the mixed ones."""
    return anp.reshape(-anp.sum(y * anp.log(_softmax(a) + 1e-10)), (1,))


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
    "CrossEntropyWithSoftMax": lambda a, y: anp.reshape(_cross_entropy(a, y), (1,)),
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

"""A hypothesis strategy for random graphs over all public ops, at values that differences can resolve."""

from __future__ import annotations

from dataclasses import dataclass, field

import mirror
import numpy as np
from hypothesis import strategies as st

import flowgrad as fg

LIMIT = 6.0  # larger values are squashed: differences of steep functions are too coarse to compare with
KINK = 0.05  # ReLU is not differentiable at 0; its arguments stay this far away
PAIRS = ("Add", "Subtract", "Multiply", "Dot", "MeanSquaredError", "CrossEntropyWithSoftMax", "LogisticCrossEntropy")
CURVES = ("Softplus", "SiLU", "GELU", "LeakyReLU", "Abs", "Step")
SINGLES = ("Mean", "Negative", "Exp", "Log", "Reciprocal", "Logistic", "Tanh", "ReLU", "Sum", "SoftMax", "LogSoftMax")
OTHERS = (
    "Maximum",
    "Minimum",
    "Sqrt",
    "Power",
    "MatMul",
    "OuterProduct",
    "Concat",
    "Transpose",
    "Broadcast",
    "Reshape",
    "Scale",
    "Slice",
    "Gather",
    "MatVec",
    "BatchMatVec",
    "RowDot",
    "Vectorize",
    "Embedding",
)
OPS = (*PAIRS, *SINGLES, *CURVES, *OTHERS)
# Sibling units of a layer are drawn more often: they are what fusion looks for.
MOVES = (*OPS, "neurons", "neurons", "patches")


@dataclass
class RandomGraph:
    """A graph, feeds for its inputs, a vector node and a scalar node."""

    graph: fg.Graph
    feeds: dict[fg.Variable, np.ndarray]
    samples: int
    result: fg.Node | None = None
    loss: fg.Node | None = None
    values: dict[fg.Node, np.ndarray] = field(default_factory=dict)  # by the mirror, (N or 1, dim)

    @property
    def variables(self):
        """Every variable with its array ``(N or 1, dim)``."""
        return {node: self.values[node] for node in self.graph.nodes if not node.parents}

    @property
    def parameters(self):
        return [v for v in self.variables if v.trainable]

    def set_sample(self, i):
        for variable, array in self.feeds.items():
            variable.set_value(array[i])

    def _repr_pretty_(self, printer, cycle):
        printer.text(repr(self))  # what hypothesis shows of a failing example

    def __repr__(self):
        lines = [f"{self.samples} samples"]
        for node in self.graph.nodes:
            operands = ", ".join(p.name for p in node.parents)
            role = "" if node.parents else (" fed" if node in self.feeds else f" = {self.values[node][0]}")
            call = f"{type(node).__name__}({operands})"
            lines.append(f"  {node.name} = {call} {node.attrs or ''} dim {node.dim}{role}")
        return "\n".join(lines)


class _Builder:
    def __init__(self, draw, samples, seed):
        self.draw = draw
        self.rng = np.random.default_rng(seed)
        self.made = RandomGraph(fg.Graph(seed=0), {}, samples)

    def add(self, node):
        self.made.values[node] = mirror.apply(node, [self.made.values[p] for p in node.parents])
        return node

    def call(self, kind, *operands):
        return self.add(getattr(fg, kind)(*operands))

    def parameter(self, dim, value=None, trainable=True):
        value = self.rng.uniform(-1.5, 1.5, dim) if value is None else value
        node = fg.Variable(dim, value, trainable=trainable)
        self.made.values[node] = np.array(value, dtype=float).reshape(1, node.dim)
        return node

    def feed(self, dim):
        node = fg.Variable(dim, trainable=False)
        self.made.values[node] = self.made.feeds[node] = self.rng.uniform(-1.5, 1.5, (self.made.samples, dim))
        return node

    def indices(self, dim, below):
        """Return a variable that picks rows: fed, or set."""
        if self.draw(st.booleans()):
            return self.parameter(dim, self.rng.integers(0, below, dim), trainable=False)
        node = fg.Variable(dim, trainable=False)
        self.made.values[node] = self.made.feeds[node] = self.rng.integers(0, below, (self.made.samples, dim))
        return node

    def pick(self, nodes=None):
        return self.draw(st.sampled_from(list(self.made.values) if nodes is None else nodes))

    def partner(self, dim, shape=None):
        """Return a node of this dim: one that is there (perhaps the very same) or a new variable; of a shape, if one is given."""
        there = [node for node in self.made.values if node.dim == dim]
        chosen = self.draw(st.sampled_from([*there, None]))
        node = self.parameter(dim) if chosen is None else chosen
        return node if shape in (None, node.shape) else self.call("Reshape", node, shape)

    def label(self, kind, node):
        """Return a label: what is fed as one is checked when a training begins."""
        return self.call("Logistic", node) if "CrossEntropy" in kind and node in self.made.feeds else node

    def largest(self, node):
        return np.abs(self.made.values[node]).max()

    def tamed(self, node, limit=LIMIT):
        return node if self.largest(node) <= limit else self.call("Tanh", node)

    def positive(self, node):
        floor = self.parameter(node.shape, self.rng.uniform(0.5, 1.0, node.shape), trainable=False)
        return self.call("Add", self.call("Multiply", node, node), floor)

    def off_the_kink(self, node):
        values = self.made.values[node]
        for shift in (0.0, 0.11, -0.13, 0.31, -0.29, 0.71, -0.67, 2 * LIMIT):
            if np.abs(values + shift).min() > KINK:
                break
        return self.call("Add", node, self.parameter(node.shape, np.full(node.shape, shift))) if shift else node

    def grow(self):
        move = self.draw(st.sampled_from(MOVES))
        node = getattr(self, move)() if move in ("neurons", "patches") else self.op(move)
        return self.tamed(node)

    def op(self, kind):
        a = self.pick()
        if kind == "Exp":
            a = self.tamed(a, 2.5)
        if kind == "CrossEntropyWithSoftMax" and a.dim == 1:  # which it refuses
            kind = "LogisticCrossEntropy"
        if kind in PAIRS:
            return self.call(kind, a, self.label(kind, self.partner(a.dim, a.shape)))
        if kind in ("Log", "Reciprocal", "Sqrt"):
            return self.call(kind, self.positive(a))
        if kind == "Power":
            power = self.draw(st.sampled_from([2, 3, -1, 0.5, 2.5]))
            return self.call(kind, a if power in (2, 3) else self.positive(a), power)
        if kind in ("ReLU", "LeakyReLU", "Abs", "Step"):
            return self.call(kind, self.off_the_kink(a))
        if kind in ("SoftMax", "LogSoftMax") and self.draw(st.booleans()):
            matrix = self.shaped("Reshape", a)
            return self.add(getattr(fg, kind)(matrix))
        if kind in ("Maximum", "Minimum"):  # whose operands stay apart
            b = self.partner(a.dim, a.shape)
            difference = self.off_the_kink(self.call("Subtract", a, b))
            return self.call(kind, self.call("Add", b, difference), b)
        if kind == "OuterProduct":
            return self.call(kind, a, self.parameter(self.draw(st.integers(1, 3))))
        if kind in ("MatMul", "Transpose", "Broadcast", "Reshape", "Concat"):
            return self.shaped(kind, a)
        if kind == "Slice":
            start = self.draw(st.integers(0, a.dim - 1))
            return self.call(kind, a, start, self.draw(st.integers(start + 1, a.dim)))
        if kind == "Gather":
            return self.call(kind, a, self.draw(st.lists(st.integers(0, a.dim - 1), min_size=1, max_size=4)))
        if kind == "Scale":
            return self.call(kind, a, self.draw(st.sampled_from([-1.5, 0.0, 0.3, 2.0])))
        if kind == "RowDot":
            rows = [r for r in (1, 2, 3, 4) if a.dim % r == 0]
            return self.call(kind, a, self.partner(a.dim), self.draw(st.sampled_from(rows)))
        if kind == "MatVec":
            dim = a.dim * self.draw(st.integers(1, 3))
            return self.call(kind, self.partner(dim, (dim,)), a)
        if kind == "BatchMatVec":
            count = self.draw(st.sampled_from([r for r in (1, 2, 3, 4) if a.dim % r == 0]))
            return self.call(kind, self.partner(a.dim // count * self.draw(st.integers(1, 3))), a, count)
        if kind == "Embedding":
            table = self.shaped("Reshape", a)
            return self.call(kind, table, self.indices(self.draw(st.integers(1, 3)), table.shape[0]))
        if kind == "Vectorize":
            count = self.draw(st.integers(1, 3))
            return self.call(kind, a, *[self.pick() for _ in range(count - 1)])
        return self.call(kind, a)

    def shaped(self, kind, a):
        """An op on a node that knows two axes."""
        rows = self.draw(st.sampled_from([r for r in (1, 2, 3, 4) if a.dim % r == 0]))
        matrix = self.call("Reshape", a, (rows, -1))
        if kind == "Reshape":
            return matrix
        if kind == "Transpose":
            return self.call(kind, matrix)
        if kind == "Broadcast":
            return self.call(kind, matrix, (self.draw(st.integers(1, 2)), *matrix.shape))
        if kind == "Concat":
            return self.add(fg.Concat(matrix, matrix, axis=self.draw(st.sampled_from([0, 1, -1]))))
        n = self.draw(st.integers(1, 3))
        other = self.call("Reshape", self.partner(matrix.shape[1] * n), (matrix.shape[1], n))
        return self.call(kind, matrix, other)

    def neurons(self):
        """A layer of Dot (+ Add) units; some share weights or biases, the collecting order is arbitrary."""
        x = self.pick()
        count = self.draw(st.integers(1, 4))
        biased = self.draw(st.booleans())
        regular = self.draw(st.booleans())
        w, b = self.parameter(x.dim), self.parameter(1)
        units = []
        for _ in range(count):
            swapped = not regular and self.draw(st.booleans())
            unit = self.call("Dot", *((x, w) if swapped else (w, x)))
            units.append(self.call("Add", unit, b) if biased else unit)
            if regular or self.draw(st.booleans()):
                w = self.parameter(x.dim)
            if regular or self.draw(st.booleans()):
                b = self.parameter(1)
        if not regular:
            units = self.draw(st.lists(st.sampled_from(units), min_size=1, max_size=4))
        return self.call("Vectorize", *units)

    def patches(self):
        """The same units applied to several vectors: shared weights, written as matrices or unit by unit."""
        x = self.pick()
        xs = [x, *(self.partner(x.dim) for _ in range(self.draw(st.integers(1, 2))))]
        rows = self.draw(st.integers(1, 3))
        bias = self.parameter(rows) if self.draw(st.booleans()) else None
        if self.draw(st.booleans()):
            w = self.parameter(rows * x.dim)
            layers = [self.call("MatVec", w, x) for x in xs]
        else:
            ws = [self.parameter(x.dim) for _ in range(rows)]
            layers = [self.call("Vectorize", *[self.call("Dot", w, x) for w in ws]) for x in xs]
        return self.call("Vectorize", *[self.call("Add", y, bias) if bias else y for y in layers])

    def finish(self, node):
        made = self.made
        if self.draw(st.booleans()):  # everything that nobody reads yet, so that no part of the graph is idle
            node = self.call("Vectorize", *[n for n in list(made.values) if not n.children])
        made.result = node
        made.loss = node
        if node.dim > 1:
            kind = self.draw(st.sampled_from(["Sum", "Dot", "MeanSquaredError"]))
            made.loss = self.call(kind, *([node] if kind == "Sum" else [node, self.partner(node.dim)]))
        return made


@st.composite
def graphs(draw, max_moves=7, samples=None):
    """Draw a `RandomGraph`: fed and unfed inputs, parameters, repeated parents, slices, nested layers."""
    n = draw(st.integers(1, 4)) if samples is None else samples
    builder = _Builder(draw, n, draw(st.integers(0, 999)))
    dims = st.integers(1, 4)
    with builder.made.graph:
        for _ in range(draw(st.integers(1, 2))):
            builder.feed(draw(dims))
        for _ in range(draw(st.integers(1, 2))):
            builder.parameter(draw(dims))
        if draw(st.booleans()):  # an input that is not fed: one value for all samples
            builder.parameter(draw(dims), trainable=False)
        node = builder.grow()
        for _ in range(draw(st.integers(0, max_moves - 1))):
            node = builder.grow()
        return builder.finish(node)


def close(actual, desired, tolerance=1e-6):
    """Compare with central differences: relative to the largest entry, or to 1 where that is smaller."""
    scale = max(1.0, np.abs(desired).max())
    np.testing.assert_allclose(actual / scale, desired / scale, rtol=0, atol=tolerance)

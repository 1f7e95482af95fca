"""Every op, loss and optimizer beside what PyTorch has in its place: values and derivatives in double precision.

The tables know PyTorch by name only, so they can be read without it: ``tests/repository/test_benchmarks.py`` holds them against
what flowgrad has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from benchmarks.setting import Array

Shape = tuple[int, ...]
Operands = tuple[list[tuple[str, Shape]], dict[str, Any]]
Draw = Callable[[np.random.Generator], Operands]

TRIES, SAMPLES = 8, 3
UPDATES, BATCH = 10, 4
# What is larger, relative to the largest entry, is no rounding.
LIMIT = 1e-12
FIXED = ("index",)


@dataclass(frozen=True)
class Case:
    """An op beside its peer.

    Attributes
    ----------
    peer : str
        A function, below ``torch`` or, with a dot in front, ``torch.nn.functional``.
    draw : callable
        Returns at random what operands there are, a kind of numbers (see `numbers`) and a shape each, and further arguments.
    call : callable, optional
        How to call the peer, of it, operands and further arguments; the same way as the op if not given.
    own : callable, optional
        How to call the op, likewise.
    note : str
        Where definitions differ on purpose, or what was said for them not to.
    flat : bool
        Where the function is flat, its derivative is a difference of numbers that are almost equal, such as ``1 - y²``: errors of
        the gradient are relative to the cotangent, if that is larger.
    """

    peer: str
    draw: Draw
    call: Callable[..., Any] = lambda f, *operands, **more: f(*operands, **more)
    own: Callable[..., Any] = lambda op, *operands, **more: op(*operands, **more)
    note: str = ""
    flat: bool = False


def axes(r: Any, least: int = 1, most: int = 3) -> Shape:
    """Draw a shape."""
    return tuple(map(int, r.integers(1, 6, r.integers(least, most + 1))))


def same(*kinds: str, least: int = 1, **choices: Sequence[Any]) -> Draw:
    """Return how operands of one shape are drawn, and arguments out of what there is to choose."""

    def draw(r: Any) -> Operands:
        shape = axes(r, least)
        return [(kind, shape) for kind in kinds], {
            name: several[int(r.integers(len(several)))] for name, several in choices.items()
        }

    return draw


def lengths(*kinds: str, **choices: Sequence[Any]) -> Draw:
    """Return how vectors of one length are drawn, of two entries or more."""

    def draw(r: Any) -> Operands:
        operands, more = same(*kinds, **choices)(r)
        n = int(r.integers(2, 9))
        return [(kind, (n,)) for kind, _ in operands], more

    return draw


def along(r: Any) -> Operands:
    """Draw an operand and one of its axes."""
    shape = tuple(map(int, r.integers(2, 6, r.integers(1, 4))))
    return [("real", shape)], {"axis": int(r.integers(-len(shape), len(shape)))}


def matrices(r: Any) -> Operands:
    """Draw the operands of a matrix product."""
    m, k, n = map(int, r.integers(1, 7, 3))
    return [("real", (m, k)), ("real", (k, n))], {}


def rows(r: Any) -> Operands:
    """Draw two operands that are several vectors laid end to end."""
    k, n = map(int, r.integers(1, 6, 2))
    return [("real", (k * n,))] * 2, {"rows": k}


def vectors(r: Any) -> Operands:
    """Draw a matrix and several vectors."""
    k, n, count = map(int, r.integers(1, 6, 3))
    return [("real", (k * n,)), ("real", (count * n,))], {"count": count}


def convolution(r: Any) -> Operands:
    """Draw kernels and an image."""
    groups, inputs, outputs, high, wide = map(int, r.integers(1, 4, 5))
    stride = tuple(map(int, r.integers(1, 3, 2)))
    paddings = ["valid", 1, (2, 1)] + ["same"] * (stride == (1, 1))
    image = (groups * inputs, *map(int, r.integers(3, 8, 2)))
    more = {"stride": stride, "padding": paddings[r.integers(len(paddings))], "groups": groups}
    return [("real", (groups * outputs, inputs, high, wide)), ("real", image)], more


def pooled(r: Any) -> Operands:
    """Draw an image and windows, which may overlap."""
    size = tuple(map(int, r.integers(1, 4, 2)))
    stride = None if r.integers(2) else tuple(map(int, r.integers(1, 4, 2)))
    return [("real", tuple(map(int, r.integers(3, 8, 3))))], {"size": size, "stride": stride}


def picked(r: Any) -> Operands:
    """Draw a table and which of its rows."""
    n, dim, count = map(int, r.integers(1, 7, 3))
    return [("real", (n, dim)), ("index", (count, n))], {}


def normed(r: Any) -> Operands:
    """Draw an operand, and factors and shifts of its last axis."""
    shape = (*axes(r, 0, 2), int(r.integers(2, 7)))
    return [("real", shape), ("real", shape[-1:]), ("real", shape[-1:])], {}


def grouped(r: Any) -> Operands:
    """Draw an image, how many groups its channels make, and factors and shifts of channels."""
    groups = int(r.integers(1, 4))
    shape = (groups * int(r.integers(1, 3)), *map(int, r.integers(2, 5, 2)))
    return [("real", shape), ("real", shape[:1]), ("real", shape[:1])], {"groups": groups}


def measured(r: Any) -> Operands:
    """Draw an image, factors and shifts of its channels, and the means and variances that they had."""
    shape = axes(r, 3)
    more = {"mean": tuple(r.normal(size=shape[0])), "variance": tuple(np.exp(r.normal(size=shape[0])))}
    return [("real", shape), ("real", shape[:1]), ("real", shape[:1])], more


def with_statistics(op: Any, *operands: Any, mean: Any, variance: Any) -> Any:
    """Call `BatchNorm`, and tell it what it would measure."""
    y = op(*operands, name="bn")
    y.graph["bn.mean"].set_value(mean)
    y.graph["bn.variance"].set_value(variance)
    return y


def gathered(r: Any) -> Operands:
    """Draw a vector and positions in it, with repeats."""
    n = int(r.integers(1, 9))
    return [("real", (n,))], {"index": tuple(map(int, r.integers(0, n, r.integers(1, 9))))}


def sliced(r: Any) -> Operands:
    """Draw a vector and a range of it."""
    start, more, behind = map(int, r.integers(1, 5, 3))
    return [("real", (start + more + behind,))], {"start": start, "stop": start + more}


def joined(r: Any) -> Operands:
    """Draw operands that fit along an axis."""
    shape = axes(r)
    axis = int(r.integers(len(shape)))
    parts = [(*shape[:axis], int(n), *shape[axis + 1 :]) for n in r.integers(1, 5, r.integers(1, 4))]
    return [("real", part) for part in parts], {"axis": axis}


def repeated(r: Any) -> Operands:
    """Draw an operand and a shape that it broadcasts to."""
    shape = axes(r)
    return [("real", tuple(1 if r.integers(2) else n for n in shape))], {"shape": (*axes(r, 0, 1), *shape)}


def turned(r: Any) -> Operands:
    """Draw an operand and an order of its axes."""
    shape = axes(r)
    return [("real", shape)], {"order": tuple(map(int, r.permutation(len(shape))))}


def powers(r: Any) -> Operands:
    """Draw an operand, and an exponent that suits it."""
    p = (2.0, 3.0, -1.5, 0.5, 1.7, -2.0)[r.integers(6)]
    return [("real" if p in (2, 3) else "positive", axes(r))], {"p": p}


def numbers(r: Any, kind: str, shape: Shape) -> Array:
    """Draw numbers of a kind, for each sample its own."""
    many = (SAMPLES, *shape)
    if kind == "index":
        return r.integers(0, shape[1], (SAMPLES, shape[0]))
    if kind == "real":  # now and then far from 0, where some functions are steep or flat
        return r.normal(0, r.choice([0.3, 1.0, 8.0]), many)
    if kind == "positive":
        return np.exp(r.normal(size=many))
    if kind == "unit":
        return r.random(many)
    if kind == "signs":
        return r.choice([-1.0, 1.0], many)
    if kind == "counts":
        return r.poisson(2.0, many).astype(float)
    assert kind == "probabilities"
    drawn = np.exp(r.normal(size=many))
    return drawn / drawn.sum(axis=-1, keepdims=True)


def summed(f: Any, *w: Any, scale: float) -> Any:
    """Call a loss of PyTorch's for several operands and zeros."""
    return scale * reduce(lambda a, b: a + b, [f(v, v.detach() * 0, reduction="sum") for v in w])


CASES: dict[str, Case] = {
    "Abs": Case("abs", same("real")),
    "Add": Case("add", same("real", "real", "real"), lambda f, a, b, c: f(f(a, b), c)),
    "AveragePool2D": Case(".avg_pool2d", pooled, lambda f, x, size, stride: f(x[None], size, stride)),
    "BatchMatVec": Case(
        ".linear", vectors, lambda f, W, xs, count: f(xs.view(count, -1), W.view(-1, len(xs) // count))
    ),
    "BatchNorm": Case(
        ".batch_norm",
        measured,
        lambda f, a, *affine, **more: f(a[None], *map(a.new_tensor, more.values()), *affine),
        with_statistics,
        note="as PyTorch's is in `eval()`: flowgrad measures over all training samples, not over a mini-batch",
    ),
    "Broadcast": Case("broadcast_to", repeated, lambda f, a, shape: f(a, shape)),
    "Concat": Case("concat", joined, lambda f, *parts, axis: f(parts, axis)),
    "Conv2D": Case(
        ".conv2d",
        convolution,
        lambda f, W, x, **more: f(x[None], W, **more),
        note="with strides, PyTorch has no padding `same`; flowgrad's is TensorFlow's",
    ),
    "CrossEntropyWithSoftMax": Case(".cross_entropy", lengths("real", "probabilities")),
    "Dot": Case("dot", lengths("real", "real")),
    "Embedding": Case(".embedding", picked, lambda f, table, index: f(index, table)),
    "Exp": Case("exp", same("real")),
    "GELU": Case(".gelu", same("real"), note='the exact one; PyTorch\'s `approximate="tanh"` is another function'),
    "Gather": Case("take", gathered, lambda f, a, index: f(a, a.new_tensor(index).long())),
    "GroupNorm": Case(
        ".group_norm",
        grouped,
        lambda f, a, gain, shift, groups: f(a[None], groups, gain, shift),
        lambda op, a, gain, shift, groups: op(a, groups, gain, shift),
        flat=True,
    ),
    "Huber": Case(
        ".huber_loss",
        same("real", delta=(0.5, 1.0, 2.0)),
        lambda f, a, delta: f(a, a.detach() * 0, reduction="none", delta=delta),
    ),
    "KullbackLeibler": Case(".kl_div", same("unit", "unit"), lambda f, a, b: f(b.log(), a, reduction="none")),
    "LayerNorm": Case(".layer_norm", normed, lambda f, a, gain, shift: f(a, gain.shape, gain, shift), flat=True),
    "LeakyReLU": Case(".leaky_relu", same("real", slope=(0.01, 0.2, 1.5)), lambda f, a, slope: f(a, slope)),
    "Log": Case("log", same("positive")),
    "LogSoftMax": Case(".log_softmax", along, lambda f, a, axis: f(a, axis)),
    "Logistic": Case("sigmoid", same("real")),
    "LogisticCrossEntropy": Case(
        ".binary_cross_entropy_with_logits", same("real", "unit"), lambda f, a, b: f(a, b, reduction="none")
    ),
    "MatMul": Case("matmul", matrices),
    "MatVec": Case("mv", lambda r: ([("real", (m := axes(r, 2, 2))), ("real", m[1:])], {})),
    "Max": Case("max", same("real"), note="of equal ones the first; see below"),
    "MaxPool2D": Case(".max_pool2d", pooled, lambda f, x, size, stride: f(x[None], size, stride)),
    "Maximum": Case("maximum", same("real", "real")),
    "Mean": Case("mean", same("real")),
    "MeanSquaredError": Case(".mse_loss", same("real", "real")),
    "Minimum": Case("minimum", same("real", "real")),
    "Multiply": Case("mul", same("real", "real", "real"), lambda f, a, b, c: f(f(a, b), c)),
    "Negative": Case("neg", same("real")),
    "OuterProduct": Case("outer", lambda r: ([("real", axes(r, 1, 1)), ("real", axes(r, 1, 1))], {})),
    "Power": Case("pow", powers, lambda f, a, p: f(a, p)),
    "ReLU": Case("relu", same("real")),
    "Reciprocal": Case("reciprocal", same("positive")),
    "Reshape": Case(
        "reshape", same("real", to=((1, -1), (-1, 1, 1))), lambda f, a, to: f(a, to), lambda op, a, to: op(a, to)
    ),
    "RowDot": Case("linalg.vecdot", rows, lambda f, a, b, rows: f(a.view(rows, -1), b.view(rows, -1))),
    "Scale": Case("mul", same("real", c=(0.5, -3.0)), lambda f, a, c: f(a, c)),
    "SiLU": Case(".silu", same("real")),
    "Slice": Case("narrow", sliced, lambda f, a, start, stop: f(a, 0, start, stop - start)),
    "SoftMax": Case(".softmax", along, lambda f, a, axis: f(a, axis), flat=True),
    "Softplus": Case(
        ".softplus", same("real"), lambda f, a: f(a, threshold=700), note="PyTorch's own threshold, 20, leaves 2e-9 out"
    ),
    "Sqrt": Case("sqrt", same("positive")),
    "Standardize": Case(
        ".layer_norm",
        along,
        lambda f, a, axis: f(a.movedim(axis, -1).contiguous(), (a.shape[axis],)).movedim(-1, axis),
        flat=True,
    ),
    "Step": Case(
        "heaviside",
        same("real"),
        lambda f, a: f(a.detach(), a.new_zeros(1)),
        note="PyTorch has no derivative of it, here 0",
    ),
    "StopGradient": Case("Tensor.detach", same("real")),
    "Subtract": Case("sub", same("real", "real")),
    "Sum": Case("sum", same("real")),
    "Tanh": Case("tanh", same("real"), flat=True),
    "Transpose": Case("permute", turned, lambda f, a, order: f(a, order)),
    "Vectorize": Case("concat", joined, lambda f, *v, axis: f([a.ravel() for a in v]), lambda op, *v, axis: op(*v)),
    "losses.binary_cross_entropy": Case(".binary_cross_entropy_with_logits", same("real", "unit")),
    "losses.categorical_cross_entropy": Case(
        ".cross_entropy",
        lengths("real", "probabilities", smoothing=(0.0, 0.1)),
        lambda f, a, b, smoothing: f(a, b, label_smoothing=smoothing),
    ),
    "losses.hinge": Case(
        ".margin_ranking_loss",
        lengths("real", "signs"),
        lambda f, a, b: f(a, a.detach() * 0, b, margin=1.0),
        note="PyTorch's `hinge_embedding_loss` is something else",
    ),
    "losses.huber": Case(".huber_loss", same("real", "real", delta=(0.5, 1.0, 2.0))),
    "losses.kullback_leibler": Case(
        ".kl_div", lengths("probabilities", "probabilities"), lambda f, a, b: f(b.log(), a, reduction="sum")
    ),
    "losses.l1": Case(".l1_loss", same("real", "real", scale=(0.1, 2.0)), summed),
    "losses.l2": Case(".mse_loss", same("real", "real", scale=(0.1, 2.0)), summed),
    "losses.mean_absolute_error": Case(".l1_loss", same("real", "real")),
    "losses.mean_squared_error": Case(".mse_loss", same("real", "real")),
    "losses.perceptron_loss": Case(
        ".margin_ranking_loss", lengths("real", "signs"), lambda f, a, b: f(a, a.detach() * 0, b)
    ),
    "losses.poisson": Case(
        ".poisson_nll_loss",
        same("positive", "counts"),
        lambda f, a, b: f(a, b, log_input=False, eps=0),
        note="PyTorch adds 1e-8 to rates if nothing is said",
    ),
}


@dataclass(frozen=True)
class Updates:
    """An optimizer beside its peer, in ``torch.optim``; the loss is multiplied by `scale`.

    Where both add another small number to a denominator, gradients are so large that neither is seen, else so small that it is.
    """

    peer: str
    own: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    note: str = ""


EPSILONS = "flowgrad adds 1e-10 below the root"
FIRST = f"{EPSILONS}, PyTorch 1e-8 beside it; both begin with s = g² here"
MEANS = {"beta_1": 0.8, "beta_2": 0.95}, {"betas": (0.8, 0.95)}
CORRECTED = {**MEANS[0], "bias_correction": True}
OPTIMIZERS: dict[str, Updates] = {
    "GradientDescent": Updates("SGD"),
    "GradientDescent, weight_decay": Updates("SGD", {"weight_decay": 0.1}, {"weight_decay": 0.1}),
    "GradientDescent, clip_norm": Updates(
        "SGD", {"clip_norm": 0.01}, {"clip_norm": 0.01}, 1e8, "`clip_grad_norm_` adds 1e-6 to the norm"
    ),
    "GradientDescent, ema": Updates("SGD", {"ema": 0.7}, {"ema": 0.7}, 1.0, "`swa_utils.AveragedModel`"),
    "Momentum": Updates("SGD", {"momentum": 0.8}, {"momentum": 0.8}),
    "Nesterov": Updates("SGD", {"momentum": 0.8}, {"momentum": 0.8, "nesterov": True}),
    "AdaGrad": Updates("Adagrad", {}, {}, 1e8, f"{EPSILONS}, PyTorch beside it"),
    "RMSProp": Updates("RMSprop", {"beta": 0.8}, {"alpha": 0.8}, 1e8, FIRST),
    "RMSProp, momentum": Updates(
        "RMSprop", {"beta": 0.8, "momentum": 0.7}, {"alpha": 0.8, "momentum": 0.7}, 1e8, FIRST
    ),
    "Adam, bias_correction": Updates("Adam", CORRECTED, MEANS[1], 1e-7, "PyTorch has none without"),
    "Adam, weight_decay": Updates("Adam", {**CORRECTED, "weight_decay": 0.1}, {**MEANS[1], "weight_decay": 0.1}, 1e-2),
    "AdamW": Updates("AdamW", {**MEANS[0], "weight_decay": 0.1}, {**MEANS[1], "weight_decay": 0.1}, 1e-7),
    "AMSGrad": Updates("Adam", MEANS[0], {**MEANS[1], "amsgrad": True}, 1e-7),
}

# What PyTorch does not have, and why that is so.
ABSENT: dict[str, str] = {
    "Dropout": "PyTorch draws from another stream what it drops; outside of training both give the operand itself",
    "Noise": "PyTorch draws other numbers, and has no op that draws none outside of training",
    "Lion": "torch.optim has no Lion (Adafactor and Muon are other rules)",
}

# Where derivatives jump: op, what is special, operands, further arguments, and why PyTorch's is another, where it is.
TIES: list[tuple[str, str, list[list[float]], dict[str, Any], str]] = [
    ("Abs", "0", [[0.0]], {}, ""),
    ("ReLU", "0", [[0.0]], {}, ""),
    ("LeakyReLU", "0, slope 0.2", [[0.0]], {"slope": 0.2}, ""),
    ("Maximum", "1 and 1", [[1.0], [1.0]], {}, ""),
    ("Minimum", "1 and 1", [[1.0], [1.0]], {}, ""),
    (
        "Max",
        "2, 2, 1",
        [[2.0, 2.0, 1.0]],
        {},
        "the first has all, as in `MaxPool2D`; PyTorch's does so along an axis only",
    ),
    ("MaxPool2D", "2, 2, 1 in one window", [[2.0, 2.0, 1.0]], {"size": (1, 3), "stride": None}, ""),
    ("Huber", "delta itself", [[1.0]], {"delta": 1.0}, ""),
    ("KullbackLeibler", "0 and 0.5", [[0.0], [0.5]], {}, "a 0 is taken for 1e-37, so that training goes on"),
    ("Sqrt", "0", [[0.0]], {}, ""),
    ("Standardize", "2, 2", [[2.0, 2.0]], {"axis": -1}, ""),
    ("losses.hinge", "the margin", [[1.0], [1.0]], {}, "that of `ReLU` at 0; PyTorch's is that of `clamp`"),
    ("losses.perceptron_loss", "score 0", [[0.0], [1.0]], {}, "likewise"),
    ("losses.mean_absolute_error", "1 and 1", [[1.0], [1.0]], {}, ""),
]


@dataclass
class Trial:
    """Numbers for the operands of an op, a sample a row; `shared` ones have one row, which all samples use."""

    operands: list[Array]
    fixed: list[bool]
    shared: list[bool]
    more: dict[str, Any]
    random: np.random.Generator

    @property
    def shapes(self) -> str:
        """What was drawn, to be read."""
        return " ".join("x".join(map(str, a.shape[1:])) for a in self.operands)

    def sample(self, k: int) -> list[Array]:
        """Return the operands of one sample."""
        return [a[0 if one else k] for a, one in zip(self.operands, self.shared)]


def trials(case: Case, tries: int = TRIES) -> list[Trial]:
    """Draw operands; of several, samples share the first in every other trial, as they share weights."""
    random, drawn = np.random.default_rng(0), []
    for k in range(tries):
        kinds, more = case.draw(random)
        operands = [numbers(random, kind, shape) for kind, shape in kinds]
        fixed = [kind in FIXED for kind, _ in kinds]
        shared = [bool(slot == 0 and k % 2 and len(kinds) > 1) for slot in range(len(kinds))]
        drawn.append(Trial(operands, fixed, shared, more, random))
    return drawn


def own(name: str, case: Case, trial: Trial, nodes: Sequence[Any]) -> Any:
    """Return an op's node, as a vector."""
    import flowgrad as fg

    y = case.own(reduce(getattr, name.split("."), fg), *nodes, **trial.more)
    return y if y.shape == (y.dim,) else y.reshape(y.dim)


def variables(trial: Trial) -> list[Any]:
    """Return a variable for each operand."""
    import flowgrad as fg

    return [fg.Variable(a.shape[1:], trainable=not fixed) for a, fixed in zip(trial.operands, trial.fixed)]


Found = tuple[list[Array], list[list[Array]]]


def interpreted(name: str, case: Case, trial: Trial, cotangents: Array | None) -> Found:
    """Return values, and gradients by operand that is not fixed, sample by sample, from the interpreter."""
    import flowgrad as fg

    with fg.Graph():
        operands = variables(trial)
        for v, value in zip(operands, trial.sample(0)):
            v.set_value(value)  # some ops look at it
        y = own(name, case, trial, operands)
    values, gradients = [], []
    for k in range(SAMPLES):
        for v, value in zip(operands, trial.sample(k)):
            v.set_value(value)
        values.append(y.forward().copy())
        seed = np.ones(y.dim) if cotangents is None else cotangents[k]
        gradients.append([seed @ v.backward(y) for v, fixed in zip(operands, trial.fixed) if not fixed])
    return values, gradients


def compiled(name: str, case: Case, trial: Trial, cotangents: Array) -> tuple[Array, list[Array]]:
    """Return the values of all samples, and gradients summed over them, from a compiled program."""
    import flowgrad as fg

    with fg.Graph():
        nodes, by, feeds = [], [], {}
        for v, a, fixed, shared in zip(variables(trial), trial.operands, trial.fixed, trial.shared):
            moved = v if shared else fg.Variable(v.shape, "zeros")
            nodes.append(v if fixed or shared else v + moved)
            by += [] if fixed else [moved]
            if shared:
                v.set_value(a[0])
            else:
                feeds[v] = a
        y = own(name, case, trial, nodes)
        feeds[seed := fg.Variable(y.dim, trainable=False)] = cotangents
        loss = fg.Dot(y, seed)
    engine = fg.Engine("sync", kernel="numba")
    gradient = engine.gradient(loss, feeds, by)
    return engine.forward(y, feeds), [gradient[v] * SAMPLES for v in by]


def in_torch(case: Case, trial: Trial, cotangents: Array | None = None) -> Found:
    """Return what `interpreted` does, from PyTorch."""
    import torch

    f = reduce(getattr, ("nn.functional" + case.peer if case.peer[0] == "." else case.peer).split("."), torch)
    values, gradients = [], []
    for k in range(SAMPLES):
        operands = [torch.from_numpy(np.array(a)) for a in trial.sample(k)]
        by = [a.requires_grad_() for a, fixed in zip(operands, trial.fixed) if not fixed]
        y = case.call(f, *operands, **trial.more).reshape(-1)
        seed = torch.ones_like(y) if cotangents is None else torch.from_numpy(cotangents[k])
        found: Any = [None] * len(by)
        if y.requires_grad:
            found = torch.autograd.grad(y, by, seed, allow_unused=True)
        values.append(y.detach().numpy())
        gradients.append([np.zeros(a.numel()) if g is None else g.numpy().ravel() for g, a in zip(found, by)])
    return values, gradients


def error(found: Any, wanted: Any, least: float = 0.0) -> float:
    """Return the largest difference, relative to the largest entry, or to what that is at `least`."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return math.inf
    return float(np.abs(found - wanted).max()) / (max(float(np.abs(wanted).max()), least) or 1.0)


def compare(name: str, case: Case) -> tuple[list[str], list[float]]:
    """Return the shapes that were tried, and the largest errors: of values and gradients, interpreted and compiled."""
    shapes, worst = [], [0.0] * 4
    for trial in trials(case):
        dim = len(in_torch(case, trial)[0][0])
        cotangents = trial.random.normal(size=(SAMPLES, dim))
        values, gradients = in_torch(case, trial, cotangents)
        own_values, own_gradients = interpreted(name, case, trial, cotangents)
        together, own_sums = compiled(name, case, trial, cotangents)
        least = float(np.abs(cotangents).max()) if case.flat else 0.0
        pairs = [(a, b) for mine, other in zip(own_gradients, gradients) for a, b in zip(mine, other)]
        sums = [np.sum(each, axis=0) for each in zip(*gradients)]
        errors = (
            max(map(error, own_values, values)),
            error(together, values),
            max(error(a, b, least) for a, b in pairs),
            max(error(a, b, least) for a, b in zip(own_sums, sums)),
        )
        worst = [max(pair) for pair in zip(worst, errors)]
        shapes.append(trial.shapes)
    return shapes, worst


def ops_table(tell: Callable[[str], None]) -> list[str]:
    """Return a line for each op."""
    lines = [
        "| op | in PyTorch | operands tried | error of the value | of the gradient | verdict |",
        "|---|---|---|---:|---:|---|",
    ]
    for name, case in CASES.items():
        tell(f"ops: {name}")
        shapes, worst = compare(name, case)
        peer = f"nn.functional{case.peer}" if case.peer[0] == "." else case.peer
        lines.append(
            f"| {name} | `{peer}` | {', '.join(shapes)} | {worst[0]:.1e}, {worst[1]:.1e} | {worst[2]:.1e}, {worst[3]:.1e} "
            f"| {verdict(worst, case.note)} |"
        )
    return lines


def verdict(errors: Sequence[float], note: str) -> str:
    """Return whether errors are rounding."""
    return ("equal" if max(errors) <= LIMIT else "**differs**") + (f"; {note}" if note else "")


def ties_table() -> list[str]:
    """Return a line for each place where a derivative jumps."""
    lines = ["| op | at | derivative | in PyTorch | |", "|---|---|---|---|---|"]
    for name, where, operands, more, why in TIES:
        shapes = [(1, 1, len(a)) if name == "MaxPool2D" else (len(a),) for a in operands]
        arrays = [np.tile(np.reshape(a, shape), (SAMPLES, *[1] * len(shape))) for a, shape in zip(operands, shapes)]
        none = [False] * len(arrays)
        trial = Trial(arrays, none, none, more, np.random.default_rng(0))
        with np.errstate(all="ignore"):
            found = [interpreted(name, CASES[name], trial, None), in_torch(CASES[name], trial)]
        mine, other = (
            "; ".join(", ".join(f"{d + 0.0:.4g}" for d in by) for by in gradients[0]) for _, gradients in found
        )
        lines.append(
            f"| {name} | {where} | {mine} | {other} | {'the same' if mine == other else why or '**differs**'} |"
        )
    return lines


def data_of_updates() -> tuple[Array, Array, Array, Array]:
    """Return samples, targets, and first weights and biases."""
    r = np.random.default_rng(0)
    n = UPDATES * BATCH
    return r.normal(size=(n, 4)), r.normal(size=(n, 3)), r.normal(size=(3, 4)), r.normal(size=3)


def updated(name: str, case: Updates, engine: Any) -> Array:
    """Return the weights after some updates, by an engine or, without one, by the interpreter."""
    import flowgrad as fg

    samples, targets, W0, b0 = data_of_updates()
    with fg.Graph() as graph:
        x, t = fg.Variable(4, trainable=False), fg.Variable(3, trainable=False)
        W, b = fg.Variable((3, 4), W0), fg.Variable(3, b0)
        loss = case.scale * fg.MeanSquaredError(fg.Tanh(W @ x + b), t)
    optimizer = getattr(fg, name.partition(",")[0])(graph, loss, learning_rate=0.1, batch_size=BATCH, **case.own)
    if engine is None:
        for sample, target in zip(samples, targets):
            x.set_value(sample)
            t.set_value(target)
            optimizer.one_step()
    else:
        fg.Trainer(optimizer, engine, shuffle=False).fit({x: samples, t: targets}, epochs=1)
    if "ema" not in case.own:
        return np.concatenate([W.value.ravel(), b.value])
    with optimizer.averaged():
        return np.concatenate([W.value.ravel(), b.value])


def updated_in_torch(case: Updates) -> Array:
    """Return the weights after the same updates by PyTorch."""
    import torch

    samples, targets, W0, b0 = map(torch.from_numpy, data_of_updates())
    net = torch.nn.Linear(4, 3, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(W0)
        net.bias.copy_(b0)
    settings = dict(case.other)
    clip, ema = settings.pop("clip_norm", None), settings.pop("ema", None)
    optimizer = getattr(torch.optim, case.peer)(net.parameters(), lr=0.1, **settings)
    averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(ema or 0.0)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=averaging)
    for k in range(UPDATES):
        rows = slice(k * BATCH, (k + 1) * BATCH)
        optimizer.zero_grad()
        loss = case.scale * torch.nn.functional.mse_loss(torch.tanh(net(samples[rows])), targets[rows])
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        if case.peer == "RMSprop" and k == 0:  # a running mean that begins at its first term, as flowgrad's does
            for p in net.parameters():
                begin = {"step": torch.tensor(0.0), "square_avg": p.grad**2, "momentum_buffer": torch.zeros_like(p)}
                optimizer.state[p] = begin
        optimizer.step()
        average.update_parameters(net)
    found = average.module if ema else net
    return np.concatenate([found.weight.detach().numpy().ravel(), found.bias.detach().numpy()])


def optimizers_table() -> list[str]:
    """Return a line for each optimizer."""
    import flowgrad as fg

    lines = ["| optimizer | in PyTorch | error, of the way gone | verdict |", "|---|---|---:|---|"]
    begin = np.concatenate([a.ravel() for a in data_of_updates()[2:]])
    for name, case in OPTIMIZERS.items():
        wanted = updated_in_torch(case)
        found = [updated(name, case, engine) for engine in (None, fg.Engine("sync", kernel="numba"))]
        errors = [error(weights - begin, wanted - begin) for weights in found]
        settings = "".join(f", {key}={value}" for key, value in case.other.items())
        lines.append(
            f"| {name} | `{case.peer}{settings}` | {errors[0]:.1e}, {errors[1]:.1e} | {verdict(errors, case.note)} |"
        )
    return lines


def ops_report(tell: Callable[[str], None] = print) -> str:
    """Compare all, and return the tables."""
    try:
        import torch
    except ImportError:
        return "Nothing to compare with: PyTorch is not installed (extra `bench`)."
    torch.set_num_threads(1)
    table = ops_table(tell)
    ties, updates = ties_table(), optimizers_table()
    unequal = sum("**differs**" in line for line in table + ties + updates)
    flat = ", ".join(f"`{name}`" for name, case in CASES.items() if case.flat)
    return "\n".join(
        [
            f"Double precision, PyTorch {torch.__version__}. Of {len(CASES)} ops and losses, {len(TIES)} ties and "
            f"{len(OPTIMIZERS)} optimizers, {unequal or 'none'} differ without a reason.",
            "",
            f"Each op with {TRIES} drawings of shapes and arguments, {SAMPLES} samples each, which in every other drawing share "
            "the first of several operands; gradients are products of a random cotangent with the Jacobian by every operand. "
            "Errors are relative to the largest entry: first the interpreter's, then those of compiled programs; up to "
            f"{LIMIT} is rounding. Those of the gradients of {flat} are relative to the cotangent where that is larger: both "
            "libraries lose digits where `1 - y²` and its like are almost 0.",
            "",
            *table,
            "",
            *(f"* {name}: {why}" for name, why in ABSENT.items()),
            "",
            "Where a derivative jumps there is no right one, and each library chooses:",
            "",
            *ties,
            "",
            f"Optimizers, {UPDATES} updates of a layer of 15 weights at batch {BATCH}; errors are relative to the way from the "
            "first weights. Where denominators differ by definition, the loss is multiplied by 1e8, so that neither's small number "
            "is seen.",
            "",
            *updates,
        ]
    )


if __name__ == "__main__":
    print(ops_report())

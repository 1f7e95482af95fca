"""What is drawn at random while a graph is trained: by a hash of a key that each sample brings along, so the same everywhere.

A graph has one variable ``draws`` of three numbers, which hold the 64 bits of a sample's key (`draw_keys`). They are zeros, and
nothing is drawn, but in training. All arithmetic is exact or correctly rounded: NumPy and compiled loops give the same bits.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..errors import GraphError
from ..graph import Graph, Node, Variable, ancestors, current_graph, outside_scopes
from ..inputs import Shape, brief, real, shape_of
from ..jacobians import Diagonal, LocalJacobian, Still
from ..op import Op
from ..typing import Array
from .elementwise import Multiply

# Numbers that hold a key, and the bits of each: single precision knows whole numbers up to 2^24.
PARTS, BITS = 3, 22
# Steps of the hash: G. Steele, D. Lea and C. Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
GOLDEN, FIRST, SECOND = (np.uint64(k) for k in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
# Entries of a node before the numbers of the next one begin.
APART = np.uint64(1 << 32)
# The normal distribution's quantiles: M. Wichura, Algorithm AS 241, Applied Statistics 37, 1988; numerators, denominators.
CENTRE = (
    (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125, 45921.953931549871457,
     67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
    (1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077, 21213.794301586595867,
     39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
)  # fmt: skip
TAIL = (
    (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
     1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550, 0.148103976427480074590,
     0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
LN2, SQRT_HALF = 0.6931471805599453, 0.7071067811865476


def draw_keys(seed: int, update: int, first: int, count: int, dtype: Any = np.float64) -> Array:
    """Return the keys ``(count, 3)`` of samples from number `first` on of the mini-batch of an update, the first of which is 1.

    Fed as ``graph["draws"]`` they show what training drew.

    Examples
    --------
    >>> import flowgrad as fg
    >>> fg.draw_keys(seed=0, update=1, first=0, count=2)
    array([[1670767., 3456308.,  684141.],
           [  85854.,  792529.,  735274.]])
    """
    return keys_at(seed, np.array([update]), np.arange(first, first + count), dtype)


def keys_at(seed: int, updates: Array, places: Array, dtype: Any) -> Array:
    """Return the keys of samples, each by its update, or by the only one, and its place in the mini-batch; see `draw_keys`."""
    with np.errstate(over="ignore"):
        begin = _mixed(_mixed(np.array([seed]).astype(np.uint64)) + updates.astype(np.uint64) * GOLDEN)
        keys = _mixed(begin + (places + 1).astype(np.uint64) * GOLDEN)
    mask = np.uint64((1 << BITS) - 1)
    return np.stack([(keys >> np.uint64(k * BITS)) & mask for k in range(PARTS)], axis=1).astype(dtype)


def draws_of(target: Node) -> Variable | None:
    """Return the variable that what a node depends on is drawn from, if anything is."""
    return next((n.parents[n.draws_slot] for n in ancestors(target) if n.draws_slot is not None), None)  # type: ignore[return-value]


def _mixed(z: Any) -> Any:
    """Return 64 random bits for each number."""
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    return z ^ (z >> np.uint64(31))


def _start(draws: Any, node: Any) -> Any:
    """Return where a node's numbers begin, by the key of a sample, or of all (then `draws` has the samples last)."""
    low, middle, high = np.uint64(draws[0]), np.uint64(draws[1]), np.uint64(draws[2])
    key = low | middle << np.uint64(BITS) | high << np.uint64(2 * BITS)
    return key + np.uint64(node) * APART * GOLDEN


def _bits(draws: Array, node: int, dim: int) -> Array:
    """Return 64 random bits for each entry of each sample."""
    with np.errstate(over="ignore"):
        counts = np.arange(1, dim + 1, dtype=np.uint64) * GOLDEN
        return np.asarray(_mixed(_start(draws.T, node)[:, None] + counts))


def _ratio(parts: Any, r: Any) -> Any:
    """Return a ratio of polynomials."""
    top, bottom = parts
    over, under = top[7], bottom[7]
    for k in range(6, -1, -1):
        over = over * r + top[k]
        under = under * r + bottom[k]
    return over / under


def _logarithm(p: Any) -> Any:
    """Return ``log(p)`` for `p` from 2^-34 to 1."""
    exponent = p * 0.0
    for step in (32, 16, 8, 4, 2, 1):  # until it is from 1/2 to 1
        small = (p < 0.5**step) * 1.0
        p = p * (1.0 + small * (2.0**step - 1.0))
        exponent = exponent - small * step
    small = (p < SQRT_HALF) * 1.0
    p, exponent = p * (1.0 + small), exponent - small
    s = (p - 1.0) / (p + 1.0)
    z = s * s
    total = s * 0.0
    for k in range(21, 0, -2):
        total = total * z + 1.0 / k
    return exponent * LN2 + 2.0 * s * total


def _centre(q: Any) -> Any:
    """Return the quantile ``1/2 + q`` for `q` up to 0.425."""
    return q * _ratio(CENTRE, 0.180625 - q * q)


def _tail(p: Any) -> Any:
    """Return minus the quantile `p`, for small ones."""
    return _ratio(TAIL, np.sqrt(-_logarithm(p)) - 1.6)


def _quantiles(bits: Array) -> Array:
    """Return the normal distribution's quantiles of the upper 32 bits."""
    u = ((bits >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
    low = u < 0.5
    tail = _tail(np.where(low, u, 1.0 - u))
    return np.where(np.abs(u - 0.5) <= 0.425, _centre(u - 0.5), np.where(low, -tail, tail))


class Drawn(Op):
    """Base of what is drawn: an entry for each of `dim`, of one operand, the keys."""

    draws_slot = 0
    uses = ((),)
    kinds = (Still,)
    differentiable = False
    numbers: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def shape(*dims: int, dim: int, **attrs: Any) -> int:
        """Return how many entries are drawn."""
        return dim

    @staticmethod
    def jacobian(slot: int, y: Array, draws: Array, **attrs: Any) -> LocalJacobian:
        """Return zero."""
        return Still(PARTS)

    @staticmethod
    def jacobian_tangent(
        slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...], **attrs: Any
    ) -> LocalJacobian | None:
        """Return None: keys do not move."""
        return None


class Kept(Drawn):
    """What `Dropout` multiplies by: 0 with probability `rate`, else ``1 / (1 - rate)``; 1 where nothing is drawn."""

    numbers = ("node", "below", "scale")

    @staticmethod
    def apply(draws: Array, *, dim: int, node: int, below: int, scale: float) -> Array:
        """Return the factors."""
        kept = (_bits(draws, node, dim) >> np.uint64(40)).astype(np.int64) >= below
        factors = kept.astype(draws.dtype) * draws.dtype.type(scale)
        factors[~draws.any(axis=1)] = 1
        return factors

    @staticmethod
    def row_value(y: Array, draws: Array, numbers: Array) -> None:
        """Write the factors of one sample."""
        if draws[0] == 0 and draws[1] == 0 and draws[2] == 0:
            for j in range(y.shape[0]):
                y[j] = 1
            return
        count, below = _start(draws, numbers[0]), np.uint64(numbers[1])
        for j in range(y.shape[0]):
            count += GOLDEN
            y[j] = numbers[2] if _mixed(count) >> np.uint64(40) >= below else 0


class Dropout(Op):
    """`a`, of which training sets each entry to 0 with probability `rate` and divides the others by ``1 - rate``; elsewhere `a`.

    What is dropped follows from the trainer's seed, the node, the update and the sample's place in the mini-batch alone; see
    `draw_keys`.

    Parameters
    ----------
    a : Node
    rate : float
        From 0 up to, but without, 1.

    Raises
    ------
    GraphError
        If the rate is none.

    Notes
    -----
    N. Srivastava and others, *Dropout: a simple way to prevent neural networks from overfitting*, JMLR 15, 2014.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     y = fg.Dropout(fg.Variable(4, [1.0, 2.0, 3.0, 4.0]), 0.5)
    >>> y.forward().tolist()
    [1.0, 2.0, 3.0, 4.0]
    >>> graph["draws"].set_value(fg.draw_keys(seed=0, update=1, first=0, count=1)[0])
    >>> y.forward().tolist()
    [0.0, 4.0, 0.0, 8.0]
    """

    draws_slot = 1
    kinds = (Diagonal, Still)
    uses = ((1,), ())

    def __init__(self, a: Node, rate: float, *, name: str | None = None):
        rate = real(rate, "Dropout: the rate", 0)
        if rate >= 1:
            raise GraphError(f"Dropout: the rate, the share that is dropped, is below 1, not {rate:g}")
        if not isinstance(a, Node):
            raise GraphError(f"Dropout: operand 0 is {type(a).__name__} {brief(a)}, not a node")
        draws, node = _draws(a.graph)
        super().__init__(a, draws, name=name, dim=a.dim, node=node, below=round(rate * (1 << 24)), scale=1 / (1 - rate))

    @staticmethod
    def shape(*dims: int, **attrs: Any) -> int:
        """Return the length of the operand."""
        return dims[0]

    @staticmethod
    def out_shape(*shapes: Shape, **attrs: Any) -> Shape:
        """Return the shape of the operand."""
        return shapes[0]

    @staticmethod
    def apply(a: Array, draws: Array, **attrs: Any) -> Array:
        """Return what is kept."""
        return a * Kept.apply(draws, **attrs)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, draws: Array, **attrs: Any) -> LocalJacobian:
        """Return the factors; zero by the keys."""
        return Still(PARTS) if slot else Diagonal(Kept.apply(draws, **attrs))

    @staticmethod
    def jacobian_tangent(
        slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...], **attrs: Any
    ) -> LocalJacobian | None:
        """Return None: keys do not move."""
        return None

    @classmethod
    def expand(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> int:
        """Write the factors, and the product."""
        kept = program.apply(Kept, [args[1]], attrs, label)
        return int(program.apply(Multiply, [args[0], kept], {}, label))


class Noise(Drawn):
    """Standard normal numbers, drawn in training for each sample and update anew; elsewhere zeros.

    Parameters
    ----------
    dim : int or tuple of int
        Length, or axes.
    graph : Graph, optional
        The current one if not given.

    Notes
    -----
    They are quantiles of 32 random bits, up to 6.2 in size; see `Dropout` for what they follow from.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     mean, deviation = fg.Variable(2, [1.0, 2.0]), fg.Variable(2, [0.1, 0.1])
    ...     z = mean + deviation * fg.Noise(2)
    >>> z.forward().tolist()
    [1.0, 2.0]
    >>> graph["draws"].set_value(fg.draw_keys(seed=0, update=1, first=0, count=1)[0])
    >>> z.forward().round(2).tolist()
    [0.89, 2.19]
    """

    numbers = ("node",)

    def __init__(self, dim: Any, *, name: str | None = None, graph: Graph | None = None):
        axes = shape_of(dim, "Noise")
        draws, node = _draws(graph or current_graph())
        super().__init__(draws, name=name, dim=int(np.prod(axes)), node=node, axes=axes)

    @staticmethod
    def out_shape(*shapes: Shape, axes: Shape, **attrs: Any) -> Shape:
        """Return the axes."""
        return axes

    @staticmethod
    def apply(draws: Array, *, dim: int, node: int, axes: Shape) -> Array:
        """Return the numbers."""
        normal = _quantiles(_bits(draws, node, dim)).astype(draws.dtype)
        normal[~draws.any(axis=1)] = 0
        return normal

    @staticmethod
    def row_value(y: Array, draws: Array, numbers: Array) -> None:
        """Write the numbers of one sample."""
        if draws[0] == 0 and draws[1] == 0 and draws[2] == 0:
            for j in range(y.shape[0]):
                y[j] = 0
            return
        count = _start(draws, numbers[0])
        for j in range(y.shape[0]):
            count += GOLDEN
            u = (np.float64(_mixed(count) >> np.uint64(32)) + 0.5) * 2.0**-32
            if abs(u - 0.5) <= 0.425:
                y[j] = _centre(u - 0.5)
            elif u < 0.5:
                y[j] = -_tail(u)
            else:
                y[j] = _tail(1.0 - u)


def _draws(graph: Graph) -> tuple[Variable, int]:
    """Return the variable of a graph that its random nodes are drawn from, and the number of the next of them."""
    found = [n for n in graph.nodes if n.draws_slot is not None]
    if found:
        return found[0].parents[found[0].draws_slot], len(found)  # type: ignore[index, return-value]
    with graph, outside_scopes():
        return Variable(PARTS, np.zeros(PARTS), trainable=False, name="draws"), 0

"""Elementwise ops: each entry of the value depends on one entry of each parent, by a formula that is stated once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import GraphError, ShapeError
from ..formulas import OPERANDS, Formula, compiled, formula
from ..graph import Node
from ..inputs import Shape, times
from ..jacobians import Diagonal, Identity, LocalJacobian
from ..op import Op, Stacked
from ..typing import Array
from .select import Broadcast


class Elementwise(Op):
    """Base of ops that act on each entry by itself, yours included: a value, its slopes and its bends, as formulas.

    From them follow `apply`, `jacobian`, `jacobian_tangent`, the kinds of the local Jacobians, what they need, and the form for
    compiled kernels. A class may state `apply` itself where NumPy's way is another; what a class above states of a formula, of
    slopes or bends does not hold for another formula, so they are stated together. Siblings stack by laying operands end to end.

    Class attributes
    ----------------
    formula : str
        The value of an entry, of the operands' entries ``a``, ``b``, ... and of attributes by name.
    slopes : tuple of str
        Its derivative by each operand; may also name ``y``, the value.
    bends : dict
        Second derivatives: by pair of slots, ``(0, 1)`` for `a` and `b`, the derivative of a slope by an operand, of the same
        names as that slope (one that names ``y`` knows all operands). A pair may be left out where neither of its slopes names
        the other operand, or ``y``; without any, slopes are differentiated by central differences.

    Raises
    ------
    GraphError
        When the class is made, if a formula is none, or there is none that must be; see `flowgrad.formulas.FUNCTIONS`.

    Examples
    --------
    >>> import flowgrad as fg
    >>> class Bump(fg.Elementwise):
    ...     formula = "exp(-width * a * a)"
    ...     slopes = ("-2 * width * a * y",)
    ...     bends = {(0, 0): "(4 * width * a * a - 2) * width * y"}
    >>> with fg.Graph():
    ...     y = Bump(fg.Variable(2, [0.0, 1.0]), width=0.5)
    >>> y.forward().round(3).tolist(), fg.check_gradients(y) < 1e-7
    ([1.0, 0.607], True)
    """

    #: Whether an op of two operands takes any number of them, from left to right; programs hold a chain of two.
    folds: ClassVar[bool] = False
    # Formulas in which something is computed of attributes alone.
    _computing: ClassVar[tuple[Formula, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any):
        """Make the rules of the formulas that the class states."""
        if {"formula", "slopes", "bends"} & set(vars(cls)):
            _make_rules(cls)
        super().__init_subclass__(**kwargs)

    def __init__(self, *parents: Node, name: str | None = None, **attrs: Any):
        for stated in self._computing:
            try:
                stated.constants(attrs)
            except GraphError as error:
                raise GraphError(f"{type(self).__name__}: {error}") from None
        super().__init__(*_broadcast(parents), name=name, **attrs)

    @staticmethod
    def out_shape(*shapes: Shape, **attrs: Any) -> Shape:
        """Return the shape that all operands have."""
        if all(math.prod(shape) == 1 for shape in shapes):
            return max(shapes, key=len)
        if len(set(shapes)) > 1:
            vectors = all(len(shape) == 1 for shape in shapes)
            hint = "vectors of one length" if vectors else "operands of one shape"
            more = "" if vectors else "; a.reshape(...) computes nothing, Broadcast(a, shape) repeats"
            raise ShapeError(f"needs {hint}, got {' and '.join(map(times, shapes))}{more}")
        return shapes[0]

    @classmethod
    def stack(cls, k: int, shared: tuple[bool, ...], dims: tuple[int, ...], **attrs: Any) -> Stacked | None:
        """Return the same op on the stacked operands; an operand that siblings share does not stack."""
        return None if any(shared) else Stacked(cls, attrs)

    @classmethod
    def needs(cls, slot: int, arity: int) -> tuple[int, ...]:
        """Return which forward values the slope of `slot` needs; of a chain of more than two all, if any."""
        if cls.folds and arity != 2:
            return tuple(range(arity)) if any(cls.uses or ()) else ()
        return super().needs(slot, arity)

    @classmethod
    def expand(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> int:
        """Write the op into a program; one that folds as a chain of two operands each."""
        if not cls.folds:
            return super().expand(program, args, attrs, label)
        value = args[0]
        for arg in args[1:]:
            value = program.apply(cls, [value, arg], attrs, label)
        return value


def _broadcast(parents: tuple[Any, ...]) -> tuple[Any, ...]:
    """Repeat scalars beside larger operands."""
    shapes = {p.shape for p in parents if isinstance(p, Node) and p.dim > 1}
    if len(shapes) != 1 or len({getattr(p, "graph", None) for p in parents}) != 1:
        return parents
    (shape,) = shapes
    return tuple(Broadcast(p, shape) if isinstance(p, Node) and p.dim == 1 else p for p in parents)


def _make_rules(cls: type[Elementwise]) -> None:
    """Make the rules before `Op` forgets what belongs to rules of a class above; derivatives of another formula would be wrong."""
    own = vars(cls)
    if not isinstance(own.get("formula"), str) or not isinstance(own.get("slopes"), tuple) or not cls.slopes:
        raise GraphError(
            f"{cls.__name__} states together a formula, a text, and slopes, a tuple of a text for each operand"
        )
    twice = [rule for rule in ("jacobian", "jacobian_tangent") if rule in own]
    if twice:
        raise GraphError(
            f"{cls.__name__} states {twice[0]} beside the slopes and bends from which it follows: leave one out"
        )
    cls.bends = stated = own.get("bends", {})
    arity = len(cls.slopes)
    _check_texts(cls.__name__, cls.slopes, stated)
    try:
        value = formula(own["formula"], arity)
        attributes = tuple(sorted(value.names - {*OPERANDS[:arity], "y"}))
        slopes = [formula(text, arity, attributes) for text in cls.slopes]
        bends = {_pair(*pair): formula(text, arity, attributes) for pair, text in stated.items()}
    except GraphError as error:
        raise GraphError(f"{cls.__name__}: {error}") from None
    if "y" in value.names:
        raise GraphError(f"{cls.__name__}: its formula {value.text!r} names y, which is its value")
    unnamed = sorted({*OPERANDS[:arity]} - value.names)
    if unnamed:
        raise GraphError(
            f"{cls.__name__}: its formula {value.text!r} does not name {', '.join(unnamed)}, of which it has a slope: a value has "
            f"as many entries as each operand"
        )
    cls._computing = tuple(f for f in (value, *slopes, *bends.values()) if f.computes(attributes))
    _check_bends(cls.__name__, slopes, bends)
    operands = ", ".join(OPERANDS[:arity])
    named = f", *, {', '.join(attributes)}" if attributes else ""
    if "apply" not in own:
        into = ", out=None" if value.writes() else ""
        rule = compiled("apply", f"{operands}{into}{named}", value.numpy(into=True), f"Return ``{value.text}``.")
        cls.apply = staticmethod(rule)  # type: ignore[method-assign]
    texts = ["Identity()" if s.text == "1" else f"Diagonal({s.text})" for s in slopes]
    chosen = "".join(f"{text} if slot == {k} else " for k, text in enumerate(texts[:-1])) + texts[-1]
    if cls.folds:
        cls.apply = staticmethod(_folded(cls.apply))  # type: ignore[method-assign]
    doc = f"Return the diagonal of {' or '.join(f'``{s.text}``' for s in slopes)}, by slot."
    rule = compiled("jacobian", f"slot, y, {operands}{named}", chosen, doc, Identity=Identity, Diagonal=Diagonal)
    cls.jacobian = staticmethod(_folded_slopes(cls, rule) if cls.folds else rule)  # type: ignore[method-assign]
    cls.kinds = tuple(Identity if s.text == "1" else Diagonal for s in slopes)
    cls.uses = tuple(tuple(k for k in (-1, *range(arity)) if ("y", *OPERANDS)[k + 1] in s.names) for s in slopes)
    if bends or not any(cls.uses):
        tangents = [_tangent(k, arity, f"y, {operands}, moved{named}", bends) for k in range(arity)]

        def jacobian_tangent(slot: int, values: tuple[Array, ...], moved: tuple[Array, ...], **attrs: Any) -> Any:
            """Return the diagonal of the tangent of a slope; None: it is zero."""
            tangent = tangents[slot]
            return None if tangent is None else Diagonal(tangent(*values, moved[1:], **attrs))

        cls.jacobian_tangent = staticmethod(jacobian_tangent)


def _folded(rule: Callable[..., Array]) -> Callable[..., Array]:
    """Return a value rule of two operands for any number."""

    def apply(*values: Array, out: Array | None = None) -> Array:
        if len(values) == 2:
            return rule(*values, out=out)
        y = values[0]
        for k, b in enumerate(values[1:], 2):
            y = rule(y, b, out=out if k == len(values) else None)
        return y

    apply.__doc__ = rule.__doc__
    return apply


def _folded_slopes(cls: type[Elementwise], rule: Callable[..., LocalJacobian]) -> Callable[..., LocalJacobian]:
    """Return a derivative rule of two operands for any number: by the chain rule, from left to right."""

    def jacobian(slot: int, y: Array | None, *values: Array) -> LocalJacobian:
        if len(values) == 2 or cls.kinds == (Identity, Identity):
            return rule(min(slot, 1), y, *(*values, None)[:2])
        before, d = values[0], np.ones((1, 1))
        for k, b in enumerate(values[1:], 1):
            value = cls.apply(before, b)
            if k >= slot:
                d = d * rule(int(k == slot), value, before, b).d  # type: ignore[attr-defined]
            before = value
        return Diagonal(d)

    jacobian.__doc__ = rule.__doc__
    return jacobian


def _check_texts(name: str, slopes: tuple[Any, ...], bends: Any) -> None:
    if len(slopes) > len(OPERANDS):
        raise GraphError(f"{name} has {len(slopes)} slopes: an op by formulas has {len(OPERANDS)} operands at most")
    wrong = [text for text in slopes if not isinstance(text, str)]
    if wrong:
        raise GraphError(f"{name}: a slope is a text, such as '2 * a', not {wrong[0]!r:.60}")
    good = isinstance(bends, dict) and all(
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(k, int) for k in pair) and isinstance(text, str)
        for pair, text in bends.items()
    )
    if not good:
        raise GraphError(f"{name}: bends are texts by pair of slots, such as {{(0, 0): '2'}}, not {bends!r:.60}")


def _check_bends(name: str, slopes: Sequence[Formula], bends: Mapping[tuple[int, int], Formula]) -> None:
    """Raise an error if there are bends, but not those that there must be, or they name what is not known then."""
    arity = len(slopes)
    moving = {_pair(k, j) for k, s in enumerate(slopes) for j in range(arity) if {OPERANDS[j], "y"} & s.names}
    strange, missing = sorted(p for p in bends if max(p) >= arity or min(p) < 0), sorted(moving - set(bends))
    if bends and (strange or missing):
        wrong = f"there is no pair {strange[0]}" if strange else f"{missing[0]} is missing, on which a slope depends"
        raise GraphError(f"{name}: bends, by pair of slots: {wrong}")
    for pair, bend in bends.items():
        for slope in (slopes[k] for k in pair if "y" not in slopes[k].names):
            unknown = sorted((bend.names & {"y", *OPERANDS[:arity]}) - slope.names)
            if unknown:
                raise GraphError(
                    f"{name}: the bend {bend.text!r} of {pair} names {unknown[0]}, which the slope {slope.text!r} does not: only "
                    f"what a slope names is known where it is differentiated"
                )


def _pair(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i <= j else (j, i)


def _tangent(slot: int, arity: int, head: str, bends: dict[tuple[int, int], Formula]) -> Callable[..., Array] | None:
    """Return the tangent of a slope as a function of value, operands, and the operands' tangents; None: it is zero."""
    texts = {k: bends[_pair(slot, k)].text for k in range(arity) if _pair(slot, k) in bends}
    terms = [f"({text}) * moved[{k}]" for k, text in texts.items() if text != "0"]
    return compiled("tangent", head, " + ".join(terms), "Return the tangent of a slope.") if terms else None


class Add(Elementwise):
    """``a + b + ...``, any number of operands of one shape; scalars are repeated.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Add(fg.Variable(2, [1.0, 2.0]), fg.Variable(2, [3.0, 4.0]))
    >>> y.forward()
    array([4., 6.])
    """

    folds = True
    formula = "a + b"
    slopes = ("1", "1")


class Subtract(Elementwise):
    """``a - b``, of one shape; a scalar is repeated.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Subtract(fg.Variable(1, [5.0]), fg.Variable(1, [3.0]))
    >>> y.forward()
    array([2.])
    """

    formula = "a - b"
    slopes = ("1", "-1.0")


class Multiply(Elementwise):
    """``a * b * ...``, entry by entry, any number of operands of one shape; scalars are repeated.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     x = fg.Variable(2, [2.0, 3.0])
    ...     y = fg.Multiply(x, x)
    >>> y.forward()
    array([4., 9.])
    """

    folds = True
    formula = "a * b"
    slopes = ("b", "a")
    bends = {(0, 1): "1"}


class Scale(Elementwise):
    """``c * a`` for a number `c`, a constant and not a node; for a trainable factor build `Multiply`.

    Raises
    ------
    ShapeError
        If `c` is not a finite number.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Scale(fg.Variable(2, [1.0, 2.0]), 0.5)
    >>> y.forward()
    array([0.5, 1. ])
    """

    formula = "a * c"
    slopes = ("c",)

    def __init__(self, a: Node, c: float, *, name: str | None = None):
        if isinstance(c, Node) or not np.isscalar(c) or isinstance(c, (str, bytes, complex)) or not np.isfinite(c):
            raise ShapeError(f"Scale({a}, {c!r}): c must be a finite number; to scale by a node use Multiply")
        super().__init__(a, name=name, c=float(c))


class Negative(Elementwise):
    """``-a``.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Negative(fg.Variable(1, [2.0]))
    >>> y.forward()
    array([-2.])
    """

    formula = "-a"
    slopes = ("-1.0",)

"""Ops: each is stated once, its static methods are its pure rules, on arrays whose axis 0 is the samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .errors import GraphError, ShapeError
from .formulas import OPERANDS, formula
from .graph import Node, size
from .inputs import Shape, brief
from .jacobians import Diagonal, LocalJacobian
from .returned import is_own
from .typing import Array


class Takes(NamedTuple):
    """What an op's value rule takes.

    Attributes
    ----------
    operands : tuple of str
        Those by position; attributes may be among them.
    least : int
        So many of them have no default.
    any_operands, any_attributes : bool
        Whether there may be more.
    attributes : frozenset of str
        Those by name.
    needed : frozenset of str
        Those of them that have no default.
    """

    operands: tuple[str, ...] = ()
    least: int = 0
    any_operands: bool = True
    any_attributes: bool = True
    attributes: frozenset[str] = frozenset()
    needed: frozenset[str] = frozenset()


@lru_cache(maxsize=1024)
def _takes(apply: Callable[..., Any]) -> Takes:
    try:
        taken = list(inspect.signature(apply, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):  # written in C
        return Takes()
    kinds = {p.kind for p in taken}
    operands = [p for p in taken if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "out"]
    return Takes(
        tuple(p.name for p in operands),
        sum(p.default is p.empty for p in operands),
        inspect.Parameter.VAR_POSITIONAL in kinds,
        inspect.Parameter.VAR_KEYWORD in kinds,
        frozenset(p.name for p in taken if p.kind is p.KEYWORD_ONLY) - {"out"},
        frozenset(p.name for p in taken if p.kind is p.KEYWORD_ONLY and p.default is p.empty) - {"out"},
    )


def _check_operands(kind: str, apply: Callable[..., Any], parents: tuple[Any, ...], attrs: dict[str, Any]) -> None:
    """Check operands and attributes against what the value rule takes."""
    named = [k for k, v in attrs.items() if isinstance(v, Node)]
    if named:
        raise GraphError(f"{kind}: give nodes by position, not as {', '.join(f'{k}=' for k in named)}")
    takes = _takes(apply) if isinstance(apply, Hashable) else Takes()
    open_to = {*takes.attributes, *takes.operands[len(parents) :]}
    operands = [k for k in takes.operands if k not in attrs]
    least = takes.least - (len(takes.operands) - len(operands))
    counted = takes.any_operands or least <= len(parents) <= len(operands)
    known = open_to if counted else {*takes.attributes, *takes.operands}
    unknown = [k for k in attrs if k not in known]
    if unknown and not takes.any_attributes:
        words = ", ".join(map(repr, unknown))
        raise GraphError(f"{kind} has no attribute {words}; it takes {', '.join(sorted(open_to)) or 'none'}")
    if not counted:
        most = f"{least}" if least == len(operands) else f"{least} to {len(operands)}"
        words = f"operand{'s' * (most != '1')} ({', '.join(operands)})"
        raise GraphError(f"{kind} takes {most} {words}, not {len(parents)}")
    lacking = sorted(takes.needed - set(attrs))
    if lacking:
        raise GraphError(f"{kind} needs {', '.join(f'{k}=' for k in lacking)}, which its value rule or formula names")
    for key, value in attrs.items():
        try:
            hash(value)
        except TypeError:
            raise GraphError(
                f"{kind}: the attribute {key!r} is a {type(value).__name__}, which cannot be hashed: "
                f"make it a tuple of numbers, or an operand (a Variable with trainable=False)"
            ) from None


def _check_formulas(cls: type[Op]) -> None:
    """Check the formulas that a class states, against what its value rule takes."""
    own = vars(cls)
    stated = [own.get("formula"), *(own.get("slopes") or ()), *(own.get("bends") or {}).values()]
    takes = _takes(cls.apply) if isinstance(cls.apply, Hashable) else Takes()
    arity = len(own.get("slopes") or ()) or (len(OPERANDS) if takes.any_operands else len(takes.operands))
    names = None if takes.any_attributes else tuple(sorted({*takes.attributes, *takes.operands}))
    for text in stated:
        try:
            if text is not None:
                formula(text, arity, names)
        except GraphError as error:
            raise GraphError(f"{cls.__name__}: {error}") from None


# What else an op may state of each rule.
FOLLOWS = {
    "shape": ("out_shape",),
    "apply": ("formula", "row_value", "row_both", "both"),
    "jacobian": ("slopes", "row_factor", "row_both", "both", "jacobian_tangent"),
    "jacobian_tangent": ("bends",),
}


@dataclass(frozen=True)
class Stacked:
    """How siblings become one op: the op, its static attributes, and the order in which it takes the slots."""

    op: type[Op]
    attrs: dict[str, Any]
    order: tuple[int, ...] | None = None


class Op(Node):
    """Base of all ops, yours included: a class of a few lines states shape, value and local Jacobian once.

    An op whose entries depend on one entry of each operand is stated more shortly, by formulas: see `Elementwise`.

    Class attributes
    ----------------
    kinds : tuple of LocalJacobian classes
        Kind of the local Jacobian by slot, known before any data; the last one repeats.
    uses : tuple of tuple of int, or None
        Which forward values the factor of each slot needs: slots of parents, ``-1`` for the node's own value; the last one
        repeats. The others may be passed as None. None: all of them.

    formula, slopes : str, tuple of str, optional
        Of elementwise ops, see `Elementwise`: what compiled kernels are made of.
    row_value, row_factor, row_both : static methods, optional
        For compiled kernels, where each sample is for itself: ``row_value(y, *parents)`` writes the value of one sample,
        ``row_factor(slot, f, *used)`` the row of an `Outer` from the values that `uses` lists; plain loops over 1-d arrays.
        ``row_both(y, f, *parents)`` may write the value and the row of slot 0 at once. An op that states none of these is
        called in Python, while the rest of a step stays compiled.

    Rules (static methods; axis 0 is the samples)
    ---------------------------------------------
    shape(*dims, **attrs) -> int
        Length of the value; raise `ShapeError` saying what is needed. Default: all parents alike.
    out_shape(*shapes, **attrs) -> tuple of int, optional
        Shape of the node, for parents that have several axes; ``(dim,)`` if not stated.
    apply(*values, **attrs) -> ndarray (N, dim)
        Must keep samples apart, draw nothing at random and not change its inputs: an engine tries that at the first use of a
        class, with a few samples. ``N == 1`` operands broadcast. May take ``out=None``, an array to write the value into.
    jacobian(slot, y, *values, **attrs) -> LocalJacobian
    both(*values, **attrs) -> (ndarray, LocalJacobian), optional
        The value and the local Jacobian of slot 0 at once, where they share work; the same bits as one by one.

    Attributes must be hashable and stay what they are. Of what else rules read, constants of their module and of classes may
    change between calls; nothing else may. A class that states a rule anew states anew what belongs to it: `formula` and
    `row_value` to `apply`; `slopes`, `row_factor` and `jacobian_tangent` to `jacobian`; `row_both` and `both` to either.

    Examples
    --------
    >>> import flowgrad as fg
    >>> class Square(fg.Op):
    ...     kinds = (fg.Diagonal,)
    ...
    ...     @staticmethod
    ...     def apply(a):
    ...         return a * a
    ...
    ...     @staticmethod
    ...     def jacobian(slot, y, a):
    ...         return fg.Diagonal(2 * a)
    >>> with fg.Graph():
    ...     y = Square(fg.Variable(2, [1.0, 3.0]))
    >>> y.forward()
    array([1., 9.])
    """

    kinds: ClassVar[tuple[type[LocalJacobian], ...]] = (Diagonal,)
    uses: ClassVar[tuple[tuple[int, ...], ...] | None] = None
    #: Whether programs differentiate through it; where its derivative is zero everywhere they need not.
    differentiable: ClassVar[bool] = True
    out_shape: ClassVar[Callable[..., Shape] | None] = None
    #: Attributes that `row_value` of an op of flowgrad's is given as a last vector.
    numbers: ClassVar[tuple[str, ...]] = ()
    formula: ClassVar[str | None] = None
    slopes: ClassVar[tuple[str, ...]] = ()
    bends: ClassVar[dict[tuple[int, int], str] | None] = None
    row_value: ClassVar[Callable[..., None] | None] = None
    row_factor: ClassVar[Callable[..., None] | None] = None
    row_both: ClassVar[Callable[..., None] | None] = None
    both: ClassVar[Callable[..., tuple[Array, LocalJacobian]] | None] = None

    def __init_subclass__(cls, **kwargs: Any):
        """Forget what a class above states of a rule that this one states anew."""
        super().__init_subclass__(**kwargs)
        cls._own = is_own(cls)
        _check_formulas(cls)
        for rule, names in FOLLOWS.items():
            for name in names if rule in vars(cls) else ():
                if name not in vars(cls):
                    setattr(cls, name, () if name == "slopes" else None)

    def __init__(self, *parents: Node, name: str | None = None, **attrs: Any):
        kind = type(self).__name__
        _check_operands(kind, self.apply, parents, attrs)
        if not parents:
            raise GraphError(f"{kind} needs at least one node")
        for slot, parent in enumerate(parents):
            if not isinstance(parent, Node):
                raise GraphError(
                    f"{kind}: operand {slot} is {type(parent).__name__} {brief(parent)}, not a node: "
                    f"wrap it as fg.Constant(value), or as Variable(dim, value, trainable=False)"
                )
            if parent.graph is not parents[0].graph:
                raise GraphError(
                    f"{kind}: {parents[0]} and {parent} belong to two different graphs: build both in the same `with graph:`, "
                    f"which every thread opens for itself"
                )
        op = type(self)
        try:
            if op.out_shape is not None:
                shape = op.out_shape(*(p.shape for p in parents), **attrs)
            else:
                shape = (op.shape(*(p.dim for p in parents), **attrs),)
        except (ShapeError, TypeError) as error:
            operands = [f"{p.name!r} ({size(p)})" for p in parents[:6]] + ["..."] * (len(parents) > 6)
            raise ShapeError(f"{kind}({', '.join(operands)}): {error}") from None
        if any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1 for n in shape):
            gave = shape if op.out_shape is not None else shape[0]
            dims = [p.dim for p in parents]
            raise ShapeError(f"{kind}: its shape rule gave {gave!r} for dims {dims}; a dim is a positive integer")
        super().__init__(parents[0].graph, tuple(map(int, shape)), tuple(parents), attrs, name)

    @staticmethod
    def shape(*dims: Any, **attrs: Any) -> int:
        """Return the length of the value for parents of lengths `dims`; raise `ShapeError` where they do not fit."""
        if len(set(dims)) != 1:
            wide = max(dims)
            hint = f"; fg.Broadcast(a, {wide}) repeats one number" if set(dims) == {1, wide} else ""
            raise ShapeError(f"needs vectors of one length, got {' and '.join(map(str, dims))}{hint}")
        return dims[0]

    @staticmethod
    def apply(*values: Any, **attrs: Any) -> Array:
        """Return the value ``(N, dim)`` for values ``(N, dim_i)`` of the parents."""
        raise NotImplementedError("an op states its value: a static method `apply(*values, **attrs)`")

    @staticmethod
    def jacobian(slot: int, y: Any, *values: Any, **attrs: Any) -> LocalJacobian:
        """Return the local Jacobian by the parent in `slot`."""
        raise NotImplementedError("an op states its derivative: a static method `jacobian(slot, y, *values, **attrs)`")

    #: Optional rule ``jacobian_tangent(slot, values, tangents, **attrs)``, for second derivatives: the local Jacobian whose
    #: factor is the factor's tangent, or None where it is zero; `values` and `tangents` begin with the node's own. An op
    #: that states none is differentiated once more by central differences of ``jacobian``.
    jacobian_tangent: ClassVar[Callable[..., LocalJacobian | None] | None] = None

    @classmethod
    def stack(cls, k: int, shared: tuple[bool, ...], dims: tuple[int, ...], **attrs: Any) -> Stacked | None:
        """Say how `k` siblings become one op, or None: they stay single.

        Siblings have the same class, attributes and dims. The operands of a slot where ``shared[slot]`` are one and the
        same node; those of the other slots are laid end to end. The op's value must be the siblings' values end to end.
        """
        return None

    @classmethod
    def expand(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> int:
        """Write the op into a program, a `Builder`, and return its variable: as it is, or by ops that programs have anyway.

        What is written otherwise needs no rule for kernels, fusion and costs of its own; its own rules are the interpreter's.
        """
        variable: int = program.apply(cls, args, attrs, label)
        return variable

    @classmethod
    def kind(cls, slot: int) -> type[LocalJacobian]:
        """Return the kind of the local Jacobian by the parent in `slot`."""
        return cls.kinds[min(slot, len(cls.kinds) - 1)]

    @classmethod
    def needs(cls, slot: int, arity: int) -> tuple[int, ...]:
        """Return which forward values the factor of `slot` needs; ``-1`` is the node's own."""
        if cls.uses is None:
            return (-1, *range(arity))
        return cls.uses[min(slot, len(cls.uses) - 1)]

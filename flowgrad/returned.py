"""What rules of one's own return: taken where it can only mean one thing, else told in one line, with what it must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .errors import GraphError, ShapeError
from .jacobians import LocalJacobian
from .typing import Array

# Kinds of dtypes that are real numbers.
REAL = "fiub"


class Misfit(ShapeError):
    """A local Jacobian that does not take its op's cotangents, or makes something of another shape of them."""


def is_own(op: Any) -> bool:
    """Whether an op is flowgrad's own, and its rules need no look."""
    return bool(op.__module__.startswith("flowgrad.ops."))


def like(result: Array, array: Array) -> Array:
    """Return a result in the precision of what went in, whatever a rule of the user's makes of it."""
    return np.asarray(result).astype(array.dtype, copy=False)


def numbers(value: Any) -> Array | None:
    """Return an array of real numbers, also of a list or a matrix; None if it is something else."""
    if type(value) is np.ndarray and value.dtype.kind in REAL:
        return value
    if isinstance(value, np.ma.MaskedArray):
        return None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # ragged
        return None
    return array if array.dtype.kind in REAL else None


def told(value: Any) -> str:
    """Return what something is, for messages."""
    if value is None:
        return "None"
    name = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"{'an array' if type(value) is np.ndarray else f'a {name}'} of {value.dtype}, shape {value.shape}"
    array = numbers(value) if isinstance(value, (list, tuple)) else None
    name = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    return name if array is None else f"{name} of shape {array.shape}"


def value_of(result: Any, shape: tuple[int, ...]) -> Array:
    """Return the value that a rule gave, an array of real numbers of this shape.

    Raises
    ------
    ShapeError
        If it is something else.
    """
    array = numbers(result)
    if array is None or array.shape != shape:
        if array is not None and isinstance(result, np.ndarray):
            raise ShapeError(f"gave shape {result.shape}, it must be {shape}")
        raise ShapeError(f"gave {told(result)}, it must be an array of real numbers, shape {shape}")
    return array


def local_of(op: Any, slot: int, result: Any, whose: str = "") -> LocalJacobian:
    """Return the local Jacobian that a rule gave, its factors as arrays.

    Raises
    ------
    GraphError
        If it is none, or its factors are no real numbers; the text begins with `whose`.
    """
    kind = type(result).__name__
    if not isinstance(result, LocalJacobian):
        raise GraphError(
            f"{whose}gave {told(result)}, it must be a local Jacobian: return {op.kind(slot).__name__}(...)"
        )
    for name, factor in vars(result).items() if type(result).__module__.startswith("flowgrad.") else ():
        if isinstance(factor, (int, float, np.number, slice)) or name == "out_dim":
            continue
        if factor is None:
            why = f"{kind}({name}) is empty" if op.uses is None else "its class's `uses` leaves out values"
            raise GraphError(f"{whose}has None for a factor: {why}")
        array = numbers(factor)
        if array is None:
            raise GraphError(f"{whose}gave {kind}({name}) with {told(factor)}, it must be an array of real numbers")
        setattr(result, name, array)
    return result


def value_rule(op: Any) -> Callable[..., Array]:
    """Return the value rule of an op; of a user's, with a look at what it gives."""
    if is_own(op):
        rule: Callable[..., Array] = op.apply
        return rule

    def apply(*values: Array, **attrs: Any) -> Array:
        return _value(op, op.apply(*values, **attrs), values, attrs)

    return apply


def jacobian_rule(op: Any) -> Callable[..., LocalJacobian]:
    """Return the rule that gives an op's local Jacobians; of a user's, with a look at what they are."""
    if is_own(op):
        rule: Callable[..., LocalJacobian] = op.jacobian
        return rule

    def jacobian(slot: int, *values: Any, **attrs: Any) -> LocalJacobian:
        return local_of(op, slot, op.jacobian(slot, *values, **attrs), "its jacobian ")

    return jacobian


def both_rule(op: Any) -> Callable[..., tuple[Array, LocalJacobian]]:
    """Return the rule that gives an op's value and local Jacobian; of a user's, with a look at them."""
    if is_own(op):
        rule: Callable[..., tuple[Array, LocalJacobian]] = op.both
        return rule

    def both(*values: Array, **attrs: Any) -> tuple[Array, LocalJacobian]:
        result = op.both(*values, **attrs)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ShapeError(f"both gave {told(result)}, it must be a value and a local Jacobian")
        return _value(op, result[0], values, attrs), local_of(op, 0, result[1], "both ")

    return both


def _value(op: Any, result: Any, values: Sequence[Array], attrs: dict[str, Any]) -> Array:
    attributes = {name: value for name, value in attrs.items() if name != "out"}
    wanted = (max(map(len, values)), op.shape(*(v.shape[1] for v in values), **attributes))
    return like(value_of(result, wanted), values[0])


def carry(local: LocalJacobian, verb: str, g: Array, dim: int, values: Sequence[Array]) -> Array:
    """Return what a user's local Jacobian makes of cotangents or tangents ``(V, N, k)``: ``(V, N, dim)``, in their precision.

    Parameters
    ----------
    verb : str
        ``"pull"``, ``"pull_sum"`` or ``"push"``.
    values : sequence of ndarray
        What the local Jacobian was made of: `N` is theirs where `g` has one row for all samples.

    Raises
    ------
    Misfit
        If it does not take `g`, or gives something else.
    """
    samples = 1 if verb == "pull_sum" else max(g.shape[1], *map(len, values), 1)
    try:
        result = local.push(g, dim) if verb == "push" else getattr(local, verb)(g)
    except ValueError as error:
        raise Misfit(_misfit(local, verb, g, "fails", (len(g), samples, dim))) from error
    array = numbers(result)
    if (
        array is None
        or array.ndim != 3
        or len(array) != len(g)
        or array.shape[1] not in (samples, min(samples, g.shape[1]))
        or array.shape[2] != dim
    ):
        does = f"gives {told(result)}" if array is None else f"gives shape {array.shape}"
        raise Misfit(_misfit(local, verb, g, does, (len(g), samples, dim)))
    return like(array, g)


def _misfit(local: LocalJacobian, verb: str, g: Array, does: str, wanted: tuple[int, ...]) -> str:
    return f"gave {local!r}, whose {verb} of shape {g.shape} {does}, it must give {wanted}"


def split(local: LocalJacobian, g: Array, dim: int, values: Sequence[Array]) -> list[tuple[Array, Array | None]]:
    """Return the factors of what a user's local Jacobian pulls back, see `carry`."""
    if type(local).split is LocalJacobian.split:
        return [(carry(local, "pull", g, dim, values), None)]
    shares = local.split(g)
    for delta, row in shares:
        width = delta.shape[2] * (1 if row is None else row.shape[1])
        if width != dim:
            raise Misfit(_misfit(local, "pull", g, f"gives length {width}", (len(g), g.shape[1], dim)))
    return shares

"""Formulas that elementwise ops are stated in: one text, for NumPy and for compiled loops."""

from __future__ import annotations

import ast
import math
import operator as op
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .errors import GraphError
from .inputs import count

# What a formula may call; each has as many operands.
FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    name: (getattr(np, name), 1)
    for name in ("abs", "exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "arctan", "sinh", "cosh", "tanh", "sign")
}
FUNCTIONS |= {"maximum": (np.maximum, 2), "minimum": (np.minimum, 2), "where": (np.where, 3)}
# How often a text is parsed until it is said that it cannot be.
TRIES = 100
# Operators, and the ufuncs that write their results into an array.
UFUNCS = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide", ast.Pow: "power"}
UNARY = {ast.USub: "negative"}
OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
VALUES = {ast.Add: op.add, ast.Sub: op.sub, ast.Mult: op.mul, ast.Div: op.truediv, ast.Pow: op.pow}
# Names of operands, by slot.
OPERANDS = "abcdefgh"
# Operations within one another, at most: whoever walks through a formula calls itself for each.
NESTED = 200
# What no attribute of a formula can be called: the rules that are made of it know something else by that name.
TAKEN = {
    *FUNCTIONS,
    *UFUNCS.values(),
    *UNARY.values(),
    "out",
    "slot",
    "moved",
    "name",
    "Identity",
    "Diagonal",
    "__debug__",
}


@dataclass(frozen=True)
class Formula:
    """A formula that was checked.

    Attributes
    ----------
    text : str
    names : frozenset of str
        Operands, attributes, and ``y`` for the value itself.
    """

    text: str
    names: frozenset[str]
    tree: ast.expr

    def numpy(self, into: bool = False) -> str:
        """Return the formula as Python text for arrays; `into`: its last operation writes into ``out``, if it can."""
        tree = self.tree
        if into and isinstance(tree, ast.BinOp):
            return f"{UFUNCS[type(tree.op)]}({ast.unparse(tree.left)}, {ast.unparse(tree.right)}, out=out)"
        if into and isinstance(tree, ast.UnaryOp):
            return f"negative({ast.unparse(tree.operand)}, out=out)"
        if into and isinstance(tree, ast.Call) and ast.unparse(tree.func) != "where":
            return f"{ast.unparse(tree)[:-1]}, out=out)"
        return self.text

    def computes(self, attributes: Collection[str]) -> bool:
        """Whether something is computed of attributes alone, so that `constants` depends on what they are."""
        parts = (part for part in ast.walk(self.tree) if isinstance(part, ast.BinOp))
        return any(names and names <= {*attributes} for names in map(_names, parts))

    def constants(self, attributes: Mapping[str, Any]) -> None:
        """Compute what is made of numbers and attributes alone.

        Raises
        ------
        GraphError
            If that is no finite real number.
        """
        _constant(self.tree, attributes)

    def writes(self) -> bool:
        """Whether its last operation can write into an array."""
        return self.numpy(into=True) != self.text


def parsed(text: str) -> ast.Expression:
    """Return the tree of an expression.

    CPython 3.11 counts how deep a tree is for all threads together: where two parse at once, one of them may be told that the count
    is wrong, and has to begin anew.
    """
    for _ in range(TRIES):
        try:
            return ast.parse(text, mode="eval")
        except SystemError:
            continue
    return ast.parse(text, mode="eval")


@lru_cache(maxsize=1024)
def formula(text: str, arity: int, attributes: tuple[str, ...] | None = None) -> Formula:
    """Check a formula.

    Parameters
    ----------
    text : str
        Of operands ``a``, ``b``, ..., of ``y``, of attributes by name, numbers, `FUNCTIONS`, operators and comparisons.
    arity : int
        Number of operands.
    attributes : tuple of str, optional
        Those that there are; any name that is no operand if not given.

    Raises
    ------
    GraphError
        If something else is in it, or it is no expression.
    """
    names: set[str] = set()
    try:
        tree = parsed(text).body
        _check(tree, text, names)
        made = Formula(text, frozenset(names), tree)
        made.constants({})
    except (SyntaxError, TypeError, ValueError) as error:
        if isinstance(error, GraphError):
            raise
        raise GraphError(f"{text!r:.60} is no expression: {error}") from None
    except (RecursionError, MemoryError):  # of the parser
        raise GraphError(_nested(text)) from None
    known = {*OPERANDS[:arity], "y"}
    for name in sorted(names - known):
        if name in TAKEN:
            raise GraphError(
                f"{text!r:.60} names {name!r}, which means something else here: call the attribute otherwise"
            )
        if attributes is not None and name not in attributes:
            raise GraphError(
                f"{text!r:.60} names {name!r}, which is neither an operand ({', '.join(OPERANDS[:arity])}), nor y, nor an attribute"
            )
    return made


def _nested(text: str) -> str:
    return (
        f"{text!r:.60}... has more than {NESTED} operations within one another: put parentheses around parts of a long sum, or "
        f"make several ops of it"
    )


def _constant(tree: ast.expr, attributes: Mapping[str, Any]) -> float | None:
    """Return the value of what is made of numbers and attributes alone, None of the rest.

    In floats: Python's integers would be computed to the last digit, of which ``2**(2**64)`` has more than there is memory.
    """
    if isinstance(tree, ast.Name):
        value = attributes.get(tree.id)
        return float(value) if isinstance(value, (int, float, np.number)) else None
    found = [_constant(part, attributes) for part in ast.iter_child_nodes(tree) if isinstance(part, ast.expr)]
    parts = [part for part in found if part is not None]
    try:
        if isinstance(tree, ast.Constant):
            return float(tree.value)  # type: ignore[arg-type]
        if len(parts) < len(found) or not isinstance(tree, (ast.BinOp, ast.UnaryOp)):
            return None
        value = -parts[0] if isinstance(tree, ast.UnaryOp) else VALUES[type(tree.op)](*parts)
        if isinstance(value, complex) or (not math.isfinite(value) and all(map(math.isfinite, parts))):
            raise ValueError
    except (ArithmeticError, ValueError):
        given = ", ".join(f"{name}={attributes[name]!r:.20}" for name in sorted(_names(tree)))
        where = f" for {given}" if given else ""
        raise GraphError(f"{ast.unparse(tree)!r:.60} is no finite real number{where}") from None
    return value


def _names(tree: ast.expr) -> set[str]:
    return {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)}


def _check(tree: ast.expr, text: str, names: set[str], depth: int = 0) -> None:
    if depth > NESTED:
        raise GraphError(_nested(text))
    depth += 1
    if isinstance(tree, ast.Name):
        names.add(tree.id)
    elif isinstance(tree, ast.Constant) and type(tree.value) in (int, float):
        return
    elif isinstance(tree, ast.BinOp) and type(tree.op) in UFUNCS:
        _check(tree.left, text, names, depth)
        _check(tree.right, text, names, depth)
    elif isinstance(tree, ast.UnaryOp) and type(tree.op) in UNARY:
        _check(tree.operand, text, names, depth)
    elif isinstance(tree, ast.Compare) and len(tree.ops) == 1 and type(tree.ops[0]) in COMPARISONS:
        _check(tree.left, text, names, depth)
        _check(tree.comparators[0], text, names, depth)
    elif isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in FUNCTIONS:
        wanted = FUNCTIONS[tree.func.id][1]
        if len(tree.args) != wanted or tree.keywords:
            raise GraphError(f"{text!r:.60}: {tree.func.id} takes {count(wanted, 'operand')}")
        for arg in tree.args:
            _check(arg, text, names, depth)
    else:
        raise GraphError(
            f"{text!r:.60}: {ast.unparse(tree)!r:.60} cannot be in a formula; it may have numbers, names, + - * / **, one "
            f"comparison at a time, and {', '.join(FUNCTIONS)}"
        )


def compiled(name: str, head: str, body: str, doc: str, **more: Any) -> Callable[..., Any]:
    """Return the function ``def name(head): return body`` over what formulas may call, and `more`.

    The body is made of a class's own formulas, which were checked; none comes from a file.
    """
    scope: dict[str, Any] = {k: f for k, (f, _) in FUNCTIONS.items()} | more
    scope |= {ufunc: getattr(np, ufunc) for ufunc in (*UFUNCS.values(), *UNARY.values())}
    scope["__name__"] = __name__
    exec(compile(f"def {name}({head}):\n    return {body}", f"<formula {body}>", "exec"), scope)
    function: Callable[..., Any] = scope[name]
    function.__doc__ = doc
    return function

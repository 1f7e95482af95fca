"""Formulas that elementwise ops are stated in: one text, for NumPy and for compiled loops."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .errors import GraphError

# What a formula may call; each has as many operands.
FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    name: (getattr(np, name), 1)
    for name in ("abs", "exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "arctan", "sinh", "cosh", "tanh", "sign")
}
FUNCTIONS |= {"maximum": (np.maximum, 2), "minimum": (np.minimum, 2), "where": (np.where, 3)}
# Operators, and the ufuncs that write their results into an array.
UFUNCS = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide", ast.Pow: "power"}
UNARY = {ast.USub: "negative"}
OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
# Names of operands, by slot.
OPERANDS = "abcdefgh"


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

    def writes(self) -> bool:
        """Whether its last operation can write into an array."""
        return self.numpy(into=True) != self.text


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
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, TypeError, ValueError) as error:
        raise GraphError(f"{text!r} is no expression: {error}") from None
    names: set[str] = set()
    _check(tree, text, names)
    known = {*OPERANDS[:arity], "y"}
    for name in sorted(names - known):
        if attributes is not None and name not in attributes:
            raise GraphError(
                f"{text!r} names {name!r}, which is neither an operand ({', '.join(OPERANDS[:arity])}), nor y, nor an attribute"
            )
    return Formula(text, frozenset(names), tree)


def _check(tree: ast.expr, text: str, names: set[str]) -> None:
    if isinstance(tree, ast.Name):
        names.add(tree.id)
    elif isinstance(tree, ast.Constant) and type(tree.value) in (int, float):
        return
    elif isinstance(tree, ast.BinOp) and type(tree.op) in UFUNCS:
        _check(tree.left, text, names)
        _check(tree.right, text, names)
    elif isinstance(tree, ast.UnaryOp) and type(tree.op) in UNARY:
        _check(tree.operand, text, names)
    elif isinstance(tree, ast.Compare) and len(tree.ops) == 1 and type(tree.ops[0]) in COMPARISONS:
        _check(tree.left, text, names)
        _check(tree.comparators[0], text, names)
    elif isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in FUNCTIONS:
        wanted = FUNCTIONS[tree.func.id][1]
        if len(tree.args) != wanted or tree.keywords:
            raise GraphError(f"{text!r}: {tree.func.id} takes {wanted} operand{'s' * (wanted > 1)}")
        for arg in tree.args:
            _check(arg, text, names)
    else:
        raise GraphError(
            f"{text!r}: {ast.unparse(tree)!r} cannot be in a formula; it may have numbers, names, + - * / **, one comparison at a "
            f"time, and {', '.join(FUNCTIONS)}"
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

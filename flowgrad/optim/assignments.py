"""What a rule does to each entry, as formulas: run by NumPy in place, and read by whoever makes compiled loops of them."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from keyword import iskeyword
from typing import Any

import numpy as np

from ..errors import GraphError
from ..formulas import TAKEN, UFUNCS, compiled, formula, parsed

# What is assigned, and the formula of it.
Lines = tuple[tuple[str, str], ...]
# Arrays for what is between: `ROOMS` for parts of formulas, and one for another gradient.
ROOMS = 2
WORK = ROOMS + 1


@dataclass(frozen=True)
class Assignments:
    """Formulas, one after the other; each sees what those before it assigned.

    Attributes
    ----------
    lines : tuple of (str, str)
        An array, and its formula in arrays and numbers ``_0``, ``_1``, ...
    arrays : tuple of str
        All that there are: ``w``, ``g`` and others. ``g`` may be assigned, but is not written.
    count : int
        Of numbers.
    timed : bool
        Whether a number depends on ``t``.
    numbers : callable
        Returns ``_0``, ... as Python's floats, given what they are made of by name.
    run : callable
        Does it by NumPy, in place: takes the arrays, rooms, and the numbers.
    source : tuple
        What `assignments` made it of.
    """

    lines: Lines
    arrays: tuple[str, ...]
    count: int
    timed: bool
    numbers: Callable[..., tuple[float, ...]]
    run: Callable[..., Any]
    source: tuple[Lines, tuple[str, ...], bool]

    def __reduce__(self) -> tuple[Any, Any]:
        """Send the formulas alone."""
        return assignments, self.source


@lru_cache(maxsize=256)
def assignments(lines: Lines, names: tuple[str, ...], rates: bool) -> Assignments:
    """Check and compile formulas; `names` are those of numbers that they may be made of, ``rates`` one more array.

    What has no array in it is computed once, in double precision.

    Raises
    ------
    GraphError
        If a formula is none, or names something else.
    """
    arrays = tuple(dict.fromkeys(["w", "g", *(name for name, _ in lines), *["rates"] * rates]))
    apart = _Numbers(arrays)
    trees = []
    for name, text in lines:
        if not name.isidentifier() or name[0] == "_" or name in {*names, *TAKEN} or iskeyword(name):
            raise GraphError(
                f"a rule states a formula of {name!r}, which cannot be the name of an array: choose another"
            )
        checked = formula(text, 0)
        other = sorted(checked.names - {*arrays, *names})
        if other:
            raise GraphError(
                f"{text!r}, the formula of {name}, names {other[0]!r}, which is neither one of {', '.join(arrays)}, nor one of "
                f"{', '.join(names)}"
            )
        trees.append((name, apart.visit(parsed(text).body)))
    parts = [f"(g := {_into(tree, 0, '_room')})" if name == "g" else _into(tree, 0, name) for name, tree in trees]
    head = ", ".join([*arrays, *(f"_r{k}" for k in range(ROOMS)), "_room", *apart.texts.values()])
    return Assignments(
        tuple((name, ast.unparse(tree)) for name, tree in trees),
        arrays,
        len(apart.texts),
        any("t" in formula(text, 0).names for text in apart.texts),
        compiled("numbers", ", ".join(names), f"({''.join(f'{text}, ' for text in apart.texts)})", "Return numbers."),
        compiled("run", head, f"({', '.join(parts)},)", "Move arrays on.", positive=np.positive),
        (lines, names, rates),
    )


class _Numbers(ast.NodeTransformer):
    """Puts names in place of the largest parts that have no array in them; single comparisons stay."""

    def __init__(self, arrays: tuple[str, ...]):
        self.arrays, self.texts = arrays, dict[str, str]()

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Call):
            return ast.Call(node.func, [self.visit(arg) for arg in node.args], [])
        kinds = (ast.BinOp, ast.UnaryOp, ast.Name)
        if isinstance(node, kinds) and not _names(node) & {*self.arrays} and not _compares(node):
            return ast.Name(self.texts.setdefault(ast.unparse(node), f"_{len(self.texts)}"), ast.Load())
        return self.generic_visit(node)


def _names(tree: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}


def _compares(tree: ast.AST) -> bool:
    return any(isinstance(n, ast.Compare) for n in ast.walk(tree))


def _into(tree: ast.expr, depth: int, target: str = "") -> str:
    """Return a formula as NumPy text, each operation of which writes into the target or a room, if there is one left."""
    out = target or (f"_r{depth}" if depth < ROOMS else "")
    match tree:
        case ast.Call(
            ast.Name("where"), [ast.Compare(ast.Name(number), _, [ast.Constant()]) as condition, yes, no]
        ) if number[0] == "_":  # for all entries alike
            return f"({_into(yes, depth, target)} if {ast.unparse(condition)} else {_into(no, depth, target)})"
        case ast.BinOp(left, operator, right):
            name, operands = UFUNCS[type(operator)], [left, right]
        case ast.UnaryOp(_, operand):
            name, operands = "negative", [operand]
        case ast.Call(ast.Name(name), operands) if name != "where":
            pass
        case ast.Call() | ast.Compare():  # of entries: these have no place to write to
            return f"positive({ast.unparse(tree)}, out={target})" if target else f"({ast.unparse(tree)})"
        case _:
            return f"positive({ast.unparse(tree)}, out={target})" if target else ast.unparse(tree)
    texts: list[str] = []
    free = target not in ("", "_room")  # may be written while the operands are worked out: nothing else lies there
    for k, operand in enumerate(operands):
        if isinstance(operand, (ast.Name, ast.Constant)):
            texts.append(ast.unparse(operand))
        elif free and not any(target in _names(other) for other in operands[:k] * (k == 1) + operands[k + 1 :]):
            texts.append(_into(operand, depth, target))
            free = False
        else:
            texts.append(_into(operand, depth))
            depth += 1
    return f"{name}({', '.join(texts)}{out and f', out={out}'})"

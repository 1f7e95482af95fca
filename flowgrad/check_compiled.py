"""What an op states for compiled kernels, run as plain Python and compared with its rules."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import GradientError
from .expressions import filled
from .jacobians.base import Array
from .jacobians.matrix import Outer
from .node import Node


def compare(
    what: str,
    found: Array,
    expected: Array,
    rtol: float,
    atol: float,
    said: tuple[str, str] = ("the rule says", "central differences say"),
) -> float:
    """Return the largest error, relative to the largest entry or to 1; two-dimensional arrays.

    Raises
    ------
    GradientError
        If an entry is off by more than ``atol + rtol * (largest entry)``.
    """
    error = np.abs(found - expected)
    scale = float(np.abs(expected).max())
    i, j = np.unravel_index(int(np.argmax(np.where(np.isnan(error), np.inf, error))), error.shape)
    if not error[i, j] <= atol + rtol * scale:
        raise GradientError(f"{what}, entry [{i}, {j}]: {said[0]} {found[i, j]:.10g}, {said[1]} {expected[i, j]:.10g}")
    return float(error[i, j]) / max(scale, 1.0)


def check_compiled(node: Node, rtol: float, atol: float) -> None:
    """Compare what a node's op states besides its rules with them, at the values now set."""
    op: Any = type(node)
    if not node.parents:
        return
    values, y = [p.forward() for p in node.parents], node.forward()

    def same(what: str, found: Any, expected: Any) -> None:
        told = f"{what} of {node}"
        compare(told, np.atleast_2d(found), np.atleast_2d(expected), rtol, atol, (f"{what} says", "the rule says"))

    if op.expr is not None:
        same("expr", _entries(op.expr, node, values, y), y)
        for slot, text in enumerate(op.slopes[: len(values)]):
            diagonal = np.diagonal(node.local_jacobian(slot).dense()[0])
            same(f"slopes[{slot}]", _entries(text, node, values, y), diagonal)
    if op.row_value is not None:
        row = np.zeros(node.dim)
        op.row_value(row, *values)
        same("row_value", row, y)
    if op.both is not None:
        value, local = op.both(*(v[None] for v in values), **node.attrs)
        same("both", np.concatenate([value[0], local.dense(node.dim)[0].ravel()]),
             np.concatenate([y, node.local_jacobian(0).dense()[0].ravel()]))  # fmt: skip
    for slot in range(len(values)):
        local = node.local_jacobian(slot)
        if op.row_factor is not None and isinstance(local, Outer):
            row = np.zeros(local.row.shape[1])
            op.row_factor(slot, row, *(y if k < 0 else values[k] for k in op.needs(slot, len(values))))
            same(f"row_factor({slot})", row, local.row[0])
        if op.row_both is not None and not slot and isinstance(local, Outer):
            both, row = np.zeros(node.dim), np.zeros(local.row.shape[1])
            op.row_both(both, row, *values)
            same("row_both", np.concatenate([both, row]), np.concatenate([y, local.row[0]]))


def _entries(text: str, node: Node, values: list[Array], y: Array) -> Array:
    """Return an expression's value for each entry; see `Op.expr`."""
    found = []
    try:
        # The text is the op's own code, like its rules, and comes from its class alone: files hold no expressions.
        code = compile(filled(text, [f"a{k}" for k in range(len(values))], node.attrs.items(), y="y"), "<expr>", "eval")
        for j in range(node.dim):
            entry = {f"a{k}": float(v[j if len(v) > 1 else 0]) for k, v in enumerate(values)}
            found.append(float(eval(code, {"np": np, "F": float, **entry, "y": float(y[j])})))
    except Exception as error:
        raise GradientError(f"the expression {text!r} of {node} failed: {type(error).__name__}: {error}") from error
    return np.array(found)

"""Writes ops.md, a table of all ops, from their classes."""

from __future__ import annotations

import inspect
from pathlib import Path

import flowgrad as fg
from flowgrad import ops
from flowgrad.ops import BatchMatVec, Dot, Elementwise, Gather, MatVec, RowDot, Slice, Vectorize

PAGE = Path(__file__).with_name("ops.md")
HEAD = """# The ops

Made by `python docs/list_ops.py` from the classes in `flowgrad/ops/`; a test compares. Of elementwise ops `a`, `b` are the
operands and `y` is the value. The local Jacobian of a slot is kept as a kind and a factor (see [design.md](design.md)); what has no
second derivative of its own is differentiated once more by central differences.

| op | value | derivative, by slot | kind, by slot | second derivative | compiled |
|---|---|---|---|---|---|
"""
# What compiled kernels write by itself, and how.
PRODUCTS = {MatVec: "matrix product", Dot: "matrix product", BatchMatVec: "matrix product", RowDot: "loops"}
COPIES = {Slice: "a view", Vectorize: "written in place", Gather: "a loop"}


def rows() -> list[str]:
    """Return a line of the table for each public op."""
    kinds = [
        op for op in vars(ops).values() if isinstance(op, type) and issubclass(op, fg.Op) and op is not Elementwise
    ]
    public = sorted((op for op in kinds if op.__name__ in fg.__all__), key=lambda op: op.__name__.lower())
    return [f"| {' | '.join(map(escaped, row(op)))} |" for op in public]


def row(op: type[fg.Op]) -> list[str]:
    """Return the cells of an op: from its formulas, or from the first lines of its docstrings."""
    arity = len(op.slopes) or max(len(op.kinds), len(op.uses or ()))
    kinds = [op.kind(slot).__name__ for slot in range(arity)]
    if op.formula is not None and len(op.formula) < 80:
        value = f"`{op.formula}`"
        slopes = ", ".join(f"`{text}`" for text in op.slopes)
        second = ", ".join(f"`{text}`" for text in op.bends.values() if text != "0") or "0"
        return [op.__name__, value, slopes, ", ".join(kinds), second, "formula"]
    summary = inspect.getdoc(op).partition("\n\n")[0].replace("\n", " ")
    derivative = (
        ""
        if op.formula is not None
        else inspect.getdoc(op.jacobian).partition("\n\n")[0].replace("\n", " ").removeprefix("Return ")
    )
    constant = op.uses is not None and not any(op.uses)
    second = "0" if constant else "stated" if op.jacobian_tangent is not None else "differences"
    how = (
        {**PRODUCTS, **COPIES}.get(op)
        or ("formula" if op.formula is not None else "")
        or ("by other ops" if op.expand.__func__ is not fg.Op.expand.__func__ else "")
        or ("loops over a row" if op.row_value is not None else "NumPy only")
    )
    return [op.__name__, summary, derivative, ", ".join(kinds), second, how]


def escaped(cell: str) -> str:
    """Return a cell that its table does not cut in two."""
    return cell.replace("|", "\\|")


def page() -> str:
    """Return the page."""
    return HEAD + "\n".join(rows()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

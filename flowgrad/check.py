"""The gradient checker: analytic derivatives against central differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .errors import FlowgradError, GradientError, GraphError
from .formulas import OPERANDS, compiled, formula
from .graph import Graph, Node, Variable, ancestors, named, pull_back, run_rule
from .inputs import brief, listed, real, without_underflow
from .jacobians import LocalJacobian, Outer
from .returned import both_rule
from .samples import check_samples
from .typing import Array

# Step that balances truncation and rounding of a central difference: the cube root of the machine epsilon.
STEP = float(np.cbrt(np.finfo(np.float64).eps))


@without_underflow
def check_gradients(
    node: Node, wrt: Node | Iterable[Node] | None = None, rtol: float = 1e-5, atol: float = 1e-7
) -> float:
    """Compare every derivative on the way to `node` with central differences, at the values now set.

    First each edge by itself (so that a wrong rule is named), then the whole Jacobian of `node` by each variable. Rules are given
    several samples too, at values nearby: what mixes samples, draws random numbers or changes an operand is named. What an op
    states for compiled kernels (`formula`, `slopes`, `row_value`, `row_factor`) is compared with its rules, the tangents of its
    Jacobians (`bends`, `jacobian_tangent`) with central differences.

    Parameters
    ----------
    node : Node
        The result; vector or scalar.
    wrt : Variable or list of Variable, optional
        Variables to differentiate by; all that `node` depends on if not given.
    rtol, atol : float
        An entry passes if it is off by at most ``atol + rtol * (largest entry of the Jacobian)``.

    Returns
    -------
    float
        The largest error found, relative to the largest entry of its Jacobian (or to 1 where that is smaller).

    Raises
    ------
    GradientError
        Names the node, the slot, the entry and both numbers.
    GraphError
        If `node` is no node, or `wrt` something else than variables.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Logistic(fg.Variable(3, [-1.0, 0.0, 2.0]))
    >>> fg.check_gradients(y) < 1e-8
    True
    """
    if not isinstance(node, Node):
        raise GraphError(f"check_gradients is of a node, not of {brief(node)}")
    rtol, atol = real(rtol, "rtol", 0), real(atol, "atol", 0)
    upstream = sorted(ancestors(node), key=lambda n: n.index)
    for op in upstream:  # before any value is kept that would be of no use
        check_together(op, rtol, atol)
    node.forward()
    worst = 0.0
    for op in upstream:
        said = ("the rule says", f"central differences {_coarse(op)}say")
        for slot in range(len(op.parents)):
            if _apart(op, slot):
                continue
            analytic = _dense(op, slot)
            numeric = _slot_differences(op, slot)
            what = f"{op} by slot {slot} ({op.parents[slot]})"
            worst = max(worst, compare(what, analytic, numeric, rtol, atol, said))
        check_compiled(op, rtol, atol)
        check_tangents(op, rtol, atol)
    for variable in _variables(node.graph, upstream, wrt):
        analytic = variable.backward(node)
        numeric = _variable_differences(node, variable)
        worst = max(worst, compare(f"{node} by {variable}", analytic, numeric, rtol, atol))
    return worst


def _apart(op: Node, slot: int) -> bool:
    """Whether a value depends on an operand otherwise than its derivative says: on keys of what is drawn, on what is measured."""
    return slot == op.draws_slot or slot in op.measured_slots


def _variables(graph: Graph, upstream: Iterable[Node], wrt: Any) -> list[Variable]:
    if wrt is None:
        return [v for v in upstream if isinstance(v, Variable) and not any(_apart(n, slot) for n, slot in v._edges)]
    several = listed(wrt)
    variables = [named(graph, key, "check_gradients: by variables") for key in ([wrt] if several is None else several)]
    for v in variables:
        if not isinstance(v, Variable):
            raise GraphError(
                f"check_gradients differentiates by variables, whose values it can change; {brief(v)} is not one"
            )
    return variables


def central_differences(f: Callable[[Array], Array], x: Array) -> Array:
    """Return the Jacobian ``(out, in)`` of `f` at the vector `x` by central differences."""
    columns = []
    for i in range(len(x)):
        h = STEP * max(1.0, abs(x[i]))
        up, down = x.copy(), x.copy()
        up[i] += h
        down[i] -= h
        columns.append((f(up) - f(down)) / (up[i] - down[i]))
    return np.stack(columns, axis=1)


def _dense(node: Node, slot: int, local: LocalJacobian | None = None) -> Array:
    """Return a local Jacobian, the one at the values now set if none is given, as an array ``(out, in)``."""
    return pull_back(node, slot, local or node.local_jacobian(slot), np.eye(node.dim)[:, None])[:, 0]


def _coarse(node: Node) -> str:
    """Return what is to be said of differences where an op's values have too few digits for them."""
    if not node.parents:
        return ""
    rule: Any = type(node)
    dtype = np.asarray(rule.apply(*(p.forward()[None] for p in node.parents), **node.attrs)).dtype
    return "" if dtype == np.float64 else f"of {dtype} (return float64 values, for their digits) "


def _slot_differences(op: Node, slot: int) -> Array:
    values = [parent.forward()[None] for parent in op.parents]

    def f(x: Array) -> Array:
        return run_rule(op, "apply", *values[:slot], x[None], *values[slot + 1 :])[0]

    return central_differences(f, values[slot][0])


def _variable_differences(node: Node, variable: Variable) -> Array:
    before = variable.forward()

    def f(x: Array) -> Array:
        variable._assign(x[None])
        return node.forward()

    try:
        return central_differences(f, before)
    finally:
        variable._assign(before[None])


def compare(
    what: str,
    actual: Array,
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
    error = np.abs(actual - expected)
    scale = float(np.abs(expected).max())
    i, j = np.unravel_index(int(np.argmax(np.where(np.isnan(error), np.inf, error))), error.shape)
    if not error[i, j] <= atol + rtol * scale:
        raise GradientError(f"{what}, entry [{i}, {j}]: {said[0]} {actual[i, j]:.10g}, {said[1]} {expected[i, j]:.10g}")
    return float(error[i, j]) / max(scale, 1.0)


def check_together(node: Node, rtol: float, atol: float) -> None:
    """Compare rules for several samples, each operand's own or one for all, with rules for one at a time."""
    if not node.parents:
        return
    rng = np.random.default_rng(0)
    values = []
    for parent in node.parents:
        v = parent.forward()
        moved = np.where(v == 0, rng.uniform(0, 0.1, (2, v.size)), v * rng.uniform(0.5, 1.5, (2, v.size)))
        values.append(np.concatenate([v[None], moved]))
    op: Any = type(node)
    ways = [values] + [[v[:1] if k == slot else v for k, v in enumerate(values)] for slot in range(len(values))]
    for way in ways if len(values) > 1 else ways[:1]:
        check_samples(op, node.attrs, way, node.dim, repr(node), rtol, atol)


def check_compiled(node: Node, rtol: float, atol: float) -> None:
    """Compare what a node's op states besides its rules with them, at the values now set."""
    op: Any = type(node)
    if not node.parents:
        return
    values, y = [p.forward() for p in node.parents], node.forward()

    def same(what: str, actual: Any, expected: Any) -> None:
        label = f"{what} of {node}"
        compare(label, np.atleast_2d(actual), np.atleast_2d(expected), rtol, atol, (f"{what} says", "the rule says"))

    if op.formula is not None and not _is_chain(node):
        same("formula", _entries(op.formula, node, values, y), y)
        for slot, text in enumerate(op.slopes[: len(values)]):
            diagonal = np.diagonal(_dense(node, slot))
            same(f"slopes[{slot}]", _entries(text, node, values, y), diagonal)
    if op.row_value is not None:
        whole = np.zeros(node.dim)
        rows = node.attrs.get("rows", 1)
        numbers = [np.array([float(node.attrs[name]) for name in op.numbers])] if op.numbers else []
        for row, *operands in zip(*(np.split(v, rows) for v in (whole, *values))):  # stretches of the very arrays
            with np.errstate(over="ignore"):  # of integers, on purpose
                op.row_value(row, *operands, *numbers)
        same("row_value", whole, y)
    if op.both is not None:
        try:
            value, local = both_rule(op)(*(v[None] for v in values), **node.attrs)
        except FlowgradError as error:
            raise type(error)(f"{node}: {error}") from None
        same("both", np.concatenate([value[0], _dense(node, 0, local).ravel()]),
             np.concatenate([y, _dense(node, 0).ravel()]))  # fmt: skip
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


def _is_chain(node: Node) -> bool:
    """Whether programs hold an op as a chain of two operands each, which is what its formulas are about."""
    return getattr(node, "folds", False) and len(node.parents) != 2


def _entries(text: str, node: Node, values: list[Array], y: Array) -> Array:
    """Return the value of a formula for each entry."""
    numbers = {k: v for k, v in node.attrs.items() if isinstance(v, (int, float, np.number))}
    names = {**numbers, **dict(zip(OPERANDS, values)), "y": y}
    try:
        formula(text, len(values))  # the op's own code, like its rules: files hold no formulas
        entries = compiled("entries", ", ".join(names), text, "")(**names)
        return np.broadcast_to(np.asarray(entries, float), (node.dim,))
    except Exception as error:
        raise GradientError(f"the formula {text!r} of {node} failed: {type(error).__name__}: {error}") from error


def check_tangents(node: Node, rtol: float, atol: float) -> None:
    """Compare the tangent of each local Jacobian, where an op states one, with central differences of the Jacobian."""
    op: Any = type(node)
    if not node.parents or op.jacobian_tangent is None or _is_chain(node):
        return
    values = [p.forward()[None] for p in node.parents]
    y = node.forward()[None]
    rng = np.random.default_rng(0)
    directions = [rng.uniform(0.5, 1.0, v.shape) * rng.choice([-1.0, 1.0], v.shape) for v in values]
    directions = [d * (not _apart(node, slot)) for slot, d in enumerate(directions)]

    def at(step: float) -> tuple[Array, list[Array]]:
        moved = [v + step * d for v, d in zip(values, directions)]
        return run_rule(node, "apply", *moved), moved

    h = STEP * max(1.0, *(float(np.abs(v).max()) for v in values))
    (up, up_values), (down, down_values) = at(h), at(-h)
    for slot in range(len(values)):
        ends = [
            _dense(node, slot, run_rule(node, "jacobian", slot, value, *moved))
            for value, moved in ((up, up_values), (down, down_values))
        ]
        tangent = run_rule(node, "jacobian_tangent", slot, (y, *values), ((up - down) / (2 * h), *directions))
        dense = np.zeros_like(ends[0]) if tangent is None else _dense(node, slot, tangent)
        what = f"the second derivative (jacobian_tangent, bends) of {node} by slot {slot}"
        compare(what, dense, (ends[0] - ends[1]) / (2 * h), rtol, atol)

"""The gradient checker: analytic derivatives against central differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .check_compiled import check_compiled, compare
from .errors import GraphError
from .jacobians.base import Array
from .node import Node, Variable, ancestors, run_rule

# Step that balances truncation and rounding of a central difference: the cube root of the machine epsilon.
STEP = float(np.cbrt(np.finfo(np.float64).eps))


def check_gradients(
    node: Node, wrt: Node | Iterable[Node] | None = None, rtol: float = 1e-5, atol: float = 1e-7
) -> float:
    """Compare every derivative on the way to `node` with central differences, at the values now set.

    First each edge by itself (so that a wrong rule is named), then the whole Jacobian of `node` by each variable. What an op
    states for compiled kernels (`expr`, `slopes`, `row_value`, `row_factor`) is compared with its rules.

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
        If `wrt` is something else.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Logistic(fg.Variable(3, [-1.0, 0.0, 2.0]))
    >>> fg.check_gradients(y) < 1e-8
    True
    """
    node.forward()
    upstream = sorted(ancestors(node), key=lambda n: n.index)
    worst = 0.0
    for op in upstream:
        for slot in range(len(op.parents)):
            analytic = op.local_jacobian(slot).dense(op.dim)[0]
            numeric = _slot_differences(op, slot)
            worst = max(worst, compare(f"{op} by slot {slot} ({op.parents[slot]})", analytic, numeric, rtol, atol))
        check_compiled(op, rtol, atol)
    for variable in _variables(upstream, wrt):
        analytic = variable.backward(node)
        numeric = _variable_differences(node, variable)
        worst = max(worst, compare(f"{node} by {variable}", analytic, numeric, rtol, atol))
    return worst


def _variables(upstream: Iterable[Node], wrt: Any) -> list[Variable]:
    if wrt is None:
        return [v for v in upstream if isinstance(v, Variable)]
    given = list(wrt) if isinstance(wrt, Iterable) else [wrt]
    for v in given:
        if not isinstance(v, Variable):
            raise GraphError(
                f"check_gradients differentiates by variables, whose values it can change; {v!r} is not one"
            )
    return given


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

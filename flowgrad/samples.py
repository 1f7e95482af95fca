"""Whether an op's rules keep samples apart: several samples at once, and each alone, must give the same.

What mixes samples gives other results for other shards and batches; so does what draws random numbers or changes its operands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import numpy as np

from .errors import GradientError
from .op import Op
from .returned import both_rule, carry, jacobian_rule, value_rule
from .typing import Array

# Ops that an engine has used before.
known: WeakSet[type[Op]] = WeakSet()
# What the check at the first use may cost: entries of all operands, those of the local Jacobians, and seconds.
ENTRIES, JACOBIANS, SECONDS = 20_000, 20_000, 0.02
SAMPLES = "axis 0 is the samples, so work along axis=1, with keepdims=True"
Rule = Callable[[list[Array], Array], Any]


def check_first_use(op: type[Op], attrs: Mapping[str, Any], dims: Sequence[int], dim: int, name: str) -> None:
    """Check an op that is not flowgrad's own, once for each class, at random numbers; cheaply, so not where it is large or slow.

    Raises
    ------
    GradientError
        Names the op, the entry, both numbers, and what to do.
    """
    ours = all(str(getattr(rule, "__module__", "")).startswith("flowgrad.") for rule in (op.apply, op.jacobian))
    if ours or op in known or sum(dims) > ENTRIES:
        return
    rng = np.random.default_rng(0)
    values = [rng.uniform(0.5, 1.5, (4, d)) for d in dims]
    for v in values:  # what is for positive numbers only is checked by the others
        v[:2] *= rng.choice([-1.0, 1.0], v[:2].shape)
    if check_samples(op, attrs, values, dim, f"{op.__name__} {name!r}", until=time.perf_counter() + SECONDS):
        known.add(op)


def check_samples(
    op: type[Op],
    attrs: Mapping[str, Any],
    values: list[Array],
    dim: int,
    what: str,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    until: float = np.inf,
) -> bool:
    """Compare what rules give for several samples with what they give for each alone; return whether any could be run.

    Parameters
    ----------
    values : list of ndarray (N or 1, dim)
        Of the operands. Samples whose rules fail alone are left out.
    dim : int
        Length of the op's value.
    what : str
        The op or node, for messages.
    rtol, atol : float
        How far off an entry may be, of the largest one and absolutely.
    until : float
        When to go no further, by ``time.perf_counter``.
    """
    g = np.random.default_rng(1).uniform(0.5, 1.5, (1, max(map(len, values)), dim))
    ran = False
    with np.errstate(all="ignore"):
        for label, rule in _rules(op, attrs, [v.shape[1] for v in values], dim, until):
            if time.perf_counter() < until:
                ran |= _check(f"{label} of {what}", rule, values, g, (rtol, atol), until)
    return ran


def _rules(
    op: Any, attrs: Mapping[str, Any], dims: Sequence[int], dim: int, until: float
) -> Iterator[tuple[str, Rule]]:
    """Give rules by name, as functions of values and a cotangent with a row for each sample."""
    apply, jacobian = value_rule(op), jacobian_rule(op)
    yield "apply", lambda values, g: apply(*values, **attrs)
    if until < np.inf and dim * sum(dims) > JACOBIANS:
        return
    for slot in range(len(dims)):
        needs = op.needs(slot, len(dims))

        def pull(values: list[Array], g: Array, slot: int = slot, needs: Sequence[int] = needs) -> Any:
            y = apply(*values, **attrs) if -1 in needs else None
            used = [v if k in needs else None for k, v in enumerate(values)]
            return carry(jacobian(slot, y, *used, **attrs), "pull", g, dims[slot], values)[0]

        yield f"jacobian by slot {slot}", pull
    if op.both is not None:
        both = both_rule(op)
        yield "both", lambda values, g: both(*values, **attrs)[0]
        yield "both", lambda values, g: carry(both(*values, **attrs)[1], "pull", g, dims[0], values)[0]


def _check(what: str, rule: Rule, values: list[Array], g: Array, off: tuple[float, float], until: float) -> bool:
    """Check one rule; return whether it could be run."""
    alone: dict[int, Array] = {}
    for i in range(g.shape[1]):
        try:
            alone[i] = _run(what, rule, [v[i : i + 1] if len(v) > 1 else v for v in values], g[:, i : i + 1])
        except GradientError:
            raise
        except Exception:  # who runs it with numbers of their own is told
            continue
        if time.perf_counter() > until:
            return True
    shapes = {y.shape for y in alone.values()}
    if len(shapes) != 1 or [len(s) == 2 and s[0] == 1 for s in shapes] != [True]:
        return False
    kept, expected = list(alone), np.concatenate(list(alone.values()))
    values = [v[kept] if len(v) > 1 else v for v in values]
    try:
        first, second = (_run(what, rule, values, g[:, kept]) for _ in range(2))
    except GradientError:
        raise
    except Exception as error:
        told = f"failed for {len(kept)}: {type(error).__name__}: {error}"
        raise GradientError(f"{what} works for one sample, but {told}; {SAMPLES}") from error
    if first.shape == second.shape:
        told = f"{what} gives something else when it is called again"
        _compare(told, second, first, ("now", "before"), "draw random numbers outside, and feed them", off)
    first = np.broadcast_to(first, expected.shape)
    _compare(f"{what} mixes samples", first, expected, (f"among {len(kept)}", "alone"), SAMPLES, off)
    return True


def _run(what: str, rule: Rule, values: list[Array], g: Array) -> Array:
    """Run a rule on copies of values, and compare those with what they were."""
    given = [v.copy() for v in values]
    result = np.array(rule(given, g), np.float64)
    for k, (now, before) in enumerate(zip(given, values)):
        _compare(f"{what} changes its operand {k}", now, before, ("now", "it was"), "write into a copy", (0, 0))
    return result


def _compare(what: str, a: Array, b: Array, said: tuple[str, str], advice: str, off: tuple[float, float]) -> None:
    """Raise an error where arrays differ; what is not a number in both does not."""
    error = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    largest = np.abs(b[np.isfinite(b)]).max(initial=0.0)
    wrong = ~(error <= off[1] + off[0] * largest)
    if wrong.any():
        i, j = np.unravel_index(int(np.where(wrong, np.nan_to_num(error, nan=np.inf), 0).argmax()), error.shape)
        numbers = f"{said[0]} {a[i, j]:.10g}, {said[1]} {b[i, j]:.10g}"
        raise GradientError(f"{what}: sample {i}, entry {j} is {numbers}; {advice}")

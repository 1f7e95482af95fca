"""Update rules: each a few formulas, which are run in place on flat arrays, by NumPy or compiled.

`g` is the mean gradient of a mini-batch; every rule is elementwise, so it may run on any slice of the flat vector. The state is
a dict of arrays and holds the number ``t`` of updates made. At the first update the running means start at their first term
(``s = g²``, ``v = g``), not at zero, unless bias correction is asked for.

Before a rule sees `g`, it is clipped by its norm, then ``weight_decay * w`` is added: the order of PyTorch, where
``clip_grad_norm_`` is called before ``step``. The norm is the only thing that is not elementwise: see `block_norms`. After it,
what is subtracted from the weights is multiplied by ``rates``, if the state has them, and the average of the weights moves on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..errors import FlowgradError, GraphError
from ..inputs import brief, flag, real
from ..returned import numbers, told
from ..typing import Array
from .assignments import WORK, Assignments, assignments
from .norms import scale_of

State = dict[str, Array]


@dataclass(frozen=True)
class Rule:
    """Base of the update rules: hyperparameters and formulas.

    A rule states ``formulas``: of each array of its state, as it moves on, and of ``step``, which is subtracted from the weights;
    one after the other. They may name ``w``, ``g``, those arrays, ``t`` (the update's number, from 1), ``first`` (1 at the first
    update, else 0), ``lr`` and the other fields, and what `flowgrad.formulas` knows.

    Attributes
    ----------
    learning_rate : float or callable
        A number, or a schedule: a function of the update's number, from 1.
    weight_decay : float
        This times the weights is added to the gradient: the derivative of ``weight_decay / 2 * |w|²`` (A. Krogh, J. Hertz, NIPS
        1991). Where it is `decoupled`, ``lr`` times this times the weights is added to the step (I. Loshchilov, F. Hutter, ICLR
        2019).
    clip_norm : float, optional
        The mean gradient of all parameters together is scaled down to this Euclidean norm, where it is longer.
    ema : float
        Above 0: ``average += (1 - ema) (w - average)`` after each update, first ``average = w`` (B. Polyak, A. Juditsky, SIAM J.
        Control Optim. 30, 1992, with weights that decay).
    lazy_rows : bool
        Of tables only the rows that occur in a batch move: weights and all state of others stay as they are.
    slots : tuple of str
        Arrays of the state.
    """

    learning_rate: float | Callable[[int], float] = 0.01
    weight_decay: float = field(default=0.0, kw_only=True)
    clip_norm: float | None = field(default=None, kw_only=True)
    ema: float = field(default=0.0, kw_only=True)
    lazy_rows: bool = field(default=False, kw_only=True)
    decoupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for name, value in ((f.name, getattr(self, f.name)) for f in fields(self)):
            if name == "clip_norm" and value is None:
                continue
            if name in ("bias_correction", "lazy_rows"):
                object.__setattr__(self, name, flag(value, f"{kind}: {name}"))
                continue
            if name == "learning_rate" and callable(value):
                continue
            above = name in ("learning_rate", "clip_norm")
            number = real(value, f"{kind}: {name}", 0 if above or name == "weight_decay" else -math.inf, above)
            if name in ("momentum", "beta", "beta_1", "beta_2", "ema") and not 0 <= value < 1:
                raise GraphError(f"{kind}: {name} must be at least 0 and below 1, not {value!r}")
            object.__setattr__(self, name, number)

    def __init_subclass__(cls, **kwargs: Any):
        """Refuse what a class states in code: compiled loops follow from formulas, and would do something else."""
        super().__init_subclass__(**kwargs)
        for name in ("step", "loop", "slots", "update", "update_in_place"):
            if name in vars(cls):
                raise GraphError(
                    f"the rule {cls.__name__} states {name!r} in code, which compiled loops do not follow: give its class "
                    f"formulas, such as {{'step': 'lr * g'}}"
                )

    @property
    def own(self) -> bool:
        """Whether it is a rule of somebody's own, which needs a look."""
        return type(self).__module__ != __name__

    @property
    def formulas(self) -> Mapping[str, str]:
        """What a class states."""
        return {}

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays of the state, beside the weights."""
        return self.alone.arrays[2:]

    @cached_property
    def alone(self) -> Assignments:
        """What an update does where the state has no ``rates``."""
        return self._assignments(False)

    @cached_property
    def rated(self) -> Assignments:
        """What it does where the state has them."""
        return self._assignments(True)

    def _assignments(self, rates: bool) -> Assignments:
        decay = " + lr * weight_decay * w" if self.weight_decay and self.decoupled else ""
        before = {"g": "g + weight_decay * w"} if self.weight_decay and not self.decoupled else {}
        after = {"average": "where(first > 0, w, average + (1 - ema) * (w - average))"} if self.ema else {}
        stated: Any = self.formulas
        texts = isinstance(stated, Mapping) and all(isinstance(text, str) for pair in stated.items() for text in pair)
        if not texts or "step" not in stated:
            what = "no step" if texts else f"{brief(stated)} for formulas"
            raise GraphError(
                f"the rule {type(self).__name__} states {what}: give its class formulas, such as {{'step': 'lr * g'}}"
            )
        taken = {"w", "g", "rates", "average"} & {*stated}
        if taken:
            raise GraphError(
                f"the rule {type(self).__name__} states a formula of {min(taken)!r}, which is flowgrad's own name"
            )
        formulas = {("w" if name == "step" else name): text for name, text in stated.items()}
        formulas["w"] = f"w - {'rates * ' * rates}({formulas['w'] + decay})"
        return assignments(tuple({**before, **formulas, **after}.items()), ("lr", "t", "first", *self._numbers), rates)

    @cached_property
    def _numbers(self) -> dict[str, float]:
        others = ("learning_rate", "clip_norm", "lazy_rows")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in others}

    def constants(self, t: int, what: Assignments) -> tuple[float, ...]:
        """Return the numbers of an update; rounded to the parameters' dtype once, as NumPy does.

        Raises
        ------
        RuleError
            If a formula of one's own has none at this update.
        """
        text = f"a formula of {type(self).__name__} at update {t}"
        made = named(text, what.numbers, self.rate(t), t, float(t == 1), *self._numbers.values())
        if self.own and any(isinstance(number, complex) for number in made):
            raise RuleError(f"{text} is no real number")
        return tuple(made)

    def init(self, w: Array) -> State:
        """Return the state before the first update of parameters `w` ``(P,)``."""
        state = {"t": np.zeros(1, np.int64), **{slot: np.zeros_like(w) for slot in self.slots}}
        return state | ({"average": w.copy()} if self.ema else {})

    def begin(self, w: Array) -> State:
        """Return what `init` gives, as arrays like `w`.

        Raises
        ------
        RuleError
            If a rule of one's own fails, or gives something else.
        """
        what = f"init of {type(self).__name__}"
        state = named(what, self.init, w)
        names = {"t", *self.slots}
        if not isinstance(state, dict) or state.keys() != names:
            given = ", ".join(map(repr, state)) if isinstance(state, dict) else told(state)
            raise RuleError(
                f"{what} gave {given}, it must be a dict of {', '.join(map(repr, sorted(names)))}: 't' and its slots"
            )
        t = numbers(state["t"])
        if t is None or t.shape != (1,) or t.dtype.kind not in "iu":
            raise RuleError(f"{what} gave {told(state['t'])} for 't', it must be one integer, np.zeros(1, np.int64)")
        return {"t": t, **{slot: _like(f"{what} for {slot!r}", state[slot], w) for slot in self.slots}}

    def update(self, w: Array, g: Array, state: State, moving: Array | None = None) -> tuple[Array, State]:
        """Return new parameters and new state for the mean gradient `g` ``(P,)``; changes none of its inputs."""
        w, state = w.copy(), {name: array.copy() for name, array in state.items()}
        self.update_in_place(w, g, state, np.empty((WORK, len(w)), w.dtype), moving)
        return w, state

    def update_in_place(self, w: Array, g: Array, state: State, work: Array, moving: Array | None = None) -> None:
        """Update `w` and `state` themselves; `work` ``(WORK, n)`` is room for `n` entries at a time.

        Every rule is elementwise, so the bits do not depend on `n`. With `moving`, the others stay as they are.
        """
        state["t"] += 1
        what = self.rated if "rates" in state else self.alone
        t = int(state["t"][0])
        constants, scale = self.constants(t, what), self.scale(g)
        for start in range(0, len(g if moving is None else moving), max(1, work.shape[1])):
            span = slice(start, start + work.shape[1])
            part = span if moving is None else moving[span]
            moved = [w, *(state[name] for name in what.arrays[2:])]
            first, *others = parts = [array[part] for array in moved]
            rooms = work[:, : len(first)]
            given = (first, clipped(g[part], scale, rooms[-1]), *others, *rooms, *constants)
            if self.own:
                self._look(what, t, range(len(w))[span] if moving is None else part, *given)
            else:
                what.run(*given)
            if moving is not None:
                for array, new in zip(moved, parts):
                    array[part] = new

    def _look(self, what: Assignments, t: int, entries: Any, w: Array, g: Array, *others: Any) -> None:
        """Run formulas of one's own, on these entries, with a look at what comes of them.

        Raises
        ------
        RuleError
            If that is not a number where the weight and the gradient were.
        """
        good = np.isfinite(w) & np.isfinite(g)
        with np.errstate(invalid="ignore", divide="ignore"):
            what.run(w, g, *others)
        strange = np.isnan(w) & good
        if strange.any():
            first = int(strange.argmax())
            text = f"step of {type(self).__name__} at update {t} gave nan where the gradient is {g[first]:.10g}"
            raise RuleError(text, int(entries[first]))

    def scale(self, g: Array) -> float:
        """Return the factor by which the gradient is clipped."""
        return 1.0 if self.clip_norm is None else scale_of(g, self.clip_norm)

    def rate(self, t: int) -> float:
        """Return the learning rate of update number `t` (from 1)."""
        if not callable(self.learning_rate):
            return self.learning_rate
        what = f"{type(self).__name__}: the learning rate of update {t}, by {self.learning_rate!r},"
        return real(self.learning_rate(t), what, 0)


class RuleError(GraphError):
    """A rule of one's own that fails or gives what no rule does; `entry` is the number of the parameter, where there is one."""

    def __init__(self, message: str, entry: int | None = None):
        super().__init__(message)
        self.entry = entry


def named(what: str, rule: Callable[..., Any], *args: Any) -> Any:
    """Run a function of a rule; name it if it fails."""
    try:
        return rule(*args)
    except FlowgradError:
        raise
    except Exception as error:
        raise RuleError(f"{what} failed: {type(error).__name__}: {error}") from error


def _like(what: str, value: Any, array: Array) -> Array:
    """Return real numbers in the shape and precision of an array."""
    given = numbers(value)
    if given is None or given.shape != array.shape:
        shape = told(value) if given is None or not isinstance(value, np.ndarray) else f"shape {given.shape}"
        raise RuleError(f"{what} gave {shape}, it must be real numbers of shape {array.shape}")
    return given.astype(array.dtype, copy=False)


def clipped(g: Array, scale: float, out: Array | None = None) -> Array:
    """Return a gradient times the factor by which it is clipped."""
    return g if scale == 1.0 else np.multiply(scale, g, out=out)


def _mean(slot: str, term: str, beta: str) -> str:
    """Return how a running mean moves on that starts at zero."""
    return f"{beta} * {slot} + (1 - {beta}) * {term}"


def _mean_of(slot: str, term: str, beta: str) -> str:
    """Return how one moves on that starts at its first term."""
    return f"where(first > 0, {term}, {_mean(slot, term, beta)})"


_SQUARE, _ROOT = "(g * g)", "sqrt(s + 1e-10)"
_CORRECTED = {"v": _mean("v", "g", "beta_1"), "s": _mean("s", _SQUARE, "beta_2")}


def _corrected_step(s: str) -> str:
    return f"lr / (1 - beta_1 ** t) * v / (sqrt({s} / (1 - beta_2 ** t)) + 1e-8)"


@dataclass(frozen=True)
class GradientDescentRule(Rule):
    """``w -= lr g``."""

    formulas = {"step": "lr * g"}


@dataclass(frozen=True)
class MomentumRule(Rule):
    """``v = μ v + g; w -= lr v`` (B. Polyak, 1964)."""

    momentum: float = 0.9
    formulas = {"v": "momentum * v + g", "step": "lr * v"}


@dataclass(frozen=True)
class NesterovRule(MomentumRule):
    """``v = μ v + g; w -= lr (g + μ v)`` (Y. Nesterov, 1983; as I. Sutskever et al., ICML 2013, and PyTorch write it)."""

    formulas = {"v": "momentum * v + g", "step": "lr * (g + momentum * v)"}


@dataclass(frozen=True)
class AdaGradRule(Rule):
    """``s += g²; w -= lr g / sqrt(s + 1e-10)`` (J. Duchi, E. Hazan, Y. Singer, JMLR 12, 2011)."""

    formulas = {"s": f"s + {_SQUARE}", "step": f"lr * g / {_ROOT}"}


@dataclass(frozen=True)
class RMSPropRule(Rule):
    """``s = β s + (1-β) g²; w -= lr g / sqrt(s + 1e-10)`` (T. Tieleman, G. Hinton, 2012).

    With `momentum` μ, as PyTorch has it: ``v = μ v + g / sqrt(s + 1e-10); w -= lr v``.
    """

    beta: float = 0.9
    momentum: float = 0.0

    @property
    def formulas(self) -> Mapping[str, str]:
        """See the class."""
        s = _mean_of("s", _SQUARE, "beta")
        if not self.momentum:
            return {"s": s, "step": f"lr * g / {_ROOT}"}
        return {"s": s, "v": f"momentum * v + g / {_ROOT}", "step": "lr * v"}


@dataclass(frozen=True)
class AdamRule(Rule):
    """``v = β1 v + (1-β1) g; s = β2 s + (1-β2) g²; w -= lr v / sqrt(s + 1e-10)`` (D. Kingma, J. Ba, ICLR 2015).

    With `bias_correction`, `v` and `s` start at zero, are divided by ``1 - βᵗ``, and the denominator is ``sqrt(s) + 1e-8``.
    """

    beta_1: float = 0.9
    beta_2: float = 0.99
    bias_correction: bool = False

    @property
    def formulas(self) -> Mapping[str, str]:
        """See the class."""
        if self.bias_correction:
            return {**_CORRECTED, "step": _corrected_step("s")}
        means = {"v": _mean_of("v", "g", "beta_1"), "s": _mean_of("s", _SQUARE, "beta_2")}
        return {**means, "step": f"lr * v / {_ROOT}"}


@dataclass(frozen=True)
class AdamWRule(Rule):
    """Adam with bias correction, and weight decay beside it: ``w -= lr (Adam + weight_decay w)``.

    I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2, without a schedule of its own.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    decoupled = True
    formulas = {**_CORRECTED, "step": _corrected_step("s")}


@dataclass(frozen=True)
class AMSGradRule(Rule):
    """Adam with bias correction, divided by the root of the largest `s` so far: ``top = max(top, s)``.

    S. Reddi, S. Kale, S. Kumar, "On the convergence of Adam and beyond", ICLR 2018; with bias correction as PyTorch has it.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    formulas = {**_CORRECTED, "top": "maximum(top, s)", "step": _corrected_step("top")}


@dataclass(frozen=True)
class LionRule(Rule):
    """``w -= lr (sign(β1 v + (1-β1) g) + weight_decay w); v = β2 v + (1-β2) g``.

    X. Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023, algorithm 2.
    """

    beta_1: float = 0.9
    beta_2: float = 0.99
    decoupled = True
    formulas = {"step": f"lr * sign({_mean('v', 'g', 'beta_1')})", "v": _mean("v", "g", "beta_2")}

"""Update rules: each a pure ``init`` and ``update`` on flat arrays, and the same update in place.

`g` is the mean gradient of a mini-batch; every rule is elementwise, so it may run on any slice of the flat vector. The state is
a dict of arrays and holds the number ``t`` of updates made. At the first update the running means start at their first term
(``s = g²``, ``v = g``), not at zero, unless bias correction is asked for.

Before a rule sees `g`, it is clipped by its norm, then ``weight_decay * w`` is added: the order of PyTorch, where
``clip_grad_norm_`` is called before ``step``. The norm is the only thing that is not elementwise: see `block_norms`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from ..errors import FlowgradError, GraphError
from ..inputs import flag, real
from ..returned import numbers, told
from ..typing import Array
from .norms import scale_of

State = dict[str, Array]

# Added under the square root of the running mean of g².
EPSILON = 1e-10
# Arrays of room that an update in place works in.
WORK = 3


@dataclass(frozen=True)
class Rule:
    """Base of the update rules: hyperparameters, ``init`` and ``update``.

    Attributes
    ----------
    learning_rate : float or callable
        A number, or a schedule: a function of the update's number, from 1.
    weight_decay : float
        This times the weights is added to the gradient: the derivative of ``weight_decay / 2 * |w|²`` (A. Krogh, J. Hertz, NIPS
        1991).
    clip_norm : float, optional
        The mean gradient of all parameters together is scaled down to this Euclidean norm, where it is longer.
    """

    learning_rate: float | Callable[[int], float] = 0.01
    weight_decay: float = field(default=0.0, kw_only=True)
    clip_norm: float | None = field(default=None, kw_only=True)
    slots: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for name, value in ((f.name, getattr(self, f.name)) for f in fields(self)):
            if name == "clip_norm" and value is None:
                continue
            if name == "bias_correction":
                object.__setattr__(self, name, flag(value, f"{kind}: {name}"))
                continue
            if name == "learning_rate" and callable(value):
                continue
            above = name in ("learning_rate", "clip_norm")
            number = real(value, f"{kind}: {name}", 0 if above or name == "weight_decay" else -math.inf, above)
            if name in ("momentum", "beta", "beta_1", "beta_2") and not 0 <= value < 1:
                raise GraphError(f"{kind}: {name} must be at least 0 and below 1, not {value!r}")
            object.__setattr__(self, name, number)

    def __init_subclass__(cls, **kwargs: Any):
        """Forget the loop of a class above where this one states its step anew: machine code would be of another rule."""
        super().__init_subclass__(**kwargs)
        if "step" in vars(cls) and "loop" not in vars(cls):
            cls.loop = Rule.loop  # type: ignore[method-assign]
        if cls.loop is not Rule.loop and not {"v", "s"} >= {*cls.slots}:
            raise GraphError(
                f"{cls.__name__} states a loop, which is given the slots 'v' and 's' alone, not {cls.slots!r}"
            )

    def init(self, w: Array) -> State:
        """Return the state before the first update of parameters `w` ``(P,)``."""
        return {"t": np.zeros(1, np.int64), **{slot: np.zeros_like(w) for slot in self.slots}}

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

    def update(self, w: Array, g: Array, state: State) -> tuple[Array, State]:
        """Return new parameters and new state for the mean gradient `g` ``(P,)``; changes none of its inputs."""
        w, state = w.copy(), {name: array.copy() for name, array in state.items()}
        self.update_in_place(w, g, state, np.empty((WORK, len(w)), w.dtype))
        return w, state

    def update_in_place(self, w: Array, g: Array, state: State, work: Array) -> None:
        """Update `w` and `state` themselves; `work` ``(WORK, n)`` is room for `n` entries at a time.

        Every rule is elementwise, so the bits do not depend on `n`.
        """
        state["t"] += 1
        t = int(state["t"][0])
        scale = self.scale(g)
        for start in range(0, len(g), max(1, work.shape[1])):
            part = slice(start, start + work.shape[1])
            here = w[part]
            a, b, c = work[:, : len(here)]
            slots = {slot: state[slot][part] for slot in self.slots}
            here -= self.moved(self.prepare(here, g[part], scale, c), slots, t, a, b)

    def moved(self, g: Array, state: State, t: int, a: Array, b: Array) -> Array:
        """Return what `step` gives; of a rule of one's own, with a look at it.

        Raises
        ------
        RuleError
            If it fails, or gives something else, or what is not a number where the gradient is one.
        """
        if getattr(self.step, "__module__", "") == __name__:
            return self.step(g, state, t, a, b)
        what, before = f"step of {type(self).__name__} at update {t}", dict(state)
        result = _like(what, named(what, self.step, g, state, t, a, b), g)
        for slot, here in before.items():
            if state.get(slot) is not here:  # set, not written to
                here[...] = _like(f"{what} for {slot!r}", state.get(slot), here)
        strange = np.isnan(result) & np.isfinite(g)
        if strange.any():
            entry = int(strange.argmax())
            raise RuleError(f"{what} gave nan where the gradient is {g[entry]:.10g}", entry)
        return result

    def scale(self, g: Array) -> float:
        """Return the factor by which the gradient is clipped."""
        return 1.0 if self.clip_norm is None else scale_of(g, self.clip_norm)

    def prepare(self, w: Array, g: Array, scale: float, out: Array | None = None) -> Array:
        """Return what the rule works with: the clipped gradient, and weight decay; written to `out` where it is not `g`."""
        if scale != 1.0:
            g = np.multiply(scale, g, out=out)
        return np.add(g, self.weight_decay * w, out=out) if self.weight_decay else g

    def rate(self, t: int) -> float:
        """Return the learning rate of update number `t` (from 1)."""
        if not callable(self.learning_rate):
            return self.learning_rate
        what = f"{type(self).__name__}: the learning rate of update {t}, by {self.learning_rate!r},"
        return real(self.learning_rate(t), what, 0)

    def step(self, g: Array, state: State, t: int, a: Array, b: Array) -> Array:
        """Move the slots in `state` on, and return what is subtracted from the parameters at update number `t` (from 1).

        `a` and `b` are room for intermediate results, shaped like `g`; the result may lie in one of them. `g` stays as it is.
        """
        raise NotImplementedError("a rule states what is subtracted: `step(self, g, state, t, a, b)`")

    def constants(self, t: int) -> list[float]:
        """Return the numbers that `loop` works with at update `t`; rounded to the parameters' dtype once, as NumPy does."""
        return [self.rate(t)]

    @staticmethod
    def loop(w: Array, g: Array, v: Array, s: Array, t: int, c: Array) -> None:
        """Do the same update in place; plain loops, for compiled kernels. Arrays of slots that the rule lacks are empty.

        The constants are read into locals first: a compiler cannot know that `w` does not overlap `c`.
        """
        raise NotImplementedError


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
        raise RuleError(f"{what} failed for {len(args[0])} numbers: {type(error).__name__}: {error}") from error


def _like(what: str, value: Any, array: Array) -> Array:
    """Return real numbers in the shape and precision of an array."""
    given = numbers(value)
    if given is None or given.shape != array.shape:
        shape = told(value) if given is None or not isinstance(value, np.ndarray) else f"shape {given.shape}"
        raise RuleError(f"{what} gave {shape}, it must be real numbers of shape {array.shape}")
    return given.astype(array.dtype, copy=False)


def _blend(mean: Array, term: Array, beta: float, t: int, out: Array) -> None:
    """Move a running mean on by a term; `out` is room and may be the term itself."""
    if t == 1:
        mean[...] = term
        return
    mean *= beta
    mean += np.multiply(term, 1.0 - beta, out=out)


def _root(s: Array, out: Array) -> Array:
    return np.sqrt(np.add(s, EPSILON, out=out), out=out)


@dataclass(frozen=True)
class GradientDescentRule(Rule):
    """``w -= lr g``."""

    def step(self, g: Array, state: State, t: int, a: Array, b: Array) -> Array:
        """Return ``lr g``."""
        return np.multiply(self.rate(t), g, out=a)

    @staticmethod
    def loop(w: Array, g: Array, v: Array, s: Array, t: int, c: Array) -> None:
        """Update in place."""
        lr = c[0]
        for j in range(len(w)):
            w[j] -= lr * g[j]


@dataclass(frozen=True)
class MomentumRule(Rule):
    """``v = μ v + g; w -= lr v`` (B. Polyak, 1964)."""

    momentum: float = 0.9
    slots: ClassVar[tuple[str, ...]] = ("v",)

    def step(self, g: Array, state: State, t: int, a: Array, b: Array) -> Array:
        """Return ``lr v``."""
        v = state["v"]
        v *= self.momentum
        v += g
        return np.multiply(self.rate(t), v, out=a)

    def constants(self, t: int) -> list[float]:
        """Return the numbers that `loop` works with at update `t`."""
        return [self.rate(t), self.momentum]

    @staticmethod
    def loop(w: Array, g: Array, v: Array, s: Array, t: int, c: Array) -> None:
        """Update in place."""
        lr, mu = c[0], c[1]
        for j in range(len(w)):
            v[j] = mu * v[j] + g[j]
            w[j] -= lr * v[j]


@dataclass(frozen=True)
class AdaGradRule(Rule):
    """``s += g²; w -= lr g / sqrt(s + 1e-10)`` (J. Duchi, E. Hazan, Y. Singer, JMLR 12, 2011)."""

    slots: ClassVar[tuple[str, ...]] = ("s",)

    def step(self, g: Array, state: State, t: int, a: Array, b: Array) -> Array:
        """Return ``lr g / sqrt(s + 1e-10)``."""
        s = state["s"]
        s += np.multiply(g, g, out=a)
        return np.divide(np.multiply(self.rate(t), g, out=b), _root(s, a), out=b)

    def constants(self, t: int) -> list[float]:
        """Return the numbers that `loop` works with at update `t`."""
        return [self.rate(t), EPSILON]

    @staticmethod
    def loop(w: Array, g: Array, v: Array, s: Array, t: int, c: Array) -> None:
        """Update in place."""
        lr, eps = c[0], c[1]
        for j in range(len(w)):
            s[j] += g[j] * g[j]
            w[j] -= lr * g[j] / np.sqrt(s[j] + eps)


@dataclass(frozen=True)
class RMSPropRule(Rule):
    """``s = β s + (1-β) g²; w -= lr g / sqrt(s + 1e-10)`` (T. Tieleman, G. Hinton, 2012)."""

    beta: float = 0.9
    slots: ClassVar[tuple[str, ...]] = ("s",)

    def step(self, g: Array, state: State, t: int, a: Array, b: Array) -> Array:
        """Return ``lr g / sqrt(s + 1e-10)``."""
        s = state["s"]
        _blend(s, np.multiply(g, g, out=a), self.beta, t, a)
        return np.divide(np.multiply(self.rate(t), g, out=b), _root(s, a), out=b)

    def constants(self, t: int) -> list[float]:
        """Return the numbers that `loop` works with at update `t`."""
        return [self.rate(t), EPSILON, self.beta, 1.0 - self.beta]

    @staticmethod
    def loop(w: Array, g: Array, v: Array, s: Array, t: int, c: Array) -> None:
        """Update in place."""
        lr, eps, b, rest = c[0], c[1], c[2], c[3]
        for j in range(len(w)):
            s[j] = g[j] * g[j] if t == 1 else b * s[j] + rest * (g[j] * g[j])
            w[j] -= lr * g[j] / np.sqrt(s[j] + eps)


@dataclass(frozen=True)
class AdamRule(Rule):
    """``v = β1 v + (1-β1) g; s = β2 s + (1-β2) g²; w -= lr v / sqrt(s + 1e-10)`` (D. Kingma, J. Ba, ICLR 2015).

    With `bias_correction`, `v` and `s` start at zero, are divided by ``1 - βᵗ``, and the denominator is ``sqrt(s) + 1e-8``.
    """

    beta_1: float = 0.9
    beta_2: float = 0.99
    bias_correction: bool = False
    slots: ClassVar[tuple[str, ...]] = ("v", "s")

    def step(self, g: Array, state: State, t: int, a: Array, b: Array) -> Array:
        """Return the running mean of the gradient, scaled."""
        v, s = state["v"], state["s"]
        began = t + 1 if self.bias_correction else t  # corrected means start at zero
        _blend(v, g, self.beta_1, began, a)
        _blend(s, np.multiply(g, g, out=a), self.beta_2, began, a)
        if not self.bias_correction:
            return np.divide(np.multiply(self.rate(t), v, out=b), _root(s, a), out=b)
        root = np.sqrt(np.divide(s, 1.0 - self.beta_2**t, out=a), out=a)
        root += 1e-8
        return np.divide(np.multiply(self.rate(t) / (1.0 - self.beta_1**t), v, out=b), root, out=b)

    def constants(self, t: int) -> list[float]:
        """Return the numbers that `loop` works with at update `t`."""
        means = [self.beta_1, 1.0 - self.beta_1, self.beta_2, 1.0 - self.beta_2]
        rate, rest = self.rate(t), 1.0
        if self.bias_correction:  # here, for in single precision the differences would be lost
            rate, rest = rate / (1.0 - self.beta_1**t), 1.0 - self.beta_2**t
        return [rate, EPSILON, *means, float(self.bias_correction), 1e-8, rest]

    @staticmethod
    def loop(w: Array, g: Array, v: Array, s: Array, t: int, c: Array) -> None:
        """Update in place."""
        lr, eps, b1, r1, b2, r2, tiny, rest = c[0], c[1], c[2], c[3], c[4], c[5], c[7], c[8]
        corrected = c[6] > 0
        first = t == 1 and not corrected
        for j in range(len(w)):  # a compiler makes a loop of each case
            v[j] = g[j] if first else b1 * v[j] + r1 * g[j]
            s[j] = g[j] * g[j] if first else b2 * s[j] + r2 * (g[j] * g[j])
            w[j] -= lr * v[j] / (np.sqrt(s[j] / rest) + tiny if corrected else np.sqrt(s[j] + eps))

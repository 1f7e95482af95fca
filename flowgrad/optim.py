"""Update rules: each a pure ``init`` and ``update`` on flat arrays.

`g` is the mean gradient of a mini-batch; every rule is elementwise, so it may run on any slice of the flat vector. The state is
a dict of arrays and holds the number ``t`` of updates made. At the first update the running means start at their first term
(``s = g²``, ``v = g``), not at zero, unless bias correction is asked for.

Before a rule sees `g`, it is clipped by its norm, then ``weight_decay * w`` is added: the order of PyTorch, where
``clip_grad_norm_`` is called before ``step``. The norm is the only thing that is not elementwise: see `block_norms`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np

from .errors import GraphError
from .jacobian import Array
from .norms import block_norms, scale_of

State = dict[str, Array]

# Added under the square root of the running mean of g².
EPSILON = 1e-10


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
        told = type(self).__name__
        for name, value in ((f.name, getattr(self, f.name)) for f in fields(self)):
            if name == "bias_correction" or (name == "clip_norm" and value is None):
                continue
            if name == "learning_rate" and callable(value):
                continue
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            if not number or not np.isfinite(value):
                raise GraphError(f"{told}: {name} must be a finite number, not {value!r}")
            if name in ("learning_rate", "clip_norm") and value <= 0:
                raise GraphError(f"{told}: {name} must be positive, not {value!r}")
            if name == "weight_decay" and value < 0:
                raise GraphError(f"{told}: {name} must not be negative, it is {value!r}")
            if name in ("momentum", "beta", "beta_1", "beta_2") and not 0 <= value < 1:
                raise GraphError(f"{told}: {name} must be at least 0 and below 1, not {value!r}")
            # A NumPy scalar would lift single precision to double.
            object.__setattr__(self, name, float(value))

    def init(self, w: Array) -> State:
        """Return the state before the first update of parameters `w` ``(P,)``."""
        return {"t": np.zeros(1, np.int64), **{slot: np.zeros_like(w) for slot in self.slots}}

    def update(self, w: Array, g: Array, state: State, norms: Array | None = None) -> tuple[Array, State]:
        """Return new parameters and new state for the mean gradient `g` ``(P,)``; changes none of its inputs.

        Where `w` and `g` are slices of longer vectors, `norms` are the `block_norms` of the whole gradient.
        """
        t = state["t"] + 1
        g = self.prepare(w, g, self.scale(g, norms))
        step, slots = self.step(g, {slot: state[slot] for slot in self.slots}, int(t[0]))
        return w - step, {"t": t, **slots}

    def scale(self, g: Array, norms: Array | None = None) -> float:
        """Return the factor by which the gradient is clipped."""
        if self.clip_norm is None:
            return 1.0
        return scale_of(block_norms(g) if norms is None else norms, self.clip_norm)

    def prepare(self, w: Array, g: Array, scale: float) -> Array:
        """Return what the rule works with: the clipped gradient, and weight decay."""
        if scale != 1.0:
            g = scale * g
        return g + self.weight_decay * w if self.weight_decay else g

    def rate(self, t: int) -> float:
        """Return the learning rate of update number `t` (from 1)."""
        if not callable(self.learning_rate):
            return self.learning_rate
        found = self.learning_rate(t)
        if not isinstance(found, (int, float, np.number)) or not np.isfinite(found) or found < 0:
            raise GraphError(
                f"{type(self).__name__}: the learning rate of update {t} must be a number from 0 on, not {found!r}: "
                f"check {self.learning_rate!r}"
            )
        return float(found)

    def step(self, g: Array, state: State, t: int) -> tuple[Array, State]:
        """Return what is subtracted from the parameters at update number `t` (from 1), and the new state."""
        raise NotImplementedError

    def constants(self, t: int) -> list[float]:
        """Return the numbers that `loop` works with at update `t`; rounded to the parameters' dtype once, as NumPy does."""
        return [self.rate(t)]

    @staticmethod
    def loop(w: Array, g: Array, v: Array, s: Array, t: int, c: Array) -> None:
        """Do the same update in place; plain loops, for compiled kernels. Arrays of slots that the rule lacks are empty.

        The constants are read into locals first: a compiler cannot know that `w` does not overlap `c`.
        """
        raise NotImplementedError


def _decay(mean: Array, term: Array, beta: float, t: int) -> Array:
    return term if t == 1 else beta * mean + (1.0 - beta) * term


@dataclass(frozen=True)
class GradientDescentRule(Rule):
    """``w -= lr g``."""

    def step(self, g: Array, state: State, t: int) -> tuple[Array, State]:
        """Return ``lr g``."""
        return self.rate(t) * g, {}

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

    def step(self, g: Array, state: State, t: int) -> tuple[Array, State]:
        """Return ``lr v``."""
        v = self.momentum * state["v"] + g
        return self.rate(t) * v, {"v": v}

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

    def step(self, g: Array, state: State, t: int) -> tuple[Array, State]:
        """Return ``lr g / sqrt(s + 1e-10)``."""
        s = state["s"] + g * g
        return self.rate(t) * g / np.sqrt(s + EPSILON), {"s": s}

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

    def step(self, g: Array, state: State, t: int) -> tuple[Array, State]:
        """Return ``lr g / sqrt(s + 1e-10)``."""
        s = _decay(state["s"], g * g, self.beta, t)
        return self.rate(t) * g / np.sqrt(s + EPSILON), {"s": s}

    def constants(self, t: int) -> list[float]:
        """Return the numbers that `loop` works with at update `t`."""
        return [self.rate(t), EPSILON, self.beta, 1.0 - self.beta]

    @staticmethod
    def loop(w: Array, g: Array, v: Array, s: Array, t: int, c: Array) -> None:
        """Update in place."""
        lr, eps, b, rest = c[0], c[1], c[2], c[3]
        if t == 1:
            for j in range(len(w)):
                s[j] = g[j] * g[j]
                w[j] -= lr * g[j] / np.sqrt(s[j] + eps)
        else:
            for j in range(len(w)):
                s[j] = b * s[j] + rest * (g[j] * g[j])
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

    def step(self, g: Array, state: State, t: int) -> tuple[Array, State]:
        """Return the scaled running mean of the gradient."""
        if self.bias_correction:
            v = self.beta_1 * state["v"] + (1.0 - self.beta_1) * g
            s = self.beta_2 * state["s"] + (1.0 - self.beta_2) * (g * g)
            scale = self.rate(t) / (1.0 - self.beta_1**t)
            return scale * v / (np.sqrt(s / (1.0 - self.beta_2**t)) + 1e-8), {"v": v, "s": s}
        v = _decay(state["v"], g, self.beta_1, t)
        s = _decay(state["s"], g * g, self.beta_2, t)
        return self.rate(t) * v / np.sqrt(s + EPSILON), {"v": v, "s": s}

    def constants(self, t: int) -> list[float]:
        """Return the numbers that `loop` works with at update `t`."""
        means = [self.beta_1, 1.0 - self.beta_1, self.beta_2, 1.0 - self.beta_2]
        return [self.rate(t), EPSILON, *means, float(self.bias_correction), 1e-8, 1.0]

    @staticmethod
    def loop(w: Array, g: Array, v: Array, s: Array, t: int, c: Array) -> None:
        """Update in place."""
        lr, eps, b1, r1, b2, r2 = c[0], c[1], c[2], c[3], c[4], c[5]
        if c[6] > 0:
            one, tiny = c[8], c[7]
            lr = lr / (one - b1**t)
            rest = one - b2**t
            for j in range(len(w)):
                v[j] = b1 * v[j] + r1 * g[j]
                s[j] = b2 * s[j] + r2 * (g[j] * g[j])
                w[j] -= lr * v[j] / (np.sqrt(s[j] / rest) + tiny)
        elif t == 1:
            for j in range(len(w)):
                v[j] = g[j]
                s[j] = g[j] * g[j]
                w[j] -= lr * v[j] / np.sqrt(s[j] + eps)
        else:
            for j in range(len(w)):
                v[j] = b1 * v[j] + r1 * g[j]
                s[j] = b2 * s[j] + r2 * (g[j] * g[j])
                w[j] -= lr * v[j] / np.sqrt(s[j] + eps)

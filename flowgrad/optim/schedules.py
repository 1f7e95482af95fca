"""Learning-rate schedules: frozen, callable with the number of an update, written to files as plain values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from ..errors import DataError
from ..inputs import integer, real


@dataclass(frozen=True)
class Schedule:
    """Base of the schedules: ``schedule(t)`` is the learning rate of update `t`, counted from 1.

    Any function of one integer is a schedule as well; only those made here can be saved. While a `Trainer` trains, a function is
    asked in the process that trains, for all updates of an epoch before it begins; what changes in it counts from the next one on.
    """

    def __call__(self, t: int) -> float:
        """Return the learning rate of update `t` (from 1)."""
        raise NotImplementedError


class _Checked(Schedule):
    """Fields are learning rates and factors, except for those that count updates."""

    def __post_init__(self) -> None:
        for name, value in ((f.name, getattr(self, f.name)) for f in fields(self)):
            what = f"{type(self).__name__}: {name}"
            if name in ("every", "steps"):
                object.__setattr__(self, name, integer(value, what))
            elif name != "then" or not callable(value):
                object.__setattr__(self, name, real(value, what, 0, above=name != "final"))


@dataclass(frozen=True)
class StepDecay(_Checked):
    """``learning_rate * factor ** floor((t - 1) / every)``.

    Parameters
    ----------
    learning_rate : float
        Of the first `every` updates.
    every : int
        Updates.
    factor : float

    Examples
    --------
    >>> import flowgrad as fg
    >>> schedule = fg.StepDecay(1.0, every=2, factor=0.5)
    >>> [schedule(t) for t in (1, 2, 3, 4, 5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    learning_rate: float
    every: int
    factor: float = 0.1

    def __call__(self, t: int) -> float:
        """Return the learning rate of update `t`."""
        return self.learning_rate * self.factor ** ((t - 1) // self.every)


@dataclass(frozen=True)
class ExponentialDecay(_Checked):
    """``learning_rate * factor ** ((t - 1) / every)``.

    Parameters
    ----------
    learning_rate : float
        Of the first update.
    factor : float
        After each `every` updates it is this times what it was.
    every : int
        Updates.

    Examples
    --------
    >>> import flowgrad as fg
    >>> schedule = fg.ExponentialDecay(1.0, factor=0.25, every=2)
    >>> [schedule(t) for t in (1, 2, 3)]
    [1.0, 0.5, 0.25]
    """

    learning_rate: float
    factor: float
    every: int = 1

    def __call__(self, t: int) -> float:
        """Return the learning rate of update `t`."""
        return float(self.learning_rate * self.factor ** ((t - 1) / self.every))


@dataclass(frozen=True)
class CosineDecay(_Checked):
    """``final + (learning_rate - final) * (1 + cos(π (t - 1) / steps)) / 2``, then `final`.

    One period without restarts of I. Loshchilov, F. Hutter, ICLR 2017, equation 5.

    Parameters
    ----------
    learning_rate : float
        Of the first update.
    steps : int
        Updates until `final` is reached; ``epochs * ceil(samples / batch size)`` for a whole training.
    final : float

    Examples
    --------
    >>> import flowgrad as fg
    >>> schedule = fg.CosineDecay(1.0, steps=2)
    >>> [round(schedule(t), 3) for t in (1, 2, 3, 4)]
    [1.0, 0.5, 0.0, 0.0]
    """

    learning_rate: float
    steps: int
    final: float = 0.0

    def __call__(self, t: int) -> float:
        """Return the learning rate of update `t`."""
        if t > self.steps:
            return self.final
        return self.final + (self.learning_rate - self.final) * 0.5 * (1.0 + math.cos(math.pi * (t - 1) / self.steps))


@dataclass(frozen=True)
class WarmUp(_Checked):
    """``r * t / steps`` in the first `steps` updates, where ``r`` is what `then` begins with; then `then`, from its beginning.

    P. Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2 (gradual warm-up).

    Parameters
    ----------
    steps : int
        Updates.
    then : float or schedule
        What follows.

    Examples
    --------
    >>> import flowgrad as fg
    >>> schedule = fg.WarmUp(4, then=fg.StepDecay(1.0, every=2, factor=0.5))
    >>> [schedule(t) for t in (1, 2, 3, 4, 5, 6, 7)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.5]
    """

    steps: int
    then: float | Callable[[int], float]

    def __call__(self, t: int) -> float:
        """Return the learning rate of update `t`."""
        if t > self.steps:
            return self.then(t - self.steps) if callable(self.then) else self.then
        return (self.then(1) if callable(self.then) else self.then) * t / self.steps


class Asked:
    """Learning rates that a function was asked for ahead: of updates in a row, and of all others that of the nearest.

    Attributes
    ----------
    first : int
        The number of the first of these updates.
    rates : list of float
    """

    def __init__(self, first: int, rates: list[float]):
        self.first, self.rates = first, rates

    def __call__(self, t: int) -> float:
        """Return the learning rate of update `t`."""
        return self.rates[min(max(t - self.first, 0), len(self.rates) - 1)]


KINDS = {cls.__name__: cls for cls in (StepDecay, ExponentialDecay, CosineDecay, WarmUp)}


def describe(learning_rate: Any) -> Any:
    """Return a learning rate as plain values, for JSON.

    Raises
    ------
    DataError
        If it is a function of the user's.
    """
    if not callable(learning_rate):
        return learning_rate
    kind = type(learning_rate).__name__
    if KINDS.get(kind) is not type(learning_rate):
        raise DataError(
            f"the learning rate {learning_rate!r} is a function of your own and cannot be written to a file: "
            f"use one of {', '.join(KINDS)}, or set optimizer.rule to one with a number before saving"
        )
    return {"schedule": kind, **{f.name: describe(getattr(learning_rate, f.name)) for f in fields(learning_rate)}}


def is_own(learning_rate: Any) -> bool:
    """Whether a learning rate is, or reads, a function of the user's, which may give something else at another time or place."""
    if not callable(learning_rate):
        return False
    kind = type(learning_rate)
    if KINDS.get(kind.__name__) is not kind:
        return True
    return any(is_own(getattr(learning_rate, f.name)) for f in fields(learning_rate))


def restore(described: Any) -> Any:
    """Return the learning rate that `describe` wrote."""
    if not isinstance(described, dict):
        return described
    values = {name: restore(value) for name, value in described.items() if name != "schedule"}
    return KINDS[described["schedule"]](**values)

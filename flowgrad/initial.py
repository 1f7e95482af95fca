"""Initial values by name: how a parameter is drawn, from the axes that it has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import GraphError
from .inputs import Shape, brief, meant, real
from .typing import Array

# Standard deviation of `init=True`.
ARTICLE = 0.001


def fans(shape: Shape) -> tuple[int, int]:
    """Return how many numbers go into an output and how many outputs a number goes into.

    A vector is the weights of one unit, a matrix ``(out, in)``, more axes are a convolution's ``(out, in, height, width)``.

    Examples
    --------
    >>> fans((5,)), fans((3, 5)), fans((8, 3, 5, 5))
    ((5, 1), (5, 3), (75, 200))
    """
    if len(shape) == 1:
        return shape[0], 1
    area = math.prod(shape[2:])
    return shape[1] * area, shape[0] * area


def he(rng: np.random.Generator, shape: Shape) -> Array:
    """Draw from ``normal(0, sqrt(2 / in))``, which suits ReLU: K. He and others, *Delving Deep into Rectifiers*, ICCV 2015."""
    return rng.normal(0.0, math.sqrt(2.0 / fans(shape)[0]), shape)


def glorot(rng: np.random.Generator, shape: Shape) -> Array:
    """Draw from ``uniform(-r, r)``, ``r = sqrt(6 / (in + out))``, which suits Tanh: X. Glorot and Y. Bengio, AISTATS 2010."""
    r = math.sqrt(6.0 / sum(fans(shape)))
    return rng.uniform(-r, r, shape)


def lecun(rng: np.random.Generator, shape: Shape) -> Array:
    """Draw from ``normal(0, sqrt(1 / in))``: Y. LeCun and others, *Efficient BackProp*, 1998."""
    return rng.normal(0.0, math.sqrt(1.0 / fans(shape)[0]), shape)


def orthogonal(rng: np.random.Generator, shape: Shape) -> Array:
    """Draw a matrix whose rows or columns are orthonormal: A. Saxe and others, ICLR 2014; other axes than the first are one."""
    rows, columns = (1, shape[0]) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))
    q, r = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))  # else they would not be drawn alike
    return (q if rows >= columns else q.T).reshape(shape)


def zeros(rng: np.random.Generator, shape: Shape) -> Array:
    """Return zeros."""
    return np.zeros(shape)


def normal(scale: float) -> Initial:
    """Return what draws from ``normal(0, scale)``."""
    return lambda rng, shape: rng.normal(0.0, scale, shape)


Initial = Callable[[np.random.Generator, Shape], Array]
INITIAL: dict[str, Initial] = {
    "he": he,
    "glorot": glorot,
    "lecun": lecun,
    "orthogonal": orthogonal,
    "zeros": zeros,
    "normal": normal(0.05),
}


def initial(init: Any, what: str) -> Initial:
    """Return how an initial value is drawn: a function of a generator and a shape.

    Parameters
    ----------
    init : bool, str or tuple
        True, a name of `INITIAL`, or ``("normal", 0.1)``, which has a scale.

    Raises
    ------
    GraphError
        If there is none of that name.
    """
    if init is True or init is np.True_:
        return normal(ARTICLE)
    if isinstance(init, str) and init in INITIAL:
        return INITIAL[init]
    if isinstance(init, tuple) and len(init) == 2 and init[0] == "normal":
        return normal(real(init[1], f"{what}: the scale", 0))
    raise GraphError(
        f"{what}: no initial value is called {brief(init)}; there are {', '.join(map(repr, INITIAL))}, and ('normal', 0.1)"
        f"{meant(init, INITIAL)}"
    )

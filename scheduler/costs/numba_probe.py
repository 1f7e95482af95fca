"""What compiled kernels are made of, for measuring: all in one function, because compiling takes longer than what is measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba import njit

from flowgrad.optim import AdamRule

_update = njit(nogil=True, error_model="numpy")(AdamRule.loop)


@njit(nogil=True, error_model="numpy")
def _work(times: int, x: Any, y: Any, a: Any, b: Any, w: Any, g: Any, v: Any, s: Any, constants: Any) -> None:
    for _ in range(times):
        for j in range(len(x)):
            y[j] = np.tanh(np.tanh(x[j]))
        np.dot(a, a, b)
        _update(w, g, v, s, 2, constants)


def compiled_work(dtype: str, times: int = 1, entries: int = 0, params: int = 0) -> Callable[[], None]:
    """Return machine code that does some work again and again.

    Parameters
    ----------
    dtype : str
    times : int
        How often; each time with a product of two numbers by BLAS.
    entries : int
        Numbers of each of which two transcendental functions are computed.
    params : int
        Parameters that are updated by Adam, which has the most state.
    """
    x, one = np.full(entries, 0.5, dtype), np.ones((1, 1), dtype)
    state = [np.full(params, 0.5, dtype) for _ in range(4)]
    constants = np.array(AdamRule().constants(2), dtype)
    return partial(_work, times, x, x.copy(), one, one.copy(), *state, constants)

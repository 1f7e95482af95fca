"""The garbage collector, halted while very many small objects are made that stay: each of its rounds would look at all of them."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from .forks import after_fork, forked_lock

P = ParamSpec("P")
R = TypeVar("R")

_lock = forked_lock()
_halted = 0
_enabled = False


def without_collection(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function run without garbage collection in this process; it goes on when the last such function ends.

    Examples
    --------
    >>> import gc
    >>> without_collection(gc.isenabled)(), gc.isenabled()
    (False, True)
    """

    @functools.wraps(function)
    def halted(*args: P.args, **kwargs: P.kwargs) -> R:
        global _halted, _enabled
        with _lock:
            if not _halted:
                _enabled = gc.isenabled()
                gc.disable()
            _halted += 1
        try:
            return function(*args, **kwargs)
        finally:
            with _lock:
                _halted = max(0, _halted - 1)  # what a fork cut short is forgotten
                if not _halted and _enabled:
                    gc.enable()

    return halted


def _go_on() -> None:
    """Collect again in the child of a fork, where those who halted it are not."""
    global _halted
    if _halted and _enabled:
        gc.enable()
    _halted = 0


after_fork(_go_on)

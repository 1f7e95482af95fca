"""The garbage collector, halted while very many small objects are made that stay: each of its rounds would look at all of them."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.Lock()
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
                _halted -= 1
                if not _halted and _enabled:
                    gc.enable()

    return halted

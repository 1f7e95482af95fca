"""After a fork: only the thread that forked goes on in the child, and locks that others held stay locked for ever."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

_locks: WeakSet[Any] = WeakSet()


def after_fork(work: Callable[[], Any]) -> None:
    """Let the child of every fork call a function first; Windows knows no forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=work)


def forked_lock(kind: Callable[[], Any] = threading.Lock) -> Any:
    """Return a ``threading.Lock``, or an ``RLock``, that the child of a fork finds open, unless its own thread holds it.

    Examples
    --------
    >>> with forked_lock() as held:
    ...     print(held)
    True
    """
    lock = kind()
    _locks.add(lock)
    return lock


def _open_locks() -> None:
    for lock in list(_locks):
        # Of a plain lock nobody knows who holds it; none of ours is held while anything of somebody else's runs.
        if not (hasattr(lock, "_is_owned") and lock._is_owned()):
            lock._at_fork_reinit()


after_fork(_open_locks)

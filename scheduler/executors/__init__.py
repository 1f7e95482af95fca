"""Where tasks run, and what to do when they fail."""

from importlib import import_module
from typing import Any

from .base import Executor, Handle, Lost, TaskFailed, Worker
from .local import LocalExecutor
from .recovery import Recovery, describe_failure

_LAZY = {
    "DASHBOARD_PORT": ".cluster",
    "Unread": ".versions",
    "answered": ".distributed",
    "asking": ".versions",
    "check_versions": ".versions",
    "connect": ".distributed",
    "dashboard_address": ".cluster",
    "disagreement": ".versions",
    "existing_cluster": ".cluster",
    "known_workers": ".distributed",
    "lacks_flowgrad": ".versions",
    "local_cluster": ".cluster",
    "own_thread_left": ".distributed",
    "run_task": ".distributed",
    "sendable": ".distributed",
    "unreadable": ".versions",
}


def __getattr__(name: str) -> Any:
    """Load what imports ``distributed`` when it is asked for: that takes a second, and not everybody has a cluster."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)

"""Workers that run a function together and exchange arrays over the cluster's own connections."""

from importlib import import_module
from typing import Any

from .group import Group, slices, traffic, worth_slices

_LAZY = {"gang": "forming", "run_gang": "forming", "Spec": "member", "TOPIC": "member", "run_member": "member"}


def __getattr__(name: str) -> Any:
    """Load what works with distributed, which takes a while to import, when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)

"""A page about running trainings on dask's own dashboard, and what they tell of themselves."""

from importlib import import_module
from typing import Any

from .silent import teller_of, untold

_LAZY = {"dask_setup": ".plugin", "page_address": ".tell"}


def __getattr__(name: str) -> Any:
    """Load what imports ``distributed`` when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)

"""A page on dask's own dashboard, about trainings that tell of themselves."""

from importlib import import_module
from typing import Any

from .budget import Budget
from .graph import rows_of
from .state import LAYERS
from .words import PAGE, QUIET, cause_of, describe

_LAZY = ("OPERATION", "Dashboard", "dask_setup")


def __getattr__(name: str) -> Any:
    """Load what imports ``distributed`` when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".plugin", __name__), name)

"""What a training tells of itself to those who look at the dashboard, and what it measures for them."""

from importlib import import_module
from typing import Any

from .silent import teller_of, untold


def __getattr__(name: str) -> Any:
    """Load what imports ``distributed`` when it is asked for."""
    if name != "page_address":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".link", __name__), name)

"""The console of the commands: it shows texts as they are, square brackets too."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import TextColumn


def console(**more: Any) -> Console:
    """Return a console that reads no markup or emoji: names, paths and ``flowgrad[fast]`` stay what they are."""
    return Console(markup=False, emoji=False, highlight=False, **more)


def column(text: str) -> TextColumn:
    """Return a column of a progress bar that reads no markup."""
    return TextColumn(text, markup=False)

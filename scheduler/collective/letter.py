"""What members of a gang send each other."""

from __future__ import annotations

from typing import Any, NamedTuple


class Letter(NamedTuple):
    """What a member sent: which of its letters it is, what it is about, and an array, a list of them, or nothing; and a note."""

    number: int
    about: Any
    data: Any
    note: Any = None

"""How a command tells what it does: as text for people, as lines of JSON for programs, or not at all."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

import click

# Seconds between two reports of steps in JSON: enough to follow, few enough to keep.
STEPS_EVERY = 1.0


class Tell:
    """Tells of events on standard output.

    Parameters
    ----------
    mode : str
        ``"text"``, ``"json"``: one object a line, with ``event`` first, and nothing else; or ``"quiet"``.
    """

    def __init__(self, mode: str = "text"):
        self.mode = mode

    def __call__(self, text: str, event: str = "note", /, **facts: Any) -> None:
        """Tell of an event, by a text and by facts; a program that gets none gets the text."""
        if self.mode == "text":
            click.echo(text)
        elif self.mode == "json":
            told = {"event": event, **(facts or {"text": text})}
            click.echo(json.dumps(plain(told), default=str, allow_nan=False))


class JsonLines:
    """A trainer's callback: each event of a training as a line of JSON."""

    def __init__(self, tell: Tell):
        self.tell, self._next = tell, 0.0

    def on_train_begin(self, info: Mapping[str, Any]) -> None:
        """Tell the plan."""
        keys = ("plan", "samples", "epochs", "steps", "validation", "hint")
        self.tell("", "plan", **{key: info[key] for key in keys})

    def on_steps(self, info: Mapping[str, Any]) -> None:
        """Tell the last step, once a second at most."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + STEPS_EVERY
            self.tell("", "steps", **info)

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Tell the epoch's record."""
        self.tell("", "epoch", **record)

    def on_recovery(self, record: Mapping[str, Any]) -> None:
        """Tell what was lost and is done again."""
        self.tell("", "recovery", **record)


def plain(value: Any) -> Any:
    """Return values as JSON has them: no nan, which becomes null, and lists for arrays."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value

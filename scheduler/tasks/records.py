"""Plain task records with readable, content-addressed keys; no dask here.

A key is ``prefix-token``; the token hashes the function, the arguments and the parents' keys. So equal work has equal keys and
dask's own de-duplication of keys is the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from flowgrad.program import Instr

from .keys import Ref, token


class Task(NamedTuple):
    """Call `func` on `args`; a `Ref` in `args`, or in a list in `args`, stands for the value of its key.

    `worker` is where it should run: an index into the workers of the submission, no part of the key.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    worker: int | None = None


class Data(NamedTuple):
    """A value that the client has."""

    value: Any


Record = Task | Data


class TaskGraph:
    """Collects records; the same work asked for twice is one record."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}

    def data(self, prefix: str, value: Any) -> Ref:
        """Add a value of the client's under a key that hashes its content."""
        key = f"{prefix}-{token(value)}"
        self.records.setdefault(key, Data(value))
        return Ref(key)

    def task(self, prefix: str, func: Callable[..., Any], *args: Any, worker: int | None = None) -> Ref:
        """Add a task and return the reference to its result."""
        key = f"{prefix}-{token(func, *args)}"
        self.records.setdefault(key, Task(func, args, worker))
        return Ref(key)


def prefix_of(i: Instr) -> str:
    """Return what keys of an instruction's tasks begin with."""
    if i.verb in ("pull", "pull_sum"):
        return f"pull-{i.op.__name__.lower()}"
    return i.op.__name__.lower() if i.verb == "apply" else i.verb


def references(records: Iterable[Record]) -> set[str]:
    """Return every key that tasks refer to."""
    keys: set[str] = set()
    stack: list[Any] = [a for r in records if isinstance(r, Task) for a in r.args]
    while stack:
        arg = stack.pop()
        if isinstance(arg, Ref):
            keys.add(arg.key)
        elif isinstance(arg, list):
            stack += arg
    return keys

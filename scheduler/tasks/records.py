"""Plain task records with readable, content-addressed keys; no dask here.

Tokens hash the function, the arguments and the parents' tokens. So equal work has one record, called by the first who asked for it,
and the same work lowered again has the same keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from flowgrad.program import Instr

from .keys import Key, Ref, group_of, token


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
        self.records: dict[Key, Record] = {}
        self._known: dict[str, Ref] = {}

    def data(self, prefix: str, value: Any, name: str | None = None) -> Ref:
        """Add a value of the client's under a key that hashes its content, and is read as `name`."""
        return self._add(prefix, Data(value), token(value), name)

    def task(
        self, prefix: str, func: Callable[..., Any], *args: Any, worker: int | None = None, name: str | None = None
    ) -> Ref:
        """Add a task and return the reference to its result; what it is about is read in the key as `name`."""
        return self._add(prefix, Task(func, args, worker), token(func, *args), name)

    def _add(self, prefix: str, record: Record, hashed: str, name: str | None) -> Ref:
        ref = self._known.get(hashed)
        if ref is None:
            if name is None:
                ref = Ref(f"{prefix}-{hashed}")
            else:
                read = [key[0] if isinstance(key, tuple) else key.rpartition("-")[0] for key in references([record])]
                ref = Ref((group_of(prefix, read), name, hashed), hashed)
            self._known[hashed] = ref
            self.records[ref.key] = record
        return ref


def prefix_of(i: Instr) -> str:
    """Return what keys of an instruction's tasks begin with."""
    if i.verb in ("pull", "pull_sum"):
        return f"pull-{i.op.__name__.lower()}"
    if i.verb == "add":  # `Add` has tasks too
        return "cotangent"
    return i.op.__name__.lower() if i.verb == "apply" else i.verb


class About(NamedTuple):
    """What a readable key is about: nodes by name; of the way back an edge, `by` the other end, or the sum of cotangents."""

    name: str
    by: str
    back: bool


def about(key: Sequence[str]) -> About | None:
    """Read a key, or its first two parts; None if it holds the value or derivative of no node that can be told."""
    prefix = key[0].rpartition("-")[0]
    # What a block keeps of its nodes, its name does not say.
    if prefix == "seed" or (prefix in ("block", "pick") and " .. " in key[1]):
        return None
    name, _, by = key[1].partition(" by ")
    return About(name, by, bool(by) or prefix in ("cotangent", "scatter"))


def references(records: Iterable[Record]) -> set[Key]:
    """Return every key that tasks refer to."""
    keys: set[Key] = set()
    stack: list[Any] = [a for r in records if isinstance(r, Task) for a in r.args]
    while stack:
        arg = stack.pop()
        if isinstance(arg, Ref):
            keys.add(arg.key)
        elif isinstance(arg, list):
            stack += arg
    return keys

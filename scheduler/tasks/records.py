"""Plain task records with readable, content-addressed keys; no dask here.

A key is ``prefix-token``; the token hashes the function, the arguments and the parents' keys. So equal work has equal keys and
dask's own de-duplication of keys is the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from flowgrad.program import Instr, Program

from .identity import PLAIN, named_token, object_token


class Ref(NamedTuple):
    """The value of another key."""

    key: str


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
    found: set[str] = set()
    stack: list[Any] = [a for r in records if isinstance(r, Task) for a in r.args]
    while stack:
        arg = stack.pop()
        if isinstance(arg, Ref):
            found.add(arg.key)
        elif isinstance(arg, list):
            stack += arg
    return found


def token(*parts: Any) -> str:
    """Return 16 hex digits that stand for the content of `parts`."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()


def _feed(digest: Any, part: Any) -> None:
    if isinstance(part, np.ndarray):
        digest.update(f"{part.dtype.str}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    elif isinstance(part, Program):
        digest.update(program_token(part).encode())
    elif isinstance(part, Ref):
        digest.update(str(part.key).encode())
    elif isinstance(part, (list, tuple)):
        digest.update(f"{type(part).__name__}{len(part)}(".encode())
        if PLAIN.issuperset(map(type, part)):  # such as the many positions of a gather: at once
            digest.update(f"{tuple(part)!r};".encode())
            return
        for item in part:
            _feed(digest, item)
    elif isinstance(part, dict):
        _feed(digest, list(part.items()))
    elif callable(part) and hasattr(part, "__qualname__"):
        digest.update(f"{named_token(part)};".encode())
    elif type(part) in PLAIN or isinstance(part, (np.generic, np.dtype)):
        digest.update(f"{part!r};".encode())
    elif isinstance(part, frozenset):
        _feed(digest, ["frozenset", *sorted(token(item) for item in part)])
    elif is_dataclass(part) and type(part).__eq__ is not object.__eq__:
        _feed(digest, [type(part), *(getattr(part, f.name) for f in fields(part))])
    elif isinstance(part, Hashable):
        digest.update(f"{object_token(part)};".encode())
    else:
        digest.update(f"{part!r};".encode())


@lru_cache(maxsize=4096)
def program_token(program: Program) -> str:
    """Return the token of a program; hashed once per program."""
    attrs: dict[int, str] = {}  # pulls share the attributes of their node: each object is hashed once
    for i in program.instrs:
        if id(i.attrs) not in attrs:
            attrs[id(i.attrs)] = token(i.attrs)
    ops = {op: named_token(op) for op in {i.op for i in program.instrs}}  # type: ignore[arg-type]
    rows = [f"{i.verb} {i.out} {i.args} {ops[i.op]} {attrs[id(i.attrs)]} {i.slot} {i.arity}" for i in program.instrs]
    types = [f"{t.dim} {t.batched} {t.cotangent}" for t in program.types]
    return token("\n".join(rows), "\n".join(types), program.inputs, program.outputs)

"""Keys name content: a token hashes the function, the arguments and the keys of the parents."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import fields, is_dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from flowgrad.program import Instr, Program
from flowgrad.reads import PLAIN

from .identity import named_token, object_token


class Ref(NamedTuple):
    """The value of another key."""

    key: str


def token(*parts: Any) -> str:
    """Return 16 hex digits that stand for the content of `parts`."""
    digest = blake2b(digest_size=8)
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


def attrs_tokens(instrs: Iterable[Instr]) -> dict[int, str]:
    """Return tokens of attributes, by their id: pulls share those of their node, which may name many, so each is hashed once."""
    attrs = {id(i.attrs): i.attrs for i in instrs}
    return {key: attrs_token(value) for key, value in attrs.items()}


def attrs_token(attrs: tuple[tuple[str, Any], ...]) -> str:
    """Return what stands for attributes: themselves, if they are short and plain."""
    return repr(attrs) if all([type(value) in PLAIN for _, value in attrs]) else token(attrs)


@lru_cache(maxsize=256)
def program_token(program: Program) -> str:
    """Return the token of a program; hashed once per program."""
    attrs = attrs_tokens(program.instrs)
    ops = {op: named_token(op) for op in {i.op for i in program.instrs}}
    rows = [f"{i.verb} {i.out} {i.args} {ops[i.op]} {attrs[id(i.attrs)]} {i.slot} {i.arity}" for i in program.instrs]
    types = [f"{t.dim} {t.batched} {t.cotangent}" for t in program.types]
    return token("\n".join(rows), "\n".join(types), program.inputs, program.outputs, program.compiled)


def combine(*parts: str) -> str:
    """Return a token of tokens."""
    return blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()

"""Keys name content: a token hashes the function, the arguments and the tokens of the parents.

A key is ``prefix-token``, or where it is to be read, as at grain ``node``, ``("dot-5f0c9e21", "h0.3", token)``: what dask takes for
the group, the node or edge, and the token, which alone says what is computed. The group follows from the groups that are read. So
all `dot` of a level lie in one of them, and the groups of one graph depend on each other without cycles.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import fields, is_dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from flowgrad.program import Instr, Program
from flowgrad.reads import PLAIN

from .identity import named_token, object_token

# What tasks are called: by their token, or by group, name and token.
Key = str | tuple[str, str, str]


def is_readable(key: Any) -> bool:
    """Whether a key names a node or an edge; what follows the group in tuples of dask's own are numbers."""
    return type(key) is tuple and len(key) == 3 and type(key[1]) is str


class Ref(NamedTuple):
    """The value of another key; `token` says what that is, whatever it is called, where it is not the whole key that does."""

    key: Key
    token: str = ""


def group_of(prefix: str, groups: Iterable[str] = ()) -> str:
    """Return the group of tasks that read what is in these groups."""
    text = " ".join(sorted(set(groups)))
    return f"{prefix}-{crc32(text.encode()):08x}"


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
        digest.update((part.token or str(part.key)).encode())
    elif isinstance(part, Instr):  # its names and the number of its result do not matter for what it computes
        op, attrs = named_token(part.op), attrs_token(part.attrs)
        digest.update(f"{part.verb} {part.args} {op} {attrs} {part.slot} {part.arity} {part.dim};".encode())
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
    inputs = [(i.var, i.role, i.node) for i in program.inputs]
    types = [f"{t.dim} {t.batched} {t.cotangent}" for t in program.types]
    return token("\n".join(rows), "\n".join(types), inputs, program.outputs, program.compiled)


def combine(*parts: str) -> str:
    """Return a token of tokens."""
    return blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()

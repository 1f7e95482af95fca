"""What tells one function or class from another, whatever they are called."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from types import CodeType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

# The rules that an op's values and derivatives follow from.
RULES = ("shape", "apply", "jacobian")
# What is known by its text alone.
PLAIN = frozenset([int, float, complex, bool, str, bytes, type(None), type(Ellipsis)])


def is_named(thing: Any) -> bool:
    """Whether its module and qualified name lead to this very function or class, in any process.

    Examples
    --------
    >>> is_named(uuid.uuid4), is_named(lambda: 1)
    (True, False)
    """
    module = getattr(thing, "__module__", None) or ""  # methods that are written in C have none
    value: Any = sys.modules.get(module)
    for name in thing.__qualname__.split("."):
        value = getattr(value, name, None)
    return value is thing and module != "__main__"


def code_token(*functions: Callable[..., Any]) -> str:
    """Return 16 hex digits that stand for what functions do, not for where they are written.

    These are their code and defaults, and what of their modules they name: constants, arrays, and the code of other functions.
    """
    parts = []
    left, seen = list(functions), set()
    while left:
        function = left.pop()
        function = getattr(function, "py_func", function)  # what numba compiles
        if not isinstance(function, FunctionType) or function in seen:  # what is written in C has no code
            continue
        seen.add(function)
        parts.append(_code_text(function.__code__) + repr((function.__defaults__, function.__kwdefaults__)))
        for name in function.__code__.co_names:
            value: Any = function.__globals__.get(name)
            if isinstance(getattr(value, "py_func", value), FunctionType):
                left.append(value)
            elif isinstance(value, np.ndarray):
                parts.append(f"{name} {value.dtype} {value.shape} {value.tobytes().hex()}")
            elif type(value) in PLAIN or isinstance(value, (tuple, np.generic)):
                parts.append(f"{name} {value!r}")
    return blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def object_token(thing: Any) -> str:
    """Return what tells an object from every other one that is not equal to it; nobody can know what it holds.

    It is remembered for as long as the object lives; of one that cannot be watched, among the last few.
    """
    try:
        return _tokens.setdefault(type(thing), WeakKeyDictionary()).setdefault(thing, uuid.uuid4().hex)
    except TypeError:  # no weak references
        return _unwatched_token(thing)


_tokens: WeakKeyDictionary[type, WeakKeyDictionary[Any, str]] = WeakKeyDictionary()


@lru_cache(maxsize=64, typed=True)
def _unwatched_token(thing: Any) -> str:
    return uuid.uuid4().hex


def _code_text(code: CodeType) -> str:
    return f"{code.co_code.hex()} {code.co_names} {[_constant(c) for c in code.co_consts]}"


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _code_text(value)
    # The order of a set of strings is another one in every process.
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def named_token(thing: Any) -> str:
    """Return what tells a function or an op from every other one.

    One of a module is known by its name and its code. One that was made in a function or a script may close over anything, so each
    is one of its own.
    """
    return _module_token(thing) if is_named(thing) else object_token(thing)


@lru_cache(maxsize=4096)
def _module_token(thing: Any) -> str:
    rules = [getattr(thing, r) for r in RULES if hasattr(thing, r)] if isinstance(thing, type) else [thing]
    return f"{thing.__module__}.{thing.__qualname__} {code_token(*rules)}"

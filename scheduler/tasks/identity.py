"""What tells one function or class from another, whatever they are called."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from functools import lru_cache, partial
from hashlib import blake2b
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType
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

    These are their code, what they have by default and close over, and what of their modules they name: constants, arrays, and the
    code of other functions; of partials, methods and objects that can be called, what they hold. Others count by their types.
    """
    parts, telling = [], set()
    left: list[Any] = list(functions)
    seen: dict[int, Any] = {}  # and kept, lest another one gets its place in memory

    def told(value: Any) -> str:
        value = getattr(value, "py_func", value)  # what numba compiles
        if isinstance(value, np.ndarray) and value.dtype != object:
            return f"{value.dtype} {value.shape} {value.tobytes().hex()}"
        if type(value) in PLAIN or isinstance(value, (np.generic, range)):
            return repr(value)
        if isinstance(value, (list, tuple, dict, set, frozenset)) and id(value) not in telling:
            telling.add(id(value))
            texts = [told(item) for item in (value.items() if isinstance(value, dict) else value)]
            telling.discard(id(value))
            # The order of a set of strings is another one in every process.
            return f"{type(value).__name__}{sorted(texts) if isinstance(value, (set, frozenset)) else texts}"
        if callable(value) and not isinstance(value, type):
            left.append(value)
            return "function"
        return getattr(value, "__qualname__", type(value).__qualname__)

    while left:
        thing = left.pop()
        thing = getattr(thing, "py_func", thing)
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, FunctionType):
            code = thing.__code__
            cells = {name: _content(cell) for name, cell in zip(code.co_freevars, thing.__closure__ or ())}
            parts.append(_code_text(code) + told((thing.__defaults__, thing.__kwdefaults__, cells)))
            for name in _names(code):
                value = thing.__globals__.get(name)
                named = getattr(value, "py_func", value)
                if isinstance(named, (FunctionType, partial, np.ndarray, tuple, np.generic)) or type(named) in PLAIN:
                    parts.append(f"{name} {told(named)}")
        elif isinstance(thing, partial):
            parts.append(told((thing.func, thing.args, thing.keywords)))
        elif isinstance(thing, MethodType):
            parts.append(told((thing.__func__, type(thing.__self__), getattr(thing.__self__, "__dict__", {}))))
        elif isinstance(thing, BuiltinFunctionType):  # what is written in C has no code
            parts.append(f"{thing.__module__}.{thing.__qualname__}")
        else:
            parts.append(told((type(thing), type(thing).__call__, getattr(thing, "__dict__", {}))))
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


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a variable that has no value yet
        return None


def _names(code: CodeType) -> list[str]:
    """Return what code and the functions in it name of their module."""
    return [*code.co_names, *(name for c in code.co_consts if isinstance(c, CodeType) for name in _names(c))]


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

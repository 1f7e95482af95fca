"""What functions do and read besides their arguments: their code, constants of their modules, attributes of classes."""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from hashlib import blake2b
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

# What is known by its text alone.
PLAIN = frozenset([int, float, complex, bool, str, bytes, type(None), type(Ellipsis)])
# What counts of what a function names of its module, of modules, classes and objects there, and of functions around it.
TOLD: tuple[Any, ...] = (FunctionType, partial, np.ndarray, tuple, list, dict, set, frozenset, np.generic, *PLAIN)
# Attributes of ops that say what their rules are.
STATED = ("formula", "slopes", "bends", "uses", "kinds")
# How far attributes of attributes are followed, as in ``settings.model.rate``.
DEPTH = 3


def code_token(*functions: Callable[..., Any]) -> str:
    """Return 16 hex digits that stand for what functions do, not for where they are written.

    These are their code, what they have by default and close over, and what they name of their modules, and of modules, classes and
    objects there: constants, arrays, collections, and the code of other functions; of partials, methods and objects that can be
    called, what they hold. Others count by their types.
    """
    parts, telling = [], set()
    left: list[Any] = list(functions)
    seen: dict[int, Any] = {}  # and kept, lest another one gets its place in memory

    def told(value: Any) -> str:
        value = _uncompiled(value)
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
        return (value if isinstance(value, type) else type(value)).__qualname__

    while left:
        thing = left.pop()
        thing = _uncompiled(thing)
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, FunctionType):
            code = thing.__code__
            cells = {name: _content(cell) for name, cell in zip(code.co_freevars, thing.__closure__ or ())}
            parts.append(_code_text(code) + told((thing.__defaults__, thing.__kwdefaults__, cells)))
            named = {name: thing.__globals__[name] for name in _names(code) if name in thing.__globals__} | cells
            parts += [f"{name} {told(value)}" for name, value in _named(named, _names(code), _package(thing), DEPTH)]
        elif isinstance(thing, partial):
            parts.append(told((thing.func, thing.args, thing.keywords)))
        elif isinstance(thing, MethodType):
            parts.append(told((thing.__func__, type(thing.__self__), getattr(thing.__self__, "__dict__", {}))))
        elif isinstance(thing, BuiltinFunctionType):  # what is written in C has no code
            parts.append(f"{thing.__module__}.{thing.__qualname__}")
        else:
            parts.append(told((type(thing), type(thing).__call__, getattr(thing, "__dict__", {}))))
    return blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def _uncompiled(value: Any) -> Any:
    """Return the function that numba compiles, where there is one; some objects make up attributes, or fail, if they are asked."""
    if isinstance(value, type):
        return value
    try:
        held = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return value
    return held.get("py_func", value)


def rules_token(op: type) -> str:
    """Return what stands for what rules of an op of one's own do and read now; empty for flowgrad's, which read nothing."""
    if _package(op) == "flowgrad":
        return ""
    functions, stated = [], []
    for cls in op.__mro__:
        for name, value in vars(cls).items() if _package(cls) not in ("flowgrad", "builtins") else ():
            value = getattr(value, "__func__", value)
            if isinstance(_uncompiled(value), FunctionType) and not name.startswith("__"):
                functions.append(value)
            if name in STATED:
                stated.append(f"{name} {value!r}")
    return f"{code_token(*functions)} {stated}"


def _named(values: Mapping[str, Any], names: tuple[str, ...], package: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Give the values that count; of modules, classes and objects those that `names` has of them, and functions of one package."""
    for name, value in values.items():
        value = _uncompiled(value)
        if isinstance(value, TOLD):
            yield name, value
        elif depth:
            for holder in value.__mro__ if isinstance(value, type) else (value,):
                held = getattr(holder, "__dict__", {})
                inner = {n: getattr(held[n], "__func__", held[n]) for n in names if n in held}
                mine = {n: v for n, v in inner.items() if not isinstance(v, FunctionType) or _package(v) == package}
                yield from _named(mine, names, package, depth - 1)


def _package(thing: Any) -> str:
    return str(getattr(thing, "__module__", None) or "").partition(".")[0]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a variable that has no value yet
        return None


@lru_cache(maxsize=1024)
def _names(code: CodeType) -> tuple[str, ...]:
    """Return what code and the functions in it name of their module, but what they write themselves, such as counts."""
    inner = [name for c in code.co_consts if isinstance(c, CodeType) for name in _names(c)]
    written = {i.argval for i in dis.get_instructions(code) if i.opname in ("STORE_ATTR", "STORE_GLOBAL")}
    return tuple(name for name in dict.fromkeys([*code.co_names, *inner]) if name not in written)


@lru_cache(maxsize=1024)
def _code_text(code: CodeType) -> str:
    return f"{code.co_code.hex()} {code.co_names} {[_constant(c) for c in code.co_consts]}"


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _code_text(value)
    # The order of a set of strings is another one in every process.
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)

"""What tells one function or class from another, whatever they are called."""

from __future__ import annotations

import sys
import uuid
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from flowgrad.op import Op
from flowgrad.reads import code_token, rules_token

# The rules that an op's values and derivatives follow from.
RULES = ("shape", "apply", "jacobian")


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


def named_token(thing: Any) -> str:
    """Return what tells a function or an op from every other one.

    One of a module is known by its name and its code. One that was made in a function or a script may close over anything, so each
    is one of its own. What rules of an op read may change from call to call.
    """
    token = _module_token(thing) if is_named(thing) else object_token(thing)
    return f"{token} {rules_token(thing)}" if isinstance(thing, type) and issubclass(thing, Op) else token


@lru_cache(maxsize=4096)
def _module_token(thing: Any) -> str:
    rules = [getattr(thing, r) for r in RULES if hasattr(thing, r)] if isinstance(thing, type) else [thing]
    return f"{thing.__module__}.{thing.__qualname__} {code_token(*rules)}"

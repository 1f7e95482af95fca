"""Whether there is a compiler, and the way to it: numba is imported when the first step is compiled."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from flowgrad.optim import Rule
from flowgrad.program import Program

if TYPE_CHECKING:
    from .numba_kernel import CompiledRound


@cache
def why_not_compiled() -> str:
    """Return why nothing can be compiled, or an empty string."""
    missing = [name for name in ("numba", "scipy") if importlib.util.find_spec(name) is None]
    return f"{missing[0]} is not installed (pip install 'flowgrad[fast]')" if missing else ""


@lru_cache(maxsize=32)
def compiled_round(program: Program, names: tuple[str, ...], rule: Rule, dtype: np.dtype[Any]) -> CompiledRound:
    """Return the compiled step of a program; made once per process."""
    room = importlib.import_module(".numba_kernel", __package__)
    made: CompiledRound = room.CompiledRound(program, names, rule, dtype)
    return made

"""Whether there is a compiler, and the way to it: numba is imported when the first step is compiled."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from flowgrad.errors import FlowgradError, warn
from flowgrad.optim import Rule
from flowgrad.program import Program
from flowgrad.typing import Array

from .numpy_kernel import Kernel

if TYPE_CHECKING:
    from .numba_kernel import CompiledRound


@cache
def why_not_compiled() -> str:
    """Return why nothing can be compiled, or an empty string: the kernels that every program needs were loaded then."""
    missing = [name for name in ("numba", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{missing[0]} is not installed (pip install 'flowgrad[fast]')"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "numba is disabled: NUMBA_DISABLE_JIT is set"
    try:
        importlib.import_module(".numba_library", __package__).walker()
    except Exception as error:  # whatever is wrong with an installation, NumPy will do
        return f"numba fails here ({type(error).__name__}: {error})"
    return ""


@cache
def why_not_chosen() -> str:
    """Return why nothing is compiled that nobody asked to compile, or an empty string; what is not usual is told, once."""
    why = why_not_compiled()
    if not why:
        why = importlib.import_module(".numba_library", __package__).why_not_kept()
    if why and "not installed" not in why:
        warn(f"steps are run by NumPy, not compiled: {why}")
    return why


@lru_cache(maxsize=256)
def run_by(program: Program, kernel: str) -> Program:
    """Return a program as a kernel runs it, ``"numba"`` or ``"numpy"``; the same one for the same program."""
    compiled = kernel == "numba"
    return program if program.compiled == compiled else replace(program, compiled=compiled)


def _room(name: str) -> Any:
    if why_not_compiled():
        raise FlowgradError(f"the plan uses compiled kernels, but {why_not_compiled()}")
    return importlib.import_module(f".{name}", __package__)


@lru_cache(maxsize=32)
def compiled_round(
    program: Program, names: tuple[str, ...], rule: Rule, dtype: Any, rates: bool, keys: Any = None, tables: Any = ()
) -> CompiledRound:
    """Return the compiled step of a program; made once per process. Feed number `keys` has a row for each place in the order."""
    made: CompiledRound = _room("numba_kernel").CompiledRound(program, names, rule, dtype, rates, keys, tables)
    return made


@lru_cache(maxsize=256)
def kernel_of(program: Program) -> Callable[..., dict[str, Array]]:
    """Return what runs a program, compiled or by NumPy; made once per process."""
    made: Callable[..., dict[str, Array]]
    made = _room("numba_kernel").CompiledProgram(program) if program.compiled else Kernel(program)
    return made


@lru_cache(maxsize=512)
def _first_of(name: str) -> list[Program]:
    return []


def kernel_named(name: str, program: Program) -> Callable[..., dict[str, Array]]:
    """Return what runs a program that comes with each task; made once per process and name, which stands for its content."""
    first = _first_of(name)
    first[:] = first or [program]
    return kernel_of(first[0])


def forget_kernels() -> None:
    """Let go of all programs that were made ready to run."""
    kernel_of.cache_clear()
    _first_of.cache_clear()


def load_kernels(dtype: Any, tell: Callable[[str], object]) -> None:
    """Load what every compiled step needs, or compile it, which is told: once per machine and precision."""
    if importlib.util.find_spec("numba") is None:
        return
    library = importlib.import_module(".numba_library", __package__)
    if not library.is_kept(np.dtype(dtype).name):
        library.announced.set()
        tell(f"kernels: {library.ANNOUNCED}")
    if not why_not_compiled():
        library.addresses_of([], dtype)

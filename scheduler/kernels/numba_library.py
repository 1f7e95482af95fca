"""Kernels as machine code, by address: those of the built-in ops together, one's own each by itself.

Machine code is kept in a folder of the user's cache, under a hash of what it was made of and for; so numba is needed once per
machine, and afterwards only what it compiled is loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.metadata
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding as llvm

from flowgrad import ops
from flowgrad.errors import GraphError
from flowgrad.formulas import OPERANDS, formula
from flowgrad.inputs import brief
from flowgrad.jacobians import Diagonal
from flowgrad.ops import Elementwise
from flowgrad.optim import Assignments

from ..machine import cache_folder, cache_problem, forked_lock
from ..tasks import FAN_IN, is_named, token
from .table import CLIP, COPY, DOT, FILL, GATHER, LOSS_SUM, PLUS, SCALED, SCATTER, SUM, TURN, WALK, Kernel

# Stands for the code that machine code is made by, as it was when this was imported.
OWN_CODE = token(*(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))), FAN_IN)
_loading = forked_lock(threading.RLock)
# Letters of an op's formulas from which on they are compiled when they are wanted first: few nets have them, and all would wait.
COMMON = 200
LONG = 2.0  # seconds of compiling after which it is told, once
ANNOUNCED = "compiled for this machine, once; that takes some seconds"
announced = threading.Event()
_logger = logging.getLogger("flowgrad")


def update_kernel(update: Assignments) -> Kernel:
    """Return the kernel that updates by a rule."""
    text = "\n".join(f"{name} = {formula}" for name, formula in update.lines)
    return Kernel(text, update.arrays, tuple(f"_{k}" for k in range(update.count)))


def _kernels_of(op: Any) -> Iterator[Kernel]:
    """Return the kernels of an elementwise op: its value, and what it pulls back."""
    arity = len(op.slopes)
    operands, names = tuple(OPERANDS[:arity]), formula(op.formula, arity).names
    attributes = sorted(names - {*operands, "y"})
    yield Kernel(op.formula, operands, tuple(attributes))
    for slot, slope in enumerate(op.slopes):
        if op.kind(slot) is Diagonal:
            used = tuple(("y", *OPERANDS)[need + 1] for need in op.needs(slot, arity))
            names = formula(slope, arity).names
            yield Kernel(f"g * ({slope})", ("g", *used), tuple(a for a in attributes if a in names))


_compiled: list[int] = []


@contextmanager
def compiling() -> Iterator[list[int]]:
    """Give a list that will not be empty if something was compiled, and not only loaded, within the block."""
    before = len(_compiled)
    new: list[int] = []
    yield new
    new += _compiled[before:]


@cache
def built_in() -> tuple[Kernel, ...]:
    """Return the kernels that every library begins with: loops of flowgrad's own ops; what numba compiles takes longer."""
    kernels = dict.fromkeys([FILL, COPY, SUM, PLUS, SCALED, DOT, GATHER, SCATTER, TURN, LOSS_SUM, CLIP])
    for op in vars(ops).values():
        stated = isinstance(op, type) and issubclass(op, Elementwise) and op.formula is not None
        if stated and len("".join([op.formula, *op.slopes])) < COMMON:
            kernels |= dict.fromkeys(_kernels_of(op))
    return tuple(kernels)


# -- addresses ----------------------------------------------------------------------------------------------------


def addresses_of(kernels: Sequence[Kernel], dtype: Any) -> list[int]:
    """Return the addresses of kernels; those that this machine never had are compiled."""
    known = _library(np.dtype(dtype).name)
    for kernel in kernels:
        if kernel not in known:
            known |= _load([kernel], np.dtype(dtype).name)
    return [known[k] for k in kernels]


@cache
def _library(dtype: str) -> dict[Kernel, int]:
    return _load(built_in(), dtype)


@cache
def walker() -> Callable[[int, int], int]:
    """Return the walk, a function of the addresses of a table and a context; it runs without Python's lock."""
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)(_load([WALK], "int64")[WALK])


def is_kept(dtype: str) -> bool:
    """Return whether this machine has the walk and the built-in kernels."""
    return all(_path(kernels, t).exists() for kernels, t in (([WALK], "int64"), (built_in(), dtype)))


def _path(kernels: Sequence[Kernel], dtype: str) -> Path:
    return cache_folder() / f"flowgrad_{token(*(symbol_of(k, dtype) for k in kernels), _machine())}.o"


def _load(kernels: Sequence[Kernel], dtype: str) -> dict[Kernel, int]:
    names = {symbol_of(kernel, dtype): kernel for kernel in kernels}
    kept = all(k.function is None or is_named(k.function) for k in kernels)
    path = _path(kernels, dtype)
    with _loading:  # two tasks of one worker may want the same kernel at once
        machine_code = _read(path) if kept else None
        if machine_code is None:
            _compiled.append(len(names))
            with _telling():
                room = importlib.import_module(".numba_compile", __package__)
                machine_code = _compiled_by(room, names, dtype)
            if kept:
                _write(path, machine_code)
        return places_of(machine_code, names)


def _compiled_by(room: Any, kernels: Mapping[str, Kernel], dtype: str) -> bytes:
    """Return machine code.

    Raises
    ------
    GraphError
        If the compiler refuses a function of somebody's own.
    """
    try:
        machine_code: bytes = room.object_of(kernels, np.dtype(dtype))
    except Exception as error:
        own = [k.function.__qualname__ for k in kernels.values() if k.function is not None]
        why = [line for line in str(error).splitlines() if line and not line.startswith("Failed in")]
        raise GraphError(
            f"{', '.join(own) or 'a kernel'} cannot be compiled ({type(error).__name__}: {brief(why[0]) if why else error}): write "
            f"plain loops over 1-d arrays, leave it out, or use kernel='numpy'"
        ) from None
    return machine_code


@contextmanager
def _telling() -> Iterator[None]:
    """Tell that something is compiled, where that takes long and was not told before."""

    def tell() -> None:
        if not announced.is_set():
            announced.set()
            _logger.warning("kernels: %s", ANNOUNCED)

    timer = threading.Timer(LONG, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def places_of(machine_code: bytes, names: Mapping[str, Kernel]) -> dict[Kernel, int]:
    """Load machine code; return where each kernel lies."""
    allocates = b"NRT_MemInfo_alloc" in machine_code
    if allocates:
        importlib.import_module(".numba_compile", __package__).give_memory()
    engine = _engine(allocates)
    engine.add_object_file(llvm.ObjectFileRef.from_data(machine_code))
    engine.finalize_object()
    return {kernel: engine.get_function_address(name) for name, kernel in names.items()}


def symbol_of(kernel: Kernel, dtype: str) -> str:
    """Return the name of a kernel's machine code; all of a process shares its names."""
    function = "" if kernel.function is None else token(kernel.function)
    return f"flowgrad_{dtype}_{token(*kernel[:3], kernel.slot, function, OWN_CODE)}"


@cache
def _machine() -> str:
    """Return what machine code is for: a processor, and what compiled it."""
    versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
    return " ".join([llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(), *versions])


@cache
def _engine(allocates: bool) -> Any:
    """Return what machine code is loaded into: apart if it makes arrays, for what frees them goes by the same name."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


def _read(path: Path) -> bytes | None:
    """Return machine code that was kept; None if there is none, or only a part of it."""
    try:
        text = path.read_bytes()
    except OSError:
        return None
    return text[32:] if hashlib.sha256(text[32:]).digest() == text[:32] else None


def _write(path: Path, machine_code: bytes) -> None:
    """Keep machine code, if the folder lets us: else each process compiles its own."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
        scratch.write_bytes(hashlib.sha256(machine_code).digest() + machine_code)
        scratch.replace(path)


def why_not_kept() -> str:
    """Return why this machine cannot keep what is compiled, and has nothing from before; or an empty string."""
    if any(is_kept(dtype) for dtype in ("float32", "float64")):
        return ""
    folder = cache_folder()
    problem = cache_problem(folder)
    return problem and f"{folder} cannot be written ({problem}); set FLOWGRAD_CACHE_DIR to a folder"

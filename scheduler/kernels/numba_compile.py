"""Kernels -> machine code: formulas are written as LLVM, functions compiled by numba, all into one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba import carray, njit, types
from numba.core import registry
from numba.core.runtime import rtsys
from numba.extending import intrinsic

from . import numba_math, numba_walk
from .table import WALK, Kernel

BYTES = ir.IntType(8).as_pointer()
# What is called by its address needs no way in for Python.
BARE = {"error_model": "numpy", "nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


# What machine code names if it makes arrays of its own; then it needs numba's memory.
ALLOCATES = b"NRT_MemInfo_alloc"


def object_of(kernels: Mapping[str, Kernel], dtype: Any) -> bytes:
    """Return machine code of kernels, each under its name, as the text of an object file."""
    machine_code = _object_of(kernels, dtype, True)
    return _object_of(kernels, dtype, False) if ALLOCATES in machine_code else machine_code


def give_memory() -> None:
    """Let machine code make arrays."""
    rtsys.initialize(registry.cpu_target.target_context)


def _object_of(kernels: Mapping[str, Kernel], dtype: Any, borrows: bool) -> bytes:

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if borrows:  # arrays that are only views have nothing to be freed, but the compiler cannot know
            free = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [BYTES]), "NRT_MemInfo_call_dtor")
            free.linkage = "weak_odr"
            ir.IRBuilder(free.append_basic_block()).ret_void()
        for name, kernel in kernels.items():
            if not kernel.text.startswith(":") or kernel.text in numba_math.LOOPS:
                numba_math.write_loop(builder.module, name, kernel.text, kernel.operands, kernel.attributes, dtype)
            else:
                _write_call(context, builder.module, name, kernel, dtype)
        return context.get_dummy_value()

    @intrinsic
    def write(typingctx: Any) -> Any:
        return types.void(), codegen

    entry = njit(**BARE)(lambda: write())
    entry.compile(())
    (compiled,) = entry.overloads.values()
    module = llvm.parse_bitcode(compiled.library._final_module.as_bitcode())
    # Names within an object count from one in every process: only those that are asked for may meet others'.
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name not in kernels:
            value.linkage = "internal"
    machine_code: bytes = compiled.library.codegen._tm.emit_object(module)
    return machine_code


def _write_call(context: Any, module: ir.Module, name: str, kernel: Kernel, dtype: Any) -> None:
    """Write a function of integers that calls one that numba compiles."""
    if kernel == WALK:
        function, returns, takes = numba_walk.walk, types.int64, [numba_walk.INTEGERS] * 2
    else:
        function, returns = njit(**BARE)(_python(kernel, dtype)), types.void
        takes = [types.int64] * 10
    function.compile(returns(*takes))
    (compiled,) = function.overloads.values()
    context.active_code_library.add_linking_library(compiled.library)
    given = [context.get_value_type(t) for t in takes]
    result = context.get_value_type(returns) if returns != types.void else ir.VoidType()
    shim = ir.Function(module, ir.FunctionType(result, given), name)
    builder = ir.IRBuilder(shim.append_basic_block())
    native = context.declare_function(module, compiled.fndesc)
    _, value = context.call_conv.call_function(builder, native, returns, takes, shim.args)
    if returns == types.void:
        builder.ret_void()
    else:
        builder.ret(value)


@intrinsic
def at(typingctx: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to numbers such as `like`."""
    pointer = types.CPointer(like)
    return pointer(types.int64, like), lambda context, builder, signature, args: builder.inttoptr(
        args[0], context.get_value_type(pointer)
    )


def _python(kernel: Kernel, dtype: Any) -> Callable[..., None]:
    """Return a kernel as Python that numba compiles: a function of addresses and numbers."""
    T = dtype.type

    @njit(**BARE)
    def array(address: int, size: int) -> Any:
        return carray(at(address, T(0)), (size,))

    assert kernel.function is not None
    inner = njit(**BARE)(_with_vectors(kernel.function))
    count = len(kernel.operands)
    given = ", ".join(
        [*([str(kernel.slot)] if kernel.slot is not None else []), *(f"array(p{k}, d{k})" for k in range(count))]
    )
    head = ", ".join([*(f"p{k}" for k in range(5)), *(f"d{k}" for k in range(5))])
    scope: dict[str, Any] = {"array": array, "inner": inner}
    exec(f"def rows({head}):\n    inner({given})", scope)
    function: Callable[..., None] = scope["rows"]
    return function


def _with_vectors(function: Any) -> Callable[..., None]:
    """Return a function of a sample's vectors, whose ``np.exp`` and the like are those that the compiler makes vector code of.

    What it calls of its module is compiled with it.
    """
    scope = {**function.__globals__}
    for name, value in scope.items():
        if value is np:
            scope[name] = _numpy()
        elif name in function.__code__.co_names and isinstance(value, FunctionType) and value is not function:
            scope[name] = njit(**BARE)(_with_vectors(value))
    return FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)


@cache
def _numpy() -> ModuleType:
    """Return NumPy with some functions of numbers as LLVM."""
    module = ModuleType("numpy")
    vars(module).update(vars(np))
    for name in numba_math.VECTORS:
        setattr(module, name, _function_of(name))
    return module


def _function_of(name: str) -> Any:
    write = numba_math.FUNCTIONS[name]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = context.cast(builder, args[0], signature.args[0], signature.return_type)
        return write(numba_math.Number(builder, x)).value

    def function(typingctx: Any, x: Any) -> Any:
        return (x if isinstance(x, types.Float) else types.float64)(x), codegen

    return intrinsic(function)

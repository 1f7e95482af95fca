"""The loop that walks a table of instructions: compiled once per machine, for every graph and precision.

It knows addresses and strides, not numbers: what touches numbers are kernels, called by their address. The whole state of a walk
is its context, an array of integers, and the row where it stands; so it can stop at any row and go on.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from flowgrad.ops.linear import FEW_SAMPLES

from ..tasks import FAN_IN
from .table import (
    ADD,
    BASES,
    BATCHED,
    BEGIN,
    BLAS,
    CALL,
    COLUMNS,
    CONSTANTS,
    COPY_ROW,
    COUNTS,
    CUTS,
    DIRECTIONS,
    DONE,
    END,
    ENDED,
    ENTRIES,
    EXTRA,
    FIELDS,
    FIRST,
    FOLDED,
    GRAD,
    INNER,
    KERNEL,
    LEVELS,
    LOOP,
    LOSS,
    LOSSES,
    MEASURE,
    MET,
    MOVES,
    NEXT_SHARD,
    NEXT_STEP,
    NORM,
    NORMED,
    ONE,
    OPCODE,
    OPERAND,
    ORDER,
    PAUSE,
    PRODUCT,
    PYTHON,
    ROW,
    SAMPLES,
    SCALE,
    SEED,
    SEEDS,
    SHARD,
    SHARDS,
    SHARES,
    SIZE,
    STEP,
    STEPS,
    STOP,
    SYNC,
    TAKE,
    THREAD,
    THREADS,
    TILES,
    TIMES,
    TREE,
    UPDATE,
    UPDATES,
    WAVE,
    WAVE_START,
    WEIGHTS,
    WIDTH,
    ZERO,
)  # fmt: skip

# Cycles after which a walk lets Python look for signals: some hundredths of a second.
SLICE = 100_000_000
# How often a waiting thread looks before it lets another one run.
SPINS = 2000
LONG, BYTE = ir.IntType(64), ir.IntType(8)

sched_yield = types.ExternalFunction("sched_yield", types.int32())


def _pointer(builder: Any, address: Any, type_: Any) -> Any:
    return builder.inttoptr(address, type_.as_pointer())


@intrinsic
def load(typingctx: Any, address: Any) -> Any:
    """Read the integer at an address."""
    return types.int64(types.int64), lambda c, builder, s, args: builder.load(_pointer(builder, args[0], LONG))


@intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """Write an integer to an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], LONG))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to the integer at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, args[0], LONG), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    """Read an integer that another thread may write."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0], LONG), "seq_cst", 8, typ=LONG)

    return types.int64(types.int64), codegen


@intrinsic
def copy_bytes(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy bytes, wherever they lie."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cgutils.raw_memcpy(builder, *(_pointer(builder, a, BYTE) for a in args[:2]), args[2], 1)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


def _caller(count: int, doc: str) -> Any:
    """Return an intrinsic that calls the function at an address with so many integers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [LONG] * count)
        builder.call(_pointer(builder, args[0], function), cgutils.unpack_tuple(builder, args[1]))
        return context.get_dummy_value()

    def call(typingctx: Any, address: Any, values: Any) -> Any:
        return types.void(types.int64, types.UniTuple(types.int64, count)), codegen

    call.__doc__ = doc
    return intrinsic(call)


run = _caller(8, "Run a loop over numbers: result, five operands, attributes, and how many numbers.")
run_rows = _caller(10, "Run a function of a sample's vectors: five addresses, five lengths.")
run_update = _caller(8, "Run an update rule.")


@intrinsic
def multiply(typingctx: Any, blas: Any, turned: Any, shape: Any, places: Any, widths: Any, factors: Any) -> Any:
    """Call BLAS for ``out = a @ b``, all row-major: so it is told the transposes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        small = ir.IntType(32)

        def kept(value: Any, type_: Any) -> Any:
            place = cgutils.alloca_once(builder, type_)
            builder.store(value, place)
            return builder.bitcast(place, BYTE.as_pointer())

        turned, (m, n, k), places, widths = args[1], *(cgutils.unpack_tuple(builder, a) for a in args[2:5])
        one, beta = cgutils.unpack_tuple(builder, args[5])
        letters = [
            kept(builder.select(builder.trunc(builder.lshr(turned, ir.Constant(LONG, bit)), ir.IntType(1)),
                                ir.Constant(BYTE, ord("T")), ir.Constant(BYTE, ord("N"))), BYTE)
            for bit in (1, 0)
        ]  # fmt: skip
        numbers = [kept(builder.trunc(x, small), small) for x in (n, m, k, widths[2], widths[1], widths[0])]
        out, a, b, one, beta = (_pointer(builder, x, BYTE) for x in (*places, one, beta))
        arguments = [*letters, *numbers[:3], one, b, numbers[3], a, numbers[4], beta, out, numbers[5]]
        function = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer()] * len(arguments))
        builder.call(_pointer(builder, args[0], function), arguments)
        return context.get_dummy_value()

    three = types.UniTuple(types.int64, 3)
    return types.void(types.int64, types.int64, three, three, three, types.UniTuple(types.int64, 2)), codegen


INTEGERS = types.CPointer(types.int64)
# What is called by its address needs no way in for Python.
_compiled = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False)


@_compiled
def place(code: Any, at: int, ctx: Any, k: int, v: int, row: int) -> int:
    """Return the address of an operand."""
    at += OPERAND + k * FIELDS
    return ctx[BASES + code[at]] + code[at + 1] + row * code[at + 2] + v * code[at + 3]


@_compiled
def loop(code: Any, at: int, ctx: Any, first: int, last: int) -> None:
    """Run a kernel over rows `first` to `last`."""
    times, columns, inner, kernel = code[at + TIMES], code[at + COLUMNS], code[at + INNER], code[at + KERNEL]
    first *= times
    last *= times
    for v in range(ctx[DIRECTIONS] if code[at + MOVES] else 1):
        if first == 0 and code[at + FIRST]:
            a = place(code, at, ctx, 0, v, 0)
            run(code[at + FIRST], (a, a, a, a, a, a, a, columns))
        a, b, c, d, e, f, g = (
            place(code, at, ctx, 0, v, first), place(code, at, ctx, 1, v, first), place(code, at, ctx, 2, v, first),
            place(code, at, ctx, 3, v, first), place(code, at, ctx, 4, v, first), place(code, at, ctx, 5, v, first),
            place(code, at, ctx, 6, v, first),
        )  # fmt: skip
        if code[at + EXTRA]:
            run(kernel, (a, b, c, d, e, f, g, columns * (last - first)))
            continue
        o = at + OPERAND
        for _ in range(first, last):
            if inner == 0:
                size = ctx[SIZE]
                run_rows(kernel, (a, b, c, d, e, code[o + 4] // size, code[o + 9] // size, code[o + 14] // size,
                                  code[o + 19] // size, code[o + 24] // size))  # fmt: skip
            for i in range(inner):
                run(kernel, (a + i * code[o + 4], b + i * code[o + 9], c + i * code[o + 14], d + i * code[o + 19],
                             e + i * code[o + 24], f + i * code[o + 29], g + i * code[o + 34], columns))  # fmt: skip
            a += code[o + 2]
            b += code[o + 7]
            c += code[o + 12]
            d += code[o + 17]
            e += code[o + 22]
            f += code[o + 27]
            g += code[o + 32]


@_compiled
def product(code: Any, at: int, ctx: Any, first: int, last: int) -> None:
    """Multiply matrices: of all rows at once, or of each."""
    rows, each, size, o = (last - first) * code[at + TIMES], code[at + INNER], ctx[SIZE], at + OPERAND
    shape = (code[at + EXTRA + 1], code[at + EXTRA + 2], code[at + EXTRA + 3])
    if not each:
        shape = (
            rows if shape[0] < 0 else shape[0],
            rows if shape[1] < 0 else shape[1],
            rows if shape[2] < 0 else shape[2],
        )
    widths = (code[o + 4] // size, code[o + 9] // size, code[o + 14] // size)
    if code[at + KERNEL] and rows <= FEW_SAMPLES:
        out, a, b = place(code, at, ctx, 0, 0, first), place(code, at, ctx, 1, 0, first), place(code, at, ctx, 2, 0, 0)
        room, n = place(code, at, ctx, 3, 0, 0), shape[1]
        multiply(ctx[BLAS], 2, (n, rows, shape[2]), (room, b, a), (rows, widths[2], widths[1]), (ctx[ONE], ctx[ZERO]))
        for r in range(rows):
            run(code[at + KERNEL], (out + r * code[o + 2], room + r * size, rows, 0, 0, 0, 0, n))
        return
    beta = ctx[ONE] if code[at + COLUMNS] else ctx[ZERO]
    for v in range(ctx[DIRECTIONS] if code[at + MOVES] else 1):
        for r in range(first, last if each else first + 1):
            where = (place(code, at, ctx, 0, v, r), place(code, at, ctx, 1, v, r), place(code, at, ctx, 2, v, r))
            multiply(ctx[BLAS], code[at + EXTRA], shape, where, widths, (ctx[ONE], beta))


@_compiled
def barrier(ctx: Any) -> bool:
    """Wait until all threads came here as often; False if one of them failed."""
    ctx[MET] += 1
    if ctx[THREADS] == 1:
        return True
    sync = ctx[SYNC]
    atomic_add(sync, 1)
    spins = 0
    while atomic_load(sync) < ctx[MET] * ctx[THREADS]:
        spins += 1
        if spins >= SPINS:
            spins = 0
            if atomic_load(sync + 8):
                return False
            sched_yield()
    return True


@_compiled
def add(kernel: int, target: int, source: int, count: int) -> None:
    """Run a kernel of one operand."""
    run(kernel, (target, source, source, source, source, source, source, count))


@_compiled
def share(ctx: Any, k: int) -> int:
    """Return the address of this thread's part of a shard's gradient."""
    return ctx[SHARES] + (k * ctx[ENTRIES] + ctx[BEGIN]) * ctx[SIZE]


@_compiled
def tree_sum(ctx: Any, shards: int) -> None:
    """Add up the gradients of a wave into the first, in the order of `reduce_tree`."""
    stride, count = 1, ctx[END] - ctx[BEGIN]
    while stride < shards:
        for first in range(0, shards, stride * FAN_IN):
            for k in range(first + stride, min(first + stride * FAN_IN, shards), stride):
                add(ctx[ADD], share(ctx, first), share(ctx, k), count)
        stride *= FAN_IN


@_compiled
def fold(ctx: Any, node: int) -> None:
    """Add the first gradient to what `fold_tree` keeps of a tree, as its `node`-th item; a complete group moves up a level."""
    item, count = share(ctx, 0), ctx[END] - ctx[BEGIN]
    for level in range(ctx[LEVELS]):
        place_, node = node % FAN_IN, node // FAN_IN
        target = ctx[FOLDED] + (level * ctx[ENTRIES] + ctx[BEGIN]) * ctx[SIZE]
        add(ctx[COPY_ROW] if place_ == 0 else ctx[ADD], target, item, count)
        if place_ < FAN_IN - 1:
            break
        item = target


@_compiled
def unfold(ctx: Any, nodes: int) -> None:
    """Write the sum of a tree of `nodes` items, of which the open groups are kept, into the first gradient."""
    started, left, count = False, nodes, ctx[END] - ctx[BEGIN]
    for level in range(ctx[LEVELS]):
        if left % FAN_IN or (level == ctx[LEVELS] - 1 and not started):
            source = ctx[FOLDED] + (level * ctx[ENTRIES] + ctx[BEGIN]) * ctx[SIZE]
            add(ctx[ADD] if started else ctx[COPY_ROW], share(ctx, 0), source, count)
            started = True
        left //= FAN_IN


@_compiled
def next_shard(ctx: Any) -> bool:
    """Go to this thread's next shard of a wave; False if there is none."""
    ctx[SHARD] += ctx[THREADS]
    step, shard = ctx[STEP], ctx[SHARD]
    if shard >= min(ctx[WAVE_START] + ctx[WAVE], load(ctx[COUNTS] + 8 * step)):
        return False
    cut = ctx[CUTS] + 8 * (step * (ctx[SHARDS] + 1) + shard)
    ctx[SAMPLES] = load(cut + 8) - load(cut)
    ctx[BASES + SEED] = ctx[SEEDS] + (step * ctx[SHARDS] + shard) * ctx[SIZE]
    ctx[BASES + GRAD] = ctx[SHARES] + (shard - ctx[WAVE_START]) * ctx[ENTRIES] * ctx[SIZE]
    return True


@_compiled
def take(code: Any, at: int, ctx: Any) -> None:
    """Copy a shard's rows of a feed into its frame."""
    width, target, source = code[at + EXTRA], ctx[BASES + code[at + EXTRA + 1]], ctx[BASES + code[at + EXTRA + 2]]
    rows = ctx[ORDER] + 8 * load(ctx[CUTS] + 8 * (ctx[STEP] * (ctx[SHARDS] + 1) + ctx[SHARD]))
    for i in range(ctx[SAMPLES]):
        copy_bytes(target + i * width, source + load(rows + 8 * i) * width, width)


@_compiled
def tree(ctx: Any) -> int:
    """Add up a wave's gradients: 0 if another wave follows, 1 if not, -1 if a thread failed."""
    if not barrier(ctx):
        return -1
    count, first = load(ctx[COUNTS] + 8 * ctx[STEP]), ctx[WAVE_START]
    tree_sum(ctx, min(count - first, ctx[WAVE]))
    if count > ctx[WAVE]:
        fold(ctx, first // ctx[WAVE])
        if not barrier(ctx):
            return -1
    ctx[WAVE_START] = first + ctx[WAVE]
    ctx[SHARD] = ctx[WAVE_START] + ctx[THREAD] - ctx[THREADS]
    if ctx[WAVE_START] < count:
        return 0
    if count > ctx[WAVE]:
        unfold(ctx, (count + ctx[WAVE] - 1) // ctx[WAVE])
    return 1


@intrinsic
def cycles(typingctx: Any) -> Any:
    """Return the processor's count of cycles."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(
            builder.module.declare_intrinsic("llvm.readcyclecounter", fnty=ir.FunctionType(LONG, [])), []
        )

    return types.int64(), codegen


@_compiled
def walk(code: Any, ctx: Any) -> int:
    """Walk from where the context stands to the end, to a row that Python runs, or as long as a slice lasts; say which."""
    row, began = ctx[ROW], cycles()
    while True:
        at = row * WIDTH
        opcode, samples = code[at + OPCODE], ctx[SAMPLES]
        row += 1
        if opcode == LOOP:
            loop(code, at, ctx, 0, samples if code[at + BATCHED] else 1)
        elif opcode == PRODUCT:
            product(code, at, ctx, 0, samples if code[at + BATCHED] else 1)
        elif opcode == TILES:
            count, step = code[at + EXTRA + 1], code[at + EXTRA]
            for first in range(0, samples, step):
                for k in range(count):
                    loop(code, at + (k + 1) * WIDTH, ctx, first, min(first + step, samples))
            row += count
        elif opcode in (PYTHON, STOP):
            ctx[ROW] = row
            return CALL if opcode == PYTHON else DONE
        elif opcode == NEXT_STEP:
            if ctx[STEP] >= ctx[STEPS]:
                return DONE
            ctx[WAVE_START], ctx[SHARD] = 0, ctx[THREAD] - ctx[THREADS]
        elif opcode == NEXT_SHARD:
            if not next_shard(ctx):
                row = code[at + EXTRA]
        elif opcode == TAKE:
            take(code, at, ctx)
        elif opcode == LOSS:
            a, k = place(code, at, ctx, 0, 0, 0), ctx[STEP]
            out = ctx[LOSSES] + 8 * (k * ctx[SHARDS] + ctx[SHARD])
            run(code[at + KERNEL], (out, a, a, a, a, a, a, samples))
            row = code[at + EXTRA]
        elif opcode == TREE:
            more = tree(ctx)
            if more < 0:
                return ENDED
            if more == 0:
                row = code[at + EXTRA]
        elif opcode == NORM:  # twice: before and after the first thread's Python computes the norm, of all
            if not barrier(ctx):
                return ENDED
            ctx[NORMED] = 1 - ctx[NORMED]
            if ctx[NORMED]:
                row -= 1
                if ctx[THREAD] == 0:
                    ctx[ROW] = row
                    return MEASURE
            else:
                g = share(ctx, 0)
                run(code[at + KERNEL], (g, g, g, g, g, g, ctx[SCALE], ctx[END] - ctx[BEGIN]))
        elif opcode == UPDATE:
            k, skip, count = ctx[STEP], ctx[BEGIN] * ctx[SIZE], ctx[END] - ctx[BEGIN]
            g, w = share(ctx, 0), ctx[WEIGHTS] + skip
            if code[at + FIRST]:
                run(code[at + FIRST], (g, w, g, g, g, g, ctx[SCALE] + ctx[SIZE], count))
            run_update(
                code[at + KERNEL],
                (w, g, ctx[WEIGHTS + 1] + skip, ctx[WEIGHTS + 2] + skip, count, ctx[UPDATES] + k + 1,
                 ctx[CONSTANTS] + k * code[at + EXTRA + 1] * ctx[SIZE], code[at + EXTRA + 1]),
            )  # fmt: skip
            if not barrier(ctx):
                return ENDED
            ctx[STEP] = k + 1
            row = code[at + EXTRA]
        if atomic_load(ctx[SYNC] + 8):
            return ENDED
        if cycles() - began > SLICE:
            ctx[ROW] = row
            return PAUSE

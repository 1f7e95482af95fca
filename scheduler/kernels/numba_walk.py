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

from ..machine import CACHE_LINE
from ..tasks import FAN_IN
from . import table as t

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
run_update = _caller(2 + t.MOVED, "Run an update rule: arrays, numbers, and how many entries.")


@intrinsic
def multiply(typingctx: Any, blas: Any, turned: Any, shape: Any, places: Any, widths: Any, factors: Any) -> Any:
    """Call BLAS for ``out = a @ b``, all row-major: so it is told the transposes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
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
        numbers = [kept(x, LONG) for x in (n, m, k, widths[2], widths[1], widths[0])]
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
    at += t.OPERAND + k * t.FIELDS
    return ctx[t.BASES + code[at]] + code[at + 1] + row * code[at + 2] + v * code[at + 3]


@_compiled
def loop(code: Any, at: int, ctx: Any, first: int, last: int) -> None:
    """Run a kernel over rows `first` to `last`."""
    times, columns, inner, kernel = code[at + t.TIMES], code[at + t.COLUMNS], code[at + t.INNER], code[at + t.KERNEL]
    first *= times
    last *= times
    for v in range(ctx[t.DIRECTIONS] if code[at + t.MOVES] else 1):
        if first == 0 and code[at + t.FIRST]:
            a = place(code, at, ctx, 0, v, 0)
            run(code[at + t.FIRST], (a, a, a, a, a, a, a, columns))
        a, b, c, d, e, f, g = (
            place(code, at, ctx, 0, v, first), place(code, at, ctx, 1, v, first), place(code, at, ctx, 2, v, first),
            place(code, at, ctx, 3, v, first), place(code, at, ctx, 4, v, first), place(code, at, ctx, 5, v, first),
            place(code, at, ctx, 6, v, first),
        )  # fmt: skip
        if code[at + t.EXTRA]:
            run(kernel, (a, b, c, d, e, f, g, columns * (last - first)))
            continue
        o = at + t.OPERAND
        for _ in range(first, last):
            if inner == 0:
                size = ctx[t.SIZE]
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
    rows, each, size, o = (last - first) * code[at + t.TIMES], code[at + t.INNER], ctx[t.SIZE], at + t.OPERAND
    shape = (code[at + t.EXTRA + 1], code[at + t.EXTRA + 2], code[at + t.EXTRA + 3])
    if not each:
        shape = (
            rows if shape[0] < 0 else shape[0],
            rows if shape[1] < 0 else shape[1],
            rows if shape[2] < 0 else shape[2],
        )
    widths = (code[o + 4] // size, code[o + 9] // size, code[o + 14] // size)
    if code[at + t.KERNEL] and rows <= FEW_SAMPLES:
        out, a, b = place(code, at, ctx, 0, 0, first), place(code, at, ctx, 1, 0, first), place(code, at, ctx, 2, 0, 0)
        room, n = place(code, at, ctx, 3, 0, 0), shape[1]
        multiply(
            ctx[t.BLAS], 2, (n, rows, shape[2]), (room, b, a), (rows, widths[2], widths[1]), (ctx[t.ONE], ctx[t.ZERO])
        )
        for r in range(rows):
            run(code[at + t.KERNEL], (out + r * code[o + 2], room + r * size, rows, 0, 0, 0, 0, n))
        return
    beta = ctx[t.ONE] if code[at + t.COLUMNS] else ctx[t.ZERO]
    for v in range(ctx[t.DIRECTIONS] if code[at + t.MOVES] else 1):
        for r in range(first, last if each else first + 1):
            where = (place(code, at, ctx, 0, v, r), place(code, at, ctx, 1, v, r), place(code, at, ctx, 2, v, r))
            multiply(ctx[t.BLAS], code[at + t.EXTRA], shape, where, widths, (ctx[t.ONE], beta))


@_compiled
def barrier(ctx: Any) -> bool:
    """Wait until all threads came here as often; False if one of them failed."""
    ctx[t.MET] += 1
    if ctx[t.THREADS] == 1:
        return True
    sync = ctx[t.SYNC]
    atomic_add(sync, 1)
    spins = 0
    while atomic_load(sync) < ctx[t.MET] * ctx[t.THREADS]:
        spins += 1
        if spins >= SPINS:
            spins = 0
            if atomic_load(sync + 8):
                return False
            sched_yield()
    return True


@_compiled
def add(ctx: Any, kernel: int, target: int, source: int, least: int = 0) -> None:
    """Run a kernel of one operand over this thread's part of what is not zero in this step; with `least` 1 over rows alone."""
    size, cuts = ctx[t.SIZE], ctx[t.SPAN_CUTS] + 16 * ctx[t.STEP]
    for k in range(load(cuts), load(cuts + 8)):
        span = ctx[t.SPANS] + 24 * k
        first, last = max(load(span), ctx[t.BEGIN]), min(load(span + 8), ctx[t.END])
        if first < last and load(span + 16) >= least:
            a, b = target + first * size, source + first * size
            run(kernel, (a, b, b, b, b, b, b, last - first))


@_compiled
def share(ctx: Any, k: int) -> int:
    """Return the address of a shard's gradient."""
    return ctx[t.SHARES] + k * ctx[t.ENTRIES] * ctx[t.SIZE]


@_compiled
def clear(ctx: Any) -> None:
    """Make zeros of the rows of tables again, in the gradients of all shards of a wave."""
    for k in range(min(ctx[t.WAVE], ctx[t.SHARDS])):
        add(ctx, ctx[t.CLEAR], share(ctx, k), share(ctx, k), 1)


@_compiled
def tree_sum(ctx: Any, shards: int) -> None:
    """Add up the gradients of a wave into the first, in the order of `reduce_tree`."""
    stride = 1
    while stride < shards:
        for first in range(0, shards, stride * FAN_IN):
            for k in range(first + stride, min(first + stride * FAN_IN, shards), stride):
                add(ctx, ctx[t.ADD], share(ctx, first), share(ctx, k))
        stride *= FAN_IN


@_compiled
def fold(ctx: Any, node: int) -> None:
    """Add the first gradient to what `fold_tree` keeps of a tree, as its `node`-th item; a complete group moves up a level."""
    item = share(ctx, 0)
    for level in range(ctx[t.LEVELS]):
        place_, node = node % FAN_IN, node // FAN_IN
        target = ctx[t.FOLDED] + level * ctx[t.ENTRIES] * ctx[t.SIZE]
        add(ctx, ctx[t.COPY_ROW] if place_ == 0 else ctx[t.ADD], target, item)
        if place_ < FAN_IN - 1:
            break
        item = target


@_compiled
def unfold(ctx: Any, nodes: int) -> None:
    """Write the sum of a tree of `nodes` items, of which the open groups are kept, into the first gradient."""
    started, left = False, nodes
    for level in range(ctx[t.LEVELS]):
        if left % FAN_IN or (level == ctx[t.LEVELS] - 1 and not started):
            source = ctx[t.FOLDED] + level * ctx[t.ENTRIES] * ctx[t.SIZE]
            add(ctx, ctx[t.ADD] if started else ctx[t.COPY_ROW], share(ctx, 0), source)
            started = True
        left //= FAN_IN


@_compiled
def next_shard(ctx: Any) -> bool:
    """Go to this thread's next shard of a wave; False if there is none."""
    ctx[t.SHARD] += ctx[t.THREADS]
    step, shard = ctx[t.STEP], ctx[t.SHARD]
    if shard >= min(ctx[t.WAVE_START] + ctx[t.WAVE], load(ctx[t.COUNTS] + 8 * step)):
        return False
    cut = ctx[t.CUTS] + 8 * (step * (ctx[t.SHARDS] + 1) + shard)
    ctx[t.SAMPLES] = load(cut + 8) - load(cut)
    ctx[t.BASES + t.SEED] = ctx[t.SEEDS] + (step * ctx[t.SHARDS] + shard) * ctx[t.SIZE]
    ctx[t.BASES + t.GRAD] = ctx[t.SHARES] + (shard - ctx[t.WAVE_START]) * ctx[t.ENTRIES] * ctx[t.SIZE]
    return True


@_compiled
def take(code: Any, at: int, ctx: Any) -> None:
    """Copy a shard's rows of a feed into its frame."""
    width, target, source = (
        code[at + t.EXTRA],
        ctx[t.BASES + code[at + t.EXTRA + 1]],
        ctx[t.BASES + code[at + t.EXTRA + 2]],
    )
    first = load(ctx[t.CUTS] + 8 * (ctx[t.STEP] * (ctx[t.SHARDS] + 1) + ctx[t.SHARD]))
    if code[at + t.EXTRA + 3]:
        copy_bytes(target, source + first * width, ctx[t.SAMPLES] * width)
        return
    rows = ctx[t.ORDER] + 8 * first
    for i in range(ctx[t.SAMPLES]):
        copy_bytes(target + i * width, source + load(rows + 8 * i) * width, width)


@_compiled
def tree(ctx: Any) -> int:
    """Add up a wave's gradients: 0 if another wave follows, 1 if not, -1 if a thread failed."""
    if not barrier(ctx):
        return -1
    count, first = load(ctx[t.COUNTS] + 8 * ctx[t.STEP]), ctx[t.WAVE_START]
    tree_sum(ctx, min(count - first, ctx[t.WAVE]))
    if count > ctx[t.WAVE]:
        fold(ctx, first // ctx[t.WAVE])
        clear(ctx)
        if not barrier(ctx):
            return -1
    ctx[t.WAVE_START] = first + ctx[t.WAVE]
    ctx[t.SHARD] = ctx[t.WAVE_START] + ctx[t.THREAD] - ctx[t.THREADS]
    if ctx[t.WAVE_START] < count:
        return 0
    if count > ctx[t.WAVE]:
        unfold(ctx, (count + ctx[t.WAVE] - 1) // ctx[t.WAVE])
    return 1


@_compiled
def move(code: Any, at: int, ctx: Any, first: int, last: int) -> None:
    """Run the rule over some entries."""
    w, skip, g = t.WEIGHTS, first * ctx[t.SIZE], share(ctx, 0) + first * ctx[t.SIZE]
    constants = ctx[t.CONSTANTS] + ctx[t.STEP] * code[at + t.EXTRA + 1] * ctx[t.SIZE]
    run_update(
        code[at + t.KERNEL],
        (ctx[w] + skip, g, ctx[w + 1] + skip, ctx[w + 2] + skip, ctx[w + 3] + skip, ctx[w + 4] + skip, ctx[w + 5] + skip,
         constants, last - first),
    )  # fmt: skip


@_compiled
def cut(start: int, stop: int, entry: int) -> int:
    """Return where a thread's part of a stretch begins whose entries begin with `entry`: where vectors do, to round alike."""
    return min(stop, start + max(0, (entry - start + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE))


@_compiled
def update(code: Any, at: int, ctx: Any) -> bool:
    """Update this thread's part of the state, or of what has a gradient; False if a thread failed."""
    if not code[at + t.EXTRA + 2]:
        move(code, at, ctx, ctx[t.BEGIN], ctx[t.END])
    else:  # parts are cut elsewhere than those that were added up, and will be cleared
        if not barrier(ctx):
            return False
        cuts = ctx[t.SPAN_CUTS] + 16 * ctx[t.STEP]
        for k in range(load(cuts), load(cuts + 8)):
            start, stop = load(ctx[t.SPANS] + 24 * k), load(ctx[t.SPANS] + 24 * k + 8)
            first, last = cut(start, stop, ctx[t.BEGIN]), cut(start, stop, ctx[t.END])
            if first < last:
                move(code, at, ctx, first, last)
        if not barrier(ctx):
            return False
    clear(ctx)
    return barrier(ctx)


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
    row, began = ctx[t.ROW], cycles()
    while True:
        at = row * t.WIDTH
        opcode, samples = code[at + t.OPCODE], ctx[t.SAMPLES]
        row += 1
        if opcode == t.LOOP:
            loop(code, at, ctx, 0, samples if code[at + t.BATCHED] else 1)
        elif opcode == t.PRODUCT:
            product(code, at, ctx, 0, samples if code[at + t.BATCHED] else 1)
        elif opcode == t.TILES:
            count, step = code[at + t.EXTRA + 1], code[at + t.EXTRA]
            for first in range(0, samples, step):
                for k in range(count):
                    loop(code, at + (k + 1) * t.WIDTH, ctx, first, min(first + step, samples))
            row += count
        elif opcode in (t.PYTHON, t.STOP):
            ctx[t.ROW] = row
            return t.CALL if opcode == t.PYTHON else t.DONE
        elif opcode == t.NEXT_STEP:
            if ctx[t.STEP] >= ctx[t.STEPS]:
                return t.DONE
            ctx[t.WAVE_START], ctx[t.SHARD] = 0, ctx[t.THREAD] - ctx[t.THREADS]
        elif opcode == t.NEXT_SHARD:
            if not next_shard(ctx):
                row = code[at + t.EXTRA]
        elif opcode == t.TAKE:
            take(code, at, ctx)
        elif opcode == t.LOSS:
            a, k = place(code, at, ctx, 0, 0, 0), ctx[t.STEP]
            out = ctx[t.LOSSES] + 8 * (k * ctx[t.SHARDS] + ctx[t.SHARD])
            run(code[at + t.KERNEL], (out, a, a, a, a, a, a, samples))
            row = code[at + t.EXTRA]
        elif opcode == t.TREE:
            more = tree(ctx)
            if more < 0:
                return t.ENDED
            if more == 0:
                row = code[at + t.EXTRA]
        elif opcode == t.NORM:  # twice: before and after the first thread's Python computes the norm, of all
            if not barrier(ctx):
                return t.ENDED
            ctx[t.NORMED] = 1 - ctx[t.NORMED]
            if ctx[t.NORMED]:
                row -= 1
                if ctx[t.THREAD] == 0:
                    ctx[t.ROW] = row
                    return t.MEASURE
            else:
                g = share(ctx, 0) + ctx[t.BEGIN] * ctx[t.SIZE]
                run(code[at + t.KERNEL], (g, g, g, g, g, g, ctx[t.SCALE], ctx[t.END] - ctx[t.BEGIN]))
        elif opcode == t.UPDATE:
            if not update(code, at, ctx):
                return t.ENDED
            ctx[t.STEP] += 1
            row = code[at + t.EXTRA]
        if atomic_load(ctx[t.SYNC] + 8):
            return t.ENDED
        if cycles() - began > SLICE:
            ctx[t.ROW] = row
            return t.PAUSE

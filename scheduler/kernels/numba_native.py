"""What compiled kernels need and numba does not have: a barrier for a few threads inside one task, the shards' tree sum, norms.

Nothing here is kept on disk by itself: numba would not notice other constants. It becomes part of the kernels that call it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from flowgrad.optim import NORM_BLOCK, NORM_LANES

from ..tasks import FAN_IN

# How often a waiting thread looks before it lets another one run.
SPINS = 2000

sched_yield = types.ExternalFunction("sched_yield", types.int32())


def _pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return cgutils.get_item_pointer(context, builder, signature.args[0], array, [args[1]])


@intrinsic
def atomic_add(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Add to an int64 entry and return what was there before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(context, builder, signature, args), args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def atomic_load(typingctx: Any, array: Any, index: Any) -> Any:
    """Read an int64 entry that another thread may write."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(context, builder, signature, args), "seq_cst", 8, typ=ir.IntType(64))

    return types.int64(array, types.intp), codegen


@intrinsic
def copy_row(typingctx: Any, target: Any, i: Any, source: Any, k: Any) -> Any:
    """Copy row `k` of an array of bytes into row `i` of another, wherever they lie; a loop over bytes is four times slower."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointers = []
        for at in (0, 2):
            array = context.make_array(signature.args[at])(context, builder, args[at])
            where = [args[at + 1], context.get_constant(types.intp, 0)]
            pointers.append(cgutils.get_item_pointer(context, builder, signature.args[at], array, where))
            length = cgutils.unpack_tuple(builder, array.shape)[1]
        cgutils.raw_memcpy(builder, *pointers, length, 1)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp), codegen


@njit(nogil=True)
def barrier(state: Any, threads: int, count: int) -> bool:
    """Wait until all threads came here for the `count`-th time; False if one of them failed.

    ``state[0]`` counts arrivals, ``state[1]`` is set by a thread that failed.
    """
    atomic_add(state, 0, 1)
    spins = 0
    while atomic_load(state, 0) < count * threads:
        spins += 1
        if spins >= SPINS:
            spins = 0
            if atomic_load(state, 1):
                return False
            sched_yield()
    return True


@njit(nogil=True, error_model="numpy")
def tree_sum(shares: Any, shards: int, start: int, stop: int) -> None:
    """Add up rows ``0 .. shards`` of `shares` into row 0, on columns ``start:stop``, in the order of `reduce_tree`."""
    stride = 1
    while stride < shards:
        for first in range(0, shards, stride * FAN_IN):
            target = shares[first, start:stop]
            for k in range(first + stride, min(first + stride * FAN_IN, shards), stride):
                share = shares[k, start:stop]
                for j in range(len(target)):
                    target[j] += share[j]
        stride *= FAN_IN


@njit(nogil=True, error_model="numpy")
def fold(shares: Any, folded: Any, node: int, start: int, stop: int) -> None:
    """Add row 0 of `shares` to what `tree.fold_tree` keeps of a tree, as its `node`-th item; on columns ``start:stop``.

    A level's row of `folded` is the sum of the group that is not complete yet; a complete one moves up.
    """
    item = shares[0, start:stop]
    for level in range(len(folded)):
        place = node % FAN_IN
        node //= FAN_IN
        target = folded[level, start:stop]
        if place == 0:
            for j in range(len(target)):
                target[j] = item[j]
        else:
            for j in range(len(target)):
                target[j] += item[j]
        if place < FAN_IN - 1:
            break
        item = target


@njit(nogil=True, error_model="numpy")
def unfold(shares: Any, folded: Any, nodes: int, start: int, stop: int) -> None:
    """Write the sum of a tree of `nodes` items, of which `folded` has the open groups, into row 0 of `shares`."""
    result = shares[0, start:stop]
    started = False
    left = nodes
    for level in range(len(folded)):
        kept = folded[level, start:stop]
        if left % FAN_IN or (level == len(folded) - 1 and not started):
            for j in range(len(result)):
                result[j] = kept[j] + result[j] if started else kept[j]
            started = True
        left //= FAN_IN


@njit(nogil=True, error_model="numpy")
def square_sums(g: Any, start: int, stop: int, norms: Any) -> None:
    """Write `block_norms` of entries ``start:stop`` of `g` into their places in `norms`; the same bits."""
    sums = np.empty(NORM_LANES)
    for block in range(start // NORM_BLOCK, (stop + NORM_BLOCK - 1) // NORM_BLOCK):
        sums[:] = 0.0
        end = min((block + 1) * NORM_BLOCK, stop)
        for i in range(block * NORM_BLOCK, end, NORM_LANES):
            part = g[i : min(i + NORM_LANES, end)]
            for j in range(len(part)):
                x = np.float64(part[j])
                sums[j] += x * x
        half = NORM_LANES
        while half > 1:
            half //= 2
            for j in range(half):
                sums[j] += sums[j + half]
        norms[block] = sums[0]


@njit(nogil=True, error_model="numpy")
def scale_of(norms: Any, clip_norm: float) -> float:
    """Return what `flowgrad.optim.norms.scale_of` returns; the same bits."""
    total = 0.0
    for k in range(len(norms)):
        total += norms[k]
    norm = np.sqrt(total)
    if not np.isfinite(norm):
        return np.nan
    return clip_norm / norm if norm > clip_norm else 1.0


@njit(nogil=True, error_model="numpy")
def prepare(w: Any, g: Any, scale: Any, decay: Any) -> None:
    """Do to the gradient itself what `Rule.prepare` does; the same bits."""
    if scale != 1.0:
        for j in range(len(g)):
            g[j] = scale * g[j]
    if decay != 0.0:
        for j in range(len(g)):
            g[j] = g[j] + decay * w[j]

"""Programs as walks of a table, and rounds of whole steps by several threads.

Each thread takes every so many shards and a slice of the parameters, so that the bits do not depend on how many there are.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from flowgrad.optim import Rule, State, clipped
from flowgrad.program import Program
from flowgrad.typing import Array

from ..machine import CACHE_LINE, Pace, frames, one_thread, product_address, run_threads
from ..tasks import FAN_IN, SIDE_BY_SIDE, levels, reduce_tree
from . import table as w
from .numba_library import addresses_of, compiling, update_kernel, walker
from .numpy_kernel import run_instr
from .table import (
    ALIGNED,
    CONST,
    COPY,
    EXTRA,
    FEEDS,
    FILL,
    FRAME,
    INDICES,
    NUMBERS,
    PARAM,
    ROLES,
    SUM,
    Assembler,
    Table,
    View,
)


def aligned_bytes(size: int) -> Array:
    """Return so many bytes of memory that begin where a cache line does."""
    room = np.empty(size + ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED
    return room[start : start + size]


@contextmanager
def room(sizes: Sequence[int]) -> Iterator[list[Array]]:
    """Lend memory of so many bytes each, which is kept for the next walk that needs as much."""
    key = ("walk", *sizes)
    arrays = frames.take(key) or [aligned_bytes(size) for size in sizes]
    yield arrays
    frames.give(key, arrays)


class Code:
    """A table as numbers.

    Parameters
    ----------
    samples, directions : int
        Samples of a walk, at most; rows of a cotangent.

    Attributes
    ----------
    frame : int
        Bytes of memory that a walk needs beside what it is given.
    """

    def __init__(self, table: Table, dtype: np.dtype[Any], samples: int, directions: int = 1):
        self.table, self.dtype, self.samples, self.directions = table, dtype, samples, directions
        size = dtype.itemsize
        self.offsets, self.frame = table.offsets(samples, directions, size)
        self.code = table.numbered(samples, self.offsets, size, addresses_of(table.kernels, dtype))
        self.numbers, self.units = table.numbers.astype(dtype), np.array([0.0, 1.0], dtype)
        # The BLAS is loaded here, before somebody limits its threads.
        self.common = [*addresses_of([SUM, COPY, FILL], dtype), product_address(dtype)]

    def context(self, frame: Array, sync: Array) -> Array:
        """Return a context that stands at the first row, without the places of what is given.

        Parameters
        ----------
        frame : ndarray
            Memory of the walk's own.
        sync : ndarray (2,)
            Shared by the threads of a walk; to set ``sync[1]`` ends it.
        """
        ctx = np.zeros(w.BASES + FEEDS + self.table.feeds + max(self.table.feeds, len(self.table.outputs)), np.int64)
        ctx[[w.SAMPLES, w.DIRECTIONS, w.SIZE, w.THREADS]] = self.samples, self.directions, self.dtype.itemsize, 1
        ctx[[w.ADD, w.COPY_ROW, w.CLEAR, w.BLAS]] = self.common
        ctx[[w.ZERO, w.ONE]] = self.units.ctypes.data, self.units.ctypes.data + self.dtype.itemsize
        lay(ctx, {w.SYNC: sync})
        lay(ctx, {w.BASES + FRAME: frame, w.BASES + NUMBERS: self.numbers, w.BASES + INDICES: self.table.indices})
        return ctx

    def array(self, view: View, ctx: Array) -> Array:
        """Return a value or cotangent where it lies, as NumPy sees it."""
        slot = self.table.slots[view.slot]
        size, batched = self.dtype.itemsize, slot.type.batched
        start = int(ctx[w.BASES + slot.space]) + int(self.offsets[view.slot]) + view.start * size
        shape: tuple[int, ...] = (int(ctx[w.SAMPLES]) if batched else 1, view.dim)
        strides: tuple[int, ...] = (slot.type.dim * size, size)
        if slot.type.cotangent:
            shape = self.directions, *shape
            strides = (self.samples if batched else 1) * strides[0], *strides
        return np.asarray(_Lent(start, shape, strides, self.dtype))

    def walk(self, ctx: Array, measure: Callable[[], None] | None = None) -> None:
        """Walk to the end, or until it is told to stop; what no kernel does, Python does on the way, and `measure` the norm."""
        run, code, context = walker(), self.code.ctypes.data, ctx.ctypes.data
        while (why := run(code, context)) in (w.CALL, w.PAUSE, w.MEASURE):
            if why == w.MEASURE and measure is not None:
                measure()
            if why == w.CALL:
                instr, out, args = self.table.calls[self.code[ctx[w.ROW] - 1, EXTRA]]
                self.array(out, ctx)[...] = run_instr(instr, *(self.array(a, ctx) for a in args))


class _Lent:
    """Memory of a walk as an array."""

    def __init__(self, start: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]):
        self.__array_interface__ = {
            "data": (start, False), "shape": shape, "strides": strides, "typestr": dtype.str, "version": 3,
        }  # fmt: skip


def lay(ctx: Array, arrays: dict[int, Array]) -> None:
    """Write addresses of arrays into a context; who calls keeps the arrays alive."""
    for place, array in arrays.items():
        ctx[place] = array.ctypes.data


@dataclass(frozen=True)
class Schedule:
    """Which rows each shard of each step takes.

    Attributes
    ----------
    order : ndarray
        All rows, one shard after the other.
    cuts : ndarray (steps, shards + 1)
        Where each shard of each step begins in it.
    counts, batches : ndarray (steps,)
        Shards and samples of each step.
    """

    order: Array
    cuts: Array
    counts: Array
    batches: Array

    @classmethod
    def of(cls, steps: Sequence[Sequence[Array]], batches: Sequence[int] | None = None) -> Schedule:
        """Return the schedule of steps, each a list of its shards' rows; `batches` if steps have more shards elsewhere."""
        counts = np.array([len(shards) for shards in steps], np.int64)
        lengths = np.zeros((len(steps), int(counts.max())), np.int64)
        for k, shards in enumerate(steps):
            lengths[k, : len(shards)] = [len(rows) for rows in shards]
        ends = np.cumsum(lengths).reshape(lengths.shape)
        cuts = np.column_stack([ends[:, 0] - lengths[:, 0], ends])
        order = np.concatenate([rows for shards in steps for rows in shards]).astype(np.int64)
        return cls(order, cuts, counts, lengths.sum(axis=1) if batches is None else np.array(batches))

    @property
    def samples(self) -> int:
        """Samples of the largest shard."""
        return int(np.diff(self.cuts).max())


class CompiledRound:
    """Steps of a training as walks.

    Attributes
    ----------
    told : str
        Where the machine code came from and how long that took.
    """

    def __init__(
        self, program: Program, names: Any, rule: Rule, dtype: Any, rates: bool, keys: Any = None, rows: Any = ()
    ):
        self.rule, self.dtype, self.size = rule, np.dtype(dtype), program.size("param")
        self.moves = rule.rated if rates else rule.alone
        self.moved = [name for name in self.moves.arrays if name != "g"]
        self.apart = program.types[program.inputs[-1].var].batched
        self.clips = rule.clip_norm is not None
        began = time.perf_counter()
        gradient = names[0] if names else None
        self.rounds = Assembler(program, gradient, keys=keys).write_round(
            update_kernel(self.moves), self.clips, {table.start for table in rows}, rule.lazy_rows
        )
        self.paces: dict[tuple[int, int], Pace] = {}  # by samples of the largest shard, and threads
        with compiling() as compiled:
            address, *_ = addresses_of([update_kernel(self.moves), *self.rounds.kernels], self.dtype)
        self._update = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * (w.MOVED + 2))(address)
        self.told = f"{'compiled' if compiled else 'loaded'} in {time.perf_counter() - began:.1f} s"
        shards = cache(lambda: Assembler(program, gradient, keys=keys).write_shards())
        self._rounds = lru_cache(maxsize=8)(lambda samples: Code(self.rounds, self.dtype, samples))
        self._shards = lru_cache(maxsize=8)(lambda samples: Code(shards(), self.dtype, samples))

    def run(
        self, state: State, const: Array | None, feeds: list[Array], steps: Any, threads: int = 1, spans: Any = None
    ) -> tuple[State, list[float]]:
        """Run several optimizer steps; the inputs stay as they are. `spans`: with tables, see `spans_of`, of each step."""
        plan = Schedule.of(steps)
        new = {k: np.array(v, order="C") for k, v in state.items()}
        shards, t = int(plan.counts.max()), int(new["t"][0])
        threads = max(1, min(threads, shards))
        wave = FAN_IN ** levels(max(SIDE_BY_SIDE, threads))
        depth = levels(-(-shards // wave))
        arrays = {
            w.SHARES: self.gradient_room(min(shards, wave)), w.FOLDED: self.gradient_room(depth), w.SCALE: np.ones(1, self.dtype),
            w.CONSTANTS: self._constants(t, len(steps)), w.BASES + PARAM: new["w"], **self._spans(spans, len(steps)),
            **{w.WEIGHTS + k: array for k, array in enumerate(new[name] for name in self.moved)},
        }  # fmt: skip
        if spans is not None:
            arrays[w.SHARES][...] = 0
        numbers = {w.THREADS: threads, w.WAVE: wave, w.LEVELS: depth}
        code, losses = self._rounds(plan.samples), np.zeros((len(steps), shards))
        pace = self.paces.setdefault((plan.samples, threads), Pace())
        for first, last, count in pace.segments(len(steps), threads):
            with pace.measure(last - first, count):
                numbers |= {w.THREADS: count}
                with self._walks(code, plan, const, feeds, arrays, numbers) as walk:
                    losses[first:last] = walk(first, last)
        new["t"] += len(steps)
        return new, [float(reduce_tree(list(row[:n]), sum)) for row, n in zip(losses, plan.counts)]

    def gradient(
        self, state: State, const: Array | None, feeds: list[Array], rows: Array, batch: int
    ) -> tuple[Array, float]:
        """Return one shard's share of the mean gradient and loss."""
        shares = self.gradient_room(1)
        with self.gradients(state, const, feeds, [[rows]], [batch], 1) as gradients:
            return shares[0], gradients(0, shares)[0]

    @contextmanager
    def gradients(
        self,
        state: State,
        const: Array | None,
        feeds: list[Array],
        steps: Sequence[Sequence[Array]],
        batches: Sequence[int],
        threads: int,
    ) -> Iterator[Callable[[int, Array], list[float]]]:
        """Give a function of a step's number that computes the gradients of some of its shards at the state as it is then.

        They are written into an array ``(shards, P)``, see `gradient_room`; the losses are returned. Both are shares of the
        means over `batches` samples.
        """
        plan = Schedule.of(steps, batches)
        most = int(plan.counts.max())
        numbers = {w.THREADS: max(1, min(threads, most)), w.WAVE: most}
        arrays = {w.BASES + PARAM: np.ascontiguousarray(state["w"])}
        with self._walks(self._shards(plan.samples), plan, const, feeds, arrays, numbers) as walk:

            def gradients(k: int, out: Array) -> list[float]:
                losses: list[float] = walk(k, k + 1, {w.SHARES: out})[0, : plan.counts[k]].tolist()
                return losses

            yield gradients

    def gradient_room(self, shards: int) -> Array:
        """Return memory for the gradients of so many shards."""
        room = aligned_bytes(shards * self.size * self.dtype.itemsize)
        return room.view(self.dtype).reshape(shards, self.size)

    def _spans(self, spans: Any, steps: int) -> dict[int, Array]:
        """Return stretches of each step, by place; without them a gradient is one."""
        if spans is None:
            return {w.SPANS: np.array([[0, self.size, 0]]), w.SPAN_CUTS: np.tile([0, 1], (steps, 1))}
        ends = np.cumsum([0, *map(len, spans)])
        return {w.SPANS: np.concatenate(spans), w.SPAN_CUTS: np.column_stack([ends[:-1], ends[1:]])}

    def update(self, state: State, gradient: Array, spans: Array | None = None) -> State:
        """Return the state after one update by the mean gradient; with `spans` only there."""
        new = {k: np.array(v, order="C") for k, v in state.items()}
        self.advance(new, gradient, spans)
        return new

    def advance(self, state: State, gradient: Array, spans: Any = None, lo: int = 0, hi: int | None = None) -> None:
        """Update entries ``lo:hi`` of a state, of which `gradient` is that part, or `spans` of all; ``t`` is counted once."""
        parts = {k: v[lo:hi] for k, v in state.items() if k != "t"}
        t = int(state["t"][0])
        state["t"] += 1
        gradient = np.ascontiguousarray(clipped(gradient, self.rule.scale(gradient)))
        constants = self._constants(t, 1)  # here, so that it lives until it was read
        if spans is not None:  # by the last row of a round
            code, sync = self._rounds(1), np.zeros(2, np.int64)
            ctx, places = code.context(sync, sync), self._spans([spans], 1)
            lay(ctx, places | {w.WEIGHTS + k: parts[name] for k, name in enumerate(self.moved)})
            lay(ctx, {w.SHARES: gradient, w.CONSTANTS: constants})
            ctx[[w.ROW, w.STEPS, w.END]] = len(self.rounds.fields) - 1, 1, self.size
            code.walk(ctx)
            return
        first, *others = (parts[name].ctypes.data for name in self.moved)
        others += [first] * (w.MOVED - 2 - len(others))
        self._update(first, gradient.ctypes.data, *others, constants.ctypes.data, len(gradient))

    @contextmanager
    def _walks(
        self,
        code: Code,
        plan: Schedule,
        const: Array | None,
        feeds: list[Array],
        arrays: dict[int, Array],
        numbers: dict[int, int],
    ) -> Iterator[Callable[..., Array]]:
        """Give a function that walks some steps, with some threads, and returns the losses of all shards, as shares of the mean."""
        threads = numbers[w.THREADS]
        parts = np.ones(plan.cuts[:, 1:].shape) if self.apart else np.diff(plan.cuts)
        seeds = (parts / plan.batches[:, None]).astype(self.dtype)
        losses, sync = np.zeros(parts.shape), np.zeros(2, np.int64)
        feeds = [np.ascontiguousarray(f) for f in feeds]
        arrays = {
            w.ORDER: plan.order, w.CUTS: plan.cuts, w.COUNTS: plan.counts, w.LOSSES: losses, w.SEEDS: seeds, **arrays
        }  # fmt: skip
        arrays |= {w.BASES + FEEDS + len(feeds) + k: feed for k, feed in enumerate(feeds)}
        if const is not None:
            arrays[w.BASES + CONST] = const
        numbers = {w.SHARDS: len(losses[0]), w.ENTRIES: self.size, **numbers}
        lines = -(-self.size // CACHE_LINE)
        cuts = [min(lines * k // threads * CACHE_LINE, self.size) for k in range(threads + 1)]
        sizes = [code.frame, *(plan.samples * x[0].nbytes for x in feeds)]
        with ExitStack() as held:
            contexts = []
            for k in range(threads):
                frame, *taken = held.enter_context(room(sizes))
                ctx = code.context(frame, sync)
                lay(ctx, arrays | {w.BASES + FEEDS + f: place for f, place in enumerate(taken)})
                ctx[list(numbers)] = list(numbers.values())
                ctx[[w.THREAD, w.SHARD, w.BEGIN, w.END]] = k, k - threads, cuts[k], cuts[k + 1]
                contexts.append(ctx)
            begun = [ctx.copy() for ctx in contexts]
            held.enter_context(one_thread())

            def measure() -> None:
                arrays[w.SCALE][0] = self.rule.scale(arrays[w.SHARES][0])

            def walk(first: int, last: int, more: dict[int, Array] | None = None) -> Array:
                sync[:] = 0
                for ctx, start in zip(contexts, begun):
                    ctx[:] = start
                    ctx[[w.STEP, w.STEPS]] = first, last
                    lay(ctx, more or {})
                run_threads(lambda k: code.walk(contexts[k], measure), threads, sync)
                return losses[first:last] / plan.batches[first:last, None]

            yield walk

    def _constants(self, t: int, steps: int) -> Array:
        """Return the rule's numbers for the updates after `t`, a row each."""
        alike = not (callable(self.rule.learning_rate) or self.moves.timed or type(self.rule).rate is not Rule.rate)
        rows = [self.rule.constants(t + k, self.moves) for k in range(1, min(steps, 2 if alike else steps) + 1)]
        return np.array(rows + rows[-1:] * (steps - len(rows)), self.dtype)


class CompiledProgram:
    """A program made ready to run; called as `Kernel` is."""

    def __init__(self, program: Program):
        self.program = program
        self._table = lru_cache(maxsize=2)(lambda seeds: Assembler(program, seeds=seeds).write())
        self._code = lru_cache(maxsize=8)(lambda seeds, *key: Code(self._table(seeds), *key))
        feeds = 0
        self.spaces = []
        for i in program.inputs:
            self.spaces.append(ROLES.get(i.role, FEEDS + feeds))
            feeds += i.role not in ROLES

    def __call__(self, inputs: Sequence[Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run on the inputs, in the order of ``program.inputs``; return the outputs by name, some of them `into` arrays.

        Cotangents may have one row that all samples share, even where their types have one for each.
        """
        program, types = self.program, self.program.types
        dtype = np.dtype(np.result_type(*inputs)) if inputs else np.dtype(float)
        moving = [types[i.var].cotangent for i in program.inputs]
        samples = max((x.shape[1] if moves else len(x) for moves, x in zip(moving, inputs)), default=1)
        directions = max((len(x) for moves, x in zip(moving, inputs) if moves), default=1)
        inputs = [
            np.repeat(x, samples, axis=1)
            if i.role == "tangent" and types[i.var].batched and x.shape[1] < samples
            else x
            for i, x in zip(program.inputs, inputs)
        ]
        seeds = any(x.shape[1] > 1 for i, x in zip(program.inputs, inputs) if i.role == "seed")
        code: Code = self._code(seeds, dtype, samples, directions)
        given = {w.BASES + s: np.ascontiguousarray(x, dtype) for s, x in zip(self.spaces, inputs)}
        outputs: dict[str, Array] = {}
        made: dict[int, Array] = {}
        for name, var in program.outputs.items():
            type_ = types[var]
            shape = (directions,) * type_.cotangent + (samples if type_.batched else 1, type_.dim)
            if var not in made:
                made[var] = _fitting((into or {}).get(name), shape, dtype)
                given[w.BASES + FEEDS + code.table.feeds + len(made) - 1] = made[var]
            outputs[name] = made[var]
        sync = np.zeros(2, np.int64)
        with room([code.frame]) as (frame,):
            ctx = code.context(frame, sync)
            lay(ctx, given)
            run_threads(lambda _: code.walk(ctx), 1, sync)
        return outputs


def _fitting(array: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return the array, if it is one to write to, or another."""
    if array is not None and array.shape == shape and array.dtype == dtype and array.flags.c_contiguous:
        return array
    return np.empty(shape, dtype)

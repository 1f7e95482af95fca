"""Measuring a machine: small synthetic programs through the kernels that training runs, kept on disk between runs."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import flowgrad as fg
from flowgrad.optim import AdamRule, GradientDescentRule
from flowgrad.typing import Array

from ..feeds import check_feeds
from ..machine import COMPILED_BLAS, cache_folder, one_thread, read_cpu, read_versions
from ..programs import flat_values, work_of
from ..steps import Scratch, compile_step, run_round
from ..tasks import token
from .rates import INPUTS, OUTPUTS, SAMPLES, Curve, Rates, update_bytes

# How often each probe has its turn at most, and the seconds after which it has no more.
PASSES, LONG = 5, 0.005
# Bytes of the feeds that rows are gathered from: more than a cache holds.
FEED_BYTES = 1 << 26
# Sides of a matrix product as arrays (N, inputs) x, (outputs, inputs) w, (N, outputs) g.
PRODUCTS: dict[str, Callable[[Array, Array, Array], tuple[Array, Array]]] = {
    "value": lambda x, w, g: (x, w.T),
    "input": lambda x, w, g: (g, w),
    "matrix": lambda x, w, g: (g.T, x),
}
# Parameters of the updates that are timed.
UPDATED = (1 << 12, 1 << 16, 1 << 20)
COMPILED_PROBE = f"{__package__}.numba_probe"  # needs numba
# What the layers of synthetic programs are.
LAYERS: dict[str, Callable[[fg.Node, fg.Node], fg.Node]] = {
    "loops": lambda value, w: fg.ReLU(value * w),
    "functions": lambda value, w: fg.Tanh(fg.Logistic(value)),
    "reductions": lambda value, w: fg.SoftMax(value),
}
# What tells one machine, or one way to set it up, from another.
SETTINGS = ("OPENBLAS_CORETYPE", "MKL_DEBUG_CPU_TYPE", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def rates_here(kernel: str, dtype: str, again: bool = False) -> dict[str, Any]:
    """Return the rates of this machine as plain values: from the cache folder if they are there, else measured.

    Parameters
    ----------
    kernel : str
        ``"numpy"`` or ``"numba"``.
    dtype : str
    again : bool
        Measure in any case.
    """
    name = token(kernel, dtype, *read_cpu(), os.cpu_count(), read_versions(), _code(), *map(os.environ.get, SETTINGS))
    path = cache_folder() / f"rates-{name}.json"
    if not again:
        with suppress(OSError, ValueError, KeyError, TypeError):  # whatever is wrong with the file: measure
            return Rates.from_dict(json.loads(path.read_text())).as_dict()
    values = measure_rates(kernel, dtype).as_dict()
    with suppress(OSError):  # not kept, measured again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(values))
        scratch.replace(path)
    return values


@lru_cache(maxsize=1)
def _code() -> str:
    """Return a hash of what is measured: rates belong to the code that they were measured with."""
    room = Path(__file__).resolve().parent
    language = Path(fg.__file__).resolve().parent
    files = [*sorted(room.glob("*.py")), *sorted(language.glob("*.py")), *sorted((language / "ops").glob("*.py"))]
    return token(*(path.read_text() for path in files))


def measure_rates(kernel: str, dtype: str) -> Rates:
    """Measure the rates of one thread of this process; a compiled kernel that was never used here is compiled first."""
    if kernel == "numba":
        import_module(COMPILED_BLAS)  # it must be there to be told to use one thread
    with one_thread():
        products = _products(kernel, np.dtype(dtype))
        nothing = ((1.0, 0.0),)
        plain = Rates(kernel, dtype, 0.0, 0.0, products, nothing, 0.0, 0.0, nothing, nothing)
        return _compiled_rates(plain) if kernel == "numba" else _numpy_rates(plain)


# -- matrix products and memory ---------------------------------------------------------------------------------


def _products(kernel: str, dtype: np.dtype[Any]) -> dict[str, list[list[list[float]]]]:
    """Time matrix products on the grid, by the BLAS that the kernel calls; their calls are counted elsewhere."""
    multiply = _multiply(kernel, dtype)
    shapes = [(m, n, k) for m in SAMPLES for n in OUTPUTS for k in INPUTS]
    found = {}
    for side, operands in PRODUCTS.items():
        runs = []
        for m, n, k in [(1, 1, 1), *shapes]:
            a, b = operands(np.ones((m, k), dtype), np.ones((n, k), dtype), np.ones((m, n), dtype))
            out = np.empty((a.shape[0], b.shape[1]), dtype)
            runs.append(partial(multiply, a, b, out))
        nothing, *times = _fastest(runs)
        times = [max(t - nothing, 0.1 * t) for t in times]
        found[side] = np.reshape(times, (len(SAMPLES), len(OUTPUTS), len(INPUTS))).tolist()
    return found


def _multiply(kernel: str, dtype: np.dtype[Any]) -> Callable[[Array, Array, Array], Any]:
    if kernel == "numpy":
        return lambda a, b, out: np.matmul(a, b, out=out)
    gemm = getattr(import_module("scipy.linalg.blas"), "sgemm" if dtype == np.float32 else "dgemm")

    def multiply(a: Array, b: Array, out: Array) -> Any:
        # BLAS sees the transposes: (a b)' = b' a'.
        left, right = (x.T if x.flags.c_contiguous else x for x in (b, a))
        return gemm(1.0, left, right, 0.0, out.T, not b.flags.c_contiguous, not a.flags.c_contiguous, 1)

    return multiply


def _fastest(runs: Iterable[Callable[[], Any]]) -> list[float]:
    """Return the shortest time of each; all take turns, so that a disturbance does not meet all tries of one.

    Those that take milliseconds have a turn or two: what disturbs is short beside them. It is the
    time that this thread had a processor: what others do on the machine meanwhile does not count.
    """
    runs = list(runs)
    best, spent = [math.inf] * len(runs), [0.0] * len(runs)
    for k in (k for _ in range(PASSES) for k in range(len(runs))):
        if spent[k] > LONG:
            continue
        runs[k]()  # its data is in the cache, as after the step before
        start = time.thread_time()
        runs[k]()
        seconds = time.thread_time() - start
        best[k], spent[k] = min(best[k], seconds), spent[k] + 2 * seconds
    return best


def _rows() -> Curve:
    """Time gathering rows from more than a cache holds."""
    feed, random = np.ones((FEED_BYTES // 4096, 1024), np.float32), np.random.default_rng(0)
    picked = [random.permutation(len(feed))[:n] for n in (64, 512, 2048)]
    rooms = [np.empty((len(rows), 1024), np.float32) for rows in picked]
    times = _fastest([partial(np.take, feed, rows, 0, room, "clip") for rows, room in zip(picked, rooms)])
    return tuple((float(room.nbytes), t / room.nbytes) for room, t in zip(rooms, times))


def _memory() -> Curve:
    """Time loops over arrays of some sizes that are used again and again, as compiled kernels use their buffers."""
    arrays = [np.ones((3, n), np.float32) for n in (1, 1 << 11, 1 << 15, 1 << 19, 1 << 22)]
    nothing, *times = _fastest([partial(np.add, a[0], a[1], out=a[2]) for a in arrays])
    return tuple((float(a.nbytes), max(t - nothing, 0.1 * t) / a.nbytes) for a, t in zip(arrays[1:], times))


# -- synthetic programs -----------------------------------------------------------------------------------------


class Probe:
    """A small program with its data, as one optimizer step by NumPy's kernel.

    Parameters
    ----------
    kind : str
        ``"loops"``: cheap elementwise instructions; ``"functions"``: transcendental ones; ``"reductions"``: those over short rows;
        ``"rows"``: wide feeds, of which little is used.
    dtype : str
    length : int
        Layers.
    """

    def __init__(self, kind: str, dtype: str, length: int = 4):
        dim = {"rows": 1024, "reductions": 8}.get(kind, 64)
        with fg.Graph(seed=0) as graph:
            x = fg.Variable(dim, trainable=False, name="x")
            value: fg.Node = x[0:4] if kind == "rows" else x
            w = fg.Variable(value.dim, np.full(value.dim, 0.9), name="w")
            value = value * w
            for _ in range(0 if kind == "rows" else length):
                value = LAYERS[kind](value, w)
            loss = fg.Dot(value, fg.Variable(value.dim, np.ones(value.dim), trainable=False))
        samples = FEED_BYTES // (dim * np.dtype(dtype).itemsize) if kind == "rows" else 1 << 14
        feeds = check_feeds(graph, {x: np.full((samples, dim), 0.5, dtype)}, dtype)
        self.rule = GradientDescentRule(1e-6)
        self.step = compile_step(loss, feeds, [w], "shard")
        self.work = work_of(self.step.program)
        vector = flat_values(self.step.program, graph, "param", dtype)[0]
        self.state = {"w": vector, **self.rule.init(vector)}
        self.const = flat_values(self.step.program, graph, "const", dtype)
        self.feeds = [feeds.arrays[x]]
        self.order = np.random.default_rng(0).permutation(samples)

    def run(self, samples: int, steps: int = 1) -> Callable[[], Any]:
        """Return a call of some steps with `samples` samples each."""
        rows = [[self.order[(k * samples) % (len(self.order) - samples + 1) :][:samples]] for k in range(steps)]
        return lambda: run_round(self.step, self.rule, (self.state, []), self.const, self.feeds, rows)

    def seconds(self, samples: int, steps: int) -> float:
        """Return the seconds of one step with `samples` samples, of `steps` of them in one round."""
        return _fastest([self.run(samples, steps)])[0] / steps


def _numpy_rates(plain: Rates) -> Rates:
    """Fill in what NumPy's kernel costs; the probes' own counts of work are what times are divided by."""
    size = plain.itemsize
    short, loops, functions, reductions, rows = (
        Probe(kind, plain.dtype, length)
        for kind, length in (("loops", 1), ("loops", 4), ("functions", 2), ("reductions", 2), ("rows", 0))
    )
    few, many = short.seconds(1, 16), loops.seconds(1, 16)
    call = max((many - few) / (loops.work.calls - short.work.calls), 1e-8)
    found = replace(plain, call=call, start=max(few - short.work.calls * call, 0.0))
    found = replace(found, taking=_taking(found, rows))
    moving = []
    for samples, steps in ((64, 8), (1024, 3), (16384, 1)):
        rest = _rest(loops.seconds(samples, steps), found, loops, samples)
        moving.append((float(samples * 64 * size), rest / (size * (loops.work.moved(samples) - samples * 64))))
    found = replace(found, moving=tuple(moving))
    rest = _rest(functions.seconds(512, 4), found, functions, 512)
    found = replace(found, function=rest / (512 * functions.work.functions), updating=_updates(plain.dtype))
    rest = _rest(reductions.seconds(512, 4), found, reductions, 512)
    return replace(found, reduction=rest / (512 * reductions.work.reductions))


def _updates(dtype: str) -> Curve:
    """Time NumPy's updates by Adam, which has the most state."""
    rule, runs = AdamRule(), []
    for params in UPDATED:
        w = np.ones(params, dtype)
        state = rule.init(w) | {"t": np.ones(1, np.int64)}
        runs.append(partial(rule.update_in_place, w, w.copy(), state, Scratch().work(params, w.dtype)))
    return _per_byte(_fastest(runs), dtype)


def new_state() -> float:
    """Return the seconds per byte read or written of an update by Adam that makes a new state."""
    rule, w = AdamRule(), np.ones(UPDATED[-1], np.float32)
    with one_thread():
        seconds = _fastest([partial(rule.update, w, w.copy(), rule.init(w))])[0]
    return seconds / update_bytes(w.nbytes, len(rule.slots))


def _per_byte(seconds: list[float], dtype: str) -> Curve:
    """Return what updates of `UPDATED` parameters by Adam took, for each byte read or written."""
    sizes = [update_bytes(params * np.dtype(dtype).itemsize, len(AdamRule.slots)) for params in UPDATED]
    return tuple((float(nbytes), t / nbytes) for nbytes, t in zip(sizes, seconds))


def _compiled_rates(plain: Rates) -> Rates:
    """Fill in what a compiled kernel costs; between its instructions there is nothing but the calls of BLAS."""
    work = partial(import_module(COMPILED_PROBE).compiled_work, plain.dtype)
    often = [max(1, (1 << 16) // n) for n in UPDATED]  # a small update alone is too short to measure
    nothing, calls, functions, *updates = _fastest(
        [work(), work(1001), work(entries=1 << 15), *(work(k, params=n) for k, n in zip(often, UPDATED))]
    )
    updates = [max(t - nothing, 0.1 * t) / k for t, k in zip(updates, often)]
    function = max(functions - nothing, 0.1 * functions) / (1 << 16)
    found = replace(plain, call=max(calls - nothing, 1e-6) / 1000, function=function)
    found = replace(found, updating=_per_byte(updates, plain.dtype))
    return replace(found, moving=_memory(), taking=_rows())


def _taking(known: Rates, rows: Probe) -> Curve:
    curve = []
    for samples, steps in ((64, 16), (512, 4), (2048, 2)):
        nbytes = samples * rows.work.taken * known.itemsize
        curve.append((float(nbytes), _rest(rows.seconds(samples, steps), known, rows, samples) / nbytes))
    return tuple(curve)


def _rest(seconds: float, known: Rates, probe: Probe, samples: int) -> float:
    """Return what is left of a measured time after what is known; never nothing, for rates are positive."""
    return max(seconds - known.gradient(probe.work, samples), 0.05 * seconds)


# -- several at once --------------------------------------------------------------------------------------------


def burst(seconds: float = 0.012) -> float:
    """Return the seconds of a matrix product, of many one after the other; others may be at it at the same time."""
    a, b, out = (np.ones(shape, np.float32) for shape in ((256, 512), (512, 512), (256, 512)))
    times: list[float] = []
    ends = time.perf_counter() + seconds
    with one_thread():
        while (start := time.perf_counter()) < ends or not times:
            np.matmul(a, b, out=out)
            times.append(time.perf_counter() - start)
    return float(np.quantile(times, 0.25))

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
from flowgrad.jacobian import Array
from flowgrad.optim import AdamRule, GradientDescentRule

from . import blocks, compiled
from .blas import COMPILED_BLAS, one_thread
from .cost import work_of
from .facts import read_cpu, read_versions
from .feeds import check_feeds
from .lower import flat_values
from .lower_train import compile_step
from .rates import INPUTS, OUTPUTS, SAMPLES, Curve, Rates
from .scratch import Scratch
from .tasks import token

# Probes of one calibration; each is a few calls.
PASSES = 5
# Bytes of the feeds that rows are gathered from: more than a cache holds.
FEED_BYTES = 1 << 26
# Sides of a matrix product as arrays (N, inputs) x, (outputs, inputs) w, (N, outputs) g.
PRODUCTS: dict[str, Callable[[Array, Array, Array], tuple[Array, Array]]] = {
    "value": lambda x, w, g: (x, w.T),
    "input": lambda x, w, g: (g, w),
    "matrix": lambda x, w, g: (g.T, x),
}
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
    path = compiled.cache_folder() / f"rates-{name}.json"
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

    It is the time that this thread had a processor: what others do on the machine meanwhile does not count.
    """
    runs = list(runs)
    best = [math.inf] * len(runs)
    for _ in range(PASSES):
        for k, run in enumerate(runs):
            run()  # its data is in the cache, as after the step before
            start = time.thread_time()
            run()
            best[k] = min(best[k], time.thread_time() - start)
    return best


def _memory() -> Curve:
    """Time loops over arrays of some sizes that are used again and again, as compiled kernels use their buffers."""
    arrays = [np.ones((3, n), np.float32) for n in (1, 1 << 11, 1 << 15, 1 << 19, 1 << 22)]
    nothing, *times = _fastest([partial(np.add, a[0], a[1], out=a[2]) for a in arrays])
    return tuple((float(a.nbytes), max(t - nothing, 0.1 * t) / a.nbytes) for a, t in zip(arrays[1:], times))


# -- synthetic programs -----------------------------------------------------------------------------------------


class Probe:
    """A small program with its data, as one optimizer step.

    Parameters
    ----------
    kind : str
        ``"loops"``: cheap elementwise instructions; ``"functions"``: transcendental ones; ``"reductions"``: those over short rows;
        ``"rows"``: wide feeds, of which little is used.
    kernel, dtype : str
    """

    def __init__(self, kind: str, kernel: str, dtype: str, length: int = 4):
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
        self.step = replace(compile_step(loss, feeds, [w], "shard"), compiled=kernel == "numba")
        self.work = work_of(self.step.program)
        vector = flat_values(self.step.program, graph, "param", dtype)[0]
        self.state = {"w": vector, **self.rule.init(vector)}
        self.const = flat_values(self.step.program, graph, "const", dtype)
        self.feeds = [feeds.arrays[x]]
        self.order = np.random.default_rng(0).permutation(samples)

    def run(self, samples: int, steps: int = 1) -> Callable[[], Any]:
        """Return a call of some steps with `samples` samples each."""
        rows = [[self.order[(k * samples) % (len(self.order) - samples + 1) :][:samples]] for k in range(steps)]
        return lambda: blocks.run_round(self.step, self.rule, self.state, self.const, self.feeds, rows)

    def seconds(self, samples: int, steps: int) -> float:
        """Return the seconds of one step with `samples` samples, of `steps` of them in one round."""
        return _fastest([self.run(samples, steps)])[0] / steps


def _numpy_rates(plain: Rates) -> Rates:
    """Fill in what NumPy's kernel costs; the probes' own counts of work are what times are divided by."""
    size = plain.itemsize
    short, loops, functions, reductions, rows = (
        Probe(kind, "numpy", plain.dtype, length)
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
    rule, curve = AdamRule(), []
    for params in (1 << 12, 1 << 16, 1 << 20):
        w = np.ones(params, dtype)
        state = rule.init(w) | {"t": np.ones(1, np.int64)}
        work = Scratch().work(params, w.dtype)
        seconds = _fastest([partial(rule.update_in_place, w, w.copy(), state, work)])[0]
        nbytes = w.nbytes * (3 + 2 * len(rule.slots))
        curve.append((float(nbytes), seconds / nbytes))
    return tuple(curve)


def _compiled_rates(plain: Rates) -> Rates:
    """Fill in what a compiled kernel costs."""
    moving = _memory()
    rows, functions = Probe("rows", "numba", plain.dtype), Probe("functions", "numba", plain.dtype, 2)
    few, many = rows.seconds(1, 256), functions.seconds(1, 256)
    found = replace(plain, moving=moving, updating=moving)
    call = max((many - few) / (functions.work.calls - rows.work.calls), 1e-9)
    found = replace(found, call=call, start=max(few - rows.work.calls * call, 0.0))
    found = replace(found, taking=_taking(found, rows))
    rest = _rest(functions.seconds(512, 4), found, functions, 512)
    return replace(found, function=rest / (512 * functions.work.functions))


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


def burst(seconds: float = 0.025) -> float:
    """Return the seconds of a matrix product, of many one after the other; others may be at it at the same time."""
    a, b, out = (np.ones(shape, np.float32) for shape in ((256, 512), (512, 512), (256, 512)))
    times: list[float] = []
    ends = time.perf_counter() + seconds
    with one_thread():
        while (start := time.perf_counter()) < ends or not times:
            np.matmul(a, b, out=out)
            times.append(time.perf_counter() - start)
    return float(np.quantile(times, 0.25))

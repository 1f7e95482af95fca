"""A stopwatch for steps that run in this process, and the times of a program by number of samples."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

from flowgrad.program import Program
from flowgrad.typing import Array

from ..kernels import kernel_of, run_instr
from ..machine import blas_threads
from ..programs import SHARD_SAMPLES, Computation, ends_of, run_seeded
from .times import Times, between

# Seconds that a run lasts at least, if need be by many repetitions; that all runs of one thing last together, about.
RUN_SECONDS, ALL_SECONDS = 0.01, 0.06
# So many repetitions at most, and so many runs at least of what is short: a single one may fall into a pause of the machine.
REPETITIONS, RUNS = 32, 3
# How often something is run before it counts, and then at most.
TRIES = 6
# A larger number of samples that would take longer than this is not measured.
TOO_LONG = 0.5


def seconds_of(run: Callable[[int], Any], tries: int = TRIES, limit: float = ALL_SECONDS) -> float:
    """Return the seconds of one of the repetitions that ``run(repetitions)`` makes: the median of some runs.

    The first run does not count: it may compile, and what it reads is in no cache yet. Nor does one that is too short to tell
    the work from what a run costs by itself.
    """
    run(1)
    repetitions, spent = 1, 0.0
    times: list[float] = []
    while len(times) < tries and (spent <= limit or (repetitions > 1 and len(times) < RUNS)):
        start = time.perf_counter()
        run(repetitions)
        seconds = time.perf_counter() - start
        spent += seconds
        counts = 2 * seconds >= RUN_SECONDS or repetitions == REPETITIONS
        if counts:
            times.append(seconds / repetitions)
        else:
            repetitions = max(2 * repetitions, int(RUN_SECONDS * repetitions / max(seconds, 1e-9)))
            repetitions = min(REPETITIONS, repetitions)
    return statistics.median(times)


def curve_of(run_on: Callable[[int], Callable[[int], Any]], sizes: Iterable[int]) -> tuple[tuple[int, float], ...]:
    """Return the seconds by number of samples, never falling; ``run_on(samples)(repetitions)`` runs."""
    curve: list[tuple[int, float]] = []
    for samples in sorted(set(sizes)):
        if len(curve) > 1 and between(curve, samples) > TOO_LONG:
            break
        seconds = seconds_of(run_on(samples))
        curve.append((samples, max([seconds, *(y for _, y in curve)])))
    return tuple(curve)


def seconds_by_node(program: Program, inputs: Iterable[Array]) -> dict[str, list[float]]:
    """Return the seconds, forward and back, by name of the first node that instructions are about; "" has the vector of gradients.

    They are run one after the other by NumPy; the shortest of some runs of each counts.
    """
    values = dict(zip((i.var for i in program.inputs), inputs))
    least = [math.inf] * len(program.instrs)
    ends, runs = time.perf_counter() + ALL_SECONDS, 0
    while runs < RUNS or time.perf_counter() < ends:
        for k, i in enumerate(program.instrs):
            args = [values[a] for a in i.args]
            start = time.perf_counter()
            values[i.out] = run_instr(i, *args)
            least[k] = min(least[k], time.perf_counter() - start)
        runs += 1
    nodes: dict[str, list[float]] = {}
    for i, seconds in zip(program.instrs, least):
        name = "" if i.verb == "scatter" else ends_of(i.label)[0]
        nodes.setdefault(name, [0.0, 0.0])[i.verb != "apply"] += seconds
    return nodes


def program_times(job: Computation, blas: int) -> Times:
    """Return what the program of a job takes by NumPy's kernel, measured here with so many BLAS threads."""
    seeded = any(i.role == "seed" for i in job.program.inputs)

    def run_on(samples: int) -> Callable[[int], Any]:
        inputs = job.inputs.arrays(samples)

        def run(repetitions: int) -> None:
            for _ in range(repetitions):
                if seeded:
                    run_seeded(job.program, samples, samples, inputs)
                else:
                    kernel_of(job.program)(inputs)

        return run

    largest = min(SHARD_SAMPLES, -(-job.samples // job.shards))
    with blas_threads(blas):
        curve = curve_of(run_on, (1, -(-largest // 8), largest))
    return Times("numpy", curve, curve[0][1])

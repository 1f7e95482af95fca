"""What a training will do and what that costs: its own steps, run here and timed, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from flowgrad.errors import FlowgradError, warn
from flowgrad.inputs import count
from flowgrad.typing import Array

from ..costs import (
    LARGEST_BATCH,
    SURE,
    TASKS,
    Case,
    Links,
    Plan,
    Times,
    about,
    best_grain,
    choose_grain,
    choose_kernel,
    choose_round_threads,
    choose_shards,
    columns,
    crossing,
    curve_of,
    idle,
    links_of,
    make_plan,
    measured_seconds,
    ms,
    ratio,
    seconds_by_node,
    seconds_of,
    short,
    spreading,
    step_seconds,
    steps_per_round,
    task_links,
    tasks_per_step,
    worth_trying,
)
from ..feeds import Chunked, Lane
from ..kernels import MOVED, why_not_chosen, why_not_compiled
from ..machine import one_thread
from ..programs import counts_of, seed_of
from ..steps import Scratch, compiled, lower_steps, run_round, shard_inputs
from ..tasks import Ref, TaskGraph, bounds
from .job import Settings, TrainingJob

# Nodes of a graph whose tasks at grain node are counted.
COUNTED = 5000
# Samples of the largest shard that is timed.
LARGEST_SHARD = 1024
# Numbers of workers of which people are told when they pay.
SHARING = (2, 4, 16)
FROM_WORK = "they follow from the work alone, so that results are the same everywhere"


class Trial:
    """Steps of a training, run in this process as `fit` runs them, and timed; no variable changes.

    Attributes
    ----------
    kernel : (str, str)
        Kernel and why; shards and kernel fix the bits, and follow from the work alone, so that they are the same everywhere.
    case : Case
        The training in numbers, its shards among them.
    seconds, shared : float
        Of a step in one task, by the threads of a worker; by the threads that rounds use.
    """

    def __init__(self, job: TrainingJob):
        self.job = job
        settings = job.settings
        optimizer, engine, counts = settings.optimizer, settings.engine, counts_of(job.step.program)
        work = counts.flops(optimizer.batch_size)
        why_not, moved = "", len(job.state)  # t counts for the gradient
        if moved > MOVED and optimizer.privacy is None:
            why_not = f"the rule {type(optimizer.rule).__name__} moves {moved} arrays, compiled kernels up to {MOVED}"
        elif engine.grain != "node" and engine.kernel != "numpy":
            why_not = why_not_compiled() if engine.kernel == "numba" else why_not_chosen()
            if not why_not and engine.kernel == "auto" and job.step.private is None:
                why_not = _why_not_this(job)
        self.kernel = choose_kernel(engine.kernel, engine.grain, why_not)
        shards = choose_shards(engine.grain, engine.shards, optimizer.batch_size, work, self.kernel[0])
        shards *= settings.accumulate  # accumulating gradients is having more shards, of the same size
        samples, slots = job.feeds.samples, len(job.state) - 2
        self.nodes = len(optimizer.graph.nodes)
        self.case = Case(counts, settings.batch_size, samples, shards, slots, 0, job.feeds.dtype.itemsize)
        self.seconds = self.shared = 0.0
        self._const, self._arrays, self._rows = _readable(job, max(settings.batch_size, LARGEST_SHARD))

    def plan(self) -> Plan:
        """Choose the plan, from the work and from what a step takes."""
        engine = self.job.settings.engine
        executor, costs = engine.executor, {}
        parts = bounds(self.case.batch, self.case.shards)
        self.seconds = self.shared = self._step(parts, executor.threads)
        threads = choose_round_threads(executor.threads, executor.machine_threads(executor.workers()), self.seconds)
        if threads > executor.threads and engine.grain in ("auto", "round"):
            self.shared = self._step(parts, threads)
        kernel, why = self.kernel
        step = self.job.step.by(kernel)
        if step.private is not None and kernel == "numba":
            why = "compiled, but for clipping, noise and update"
        elif kernel == "numba":
            why = compiled(step, self.job.state).told
        if self.case.shards > 1 and engine.grain == "auto" and self._may_spread():
            costs = self.costs(links_of(executor, self.job.settings.fit))
        grain = choose_grain(engine.grain, costs)
        if engine.grain == "collective" and not executor.remote:
            grain = "round", "collective rounds were asked for, but this engine has no workers"
        elif engine.grain == "collective" and min(len(executor.workers()), self.case.shards) < 2:
            why_one = "one shard" if self.case.shards < 2 else "one worker"
            grain = "round", f"collective rounds were asked for, but there is {why_one}"
        if grain[0] == "collective" and (unused := _idle(len(executor.workers()), self.case.shards)):
            grain = grain[0], f"{grain[1]}; {unused}"
        other = worth_trying(grain[0], costs)
        plan = make_plan(grain, self.case.shards, (kernel, why), self.shared, self.nodes, threads, other)
        # A task ends where its epoch ends.
        return replace(plan, steps_per_task=min(plan.steps_per_task, self.case.steps))

    @cached_property
    def fixed(self) -> float:
        """Seconds of a step with a single sample in each shard: what more workers do not shorten."""
        parts = bounds(self.case.batch, self.case.shards)
        return self._step([(start, start + 1) for start, _ in parts], self.job.settings.engine.executor.threads)

    def _may_spread(self) -> bool:
        """Whether several workers can pay at all; if not, nothing more need be measured."""
        near = task_links(self.job.settings.engine.executor)
        saved = (self.seconds - self.fixed) * (1.0 - spreading(self.case, self.kernel[0], near))
        return 0 < near.letter <= saved

    def costs(self, links: Links) -> dict[str, float]:
        """Return the seconds per step at the grains that ``"auto"`` chooses among, from the step that was timed."""
        return measured_seconds(self.case, self.kernel[0], self.seconds, self.fixed, self.shared, links)

    def times(self, kernel: str) -> Times:
        """Return what steps take by a kernel: of one shard at three sizes, and of two."""
        largest = self.case.largest
        other = min(8 * largest, LARGEST_SHARD) if 2 * largest <= LARGEST_SHARD else largest // 8
        curve = curve_of(lambda n: lambda times: self._run([(0, n)], 1, times, kernel), (1, largest, other))
        two = seconds_of(lambda times: self._run([(0, 1), (1, 2)], 1, times, kernel))
        return Times(kernel, curve, max(two - curve[0][1], 0.0))

    def parts(self, grain: str) -> dict[str, Any]:
        """Return the seconds of a shard's program by node, forward and back."""
        rows = self._rows[: self.case.largest]
        step = self.job.by_nodes() if grain == "node" else self.job.step
        feeds = dict(zip(self.job.step.fed, self._arrays))
        const, _ = step.reads(self.job.settings.optimizer.graph, self.job.feeds)
        inputs = shard_inputs(step, self.job.state, const, [feeds[k] for k in step.fed], rows, Scratch())
        inputs.append(seed_of(step.program, inputs[-1].dtype, len(rows), len(rows)))
        with one_thread():
            return {"samples": len(rows), "nodes": seconds_by_node(step.program, inputs)}

    def node_tasks(self) -> int:
        """Return the tasks of a step at grain ``"node"``: those that are lowered, or of a large graph as many as there may be."""
        job, shards = self.job, self.case.shards if self.job.settings.engine.grain == "node" else 1
        if self.nodes > COUNTED:
            return tasks_per_step("node", shards, self.nodes)
        step = job.by_nodes()
        lane, counts = Lane(0, Ref("step"), Ref("const"), [Ref(f"feed-{k}") for k in step.fed], 0, shards), []
        for steps in (1, 2):  # what comes once per window is no part of a step
            graph = TaskGraph()
            rows = [[np.array([k, s]) for s in range(shards)] for k in range(steps)]
            lower_steps(graph, "node", [lane], Ref("state"), rows, step)
            counts.append(len(graph.records))
        return counts[1] - counts[0]

    def _step(self, parts: list[tuple[int, int]], threads: int) -> float:
        """Return the seconds of one step with these shards; more looks where a choice hangs on it."""
        tries = 6 if self.job.settings.engine.grain == "auto" else 3
        return seconds_of(lambda repetitions: self._run(parts, threads, repetitions, self.kernel[0]), tries, 0.25)

    def _run(self, parts: list[tuple[int, int]], threads: int, repetitions: int, kernel: str) -> None:
        rows = self._rows
        shards = [rows[start % len(rows) :][: stop - start] for start, stop in parts]
        step = self.job.step.by(kernel)
        with one_thread():
            run_round(step, (self.job.state, []), self._const, self._arrays, [shards] * repetitions, threads)


def _why_not_this(job: TrainingJob) -> str:
    """Compile what a step needs; return why that cannot be, which is told, or an empty string."""
    step = job.step.by("numba")
    try:
        compiled(step, job.state)
    except FlowgradError as error:
        why = str(error)
        warn(f"steps are run by NumPy, not compiled: {why}")
        return why
    return ""


def _readable(job: TrainingJob, count: int) -> tuple[Array | None, list[Array], Array]:
    """Return what steps may read: constants, feeds, and random rows of them as in an epoch; zeros where a feed is elsewhere."""
    (const, feeds), samples = job.reads(), job.feeds.samples
    rows = np.random.default_rng(0).integers(0, samples, count)
    if any(isinstance(feed, Chunked) for feed in feeds):
        rows = np.arange(count) % samples
    least = 1 + int(rows.max())
    dtype = job.feeds.dtype
    return const, [np.zeros((least, f.form.dim), dtype) if isinstance(f, Chunked) else f for f in feeds], rows


@dataclass(frozen=True)
class Estimate:
    """A training before it runs: its plan, and what it and each alternative would take.

    Attributes
    ----------
    case : Case
        The training in numbers.
    times : dict
        What the parts of a step take, by kernel; that of the plan, and NumPy's.
    where : str
        Name of the executor.
    measured : dict
        Seconds per step at grains round, shard and collective, by the plan's kernel and shards: from the whole step.
    shards_asked : bool
        Whether the number of shards was given, or comes with the grain or accumulated gradients.
    """

    plan: Plan
    case: Case
    times: dict[str, Times]
    links: Links
    where: str
    measured: dict[str, float]
    shards_asked: bool

    def seconds(self, grain: str | None = None, kernel: str | None = None, shards: int | None = None) -> float:
        """Return the seconds per step to be expected; of the plan, but for what is given."""
        grain = grain or self.plan.grain
        kernel = "numpy" if grain == "node" else kernel or self.plan.kernel
        if grain in self.measured and kernel == self.plan.kernel and shards in (None, self.case.shards):
            return self.measured[grain]
        case = replace(
            self.case, shards=shards or (1 if grain == "node" and self.plan.grain != "node" else self.case.shards)
        )
        return step_seconds(case, grain, self.times[kernel], self.links)

    @property
    def together(self) -> int:
        """Steps in a task of a round: those of the plan, if that is what it has."""
        steps = steps_per_round(self.seconds("round"))
        return self.plan.steps_per_task if self.plan.grain in ("round", "collective") else min(steps, self.case.steps)

    def costs(self) -> dict[str, float]:
        """Return the seconds per step at the grains that ``"auto"`` chooses among."""
        return {grain: self.seconds(grain) for grain in ("round", "shard", "collective")}

    def at(self, batch: int, workers: int) -> Estimate:
        """Return the estimate at another batch size and number of workers, with as many shards as would be chosen, or have work."""
        shards = choose_shards("auto", None, batch, self.case.work.flops(batch), self.plan.kernel)
        case = replace(self.case, batch=batch, samples=max(batch, self.case.samples), shards=max(shards, workers))
        slots = workers * max(1, self.links.slots // self.links.workers)
        links = replace(self.links, workers=workers, slots=slots, machine=max(1, slots // workers))
        return replace(self, case=case, links=links, measured={})

    def pays_from(self, workers: int) -> int | None:
        """Return the batch size from which on workers that share steps are clearly faster than half as many; None: never."""

        def pays(batch: int) -> bool:
            there, few = self.at(batch, workers), self.at(batch, workers // 2)
            half = few.seconds("round" if workers == 2 else "collective")
            return batch >= workers and there.seconds("collective") < SURE * half

        return crossing(pays)


def plan_training(job: TrainingJob) -> Plan:
    """Return the plan of a training, from its work and from what its step takes here."""
    return Trial(job).plan()


def estimate(job: TrainingJob, again: bool = False) -> Estimate:
    """Return what a training would do and take: the plan that `fit` would choose, and what each alternative takes.

    With `again` what tasks cost is measured anew, even if it is known from earlier.
    """
    if again:
        job.settings.engine.executor.measured.clear()
    trial = Trial(job)
    return _estimate(trial, trial.plan())


def costs_of(settings: Settings, feeds: Any, epochs: int, ran: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a training by the plan `ran` costs, and what else would have cost, as plain values and in words."""
    trial = Trial(TrainingJob(settings, feeds, epochs))
    trial.plan()  # times the step
    e = _estimate(trial, Plan(**ran))
    told = {"explained": explain_training(e), "grains": _alternatives(e), "step": e.seconds(), "task": e.links.task}
    return {**told, "work": trial.seconds, "parts": trial.parts(e.plan.grain)}


def _estimate(trial: Trial, plan: Plan) -> Estimate:
    job, engine = trial.job, trial.job.settings.engine
    links = links_of(engine.executor, job.settings.fit)
    times = {kernel: trial.times(kernel) for kernel in sorted({plan.kernel, "numpy"})}
    asked = engine.shards is not None or job.settings.accumulate > 1 or plan.grain in ("node", "sample")
    measured = {} if plan.grain in ("node", "sample") else trial.costs(links)
    case = replace(trial.case, node_tasks=trial.node_tasks())
    return Estimate(plan, case, times, links, engine.executor.name, measured, asked)


def explain_training(e: Estimate) -> str:
    """Return the plan, what each alternative would cost, and from which batch size on another one pays."""
    plan, case = e.plan, e.case
    flops = case.work.flops(case.batch)
    unused = _idle(e.links.workers, case.shards)
    more = plan.threads > e.links.threads  # a round takes more than a worker has
    share = 100 * case.work.products * case.batch / max(flops, 1.0)
    lines = [
        f"plan: grain {plan.grain}, {count(plan.shards, 'shard')}, kernel {plan.kernel}, on {e.where}",
        f"  grain: {_why(e)}",
        f"  shards: {'asked for' if e.shards_asked else FROM_WORK}",
        *([f"  {unused}"] if plan.grain == "collective" and unused else []),
        f"  kernel: {plan.reason.partition(f'; kernel {plan.kernel}: ')[2]}",
        *([f"  threads: {plan.threads} of this machine share the shards of a step"] if more else []),
        f"  BLAS: {count(plan.blas_threads, 'thread')} in each matrix product; more would change the last digits of results",
        f"a step: {count(case.batch, 'sample')}, {short(flops)} operations ({share:.0f} % in matrix products), "
        f"{count(case.work.params, 'parameter')}",
        f"expected: {ms(e.seconds())} ms per step, {case.batch / e.seconds():,.0f} samples/s",
        "",
        *_table(e),
        *_other_shards(e),
        "",
        *_break_even(e),
        "measured here:",
        *(f"  {fact}" for fact in _measured(e)),
    ]
    return "\n".join(lines)


def _why(e: Estimate) -> str:
    costs = e.costs()
    rounds, shared, best = costs["round"], costs["collective"], best_grain(costs)
    if e.plan.reason.startswith("asked"):
        return f"asked for; auto would choose {best}"
    if best != e.plan.grain:  # as was measured before the training
        return e.plan.reason.partition(";")[0]
    if best == "collective":
        return f"workers that share steps are {rounds / shared:.1f}x as fast as one that runs them all"
    together = f"{count(e.together, 'step')} in one task take {ms(rounds)} ms each"
    if shared < math.inf:
        return f"workers that share steps would take {ms(shared)} ms per step, {together}"
    return f"one after the other; {together}"


def _idle(workers: int, shards: int) -> str:
    """Return words about workers that have no shard, if there are any."""
    if workers <= shards:
        return ""
    return f"{idle(workers - shards, workers)}; shards={workers} would use them, with other last digits"


def _other_shards(e: Estimate) -> list[str]:
    """Return what other numbers of shards would cost, as a line; none where a mini-batch is one sample."""
    words = []
    for n in sorted({1, 2, 4, 8} - {e.plan.shards}):
        if n <= e.case.batch:
            seconds = min(e.seconds(grain, shards=n) for grain in e.costs())
            words.append(f"{ms(seconds)} ms with {n}")
    return [f"other numbers of shards, and so other last digits: {', '.join(words)}"] if words else []


def _alternatives(e: Estimate) -> list[dict[str, Any]]:
    """Return each grain: what a task is, how many a step has, its seconds by kernel, how it is to the plan or why it cannot be."""
    rows, lanes = [], min(e.links.workers, e.case.shards)
    tasks = {
        "round": 1 / e.together,
        "shard": tasks_per_step("shard", e.case.shards, lanes=e.links.workers),
        "collective": lanes / e.together,
        "sample": tasks_per_step("sample", e.case.batch),
        "node": e.case.node_tasks,
    }
    for grain, text in TASKS.items():
        kernels = [k for k in ("numba", "numpy") if k in e.times and (grain != "node" or k == "numpy")]
        seconds: dict[str, float] = {k: e.seconds(grain, k) for k in kernels}
        own = seconds.get(e.plan.kernel, seconds["numpy"])
        against = "the plan" if grain == e.plan.grain else ratio(own / e.seconds())
        if own == math.inf:
            against = f"not possible: {'one worker' if e.links.workers < 2 else 'one shard, so nothing to share'}"
        words = text.format(steps=count(e.together, "step"), part=count(-(-e.case.batch // lanes), "sample"))
        many = f"{tasks[grain]:,.0f}" if tasks[grain] >= 1 else f"1 in {1 / tasks[grain]:,.0f} steps"
        rows.append({"grain": grain, "task": words, "tasks": many, "seconds": seconds, "against": against})
    return rows


def _table(e: Estimate) -> list[str]:
    kernels: list[str] = [k for k in ("numba", "numpy") if k in e.times]
    head = ["grain", "a task is", "tasks/step", *(f"{k} ms/step" for k in kernels), "against the plan"]
    rows = []
    for r in _alternatives(e):
        times = [ms(r["seconds"][k]) if r["seconds"].get(k, math.inf) < math.inf else "-" for k in kernels]
        rows.append([r["grain"], r["task"], r["tasks"], *times, r["against"]])
    return columns([head, *rows], right=range(2, 3 + len(kernels)))


def _break_even(e: Estimate) -> list[str]:
    if not e.links.letter:
        return ["break-even: what sharing steps costs can be measured where there are two workers or more"]
    lines = [f"break-even, against half as many workers; this batch is {e.case.batch:,}:"]
    for workers in SHARING:
        batch = e.pays_from(workers)
        if batch is None:
            return [*lines, f"  {workers} workers are not worth it up to {LARGEST_BATCH:,}"]
        shards = e.at(batch, workers).case.shards
        lines.append(f"  {workers} workers pay from about {about(batch):,} on, with {shards} shards")
    return lines


def _measured(e: Estimate) -> list[str]:
    links, lines = e.links, []
    for kernel, times in e.times.items():
        sizes = ", ".join(f"{ms(seconds)} ms for {count(n, 'sample')}" for n, seconds in times.steps)
        lines.append(f"steps of one shard by {kernel}: {sizes}")
    lines.append(
        f"tasks: {ms(links.task)} ms each, {ms(links.hop)} ms if one waits for another; "
        f"a step cut into two tasks: {ms(links.step)} ms beside its work"
    )
    if links.letter > 0:
        about_letters = f"{ms(links.letter)} ms, and {short(1 / max(links.letter_byte, 1e-12))} bytes per second"
        lines.append(f"workers that share steps, an exchange: {about_letters}")
    if links.move > 0:
        lines.append(f"between workers: {short(1 / links.move)} bytes per second")
    return lines

"""What a training would cost, before it runs: the arithmetic that follows from the work, and what each grain would take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flowgrad.optim import Optimizer

from ..costs import (
    LARGEST_BATCH,
    LEAST_HOPS,
    TASKS,
    Case,
    Fit,
    Links,
    Plan,
    Rates,
    about,
    choose_grain,
    choose_kernel,
    choose_plan,
    choose_shards,
    columns,
    count,
    crossing,
    from_step,
    links_of,
    ms,
    rates_of,
    round_threads,
    shards_pay,
    short,
    spreading,
    step_seconds,
    steps_per_round,
    task_links,
    tasks_per_step,
    times,
)
from ..engine import Engine
from ..executors import Executor
from ..feeds import Feeds, check_batch_size, check_feeds
from ..kernels import why_not_compiled
from ..programs import flops, work_of
from ..steps import Step, compile_step

# Grains that give the same bits, of which `auto` takes one.
AUTO = ("round", "shard")
FROM_WORK = "they follow from the work alone, so that results are the same everywhere"


def choose_arithmetic(
    step: Step, optimizer: Optimizer, engine: Engine, samples: int, epochs: int
) -> tuple[int, tuple[str, str]]:
    """Return shards and kernel (and why), which fix the bits: from the work alone, so that they are the same everywhere."""
    fixed, each = flops(step.program)
    work = fixed + each * optimizer.batch_size
    updates = epochs * -(-samples // optimizer.batch_size)
    unsupported = why_not_compiled(step.program, step.names)
    if optimizer.privacy is not None:
        unsupported = "gradients are clipped per sample"
    kernel = choose_kernel(engine.kernel, engine.grain, work * updates, unsupported)
    return choose_shards(engine.grain, engine.shards, optimizer.batch_size, work, kernel[0]), kernel


def case_of(step: Step, optimizer: Optimizer, feeds: Feeds, shards: int, batch: int | None = None) -> Case:
    """Return a training in numbers; of `batch` samples per update, where that is not the optimizer's batch size."""
    slots, nodes, batch = len(optimizer.rule.slots), len(optimizer.graph.nodes), batch or optimizer.batch_size
    return Case(work_of(step.program), batch, feeds.samples, shards, slots, nodes, feeds.dtype.itemsize)


def measured_costs(
    case: Case, compiled: bool, seconds: float, fixed: float, shared: float, executor: Executor, fit: Fit
) -> dict[str, float]:
    """Return the seconds per step at each of the grains `AUTO`, from a step that was measured in one task.

    Parameters
    ----------
    case : Case
    compiled : bool
    seconds, fixed, shared : float
        Of a step in one task, by the threads of a worker; of one with a single sample in each shard; of one by the threads that
        rounds use.
    executor : Executor
    fit : callable

    Returns
    -------
    dict
        Empty where it is plain that a task per shard cannot pay; then nothing more is measured.
    """
    kernel = "numba" if compiled else "numpy"
    near = task_links(executor)
    if (seconds - fixed) * (1.0 - spreading(case, kernel, near)) < LEAST_HOPS * near.hop:
        return {}
    return from_step(case, kernel, seconds, fixed, shared, links_of(executor, fit))


@dataclass(frozen=True)
class Estimate:
    """A training before it runs: its plan, and what it and each alternative would take.

    Attributes
    ----------
    plan : Plan
    case : Case
        The training in numbers.
    rates : dict
        Rates of a worker by kernel; those of the plan's kernel, and of NumPy.
    links : Links
    where : str
        Name of the executor.
    flops : float
        Operations of a step.
    shards_asked : bool
        Whether the number of shards was given, or comes with the grain or accumulated gradients.
    """

    plan: Plan
    case: Case
    rates: dict[str, Rates]
    links: Links
    where: str
    flops: float
    shards_asked: bool

    def seconds(self, grain: str | None = None, kernel: str | None = None, shards: int | None = None) -> float:
        """Return the predicted seconds per step; of the plan, but for what is given."""
        grain = grain or self.plan.grain
        kernel = "numpy" if grain == "node" else kernel or self.plan.kernel
        case = replace(
            self.case, shards=shards or (1 if grain == "node" and self.plan.grain != "node" else self.case.shards)
        )
        return step_seconds(case, grain, self.rates[kernel], self.links)

    def at_batch(self, batch: int) -> Estimate:
        """Return the estimate at another batch size, with as many shards as would be chosen there."""
        each = self.flops / self.case.batch
        shards = choose_shards("auto", None, batch, each * batch, self.plan.kernel)
        case = replace(self.case, batch=batch, samples=max(batch, self.case.samples), shards=shards)
        return replace(self, case=case, flops=each * batch)

    def break_even(self) -> int | None:
        """Return the batch size from which on a task per shard is chosen; None if there is none."""

        def pays(batch: int) -> bool:
            there = self.at_batch(batch)
            return there.case.shards > 1 and shards_pay(there.seconds("round"), there.seconds("shard"))

        return crossing(pays)


def estimate(
    optimizer: Optimizer,
    engine: Engine,
    feeds: Mapping[Any, Any] | Feeds,
    epochs: int,
    fit: Fit,
    again: bool = False,
    accumulate: int = 1,
) -> Estimate:
    """Predict what a training would cost, from its work and measured rates; it does not run.

    Parameters
    ----------
    optimizer : Optimizer
    engine : Engine
    feeds : dict or Feeds
    epochs : int
    fit : callable
        How to train, for what tasks cost.
    again : bool
        Measure rates anew that are known from earlier.
    accumulate : int
        Mini-batches for one update.
    """
    checked = feeds if isinstance(feeds, Feeds) else check_feeds(optimizer.graph, feeds, engine.dtype, lazy=True)
    check_batch_size(optimizer.batch_size, checked.samples, accumulate)
    step = compile_step(optimizer.target, checked, optimizer.variables(without=checked.arrays), "shard")
    shards, kernel = choose_arithmetic(step, optimizer, engine, checked.samples, epochs)
    fixed, each = flops(step.program)
    shards *= accumulate
    case = case_of(step, optimizer, checked, shards, optimizer.batch_size * accumulate)
    kernels = {kernel[0], "numpy"}
    if engine.kernel == "auto" and not why_not_compiled(step.program, step.names):
        kernels.add("numba")
    dtype = str(checked.dtype)
    rates = {name: rates_of(engine.executor, name, dtype, again) for name in sorted(kernels)}
    links = links_of(engine.executor, fit)
    costs = {grain: step_seconds(case, grain, rates[kernel[0]], links) for grain in AUTO}
    grain = choose_grain(engine.grain, costs)
    work = costs["round"] if grain[0] == "round" else step_seconds(case, grain[0], rates[kernel[0]], links)
    plan = choose_plan(grain, shards, kernel, work, case.nodes, round_threads(case, rates[kernel[0]], links))
    asked = engine.shards is not None or accumulate > 1 or plan.grain in ("node", "sample")
    return Estimate(plan, case, rates, links, engine.executor.name, fixed + each * case.batch, asked)


def explain_training(e: Estimate) -> str:
    """Return the plan, what each alternative would cost, and from which batch size on another one pays."""
    plan, case = e.plan, e.case
    share = 100 * min(case.work.product_flops(case.batch) / max(e.flops, 1.0), 1.0)
    lines = [
        f"plan: grain {plan.grain}, {count(plan.shards, 'shard')}, kernel {plan.kernel}, on {e.where}",
        f"  grain: {_why(e)}",
        f"  shards: {'asked for' if e.shards_asked else FROM_WORK}",
        f"  kernel: {plan.reason.partition(f'; kernel {plan.kernel}: ')[2]}",
        *_threads(e),
        f"  BLAS: {count(plan.blas_threads, 'thread')} in each matrix product, for another number changes the last digits",
        f"a step: {count(case.batch, 'sample')}, {short(e.flops)} operations ({share:.0f} % in matrix products), "
        f"{count(case.work.params, 'parameter')}",
        f"predicted: {ms(e.seconds())} ms per step, {case.batch / e.seconds():,.0f} samples/s",
        "",
        *_table(e),
        *_other_shards(e),
        "",
        f"break-even: {_break_even(e)}",
        "measured here:",
        *(f"  {fact}" for fact in _measured(e)),
    ]
    return "\n".join(lines)


def _why(e: Estimate) -> str:
    rounds, shards = e.seconds("round"), e.seconds("shard")
    best = "shard" if shards_pay(rounds, shards) else "round"
    if e.plan.reason.startswith("asked"):
        return f"asked for; auto would choose {best}"
    if best == "shard":
        return f"a task per shard is {rounds / shards:.1f}x as fast as steps one after the other in one task"
    together = count(min(steps_per_round(rounds), e.case.steps), "step")
    return f"a task per shard would take {ms(shards)} ms per step, {together} in one task take {ms(rounds)} ms each"


def _threads(e: Estimate) -> list[str]:
    """Return a line if a round takes more threads than a worker has."""
    threads = e.plan.threads
    return [f"  threads: {threads} of this machine share the shards of a step"] if threads > e.links.threads else []


def _other_shards(e: Estimate) -> list[str]:
    """Return what other numbers of shards would cost, as a line; none where a mini-batch is one sample."""
    told = []
    for n in sorted({1, 2, 4, 8} - {e.plan.shards}):
        if n <= e.case.batch:
            found = min(e.seconds("round", shards=n), e.seconds("shard", shards=n))
            told.append(f"{ms(found)} ms with {n}")
    return [f"other numbers of shards, and so other last digits: {', '.join(told)}"] if told else []


def _table(e: Estimate) -> list[str]:
    kernels: list[str] = [k for k in ("numba", "numpy") if k in e.rates]
    head = ["grain", "a task is", "tasks/step", *(f"{k} ms/step" for k in kernels), "against the plan"]
    rows = []
    for grain, text in TASKS.items():
        found = {k: e.seconds(grain, k) for k in kernels if grain != "node" or k == "numpy"}
        ratio = found.get(e.plan.kernel, found["numpy"]) / e.seconds()
        steps = min(steps_per_round(e.seconds("round")), e.case.steps)
        parts = e.case.batch if grain == "sample" else e.case.shards
        tasks = 1 / steps if grain == "round" else tasks_per_step(grain, parts, e.case.nodes, e.links.workers)
        rows.append(
            [
                grain,
                text.format(steps=count(steps, "step"), part=count(-(-e.case.batch // max(1, round(tasks))), "sample")),
                f"{tasks:,.0f}" if tasks >= 1 else f"{tasks:.2g}",
                *(ms(found[k]) if k in found else "-" for k in kernels),
                "the plan" if grain == e.plan.grain else times(ratio),
            ]
        )
    return columns([head, *rows], right=range(2, 3 + len(kernels)))


def _break_even(e: Estimate) -> str:
    if e.links.slots == 1:
        return "one task runs at a time here, so that cutting a step into tasks never pays"
    found = e.break_even()
    several = f"{count(e.links.workers, 'worker')}" if e.links.workers > 1 else f"{count(e.links.slots, 'thread')}"
    if found is None:
        return f"up to a batch of {LARGEST_BATCH:,} samples, cutting a step into tasks for {several} does not pay"
    side = "below" if e.case.batch < found else "above"
    return f"cutting a step into tasks for {several} pays from about {about(found):,} samples on; this batch is {side} that"


def _measured(e: Estimate) -> list[str]:
    links, rates = e.links, e.rates[e.plan.kernel]
    told = [
        f"matrix products: {rates.peak() / 1e9:.0f} billion operations per second and thread ({rates.dtype})",
        f"tasks: {ms(links.task)} ms each, {ms(links.hop)} ms if one waits for another; "
        f"a step cut into two tasks: {ms(links.step)} ms beside its work",
    ]
    if links.move > 0:
        told.append(f"between workers: {short(1 / links.move)} bytes per second")
    return told

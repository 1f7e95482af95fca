"""What was estimated, in words and numbers for people. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..programs.counts import work_of
from ..programs.lower import Job
from ..tasks.records import Task
from ..tasks.tree import FAN_IN
from .forecast import LARGEST_BATCH, blas_threads_of, crossing, job_seconds
from .plan import shards_pay, steps_per_round, tasks_per_step
from .rates import Links, Rates

if TYPE_CHECKING:
    from ..training.estimate import Estimate

# What a task is, by grain.
TASKS = {
    "round": "{steps}, one after the other",
    "shard": "the gradient of {part}",
    "sample": "the gradient of one sample",
    "node": "a node, or an edge backward",
}

FROM_WORK = "they follow from the work alone, so that results are the same everywhere"


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


def explain_job(job: Job, lower: Callable[[str], Job], rates: Rates, links: Links) -> list[str]:
    """Return what values or a gradient cost at each grain, and from how many samples on more shards pay.

    Parameters
    ----------
    job : Job
    lower : callable
        Lowers the same at another grain.
    rates, links : Rates, Links
    """
    shard = job if job.grain == "shard" else lower("shard")
    node = job if job.grain == "node" else lower("node")
    sample = replace(shard, grain="sample", shards=job.samples)
    found = {j.grain: _job_seconds(j, rates, links) for j in (shard, sample, node)}
    own = found[job.grain]
    rows = [["grain", "a task is", "tasks", "ms", "against this"]]
    for j, what in (
        (shard, count(-(-job.samples // shard.shards), "sample")),
        (sample, "one sample"),
        (node, TASKS["node"]),
    ):
        against = "this" if j.grain == job.grain else times(found[j.grain] / own)
        rows.append([j.grain, what, f"{_tasks(j):,}", ms(found[j.grain]), against])
    blas = blas_threads_of(job, links.threads)
    told = ", because a single large task runs; the last digits depend on it" if blas > 1 else ""
    return [
        f"predicted, once it is lowered: {ms(own)} ms, {job.samples / own:,.0f} samples/s",
        *columns(rows, right=[2, 3]),
        f"break-even: {_job_break_even(shard, rates, links)}",
        f"BLAS: {count(blas, 'thread')} in each matrix product{told}",
    ]


def _tasks(job: Job) -> int:
    """Return the tasks of a job; at grain sample, where it is not lowered: to take each sample, compute, and add up."""
    if job.grain == "sample":
        return 2 * job.samples + job.samples // FAN_IN
    return sum(isinstance(record, Task) for record in job.graph.records.values())


def _job_seconds(job: Job, rates: Rates, links: Links) -> float:
    blas = blas_threads_of(job, links.threads)
    return job_seconds(work_of(job.program), job.samples, job.shards, _tasks(job), job.grain, rates, links, blas)


def _job_break_even(job: Job, rates: Rates, links: Links) -> str:
    if links.slots == 1:
        return "one task runs at a time here, so that more shards never pay"
    work = work_of(job.program)

    def pays(samples: int) -> bool:
        alone = replace(job, samples=samples, shards=1)
        blas = blas_threads_of(alone, links.threads)
        one = job_seconds(work, samples, 1, 1, "shard", rates, links, blas)
        many = min(links.slots, samples)
        return job_seconds(work, samples, many, 3 * many + 1, "shard", rates, links) < one

    found = crossing(pays)
    if found is None:
        return f"up to {LARGEST_BATCH:,} samples, {count(links.slots, 'shard')} side by side do not pay"
    return f"from about {about(found):,} samples on, {count(links.slots, 'shard')} side by side pay"


# -- numbers and tables -----------------------------------------------------------------------------------------


def count(n: int, thing: str) -> str:
    """Return a number of things.

    Examples
    --------
    >>> count(1, "task"), count(2000, "task")
    ('1 task', '2,000 tasks')
    """
    return f"{n:,} {thing}{'s' * (n != 1)}"


def ms(seconds: float) -> str:
    """Return milliseconds with as many digits as matter.

    Examples
    --------
    >>> ms(0.0001234), ms(0.01234), ms(1.234)
    ('0.12', '12.3', '1,234')
    """
    value = seconds * 1e3
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def times(ratio: float) -> str:
    """Return how many times as long something takes.

    Examples
    --------
    >>> times(0.0123), times(1.5), times(1234.5)
    ('0.012x', '1.5x', '1,234x')
    """
    return f"{ratio:.2g}x" if ratio < 10 else f"{ratio:,.0f}x"


def short(n: float) -> str:
    """Return a large number in words.

    Examples
    --------
    >>> short(950), short(2.5e6), short(3.1e10)
    ('950', '2.5 million', '31.0 billion')
    """
    for size, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if n >= size:
            return f"{n / size:,.1f} {name}"
    return f"{n:.0f}"


def about(n: int) -> int:
    """Return a number to two digits.

    Examples
    --------
    >>> about(1937)
    1900
    """
    digits = max(0, len(str(n)) - 2)
    return int(round(n, -digits))


def columns(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Return rows as lines of aligned columns; those whose number is in `right` are aligned to the right."""
    right = set(right)
    wide = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(n) if k in right else cell.ljust(n) for k, (cell, n) in enumerate(zip(row, wide))]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines

"""What was estimated, in words and numbers for people. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..programs import Job, work_of
from ..tasks import FAN_IN, Task
from .forecast import LARGEST_BATCH, blas_threads_of, crossing, job_seconds
from .rates import Links, Rates
from .words import about, columns, count, ms, times

if TYPE_CHECKING:
    pass

# What a task is, by grain.
TASKS = {
    "round": "{steps}, one after the other",
    "shard": "the gradient of {part}",
    "sample": "the gradient of one sample",
    "node": "a node, or an edge backward",
}


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

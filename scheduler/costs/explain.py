"""What was estimated, in words and numbers for people. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from dask.utils import key_split

from flowgrad.inputs import count

from ..programs import Computation, counts_of
from ..tasks import Task
from .forecast import LARGEST_BATCH, blas_threads_of, crossing, job_seconds
from .times import Links, Times
from .words import about, columns, ms, ratio

# What a task is, by grain.
TASKS = {
    "round": "{steps}, one after the other",
    "shard": "the gradient of {part}",
    "collective": "a worker's part of {steps}, which they share",
    "sample": "the gradient of one sample",
    "node": "a node, or an edge backward",
}


def explain_job(
    job: Computation, lower: Callable[[str], Computation], times: Callable[[Computation, int], Times], links: Links
) -> list[str]:
    """Return what values or a gradient cost at each grain, and from how many samples on more shards pay.

    Parameters
    ----------
    lower : callable
        Lowers the same at another grain.
    times : callable
        What the program of a job takes by so many BLAS threads.
    """
    shard = job if job.grain == "shard" else lower("shard")
    node = job if job.grain == "node" else lower("node")
    sample = replace(shard, grain="sample", shards=job.samples)
    blas = blas_threads_of(job, links.threads)
    by_one = times(shard, 1)
    by_blas = {1: by_one, links.threads: times(shard, links.threads) if links.threads > 1 else by_one}
    seconds = {
        "shard": _seconds(shard, by_blas[blas_threads_of(shard, links.threads)], links),
        "sample": _seconds(sample, by_one, links),
        "node": _seconds(node, times(node, 1), links),
    }
    own = seconds[job.grain]
    rows = [["grain", "a task is", "tasks", "ms", "against this"]]
    for j, what in (
        (shard, count(-(-job.samples // shard.shards), "sample")),
        (sample, "one sample"),
        (node, TASKS["node"]),
    ):
        against = "this" if j.grain == job.grain else ratio(seconds[j.grain] / own)
        rows.append([j.grain, what, f"{_tasks(j):,}", ms(seconds[j.grain]), against])
    why = ", because a single large task runs; the last digits depend on it" if blas > 1 else ""
    return [
        f"expected, once it is lowered: {ms(own)} ms, {job.samples / own:,.0f} samples/s",
        *columns(rows, right=[2, 3]),
        f"break-even: {_break_even(shard, by_blas, links)}",
        f"BLAS: {count(blas, 'thread')} in each matrix product{why}",
    ]


def _tasks(job: Computation) -> int:
    """Return the tasks of a job; at grain sample, where it is not lowered, from what is done for each part of one that is."""
    tasks = [key_split(key) for key, record in job.graph.records.items() if isinstance(record, Task)]
    if job.grain != "sample" or not tasks:
        return len(tasks)
    cut, fed = Counter(tasks), sum(i.role == "feed" for i in job.program.inputs)
    parts = cut["gradient"] or cut["forward"]
    each = (len(tasks) - cut["take"] - cut["reduce"]) // parts + (fed if job.samples > 1 else 0)
    return each * job.samples + (job.samples - 1 if cut["gradient"] else 0)


def _seconds(job: Computation, times: Times, links: Links) -> float:
    levels = counts_of(job.program).levels
    return job_seconds(levels, job.samples, job.shards, _tasks(job), job.grain, times, links)


def _break_even(job: Computation, times: Mapping[int, Times], links: Links) -> str:
    if links.slots == 1:
        return "one task runs at a time here, so that more shards never pay"

    def pays(samples: int) -> bool:
        alone = replace(job, samples=samples, shards=1)
        many = min(links.slots, samples)
        one = job_seconds(1, samples, 1, 1, "shard", times[blas_threads_of(alone, links.threads)], links)
        return job_seconds(1, samples, many, 3 * many + 1, "shard", times[1], links) < one

    batch = crossing(pays)
    if batch is None:
        return f"up to {LARGEST_BATCH:,} samples, {count(links.slots, 'shard')} side by side do not pay"
    return f"from about {about(batch):,} samples on, {count(links.slots, 'shard')} side by side pay"

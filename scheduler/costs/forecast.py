"""What a training step costs at each grain, from counts of work and measured rates; pure, nothing runs here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..collective import traffic
from ..programs import Computation, Counts, counts_of
from ..steps import THREAD_FLOPS
from ..tasks import levels
from .plan import BLAS_FROM, ROUNDS_PER_WINDOW, WINDOW_TASKS, choose_round_threads, steps_per_round, tasks_per_step
from .times import Links, Times

# Batch sizes beyond this are not looked at for the break-even.
LARGEST_BATCH = 1 << 20
# Of a letter's seconds, what one more takes that goes to another worker at the same time.
ONE_MORE = 0.5
# Bytes of an Ethernet frame by those of its contents.
WITH_HEADERS = 1514 / 1448


@dataclass(frozen=True)
class Case:
    """A training run in numbers.

    Attributes
    ----------
    work : Counts
        Of the fused program.
    batch, samples : int
        Samples of a step; of an epoch.
    slots : int
        Arrays of state that the update rule keeps per parameter.
    node_tasks : int
        Tasks of a step at grain ``"node"``.
    itemsize : int
        Bytes of a number.
    """

    work: Counts
    batch: int
    samples: int
    shards: int
    slots: int
    node_tasks: int
    itemsize: int = 4

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.samples // self.batch)

    @property
    def largest(self) -> int:
        """Samples of the largest shard."""
        return -(-self.batch // self.shards)


@dataclass(frozen=True)
class Wire:
    """The link of a worker: bits per second each way, and seconds from worker to worker."""

    rate: float = math.inf
    delay: float = 0.0


HERE = Wire()


def step_seconds(case: Case, grain: str, times: Times, links: Links) -> float:
    """Predict the seconds per optimizer step at a grain.

    Parameters
    ----------
    grain : str
        ``"round"``, ``"shard"``, ``"collective"``, ``"sample"`` (a shard per sample) or ``"node"`` (by NumPy, a task per node
        and edge).
    times : Times
        Of the kernel that runs the steps.
    """
    if grain == "round":
        return round_seconds(case, _round_work(round_threads(case, times, links), case, times, links), links)
    if grain == "node":
        tasks = case.node_tasks
        work = job_seconds(2 * case.work.levels, case.batch, case.shards, tasks, grain, times, links)
        return work + times.update + links.window / min(case.steps, max(1, WINDOW_TASKS // tasks))
    parts = case.batch if grain == "sample" else case.shards
    compute = _spread(parts, -(-case.batch // parts), times, links)
    compute += times.update
    if grain == "sample":  # a task for each gradient and for each sum of some
        compute += tasks_per_step(grain, parts) * links.task + levels(parts) * links.hop
    return (collective_seconds if grain == "collective" else shard_seconds)(case, compute, links)


def _spread(parts: int, samples: int, times: Times, links: Links) -> float:
    """Return the seconds of `parts` gradients of `samples` samples each, as tasks of their own."""
    gradient, alone = times.gradient(samples), times.calls
    together = (gradient - alone) * links.crowding(min(parts, links.slots))
    return -(-parts // links.slots) * together + -(-parts // links.workers) * alone


def round_threads(case: Case, times: Times, links: Links) -> int:
    """Return how many threads share the shards of a round."""
    return choose_round_threads(links.threads, links.machine, _round_work(links.threads, case, times, links))


def _round_work(threads: int, case: Case, times: Times, links: Links) -> float:
    """Return the seconds of the work of one step inside a round."""
    threads = _useful(case, times.kernel, threads)
    gradient = times.gradient(case.largest) * links.crowding(threads)
    return -(-case.shards // threads) * gradient + times.update / threads


def round_seconds(case: Case, work: float, links: Links) -> float:
    """Return the seconds per step in rounds, if the work of a step takes `work` seconds in one task."""
    steps = min(case.steps, steps_per_round(work))
    rounds = -(-case.steps // steps)
    between = links.window + (rounds - 1) * min(links.window, 2 * links.hop)
    return work + case.shards * links.rows + between / case.steps


def shard_seconds(case: Case, work: float, links: Links) -> float:
    """Return the seconds per step with a task per shard, if its gradients and its update take `work` seconds."""
    rows = max(0, case.shards - 2) * links.rows  # the step was measured with two shards
    # Parameters go from one worker to the others, gradients come back.
    travels = 2 * (min(links.workers, case.shards) - 1) * case.work.params * case.itemsize * links.move
    return work + links.step + rows + travels + links.window / case.steps


def collective_seconds(case: Case, work: float, links: Links) -> float:
    """Return the seconds per step that workers share, if its gradients and its update take `work` seconds; infinite for one."""
    lanes, size = min(links.workers, case.shards), case.work.params * case.itemsize
    if lanes < 2 or not links.letter:
        return math.inf
    crowd = links.crowding(lanes) / links.crowding(2)  # letters were measured between two
    exchange = gang_seconds(size, lanes, links, crowd=crowd) + sum_seconds(size, lanes, links)
    steps = min(case.steps, 2 * ROUNDS_PER_WINDOW * steps_per_round(work + exchange))
    return work + exchange + 2 * links.window / steps


def gang_seconds(size: int, lanes: int, links: Links, wire: Wire = HERE, crowd: float = 1.0) -> float:
    """Return the seconds in which workers exchange gradients, and weights where each adds up a slice.

    Processors and wires work side by side. Where both take about as long they do so in part only: each letter begins and ends
    without the other. So the root of the sum of squares is taken, which lies between the longer one and both.

    Parameters
    ----------
    size : int
        Bytes of a gradient.
    links : Links
        Of two workers between which there is nothing, or, with no other `wire`, what there is.
    wire : Wire
        The link of each worker.
    crowd : float
        How much longer the processors take for letters than when two workers exchanged them.
    """
    exchanges, moved = traffic(size, lanes)
    letters = links.letter * (1 + (lanes - 2) * ONE_MORE) * crowd
    return exchanges * (letters + wire.delay) + math.hypot(
        moved * links.letter_byte * crowd, 8 * moved * WITH_HEADERS / wire.rate
    )


def sum_seconds(size: int, lanes: int, links: Links) -> float:
    """Return the seconds in which a worker adds up the gradients of all, or its slice of them."""
    part = 1 if traffic(size, lanes)[0] == 1 else 1 / lanes
    return 3 * (lanes - 1) * size * part * links.update


def measured_seconds(
    case: Case, kernel: str, seconds: float, fixed: float, shared: float, links: Links
) -> dict[str, float]:
    """Return the seconds per step of rounds, of shards and of steps that workers share, if one was measured inside one task.

    Parameters
    ----------
    seconds : float
        Of one step in one task that may use ``links.threads`` threads.
    fixed : float
        Of a step with one sample in each shard: what more workers do not shorten.
    shared : float
        Of one step in one task that uses as many threads as rounds will.
    """
    spread = fixed + max(seconds - fixed, 0.0) * spreading(case, kernel, links)
    return {
        "round": round_seconds(case, shared, links),
        "shard": shard_seconds(case, spread, links),
        "collective": collective_seconds(case, spread, links),
    }


def _useful(case: Case, kernel: str, threads: int) -> int:
    """Return how many of so many threads share a round's shards."""
    worth = kernel == "numba" or case.work.flops(case.largest) >= THREAD_FLOPS
    return min(threads, case.shards) if worth else 1


def spreading(case: Case, kernel: str, links: Links) -> float:
    """Return which share of its time the work of a step takes when its shards are tasks of their own."""
    threads, shards = _useful(case, kernel, links.threads), case.shards
    used = min(links.slots, shards)
    alone = -(-shards // threads) * links.crowding(threads)
    return -(-shards // used) * links.crowding(used) / alone


def job_seconds(
    levels_of_work: int, samples: int, shards: int, tasks: int, grain: str, times: Times, links: Links
) -> float:
    """Predict the seconds of values or a gradient over samples.

    Parameters
    ----------
    levels_of_work : int
        Instructions on the longest way through the program.
    tasks : int
        Tasks in all.
    grain : str
        ``"shard"``, ``"sample"`` or ``"node"``.
    """
    largest = -(-samples // shards)
    if grain == "node":
        return shards * times.gradient(largest) + max(tasks * links.task, levels_of_work * links.hop)
    return _spread(shards, largest, times, links) + (1 + levels(shards)) * links.hop + tasks * links.task


def blas_threads_of(job: Computation, threads: int) -> int:
    """Return how many threads each matrix product of a job may use, if a task alone may use `threads`.

    More than one in a single large task; the bits of a job are promised to nobody.
    """
    if threads == 1 or job.grain != "shard" or job.shards > 1:
        return 1
    return threads if counts_of(job.program).products * job.samples >= BLAS_FROM else 1


def crossing(pays: Callable[[int], bool], limit: int = LARGEST_BATCH) -> int | None:
    """Return the smallest number from which on something pays, up to `limit`; None if it never does.

    `pays` is looked at for powers of two, then between the last one that does not pay and the first one that does.
    """
    high = 1
    while not pays(high):
        if high >= limit:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return high

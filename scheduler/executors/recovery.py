"""What to do when work fails: again elsewhere, or end the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flowgrad.errors import ClusterError, FeedError

from .base import Executor, Lost, TaskFailed

T = TypeVar("T")

# Failures in a row, without a step in between, after which a run gives up.
MAX_LOSSES = 30
# Of them those in which a task that was waited for was lost with its worker, and those in which dask says that it was the task.
MAX_DEATHS = 8
MAX_KILLS = 2
MAX_FAILURES = 4
LONGEST_PAUSE = 2.0  # seconds


@dataclass
class Recovery:
    """Judges failures, one after the other.

    Values that are lost with a worker are computed again. A task that raises is tried on other workers, without the one on which
    it did; if it raises on a second one too, the fault is not the worker's.

    Attributes
    ----------
    avoid : set of str
        Addresses of workers on which a task raised.
    task : str
        The last one that was lost with its worker since steps were done.
    """

    avoid: set[str] = field(default_factory=set)
    losses: int = 0
    deaths: int = 0
    task: str = ""
    kills: int = 0
    failures: list[TaskFailed] = field(default_factory=list)

    def persist(self, work: Callable[[], T], executor: Executor, again: Callable[[Lost | TaskFailed], Any]) -> T:
        """Return what `work` returns; when it fails, do it again, as long as `judge` has hope. `again` is told before each time."""
        while True:
            try:
                done = work()
            except (Lost, TaskFailed) as error:
                failure = error.with_traceback(None)  # it would keep keys alive
            else:
                self.progress()
                return done
            pause = self.judge(failure, self.workers_left(executor, failure))
            again(failure)
            time.sleep(pause)

    def progress(self) -> None:
        """Note that steps were done."""
        self.losses = self.deaths = self.kills = 0
        self.task = ""
        self.failures = []

    def workers_left(self, executor: Executor, error: Lost | TaskFailed) -> int:
        """Return how many workers there are for another attempt; who has waited for one in vain is told why it was needed."""
        try:
            return len(executor.workers(self.avoid))
        except ClusterError as none:
            task = getattr(error, "task", "") or self.task
            raise ClusterError(f"{died_of(task) if task else error}, and {none}") from none

    def judge(self, error: Lost | TaskFailed, workers: int) -> float:
        """Return how many seconds to wait before the work is done again, which so many workers could do.

        Raises
        ------
        FlowgradError
            When it would be no use: the original exception of a task, or a `ClusterError`.
        """
        if isinstance(error, TaskFailed) and not isinstance(error.error, Lost):
            return self._failed(error, workers)
        killed = getattr(error, "killed", "")
        task = getattr(error, "task", "")
        self.losses += 1
        self.deaths += bool(task)
        self.task = task or self.task
        self.kills += bool(killed)
        if self.kills > MAX_KILLS or self.deaths > MAX_DEATHS:
            raise ClusterError(died_of(task)) from error
        if self.losses > MAX_LOSSES:
            raise ClusterError(f"workers went away {self.losses} times without one step done: {error}") from error
        return min(LONGEST_PAUSE, 0.05 * 2 ** (self.losses - 1))

    def _failed(self, failed: TaskFailed, workers: int) -> float:
        first = self.failures[0] if self.failures else failed
        self.failures.append(failed)
        elsewhere = {f.worker for f in self.failures}
        hopeless = isinstance(failed.error, FeedError) or not failed.worker or workers < 2
        if hopeless or len(elsewhere) > 1 or len(self.failures) >= MAX_FAILURES:
            raise first.error
        self.avoid.add(failed.worker)
        return 0.0


def died_of(task: str) -> str:
    """Return what to say of a task that workers die of."""
    return (
        f"workers died again and again while they ran {task}: it may need more memory than they have, or crash; "
        f"look at the workers' logs, or take smaller batches"
    )


def describe_failure(error: Exception) -> str:
    """Return a failure in words, for the history."""
    if isinstance(error, TaskFailed):
        return f"{type(error.error).__name__} on {error.worker}: {error.error}"
    return str(error)

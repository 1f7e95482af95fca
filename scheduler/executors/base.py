"""The interface that all executors share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from ..tasks import Record


class Handle:
    """A key that an executor keeps for us; let go of with ``executor.release``."""

    def __init__(self, key: str, future: Any = None):
        self.key = key
        self.future = future


class Worker(NamedTuple):
    """Somewhere tasks run: its address, its threads."""

    address: str
    threads: int


class Executor(ABC):
    """Runs task records.

    Attributes
    ----------
    name : str
        For messages.
    threads : int
        Threads that a task may use when it runs alone.
    """

    name: str
    threads: int

    @cached_property
    def measured(self) -> dict[Any, Any]:
        """What was measured on this executor, for the cost model."""
        return {}

    @abstractmethod
    def workers(self) -> list[Worker]:
        """Return the workers there are."""

    @abstractmethod
    def put(self, data: dict[str, Any], replicate: bool = False) -> list[Handle]:
        """Place values under their keys; with `replicate`, on every worker."""

    @abstractmethod
    def submit(self, records: dict[str, Record], keys: Sequence[str], blas_threads: int = 1) -> list[Handle]:
        """Start computing `keys`. References may name keys in `records` or keys that are held.

        Matrix products of tasks in this process may use `blas_threads` threads each.
        """

    @abstractmethod
    def result(self, handles: Sequence[Handle]) -> list[Any]:
        """Wait for values and bring them here."""

    @abstractmethod
    def release(self, handles: Iterable[Handle]) -> None:
        """Let go of keys."""

    @abstractmethod
    def task_seconds(self) -> float:
        """Measure the time of one dependent hop from task to task, in seconds."""

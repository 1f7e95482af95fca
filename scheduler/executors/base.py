"""The interface that all executors share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from flowgrad.errors import ClusterError

from ..tasks import Record


class Handle:
    """A key that an executor keeps for us; let go of with ``executor.release``."""

    def __init__(self, key: str, future: Any = None):
        self.key = key
        self.future = future


class Lost(ClusterError):
    """Values that were held are gone, with the worker that had them; what made them must be submitted again."""


class Done:
    """A future whose value is there.

    Attributes
    ----------
    key : str
    """

    def __init__(self, key: str, value: Any):
        self.key = key
        self._value = value

    def result(self) -> Any:
        """Return the value."""
        return self._value

    def done(self) -> bool:
        """Return True."""
        return True

    def __repr__(self) -> str:
        return f"<Done: {self.key}>"


class Executor(ABC):
    """Runs task records.

    Attributes
    ----------
    name : str
        For messages.
    threads : int
        Threads that a task may use when it runs alone.
    remote : bool
        Whether values leave this process.
    """

    name: str
    threads: int
    remote: bool = False

    @abstractmethod
    def put(self, data: dict[str, Any], replicate: bool = False) -> list[Handle]:
        """Place values under their keys; with `replicate`, on every worker."""

    @abstractmethod
    def submit(self, records: dict[str, Record], keys: Sequence[str]) -> list[Handle]:
        """Start computing `keys`. References may name keys in `records` or keys that are held."""

    def submit_line(self, records: dict[str, Record], keys: Sequence[str]) -> list[Handle]:
        """Like `submit`, for records in which hardly anything can run side by side; they stand in their order."""
        return self.submit(records, keys)

    def alive(self, handle: Handle) -> bool:
        """Whether the value is still there, as far as is known here."""
        return True

    @abstractmethod
    def compute(self, collection: Any) -> Any:
        """Compute a dask collection."""

    @abstractmethod
    def future(self, handle: Handle) -> Any:
        """Return something with a method ``result()``; on a cluster the dask Future."""

    @abstractmethod
    def result(self, handles: Sequence[Handle]) -> list[Any]:
        """Wait for values and bring them here."""

    @abstractmethod
    def release(self, handles: Iterable[Handle]) -> None:
        """Let go of keys."""

    @abstractmethod
    def task_seconds(self) -> float:
        """Measure the time of one dependent hop from task to task, in seconds."""

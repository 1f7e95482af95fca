"""The course of windows of steps: what happened goes in, what to do about it comes out. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..executors import Lost, Recovery, TaskFailed, describe_failure
from ..feeds import Batches

# -- what happens ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A window of steps is to be done."""

    batches: Batches


@dataclass(frozen=True)
class Manned:
    """Workers were found: who they are, how many steps they take at a time, and whether the latest state is still on them."""

    crew: Any
    size: int
    there: bool


@dataclass(frozen=True)
class Done:
    """The oldest piece that is under way is done."""

    losses: Sequence[float]


@dataclass(frozen=True)
class Ended:
    """The last piece of the window is done, and its state is here."""

    losses: Sequence[float]


@dataclass(frozen=True)
class Failed:
    """Something went wrong; so many workers could do it again."""

    failure: Lost | TaskFailed
    workers: int


Event = Asked | Manned | Done | Ended | Failed

# -- what to do -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Man:
    """Find workers, without those to avoid, and place what steps read."""

    avoid: frozenset[str]


@dataclass(frozen=True)
class Place:
    """Put the state that is here on the workers."""


@dataclass(frozen=True)
class Submit:
    """Start some steps on the state after those before; the `last` ones of a window bring theirs here."""

    batches: Batches
    last: bool


@dataclass(frozen=True)
class Await:
    """Wait for the oldest piece."""


@dataclass(frozen=True)
class Fetch:
    """Wait for the last piece and its state."""


@dataclass(frozen=True)
class Report:
    """Tell of steps that are done, each once and in order."""

    batches: Batches
    losses: Sequence[float]


@dataclass(frozen=True)
class Release:
    """Let go of everything that is on workers but feeds."""


@dataclass(frozen=True)
class Recover:
    """Tell of a failure that is got over: reported steps that will be done again, and why; then wait for some seconds."""

    again: int
    cause: str
    pause: float


Instruction = Man | Place | Submit | Await | Fetch | Report | Release | Recover


@dataclass
class Course:
    """What is known of windows, and what follows.

    Between two windows the state is with the client, and on the workers too; the next window goes on there, if they are the same,
    up to a bound: it limits what the scheduler has to remember. After a failure a window begins anew from the client's state, and
    what was reported is not reported again.

    Attributes
    ----------
    most : int
        Steps that follow from one state of the client's.
    ahead : int
        Pieces that are under way, at the most, before the oldest is waited for.
    since : int
        Steps that follow from the latest state of the client's that was placed.
    """

    most: int
    ahead: int
    recovery: Recovery = field(default_factory=Recovery)
    since: int = 0
    _crew: Any = None
    _size: int = 1
    _batches: Batches | None = None
    _next: int = 0  # the first step that was not submitted, and that was not reported
    _reported: int = 0
    _sent: deque[Batches] = field(default_factory=deque)

    def handle(self, event: Event) -> list[Instruction]:
        """Return what to do, in this order; each `Man`, `Await` and `Fetch` is answered by an event.

        Raises
        ------
        FlowgradError
            When a failure cannot be got over: the original exception of a task, or a `ClusterError`.
        """
        match event:
            case Asked(batches):
                self._batches, self._reported = batches, batches.first
                return [self._man()]
            case Manned(crew, size, there):
                return [*self._begin(crew, size, there), *self._go_on()]
            case Done(losses):
                return [*self._report(losses), *self._go_on()]
            case Ended(losses):
                return self._report(losses)
            case Failed(failure, workers):
                return self._again(failure, workers)

    @property
    def _window(self) -> Batches:
        assert self._batches is not None
        return self._batches

    def _man(self) -> Man:
        return Man(frozenset(self.recovery.avoid))

    def _begin(self, crew: Any, size: int, there: bool) -> list[Instruction]:
        self._next, self._size = self._window.first, size
        goes_on = there and crew == self._crew and self.since + len(self._window) <= self.most
        self._crew = crew
        if goes_on:
            self.since += len(self._window)
            return []
        self.since = len(self._window)
        return [Release(), Place()]

    def _go_on(self) -> list[Instruction]:
        """Submit as much as may be under way, then wait."""
        out: list[Instruction] = []
        window = self._window
        while self._next < window.stop and len(self._sent) <= self.ahead:
            piece = window[self._next - window.first :][: self._size]
            self._next = piece.stop
            self._sent.append(piece)
            out.append(Submit(piece, piece.stop == window.stop))
        last = len(self._sent) == 1 and self._next == window.stop
        return [*out, Fetch() if last else Await()]

    def _report(self, losses: Sequence[float]) -> list[Instruction]:
        piece = self._sent.popleft()
        skip = max(0, self._reported - piece.first)
        if skip >= len(piece):
            return []
        self.recovery.progress()
        self._reported = piece.stop
        return [Report(piece[skip:], losses[skip:])]

    def _again(self, failure: Lost | TaskFailed, workers: int) -> list[Instruction]:
        self._sent.clear()
        self._crew = None
        pause = self.recovery.judge(failure, workers)
        again = self._reported - self._window.first
        return [Release(), Recover(again, describe_failure(failure), pause), self._man()]

"""Steps as tasks that follow each other, submitted ahead in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from flowgrad.optim import State
from flowgrad.typing import Array

from ..costs import Plan
from ..executors import Handle
from ..feeds import Batches, Placement
from ..programs import pick
from ..steps import Done, Step, lower_steps
from ..tasks import Ref, TaskGraph, token
from .crew import Crew, find_crew, note_bytes, steps_at_once

# Pieces of a window; of these so many are under way, at the most, before the first of them is waited for.
PIECES, AHEAD = 8, 3


class Piece(NamedTuple):
    """Steps under way: their losses, None where they come with the state, and what is needed until they are done."""

    losses: Handle | None
    kept: list[Handle]


class Chain:
    """Runs pieces of windows as dask tasks.

    Attributes
    ----------
    bounds : dict
        See `flowgrad.scheduler.training.history.History`.
    """

    def __init__(self, placement: Placement, plan: Plan, step: Step, bounds: dict[str, Any]):
        self.executor, self.placement, self.plan, self.step = placement.executor, placement, plan, step
        self.bounds, self.ahead, self.most = bounds, AHEAD, plan.steps_per_window
        self.crew = Crew([], [])
        self._state: Handle | None = None  # after the latest piece
        self._pieces: deque[Piece] = deque()
        self._tasks = 0

    def man(self, avoid: Collection[str], state: State, batches: Batches) -> tuple[Crew, int, bool]:
        """Find workers; return them, how many steps are a piece, and whether the latest state is still there."""
        self.crew = crew = find_crew(self.placement, self.plan, avoid)
        # A lane's part of the gradient, before a step and after it.
        note_bytes(self.bounds, self.placement, crew, state, AHEAD + 1, 2)
        most = self.plan.steps_per_task if self.plan.grain == "round" else -(-self.plan.steps_per_window // PIECES)
        there = self._state is not None and self.executor.alive(self._state)
        return crew, steps_at_once(self.placement, crew, most, batches), there

    def place(self, state: State) -> None:
        """Put a state where the first task reads it."""
        done: Done = (state, [])
        crew = self.crew
        (self._state,) = self.executor.put({f"state-{token(crew.salt, 0)}": done}, crew.needed[0])
        self._tasks = 0

    def submit(self, batches: Batches, last: bool) -> None:
        """Submit some steps; the `last` ones of a window bring their losses with the state."""
        graph, crew = TaskGraph(), self.crew
        steps: Sequence[Sequence[Array]] = batches
        lanes = crew.lanes
        kept: list[Handle] = []
        if self.placement.bucketed(crew.workers):
            lanes, steps, kept = self.placement.bucket(graph, lanes, crew.workers, steps, crew.salt)
        self._pieces.append(Piece(None, kept))
        before = self._state
        assert before is not None
        after = lower_steps(graph, self.plan.grain, lanes, Ref(before.key), steps, self.step)
        keys = [after.key]
        if not last:
            keys.append(graph.task("loss", pick, after, 1, worker=lanes[0].worker).key)
        self._state, *losses = self.executor.submit(graph.records, keys, crew.addresses, crew.only)
        self._pieces[-1] = Piece(losses[0] if losses else None, kept)
        self.executor.release([before])
        self._tasks += len(graph.records)
        self.bounds["tasks"] = max(self.bounds["tasks"], self._tasks)

    def wait(self) -> list[float]:
        """Wait for the oldest piece; return its losses."""
        handle = self._pieces[0].losses
        assert handle is not None
        (losses,) = self.executor.outcome([handle], self.crew.needed)
        self._drop()
        return list(losses)

    def fetch(self) -> Done:
        """Wait for the last piece; return its state and losses. The state stays on its worker, too."""
        assert self._state is not None
        done: Done = self.executor.outcome([self._state], self.crew.needed)[0]
        self._drop()
        return done

    def _drop(self) -> None:
        piece = self._pieces.popleft()
        self.executor.release([*([piece.losses] if piece.losses else []), *piece.kept])

    def release(self) -> None:
        """Let go of everything."""
        while self._pieces:
            self._drop()
        if self._state is not None:
            self.executor.release([self._state])
            self._state = None

"""Steps that all lanes share, each lane's in one task: a gang for every piece of a window."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import Any

from flowgrad.optim import State
from flowgrad.typing import Array

from .. import collective
from ..costs import Plan
from ..executors import Handle
from ..feeds import Batches, Placement
from ..steps import Done, LaneInputs, Shared, Step, shared_steps
from ..tasks import Ref, TaskGraph, token
from .crew import Crew, find_crew, note_bytes, steps_at_once

# Windows that follow from one state of the client's, which bounds what the scheduler remembers: they are few tasks.
WINDOWS = 32


class Gang:
    """Runs pieces of windows by gangs; attributes are those of `Chain`."""

    def __init__(self, placement: Placement, plan: Plan, step: Step, bounds: dict[str, Any]):
        self.executor, self.placement, self.plan, self.bounds = placement.executor, placement, plan, bounds
        self.ahead, self.most = 0, WINDOWS * plan.steps_per_window
        self.crew = Crew([], [])
        self._states: list[Handle] = []  # of each lane
        self._kept: list[Handle] = []
        self._next: tuple[Batches, bool] | None = None
        self._tasks = 0

    def man(self, avoid: Collection[str], state: State, batches: Batches) -> tuple[Crew, int, bool]:
        """Find workers; return them, how many steps are a piece, and whether the latest state is still there."""
        self.crew = crew = find_crew(self.placement, self.plan, avoid)
        # A lane has gradients of all its shards, twice.
        note_bytes(self.bounds, self.placement, crew, state, 1, 2 * self.plan.shards)
        there = bool(self._states) and all(map(self.executor.alive, self._states))
        return crew, steps_at_once(self.placement, crew, self.plan.steps_per_window, batches), there

    def place(self, state: State) -> None:
        """Put a state on the worker of every lane."""
        salt = uuid.uuid4().hex
        for rank, address in enumerate(self.crew.needed):
            shared = Shared(state, [])
            self._states += self.executor.put({f"state-{token(salt, rank)}": shared}, address)
        self._tasks = 0

    def submit(self, batches: Batches, last: bool) -> None:
        """Note which steps come next: they begin when they are waited for, for a gang is formed by who waits."""
        self._next = batches, last

    def wait(self) -> list[float]:
        """Run the steps; return their losses."""
        return self._run().losses

    def fetch(self) -> Done:
        """Run the last steps; return state and losses. The state stays on the workers, too."""
        shared = self._run()
        assert shared.state is not None
        return shared.state, shared.losses

    def _run(self) -> Shared:
        assert self._next is not None
        (batches, last), crew, executor = self._next, self.crew, self.executor
        spans = [(lane.first, lane.stop) for lane in crew.lanes]

        def submit(spec: Any) -> list[Handle]:
            graph, lanes = TaskGraph(), crew.lanes
            steps: Sequence[Sequence[Array]] = batches
            if self.placement.bucketed(crew.workers):
                lanes, steps, sent = self.placement.bucket(graph, lanes, crew.workers, steps, spec.name)
                self._kept += sent
            keys = []
            for rank, (lane, state) in enumerate(zip(lanes, self._states)):
                reads = graph.task("inputs", LaneInputs, lane.step, lane.const, lane.feeds, worker=lane.worker)
                args = (spec, rank, shared_steps, reads, Ref(state.key), steps, spans, lane.threads, last)
                keys.append(graph.task("collective", collective.run_member, *args, worker=lane.worker).key)
            self._tasks += len(graph.records)
            self.bounds["tasks"] = max(self.bounds["tasks"], self._tasks)
            return executor.submit(graph.records, keys, crew.addresses, pinned=True)

        values, states = collective.run_gang(executor, crew.needed, submit)
        executor.release([*self._states, *self._kept])
        self._states, self._kept = states, []
        shared: Shared = values[0]
        return shared

    def release(self) -> None:
        """Let go of everything."""
        self.executor.release([*self._states, *self._kept])
        self._states, self._kept = [], []

"""Windows of steps: does what their course says, and tells it what came of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flowgrad.optim import State

from ..costs import Plan
from ..executors import Lost, Recovery, TaskFailed
from ..feeds import Batches, Placement
from ..steps import Step
from . import course
from .chain import Chain
from .choice import Choice
from .gang import Gang


class Windows:
    """Runs steps from state to state.

    Parameters
    ----------
    state : dict
        Before the first step.
    report : callable
        Receives steps that are done and their losses, each step once and in order.
    recovered : callable
        Receives a dict that tells of a failure that was got over.

    Attributes
    ----------
    state : dict
        After the last window; never on its way.
    bounds : dict
        What the history tells, see `History.window`.
    """

    def __init__(
        self,
        placement: Placement,
        plan: Plan,
        step: Step,
        state: State,
        report: Callable[[Batches, list[float]], None],
        recovered: Callable[[dict[str, Any]], None],
    ):
        self.placement, self.plan, self.step, self.report, self.recovered = placement, plan, step, report, recovered
        self.state = self._latest = state
        self.choice = Choice([plan.grain, plan.other] if plan.other else [plan.grain])
        self.bounds: dict[str, Any] = {"steps": 0, "tasks": 0, "worker_bytes": 0, "grains": self.choice.steps}
        self.recovery = Recovery()
        self._begin(plan.grain)

    def run(self, batches: Batches, left: int) -> int:
        """Do a window of steps, whatever happens to workers meanwhile; fewer where another grain is tried.

        Parameters
        ----------
        left : int
            Steps that are left of the training, these among them.

        Returns
        -------
        int
            How many were done, from the first on.

        Raises
        ------
        Exception
            What a task raised that raises wherever it runs.
        ClusterError
            If there is no scheduler or no worker any more.
        """
        grain, steps = self.choice.next(len(batches), left)
        if grain != self.grain:
            self.close()
            self._begin(grain)
        start = time.perf_counter()
        try:
            self._run(batches[:steps])
        except BaseException:
            self.close()
            raise
        self.choice.note(grain, steps, time.perf_counter() - start)
        return steps

    def _begin(self, grain: str) -> None:
        """Let steps run at a grain."""
        self.grain, plan = grain, replace(self.plan, grain=grain)
        shared = grain == "collective"
        self.carrier = (Gang if shared else Chain)(self.placement, plan, self.step, self.bounds)
        self.course = course.Course(self.carrier.most, self.carrier.ahead, self.recovery)

    def _run(self, batches: Batches) -> None:
        todo = deque(self.course.handle(course.Asked(batches)))
        while todo:
            instruction = todo.popleft()
            try:
                event = self._do(instruction, batches)
            except (Lost, TaskFailed) as error:
                if isinstance(instruction, (course.Report, course.Recover)):
                    raise  # by who was told, of something else
                todo.clear()
                failure = error.with_traceback(None)  # it would keep keys alive
                event = course.Failed(failure, self.recovery.workers_left(self.placement.executor, failure))
            if event is not None:
                todo += self.course.handle(event)
        self.state = self._latest  # not before all of its steps were reported
        self.bounds["steps"] = max(self.bounds["steps"], self.course.since)

    @property
    def seats(self) -> list[dict[str, Any]]:
        """The workers of the latest steps, and the first and last of the shards that each has, None where it has none."""
        return self.carrier.crew.seats

    def change(self, step: Step, state: State) -> None:
        """Go on with another step or state."""
        self.close()
        self.step, self.state, self._latest = step, state, state
        self._begin(self.grain)

    def close(self) -> None:
        """Let go of everything that is on the executor."""
        self.carrier.release()

    def _do(self, instruction: course.Instruction, batches: Batches) -> course.Event | None:
        match instruction:
            case course.Man(avoid):
                return course.Manned(*self.carrier.man(avoid, self.state, batches))
            case course.Release():
                self.carrier.release()
            case course.Place():
                self.carrier.place(self.state)
            case course.Submit(piece, last):
                self.carrier.submit(piece, last)
            case course.Await():
                return course.Done(self.carrier.wait())
            case course.Fetch():
                self._latest, losses = self.carrier.fetch()
                return course.Ended(losses)
            case course.Report(piece, losses):
                self.report(piece, list(losses))
            case course.Recover(again, cause, pause):
                self.placement.doubt()
                self.recovered({"again": again, "cause": cause})
                time.sleep(pause)
        return None

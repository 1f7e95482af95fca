"""Windows of steps: submitted ahead in pieces or run by a gang, ended by a state that the client has, done again after a loss."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from flowgrad.optim import State
from flowgrad.typing import Array

from .. import collective
from ..costs import Links, Plan, choose_way, task_links
from ..executors import Handle, Recovery, Worker, describe_failure
from ..feeds import ORDER_BYTES, Batches, Lane, Placement
from ..programs import pick
from ..steps import Done, LaneInputs, StateAway, Step, cut_state, join_state, lower_steps, shared_steps
from ..tasks import Ref, TaskGraph, token

# Pieces of a window; of these so many are submitted before the first of them is waited for.
PIECES = 8
LOOK_AHEAD = 3


class Windows:
    """Runs steps from state to state.

    Between two windows the state is here. As a rule nothing of the past is on the executor then, which bounds what the scheduler
    has to remember and what has to be computed again: at most `plan.steps_per_window` steps. Windows that are shorter, because
    they end with an epoch, are followed by the next one without a pause, as long as together they are no longer than that.

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
        What the history tells, see `History.window`. ``exchange`` is that of the latest window, one of
        `flowgrad.scheduler.costs.forecast.WAYS` or ``"carried"``.
    ahead : Submission, or None
        What is under way of the next window.
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
        self.executor, self.placement, self.plan, self.step = placement.executor, placement, plan, step
        self.state, self.report, self.recovered = state, report, recovered
        self.recovery = Recovery()
        self.bounds: dict[str, Any] = {"steps": 0, "tasks": 0, "worker_bytes": 0, "exchange": "together"}
        self.ahead: Submission | None = None
        self._carried = False
        self._links: Links | None = None
        self._held: set[Handle] = set()
        self._reported = self._since = 0  # up to which step of the epoch; steps since the client's state

    def run(self, batches: Batches, following: Batches | None = None) -> None:
        """Do a window of steps, whatever happens to workers meanwhile.

        Parameters
        ----------
        following : Batches, optional
            The next window, if it may begin before this one's state is here.

        Raises
        ------
        Exception
            What a task raised that raises wherever it runs.
        ClusterError
            If there is no scheduler or no worker any more.
        """
        self._reported = batches.first

        def again(failure: Exception) -> None:
            self._carried |= isinstance(getattr(failure, "error", failure), StateAway)
            self.placement.doubt()
            self.recovered({"again": self._reported - batches.first, "cause": describe_failure(failure)})

        def attempt() -> State:
            try:
                return self._attempt(batches, following)
            except BaseException:
                self.close()
                raise

        self.state = self.recovery.persist(attempt, self.executor, again)

    def close(self) -> None:
        """Let go of everything that is on the executor."""
        self.ahead = None
        self._drop(list(self._held))

    # -- one attempt --------------------------------------------------------------------------------------------

    def _attempt(self, batches: Batches, following: Batches | None) -> State:
        crew = self._crew()
        latest, self.ahead = self.ahead, None
        goes_on = latest is not None and latest.begins(batches, crew) and all(map(self.executor.alive, latest.after))
        if latest is None or not goes_on:
            self._drop(list(self._held))
            latest, self._since = Submission(crew, batches[:0], self._place_state(crew)), 0
        self._since += len(batches)
        waiting = deque([latest] if latest.batches else [])
        for piece in self._pieces(batches, crew, len(latest.batches)):
            before, latest = latest, self._submit(crew, latest, piece, last=piece.stop == batches.stop)
            self._drop(before.after)
            waiting.append(latest)
            if len(waiting) > LOOK_AHEAD:
                self._finish(waiting.popleft())
        self._note("steps", self._since)
        self._note("tasks", latest.tasks)
        if following is not None and self._since + len(following) <= self.plan.steps_per_window:
            first = next(self._pieces(following, crew))
            self.ahead = self._submit(crew, latest, first, last=len(first) == len(following))
        while len(waiting) > 1:
            self._finish(waiting.popleft())
        outcomes: list[Done] = self.executor.outcome(latest.after, crew.needed)
        self._tell(latest.batches, outcomes[0][1])
        self._drop([*latest.after, *latest.kept])
        return join_state([state for state, _ in outcomes])

    def _place_state(self, crew: Crew) -> list[Handle]:
        """Place the state where the first tasks read it."""
        slices = cut_state(self.state, len(crew.lanes) if crew.exchange == "slices" else 1)
        handles = []
        for k, part in enumerate(slices):
            worker = crew.lanes[k * len(crew.lanes) // len(slices)].worker
            done: Done = (part, [])
            handles += self.executor.put({f"state-{token(crew.salt, k)}": done}, crew.addresses[worker])
            self._held.update(handles)
        return handles

    def _crew(self) -> Crew:
        workers = self.executor.workers(self.recovery.avoid)
        lanes = _lanes(self.placement, self.plan, workers)
        held = _held_bytes(self.placement, self.state, workers, LOOK_AHEAD + 1)
        # A lane's part of the gradient, before a step and after it.
        self._note("worker_bytes", held + 2 * self.state["w"].nbytes)
        self.bounds["exchange"] = self._exchange(len(lanes))
        return Crew(workers, lanes, self.bounds["exchange"])

    def _exchange(self, lanes: int) -> str:
        """Return the way to update that takes the least time on these workers; what it hangs on is measured once."""
        way = "together"
        # The noise of a private step is drawn, and a norm is taken, of the whole vector at once: there are no slices.
        whole = self.step.private is not None or self.step.rule.clip_norm is not None
        if self.plan.grain == "shard" and lanes > 1 and not whole:
            self._links = self._links or task_links(self.executor)
            way = choose_way(self.state["w"].nbytes, len(self.step.rule.slots), lanes, self._links)
        return "carried" if way == "together" and self._carried else way

    def _note(self, bound: str, value: int) -> None:
        self.bounds[bound] = max(self.bounds[bound], value)

    def _pieces(self, batches: Batches, crew: Crew, start: int = 0) -> Iterator[Batches]:
        plan = self.plan
        size = plan.steps_per_task if plan.grain == "round" else -(-plan.steps_per_window // PIECES)
        size = _steps_at_once(self.placement, crew.workers, len(crew.lanes), size, batches)
        for k in range(start, len(batches), size):
            yield batches[k : k + size]

    def _submit(self, crew: Crew, before: Submission, batches: Batches, last: bool) -> Submission:
        """Submit some steps; the `last` ones of a window bring their losses with the state."""
        graph = TaskGraph()
        steps: Sequence[Sequence[Array]] = batches
        lanes = crew.lanes
        kept: list[Handle] = []
        if self.placement.bucketed(crew.workers):
            lanes, steps, kept = self.placement.bucket(graph, lanes, crew.workers, steps, crew.salt)
            self._held.update(kept)
        refs = [Ref(h.key) for h in before.after]
        after = lower_steps(graph, self.plan.grain, lanes, refs, steps, self.step, crew.exchange)
        losses = [] if last else [graph.task("loss", pick, after[0], 1, worker=lanes[0].worker)]
        keys = [ref.key for ref in (*after, *losses)]
        handles = self.executor.submit(graph.records, keys, crew.addresses, bool(self.recovery.avoid))
        self._held.update(handles)
        tasks = before.tasks + len(graph.records)
        return Submission(crew, batches, handles[: len(after)], None if last else handles[-1], kept, tasks)

    def _finish(self, submission: Submission) -> None:
        assert submission.loss is not None
        (losses,) = self.executor.outcome([submission.loss], submission.crew.needed)
        self._drop([submission.loss, *submission.kept])
        self._tell(submission.batches, losses)

    def _tell(self, batches: Batches, losses: list[float]) -> None:
        """Report the steps that were not reported by an attempt before."""
        skip = max(0, self._reported - batches.first)
        if skip < len(losses):
            self._reported = batches.stop
            self.report(batches[skip:], losses[skip:])
            self.recovery.progress()

    def _drop(self, handles: Sequence[Handle]) -> None:
        self._held.difference_update(handles)
        self.executor.release(handles)


class SharedWindows:
    """Runs windows of steps that all lanes share: one task per lane for a whole window, a gang.

    Parameters and attributes are those of `Windows`; the exchange is ``"collective"``.
    """

    ahead = None

    def __init__(
        self,
        placement: Placement,
        plan: Plan,
        step: Step,
        state: State,
        report: Callable[[Batches, list[float]], None],
        recovered: Callable[[dict[str, Any]], None],
    ):
        self.executor, self.placement, self.plan = placement.executor, placement, plan
        self.state, self.report, self.recovered = state, report, recovered
        self.recovery = Recovery()
        self.bounds: dict[str, Any] = {"steps": 0, "tasks": 0, "worker_bytes": 0, "exchange": "collective"}

    def run(self, batches: Batches, following: Batches | None = None) -> None:
        """Do a window of steps, from its beginning wherever a member was lost; see `Windows.run`."""
        workers = self.executor.workers(self.recovery.avoid)
        lanes = min(len(workers), self.plan.shards)
        size = _steps_at_once(self.placement, workers, lanes, len(batches), batches)

        def again(failure: Exception) -> None:
            self.placement.doubt()
            # As far as is known here: nobody tells how far the gang came.
            self.recovered({"again": size, "cause": describe_failure(failure)})

        for k in range(0, len(batches), size):
            piece = batches[k : k + size]
            self.state, losses = self.recovery.persist(partial(self._attempt, piece), self.executor, again)
            self.report(piece, losses)
        self._note("steps", size)

    def close(self) -> None:
        """Nothing stays on the executor between windows."""

    def _note(self, bound: str, value: int) -> None:
        self.bounds[bound] = max(self.bounds[bound], value)

    def _attempt(self, batches: Batches) -> Done:
        workers = self.executor.workers(self.recovery.avoid)
        lanes = _lanes(self.placement, self.plan, workers)
        held = _held_bytes(self.placement, self.state, workers, 1)
        # A lane has gradients of all its shards, twice.
        self._note("worker_bytes", held + 2 * self.plan.shards * self.state["w"].nbytes)
        spans = [(lane.first, lane.stop) for lane in lanes]
        addresses = [w.address for w in workers]
        kept: list[Handle] = []
        for lane in lanes:
            name = f"state-{token(uuid.uuid4().hex, lane.worker)}"
            kept += self.executor.put({name: self.state}, addresses[lane.worker])

        def submit(spec: Any) -> list[Handle]:
            graph = TaskGraph()
            steps: Sequence[Sequence[Array]] = batches
            mine = lanes
            if self.placement.bucketed(workers):
                mine, steps, sent = self.placement.bucket(graph, lanes, workers, steps, spec.name)
                kept.extend(sent)
            keys = []
            for rank, (lane, state) in enumerate(zip(mine, kept)):
                reads = graph.task("inputs", LaneInputs, lane.step, lane.const, lane.feeds, worker=lane.worker)
                args = (spec, rank, shared_steps, reads, Ref(state.key), steps, spans, lane.threads)
                keys.append(graph.task("collective", collective.run_member, *args, worker=lane.worker).key)
            self._note("tasks", len(graph.records))
            return self.executor.submit(graph.records, keys, addresses, pinned=True)

        try:
            done: Done = collective.run_gang(self.executor, [addresses[lane.worker] for lane in lanes], submit)[0]
            return done
        finally:
            self.executor.release(kept)


def _lanes(placement: Placement, plan: Plan, workers: list[Worker]) -> list[Lane]:
    """Return the lanes of a plan on workers; of rounds one, with the threads that a long task may use."""
    alone = max(min(w.threads for w in workers), min(plan.threads, placement.executor.machine_threads(workers)))
    return placement.lanes(workers, plan.shards, plan.grain == "round", alone)


def _held_bytes(placement: Placement, state: State, workers: list[Worker], buckets: int) -> int:
    """Return the bytes that a worker holds: feeds, so many buckets of them where they are not whole, and the state twice."""
    feeds = placement.samples * (placement.row_bytes + ORDER_BYTES)
    if placement.bucketed(workers):
        feeds = placement.bucket_rows(workers, 1) * placement.row_bytes * buckets
    return feeds + 2 * sum(v.nbytes for v in state.values())


def _steps_at_once(placement: Placement, workers: list[Worker], lanes: int, most: int, batches: Batches) -> int:
    """Return how many steps are submitted together, `most` or as many as have their rows in one bucket."""
    if not placement.bucketed(workers):
        return most
    return max(1, min(most, placement.bucket_rows(workers, lanes) // batches.largest))


@dataclass
class Crew:
    """Where a window runs; what runs at one may go on at an equal one."""

    workers: list[Worker]
    lanes: list[Lane]
    exchange: str
    salt: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)

    @property
    def addresses(self) -> list[str]:
        """Addresses of the workers."""
        return [w.address for w in self.workers]

    @property
    def needed(self) -> set[str]:
        """Addresses of the workers without which a window cannot end."""
        return {self.workers[lane.worker].address for lane in self.lanes}


class Submission(NamedTuple):
    """Steps that were submitted together and are under way.

    Attributes
    ----------
    after : list of Handle
        The states after them.
    loss : Handle, or None
        Their mean losses; None at the last submission of a window, whose state comes with them.
    kept : list of Handle
        What is needed until they are done.
    tasks : int
        Their number of tasks, and of those before them that a worker's death would bring back.
    """

    crew: Crew
    batches: Batches
    after: list[Handle]
    loss: Handle | None = None
    kept: Sequence[Handle] = ()
    tasks: int = 0

    def begins(self, batches: Batches, crew: Crew) -> bool:
        """Whether these steps, run by this crew, begin with the submission, and end with it where it is the last one."""
        mine = self.batches
        alike = mine == batches[: len(mine)] and self.crew == crew
        return alike and (self.loss is None) == (mine.stop == batches.stop)

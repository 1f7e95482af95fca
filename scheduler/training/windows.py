"""Windows of steps: submitted ahead in pieces, ended by a state that the client has, done again where a worker got lost."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flowgrad.optim import Rule, State
from flowgrad.typing import Array

from ..costs import Links, Plan, choose_way, task_links
from ..executors import Executor, Handle, Lost, Recovery, TaskFailed, Worker, describe_failure
from ..feeds import ORDER_BYTES, Batches, Lane, Placement
from ..programs import pick
from ..steps import Done, StateAway, Step, cut_state, join_state, lower_steps
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
    steps, tasks, worker_bytes : int
        The most so far that depended on a state of the client's: steps and tasks; an estimate of the memory on a worker.
    ahead : NextWindow, or None
        What is under way of the next window.
    exchange : str
        How the parameters of the latest window are updated; see `flowgrad.scheduler.costs.forecast.WAYS`.
    """

    def __init__(
        self,
        executor: Executor,
        placement: Placement,
        plan: Plan,
        rule: Rule,
        step: Step,
        state: State,
        report: Callable[[Batches, list[float]], None],
        recovered: Callable[[dict[str, Any]], None],
    ):
        self.executor, self.placement, self.plan, self.rule, self.step = executor, placement, plan, rule, step
        self.state, self.report, self.recovered = state, report, recovered
        self.recovery = Recovery()
        self.steps = self.tasks = self.worker_bytes = 0
        self.exchange = "together"
        self.ahead: NextWindow | None = None
        self._carried = False
        self._links: Links | None = None
        self._held: list[Handle] = []
        self._reported = self._since = 0

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
        self._reported = 0
        while True:
            before = self._reported
            try:
                state = self._attempt(batches, following)
            except (Lost, TaskFailed) as error:
                failure = self._failure(error).with_traceback(None)  # it would keep keys alive
            except BaseException:
                self.close()
                raise
            else:
                break
            self.close()
            if self._reported > before:
                self.recovery.progress()
            self._recover(failure)
        self.state = state
        self.recovery.progress()

    def close(self) -> None:
        """Let go of everything that is on the executor."""
        self.ahead = None
        self._drop(list(self._held))

    def _failure(self, error: Lost | TaskFailed) -> Lost | TaskFailed:
        if not (isinstance(error, TaskFailed) and isinstance(error.error, StateAway)):
            return error
        self._carried = True
        return Lost(f"{error}; from now on it travels with the gradients")

    def _recover(self, failure: Lost | TaskFailed) -> None:
        pause = self.recovery.judge(failure, len(self.executor.workers(self.recovery.avoid)))
        self.placement.doubt()
        self.recovered({"again": self._reported, "cause": describe_failure(failure)})
        time.sleep(pause)

    # -- one attempt --------------------------------------------------------------------------------------------

    def _attempt(self, batches: Batches, following: Batches | None) -> State:
        crew = self._crew()
        begun, self.ahead = self.ahead, None
        waiting: deque[Submission] = deque()
        done = tasks = 0
        if begun is not None and self._goes_on(begun, crew, batches):
            handles, tasks = begun.after, begun.tasks
            waiting.append(begun.submission)
        else:
            self._drop(list(self._held))
            handles, self._since = self._begin(crew), 0
        self._since += len(batches)
        left = batches[sum(len(submission.batches) for submission in waiting) :]
        pieces = list(self._pieces(left, crew)) if left else []
        for number, part_of in enumerate(pieces, 1):
            after, submission, added = self._submit(crew, handles, part_of, last=number == len(pieces))
            self._drop(handles)
            handles, tasks = after, tasks + added
            waiting.append(submission)
            if len(waiting) > LOOK_AHEAD:
                done = self._finish(waiting.popleft(), crew, done)
        self.steps, self.tasks = max(self.steps, self._since), max(self.tasks, tasks)
        if following is not None and self._since + len(following) <= self.plan.steps_per_window:
            first = next(self._pieces(following, crew))
            after, submission, added = self._submit(crew, handles, first, last=len(first) == len(following))
            self.ahead = NextWindow(crew, after, submission, tasks + added)
        while len(waiting) > 1:
            done = self._finish(waiting.popleft(), crew, done)
        outcomes: list[Done] = self.executor.outcome(handles, crew.needed)
        self._tell(waiting[0], outcomes[0][1], done)
        self._drop([*handles, *waiting[0].kept])
        return join_state([state for state, _ in outcomes])

    def _goes_on(self, begun: NextWindow, crew: Crew, batches: Batches) -> bool:
        """Whether what was submitted ahead is the beginning of a window that this crew runs."""
        return begun.begins(batches) and begun.crew == crew and all(map(self.executor.alive, begun.after))

    def _begin(self, crew: Crew) -> list[Handle]:
        """Place the state where the first tasks read it."""
        slices = cut_state(self.state, crew.slices)
        handles = []
        for k, part in enumerate(slices):
            worker = crew.lanes[k * len(crew.lanes) // len(slices)].worker
            done: Done = (part, [])
            handles += self._hold(self.executor.put({f"state-{token(crew.salt, k)}": done}, crew.addresses[worker]))
        return handles

    def _crew(self) -> Crew:
        workers = self.executor.workers(self.recovery.avoid)
        alone = max(min(w.threads for w in workers), min(self.plan.threads, self.executor.machine_threads(workers)))
        lanes = self.placement.lanes(workers, self.plan.shards, self.plan.grain == "round", alone)
        self._estimate(workers)
        self.exchange = self._exchange(len(lanes))
        return Crew(workers, lanes, self.exchange)

    def _exchange(self, lanes: int) -> str:
        """Return the way to update that takes the least time on these workers; what it hangs on is measured once."""
        way = "together"
        # The noise of a private step is drawn, and a norm is taken, of the whole vector at once: there are no slices.
        whole = self.step.private is not None or self.rule.clip_norm is not None
        if self.plan.grain == "shard" and lanes > 1 and not whole:
            self._links = self._links or task_links(self.executor)
            way = choose_way(self.state["w"].nbytes, len(self.rule.slots), lanes, self._links)
        return "carried" if way == "together" and self._carried else way

    def _estimate(self, workers: list[Worker]) -> None:
        state = sum(v.nbytes for v in self.state.values())
        feeds = self.placement.samples * (self.placement.row_bytes + ORDER_BYTES)
        if self.placement.bucketed(workers):
            feeds = self.placement.bucket_rows(workers, 1) * self.placement.row_bytes * (LOOK_AHEAD + 1)
        # Of a lane: the state and its part of the gradient, before a step and after it.
        self.worker_bytes = max(self.worker_bytes, feeds + 2 * (state + self.state["w"].nbytes))

    def _pieces(self, batches: Batches, crew: Crew) -> Iterator[Batches]:
        plan = self.plan
        size = plan.steps_per_task if plan.grain == "round" else -(-plan.steps_per_window // PIECES)
        if self.placement.bucketed(crew.workers):
            rows = self.placement.bucket_rows(crew.workers, len(crew.lanes))
            size = max(1, min(size, rows // batches.largest))
        for k in range(0, len(batches), size):
            yield batches[k : k + size]

    def _submit(
        self, crew: Crew, before: list[Handle], batches: Batches, last: bool
    ) -> tuple[list[Handle], Submission, int]:
        """Submit some steps; return the states after them, what is under way, and its number of tasks."""
        graph = TaskGraph()
        steps: Sequence[Sequence[Array]] = batches
        lanes = crew.lanes
        kept: list[Handle] = []
        if self.placement.bucketed(crew.workers):
            lanes, steps, kept = self.placement.bucket(graph, lanes, crew.workers, steps, crew.salt)
            self._hold(kept)
        refs = [Ref(h.key) for h in before]
        after = lower_steps(graph, self.plan.grain, self.rule, lanes, refs, steps, self.step, crew.exchange)
        losses = [] if last else [graph.task("loss", pick, after[0], 1, worker=lanes[0].worker)]
        keys = [ref.key for ref in (*after, *losses)]
        handles = self._hold(self.executor.submit(graph.records, keys, crew.addresses, bool(self.recovery.avoid)))
        submission = Submission(None if last else handles[-1], kept, batches)
        return handles[: len(after)], submission, len(graph.records)

    def _finish(self, submission: Submission, crew: Crew, done: int) -> int:
        assert submission.loss is not None
        (losses,) = self.executor.outcome([submission.loss], crew.needed)
        self._drop([submission.loss, *submission.kept])
        return self._tell(submission, losses, done)

    def _tell(self, submission: Submission, losses: list[float], done: int) -> int:
        """Report the steps of a submission that were not reported by an attempt before."""
        skip = max(0, self._reported - done)
        stop = done + len(losses)
        if skip < len(losses):
            self._reported = stop
            self.report(submission.batches[skip:], losses[skip:])
        return stop

    # -- handles ------------------------------------------------------------------------------------------------

    def _hold(self, handles: list[Handle]) -> list[Handle]:
        self._held += handles
        return handles

    def _drop(self, handles: Sequence[Handle]) -> None:
        gone = {id(h) for h in handles}
        self._held = [h for h in self._held if id(h) not in gone]
        self.executor.release(handles)


class Submission(NamedTuple):
    """Steps of a window that were submitted together and are under way.

    Attributes
    ----------
    loss : Handle, or None
        The mean losses of its steps; None at the last submission of a window, whose state comes with them.
    kept : list of Handle
        What is needed until it is done.
    batches : Batches
        Its steps.
    """

    loss: Handle | None
    kept: list[Handle]
    batches: Batches


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

    @property
    def slices(self) -> int:
        """Into how many slices the state is cut."""
        return len(self.lanes) if self.exchange == "slices" else 1


class NextWindow(NamedTuple):
    """The first submission of the next window, submitted before this one has ended.

    Attributes
    ----------
    after : list of Handle
        The states after it.
    tasks : int
        Its number of tasks, and of those before it that a worker's death would bring back.
    """

    crew: Crew
    after: list[Handle]
    submission: Submission
    tasks: int

    def begins(self, batches: Batches) -> bool:
        """Whether these steps begin with the submission, and end with it where it is the last one."""
        mine = self.submission.batches
        alike = (mine.epoch, mine.first, mine.shards) == (batches.epoch, batches.first, batches.shards)
        return alike and len(mine) <= len(batches) and (self.submission.loss is None) == (len(mine) == len(batches))

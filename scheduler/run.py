"""One call of `fit`: what is placed on the executor, and the state that moves on, window by window."""

from __future__ import annotations

import math
import time
import uuid
from collections import deque
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from flowgrad.errors import FeedError, FlowgradError
from flowgrad.jacobian import Array
from flowgrad.node import Variable
from flowgrad.optimizers import Optimizer, warn_independent

from . import blocks, compiled
from .blas import one_thread
from .callbacks import KEEP, STOP, Callbacks
from .checkpoint import Found, Saver, check_same_run, describe_model, describe_rule, read_checkpoint
from .cost import flops
from .engine import Engine
from .evaluate import Evaluation
from .executors import Handle
from .feeds import check_feeds
from .history import History
from .lower import flat_values
from .lower_train import Given, compile_step, epoch_batches, lower_window
from .plan import Plan, choose_kernel, choose_plan, choose_shards
from .tasks import Ref, TaskGraph, token
from .tree import bounds

# Windows that are submitted before the first of them is waited for.
LOOK_AHEAD = 3


@dataclass(frozen=True)
class Settings:
    """What the user chose for a trainer."""

    optimizer: Optimizer
    engine: Engine
    shuffle: bool
    seed: int
    callbacks: Callbacks
    accumulate: int = 1

    @property
    def batch_size(self) -> int:
        """Samples of one update."""
        return self.optimizer.batch_size * self.accumulate


class Run:
    """One call of `fit`: what is placed on the executor, and the state that moves on.

    Attributes
    ----------
    epoch, position : int
        Where the state stands: epochs that are complete, and steps of the next one.
    kept : dict
        The state that a callback kept; empty if none did.
    """

    def __init__(
        self, settings: Settings, feeds: Any, validation: Any, saver: Saver | None, epochs: int, resume: bool = False
    ):
        self.settings, self.saver, self.epochs = settings, saver, epochs
        optimizer = settings.optimizer
        self.rule = optimizer.rule
        self.executor = settings.engine.executor
        graph, target = optimizer.graph, optimizer.target
        self.feeds = check_feeds(graph, feeds, settings.engine.dtype)
        self._check_batch_size()
        checked = None if validation is None else check_feeds(graph, validation, self.feeds.dtype)
        self.variables = optimizer.variables(without=self.feeds.arrays)
        warn_independent(target, self.variables)
        self.salt = uuid.uuid4().hex
        self.held: list[Handle] = []
        self.step = compile_step(target, self.feeds, self.variables, "shard")
        layout = self.step.program.layout
        self.state = self._first_state()
        self.kept: dict[str, Array] = {}
        found = read_checkpoint(saver.folder) if saver is not None and resume else None
        self.plan = self._plan() if found is None else self._resumed_plan(found)
        self.step = replace(self.step, compiled=self.plan.kernel == "numba")
        if self.plan.grain == "node":
            self.step = compile_step(target, self.feeds, self.variables, "node", layout)
        self.epoch = self.position = 0
        self.history = History(self.plan.as_dict())
        if found is not None:
            self._go_on(found)
        self.given = self._place()
        self.evaluation = (
            None if checked is None else Evaluation(self.executor, target, checked, self.variables, layout)
        )
        self.state_handle = self._hold({f"state-{token(self.salt)}": self.state})[0]
        self.state_ref = Ref(self.state_handle.key)

    def _check_batch_size(self) -> None:
        settings, samples = self.settings, self.feeds.samples
        if samples < settings.batch_size:
            size, times = settings.optimizer.batch_size, settings.accumulate
            whole = f"batch size {size}" + (f" times accumulate {times} = {size * times}" if times > 1 else "")
            raise FeedError(f"the {whole} is larger than the data: {samples} samples; choose at most {samples}")

    # -- what is placed -----------------------------------------------------------------------------------------

    def _first_state(self) -> dict[str, Array]:
        w = flat_values(self.step.program, self.settings.optimizer.graph, "param", self.feeds.dtype)[0]
        state = self.rule.init(w)
        before = self.settings.optimizer.state
        if before is not None:
            for slot in self.rule.slots:
                self._copy(before[slot], state[slot])
            state["t"] = before["t"].copy()
        return {"w": w, **state}

    def _copy(self, ordered: Array, flat: Array, back: bool = False) -> None:
        """Copy between the order of the variables and the order of a program's flat vector."""
        start = 0
        for v in self.settings.optimizer.variables():
            stop = start + v.dim
            if v.index in self.step.program.layout:
                _, lo, hi = self.step.program.layout[v.index]
                if back:
                    ordered[start:stop] = flat[lo:hi]
                else:
                    flat[lo:hi] = ordered[start:stop]
            start = stop

    def _plan(self) -> Plan:
        engine, batch_size = self.settings.engine, self.settings.optimizer.batch_size
        fixed, each = flops(self.step.program)
        work = fixed + each * batch_size
        updates = self.epochs * -(-self.feeds.samples // batch_size)
        unsupported = compiled.supports(self.step.program, self.step.names)
        kernel = choose_kernel(engine.kernel, engine.grain, work * updates, unsupported)
        # Accumulating gradients is having more shards, of the same size.
        shards = choose_shards(engine.grain, engine.shards, batch_size, work, kernel[0]) * self.settings.accumulate
        self.step = replace(self.step, compiled=kernel[0] == "numba")
        whole = self.settings.batch_size
        best = self._step_seconds([np.arange(whole)[start:stop] for start, stop in bounds(whole, shards)])
        nodes = 3 * len(self.settings.optimizer.graph.nodes)
        return choose_plan(engine.grain, shards, kernel, best, self.executor.task_seconds(), nodes)

    def _resumed_plan(self, found: Found) -> Plan:
        """Return the plan of a checkpoint, after a look at whether it is one of this run."""
        assert self.saver is not None
        check_same_run(self.saver.folder, found.about["run"], self._identity)
        return Plan(**found.about["plan"])

    def _go_on(self, found: Found) -> None:
        about = found.about
        self.state, self.kept = found.state, found.kept
        self.epoch, self.position = about["epoch"], about["position"]
        self.history = History.from_dict(about["history"])
        self.history.steps = [(k, float(loss)) for k, loss in enumerate(found.losses, 1)]

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What makes this run what it is; see `check_same_run`."""
        settings = self.settings
        return {
            "model": describe_model(settings.optimizer.target, self.step.program.size("param")),
            "optimizer": describe_rule(self.rule),
            "seed": settings.seed,
            "shuffle": settings.shuffle,
            "batch_size": settings.optimizer.batch_size,
            "accumulate": settings.accumulate,
            "samples": self.feeds.samples,
            "dtype": self.feeds.dtype.name,
        }

    def _step_seconds(self, shards: list[Array]) -> float:
        """Measure one optimizer step in one task; several at a time where one is too short to measure."""
        arrays = [self.feeds.arrays[v] for v in self._fed()]
        best, steps = math.inf, 1
        for _ in range(5):
            start = time.perf_counter()
            with one_thread():
                many = [shards] * steps
                blocks.run_round(self.step, self.rule, self.state, self._const(), arrays, many, self.executor.threads)
            best = min(best, (time.perf_counter() - start) / steps)
            steps = max(1, min(32, int(0.02 / best)))
        return best

    def _fed(self) -> list[Variable]:
        nodes = self.settings.optimizer.graph.nodes
        return [v for v in (nodes[k] for k in self.step.fed) if isinstance(v, Variable)]

    def _const(self) -> Array | None:
        if not self.step.program.size("const"):
            return None
        return flat_values(self.step.program, self.settings.optimizer.graph, "const", self.feeds.dtype)

    def _place(self) -> Given:
        values: dict[str, Any] = {f"program-{token(self.salt)}": self.step}
        const = self._const()
        if const is not None:
            values[f"const-{token(self.salt)}"] = const
        for v in self._fed():
            values[f"feed-{token(self.salt, v.index)}"] = self.feeds.arrays[v]
        refs = [Ref(h.key) for h in self._hold(values, replicate=True)]
        rest = refs[1:]
        return Given(refs[0], rest.pop(0) if const is not None else None, rest, self.executor.threads)

    def _hold(self, values: dict[str, Any], replicate: bool = False) -> list[Handle]:
        handles = self.executor.put(values, replicate)
        self.held += handles
        return handles

    def close(self) -> None:
        """Let go of everything that is kept on the executor."""
        self.executor.release(self.held)
        self.held = []
        if self.evaluation is not None:
            self.evaluation.close()

    # -- training -----------------------------------------------------------------------------------------------

    def train(self) -> History:
        """Run the epochs that are left."""
        history, callbacks = self.history, self.settings.callbacks
        batches = -(-self.feeds.samples // self.settings.batch_size)
        self.info = {"plan": history.plan, "samples": self.feeds.samples, "epochs": self.epochs}
        self.info |= {"steps": batches * self.epochs, "validation": self.evaluation is not None}
        past = {"past": [dict(record) for record in history.epochs], "kept_epoch": history.kept_epoch}
        answer = callbacks.notify("on_train_begin", self.info | past)
        stop = STOP in answer
        if KEEP not in answer:
            self.kept, history.kept_epoch = {}, None
        self.start = time.perf_counter()
        if self.evaluation is not None and not history.epochs:
            scores = self.evaluation.result(self.evaluation.submit(self.state_ref))
            stop |= self._record(0, math.nan, scores, 0.0)
        while self.epoch < self.epochs and not stop:
            stop = self._epoch(self.epoch + 1)
        self._store(self.kept or self._state())
        callbacks.notify("on_train_end", history)
        return history

    def _epoch(self, epoch: int) -> bool:
        """Run what is left of an epoch; return whether it is to be the last one."""
        began, history, settings = time.perf_counter(), self.history, self.settings
        rows = epoch_batches(self.feeds.samples, settings.batch_size, settings.shuffle, settings.seed, epoch)
        left = rows[self.position :]
        waiting: deque[tuple[Handle, list[Array]]] = deque()
        size = self.plan.steps_per_window
        for k in range(0, len(left), size):
            waiting.append((self._submit(left[k : k + size]), left[k : k + size]))
            self.position += len(waiting[-1][1])
            due = self.saver is not None and self.position < len(rows) and self.saver.in_epoch()
            while len(waiting) > (0 if due else LOOK_AHEAD):
                self._finish(epoch, *waiting.popleft())
            if due:
                self._checkpoint()
        while waiting:
            self._finish(epoch, *waiting.popleft())
        self.epoch, self.position = epoch, 0
        scores = {} if self.evaluation is None else self.evaluation.result(self.evaluation.submit(self.state_ref))
        loss = math.fsum(loss * len(batch) for (_, loss), batch in zip(history.steps[-len(rows) :], rows))
        rate = sum(map(len, left)) / (time.perf_counter() - began)
        stop = self._record(epoch, loss / self.feeds.samples, scores, rate)
        last = stop or epoch == self.epochs
        if self.saver is not None and (last or self.saver.after_epoch(epoch)):
            self._checkpoint()
        return stop

    def _submit(self, batches: list[Array]) -> Handle:
        graph = TaskGraph()
        state, losses = lower_window(graph, self.step, self.plan, self.rule, self.given, self.state_ref, batches)
        handle, loss = self.executor.submit(graph.records, [state.key, losses.key])
        self.held.append(handle)
        self.held.remove(self.state_handle)
        self.executor.release([self.state_handle])
        self.state_handle, self.state_ref = handle, state
        return loss

    def _finish(self, epoch: int, handle: Handle, batches: list[Array]) -> None:
        """Wait for the losses of a window."""
        history = self.history
        losses = self.executor.result([handle])[0]
        self.executor.release([handle])
        step = len(history.steps)
        for k, loss in enumerate(losses, step + 1):
            if not math.isfinite(loss):
                raise FlowgradError(
                    f"the loss became {loss} at step {k} (epoch {epoch}): try a smaller learning rate or check the feeds; "
                    f"the variables keep the values that they had before"
                )
            history.steps.append((k, float(loss)))
        self.settings.callbacks.notify(
            "on_steps",
            {
                "step": len(history.steps),
                "steps": self.info["steps"],
                "epoch": epoch,
                "samples": sum(map(len, batches)),
                "loss": float(np.mean(losses)),
                "seconds": time.perf_counter() - self.start,
            },
        )

    def _record(self, epoch: int, loss: float, scores: dict[str, float], rate: float) -> bool:
        """Note an epoch, do what callbacks answer, and return whether to stop."""
        record = {
            "epoch": epoch,
            "loss": loss,
            "validation_loss": scores.get("loss"),
            "validation_accuracy": scores.get("accuracy"),
            "seconds": time.perf_counter() - self.start,
            "samples_per_second": rate,
        }
        self.history.epochs.append(record)
        answer = self.settings.callbacks.notify("on_epoch", dict(record))
        if KEEP in answer:
            self.kept, self.history.kept_epoch = self._state(), epoch
        return STOP in answer

    # -- results ------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Array]:
        """Bring the state here."""
        state: dict[str, Array] = self.executor.result([self.state_handle])[0]
        return state

    def _store(self, state: dict[str, Array]) -> None:
        """Give a state to the variables and the optimizer."""
        for v in self.variables:
            if v.index in self.step.program.layout:
                _, start, stop = self.step.program.layout[v.index]
                v._assign(np.array(state["w"][None, start:stop], np.float64))
        every = sum(v.dim for v in self.settings.optimizer.variables())
        ordered = dict(self.settings.optimizer.state or self.rule.init(np.zeros(every, self.feeds.dtype)))
        for slot in self.rule.slots:
            ordered[slot] = ordered[slot].copy()
            self._copy(ordered[slot], state[slot], back=True)
        self.settings.optimizer.state = {**ordered, "t": state["t"].copy()}

    def _checkpoint(self) -> None:
        """Write where the run stands; between two windows only, when all losses are here."""
        assert self.saver is not None
        about = {
            "epoch": self.epoch,
            "position": self.position,
            "run": self._identity,
            "plan": self.plan.as_dict(),
            "history": {**self.history.as_dict(), "steps": []},  # they are an array
        }
        losses = np.array([loss for _, loss in self.history.steps])
        self.saver.write(len(losses), Found(self._state(), self.kept, losses, about))

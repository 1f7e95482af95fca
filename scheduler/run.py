"""One call of `fit`: what is placed on the executor, and the state that moves on, window by window."""

from __future__ import annotations

import math
import time
import uuid
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.errors import FlowgradError, GraphError
from flowgrad.jacobian import Array
from flowgrad.node import Variable
from flowgrad.optimizers import Optimizer, warn_independent

from . import blocks
from .blas import one_thread
from .checkpoint import read_checkpoint, write_checkpoint
from .engine import Engine
from .estimate import case_of, choose_arithmetic, measured_costs
from .evaluate import Evaluation
from .executors import Handle
from .feeds import check_feeds
from .history import History
from .links import Fit
from .lower import flat_values
from .lower_train import Given, compile_step, epoch_batches, lower_window
from .plan import ROUND_SECONDS, Plan, check_batch_size, choose_grain, choose_plan
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
    callbacks: tuple[Any, ...]
    fit: Fit

    def notify(self, method: str, *args: Any) -> None:
        """Call a method of every callback that has it."""
        for callback in self.callbacks:
            found = getattr(callback, method, None)
            if found is not None:
                found(*args)


class Run:
    """One call of `fit`: what is placed on the executor, and the state that moves on."""

    def __init__(self, settings: Settings, feeds: Any, validation: Any, folder: Path | None, epochs: int):
        self.settings, self.folder, self.epochs = settings, folder, epochs
        optimizer = settings.optimizer
        self.rule = optimizer.rule
        self.executor = settings.engine.executor
        graph, target = optimizer.graph, optimizer.target
        self.feeds = check_feeds(graph, feeds, settings.engine.dtype)
        check_batch_size(optimizer.batch_size, self.feeds.samples)
        checked = None if validation is None else check_feeds(graph, validation, self.feeds.dtype)
        self.variables = optimizer.variables(without=self.feeds.arrays)
        warn_independent(target, self.variables)
        self.salt = uuid.uuid4().hex
        self.held: list[Handle] = []
        self.step = compile_step(target, self.feeds, self.variables, "shard")
        layout = self.step.program.layout
        self.state = self._first_state()
        self.plan = self._plan()
        if self.plan.grain == "node":
            self.step = compile_step(target, self.feeds, self.variables, "node", layout)
        self.given = self._place()
        self.evaluation = (
            None if checked is None else Evaluation(self.executor, target, checked, self.variables, layout)
        )
        self.state_handle = self._hold({f"state-{token(self.salt)}": self.state})[0]
        self.state_ref = Ref(self.state_handle.key)

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
        optimizer, engine = self.settings.optimizer, self.settings.engine
        shards, kernel = choose_arithmetic(self.step, optimizer, engine, self.feeds.samples, self.epochs)
        self.step = replace(self.step, compiled=kernel[0] == "numba")
        rows = [np.arange(start, stop) for start, stop in bounds(optimizer.batch_size, shards)]
        seconds, costs = self._step_seconds(rows), {}
        if engine.grain == "auto" and shards > 1:
            fixed = self._step_seconds([shard[:1] for shard in rows])
            case = case_of(self.step, optimizer, self.feeds.samples, shards)
            costs = measured_costs(case, self.step.compiled, seconds, fixed, engine.executor, self.settings.fit)
        grain = choose_grain(engine.grain, costs)
        return choose_plan(grain, shards, kernel, seconds, len(optimizer.graph.nodes))

    def _step_seconds(self, shards: list[Array]) -> float:
        """Measure one optimizer step in one task; several at a time where one is too short to measure."""
        arrays = [self.feeds.arrays[v] for v in self._fed()]
        best, steps, begun = math.inf, 1, time.perf_counter()
        for tries in range(5):
            start = time.perf_counter()
            if tries > 1 and start - begun > ROUND_SECONDS:
                break
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

    def train(self, resume: bool) -> History:
        """Run the epochs that are left."""
        epochs = self.epochs
        history = History(self.plan.as_dict())
        first = 0
        if resume and self.folder is not None:
            found = read_checkpoint(self.folder)
            if found is not None:
                history, first = self._resume(*found)
        batches = -(-self.feeds.samples // self.settings.optimizer.batch_size)
        info = {"plan": history.plan, "samples": self.feeds.samples, "epochs": epochs, "steps": batches * epochs}
        self.settings.notify("on_train_begin", info)
        self.start = time.perf_counter()
        if self.evaluation is not None and not history.epochs:
            scores = self.evaluation.result(self.evaluation.submit(self.state_ref))
            self._record(history, 0, math.nan, scores, 0.0)
        for epoch in range(first + 1, epochs + 1):
            self._epoch(history, epoch, info)
        self._store()
        self.settings.notify("on_train_end", history)
        return history

    def _epoch(self, history: History, epoch: int, info: dict[str, Any]) -> None:
        began = time.perf_counter()
        rows = epoch_batches(
            self.feeds.samples, self.settings.optimizer.batch_size, self.settings.shuffle, self.settings.seed, epoch
        )
        waiting: deque[tuple[Handle, list[Array]]] = deque()
        size = self.plan.steps_per_window
        for k in range(0, len(rows), size):
            waiting.append((self._submit(rows[k : k + size]), rows[k : k + size]))
            if len(waiting) > LOOK_AHEAD:
                self._finish(history, epoch, info, *waiting.popleft())
        while waiting:
            self._finish(history, epoch, info, *waiting.popleft())
        scores = {} if self.evaluation is None else self.evaluation.result(self.evaluation.submit(self.state_ref))
        loss = math.fsum(loss * len(batch) for (_, loss), batch in zip(history.steps[-len(rows) :], rows))
        rate = self.feeds.samples / (time.perf_counter() - began)
        self._record(history, epoch, loss / self.feeds.samples, scores, rate)
        if self.folder is not None:
            self._checkpoint(history, epoch)

    def _submit(self, batches: list[Array]) -> Handle:
        graph = TaskGraph()
        state, losses = lower_window(graph, self.step, self.plan, self.rule, self.given, self.state_ref, batches)
        handle, loss = self.executor.submit(graph.records, [state.key, losses.key])
        self.held.append(handle)
        self.held.remove(self.state_handle)
        self.executor.release([self.state_handle])
        self.state_handle, self.state_ref = handle, state
        return loss

    def _finish(self, history: History, epoch: int, info: dict[str, Any], handle: Handle, batches: list[Array]) -> None:
        """Wait for the losses of a window."""
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
        self.settings.notify(
            "on_steps",
            {
                "step": len(history.steps),
                "steps": info["steps"],
                "epoch": epoch,
                "samples": sum(map(len, batches)),
                "loss": float(np.mean(losses)),
                "seconds": time.perf_counter() - self.start,
            },
        )

    def _record(self, history: History, epoch: int, loss: float, scores: dict[str, float], rate: float) -> None:
        record = {
            "epoch": epoch,
            "loss": loss,
            "validation_loss": scores.get("loss"),
            "validation_accuracy": scores.get("accuracy"),
            "seconds": time.perf_counter() - self.start,
            "samples_per_second": rate,
        }
        history.epochs.append(record)
        self.settings.notify("on_epoch", dict(record))

    # -- results ------------------------------------------------------------------------------------------------

    def _store(self) -> None:
        """Bring the final state here and give it to the variables and the optimizer."""
        state = self.executor.result([self.state_handle])[0]
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

    def _checkpoint(self, history: History, epoch: int) -> None:
        assert self.folder is not None
        about = {"epoch": epoch, "seed": self.settings.seed, "history": history.as_dict(), "plan": self.plan.as_dict()}
        write_checkpoint(self.folder, epoch, self.executor.result([self.state_handle])[0], about)

    def _resume(self, state: dict[str, Array], about: dict[str, Any]) -> tuple[History, int]:
        same = {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in self.state.items()}
        if not same or about["seed"] != self.settings.seed:
            raise GraphError(
                f"the checkpoint in {self.folder} is of another model, optimizer or seed; choose another folder"
            )
        self.plan = replace(self.plan, **about["plan"])
        handle = self._hold({f"state-{token(self.salt, about['epoch'])}": state})[0]
        self.state_handle, self.state_ref = handle, Ref(handle.key)
        return History.from_dict(about["history"]), about["epoch"]

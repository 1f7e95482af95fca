"""One call of `fit`: what it is given, its plan, and the course of its epochs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.errors import FeedError, FlowgradError, GraphError
from flowgrad.jacobian import Array
from flowgrad.node import Variable
from flowgrad.optimizers import Optimizer, warn_independent

from . import blocks, compiled
from .blas import one_thread
from .checkpoint import read_checkpoint, write_checkpoint
from .chunks import Chunked
from .cost import flops
from .data import Placement
from .engine import Engine
from .evaluate import Evaluation
from .feeds import check_feeds
from .history import History
from .lower import flat_values
from .lower_train import compile_private, compile_step, epoch_batches
from .plan import Plan, choose_kernel, choose_plan, choose_shards
from .tree import bounds
from .windows import Batch, Windows


@dataclass(frozen=True)
class Settings:
    """What the user chose for a trainer."""

    optimizer: Optimizer
    engine: Engine
    shuffle: bool
    seed: int
    callbacks: tuple[Any, ...]

    def notify(self, method: str, *args: Any) -> None:
        """Call a method of every callback that has it."""
        for callback in self.callbacks:
            found = getattr(callback, method, None)
            if found is not None:
                found(*args)


class Run:
    """One call of `fit`.

    Attributes
    ----------
    epoch, position : int
        Where `windows.state` stands: epochs that are complete, and steps of the next one.
    """

    def __init__(self, settings: Settings, feeds: Any, validation: Any, folder: Path | None, epochs: int):
        self.settings, self.folder, self.epochs = settings, folder, epochs
        optimizer = settings.optimizer
        self.rule = optimizer.rule
        self.executor = settings.engine.executor
        graph, target = optimizer.graph, optimizer.target
        self.feeds = check_feeds(graph, feeds, settings.engine.dtype, lazy=True)
        if self.feeds.samples < optimizer.batch_size:
            raise FeedError(
                f"the batch size {optimizer.batch_size} is larger than the data: {self.feeds.samples} samples; "
                f"choose at most {self.feeds.samples}"
            )
        checked = None if validation is None else check_feeds(graph, validation, self.feeds.dtype, lazy=True)
        self.variables = optimizer.variables(without=self.feeds.arrays)
        warn_independent(target, self.variables)
        self.step = compile_step(target, self.feeds, self.variables, "shard")
        self.step = compile_private(self.step, target, self.feeds, self.variables, optimizer.privacy)
        layout = self.step.program.layout
        self.state = self._first_state()
        self.plan = self._plan()
        if self.plan.grain == "node":
            private = self.step.private
            self.step = replace(compile_step(target, self.feeds, self.variables, "node", layout), private=private)
        self.placement = Placement(self.executor, self.step, self._const(), [self.feeds.arrays[v] for v in self._fed()])
        self.evaluation = (
            None if checked is None else Evaluation(self.executor, target, checked, self.variables, layout)
        )
        self.epoch = self.position = 0
        self.history = History(self.plan.as_dict())

    # -- what it begins with ------------------------------------------------------------------------------------

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
        if self.step.private is not None:
            unsupported = "gradients are clipped per sample"
        kernel = choose_kernel(engine.kernel, engine.grain, work * updates, unsupported)
        shards = choose_shards(engine.grain, engine.shards, batch_size, work, kernel[0])
        self.step = replace(self.step, compiled=kernel[0] == "numba")
        best = self._step_seconds([np.arange(batch_size)[start:stop] for start, stop in bounds(batch_size, shards)])
        nodes = 3 * len(self.settings.optimizer.graph.nodes)
        return choose_plan(engine.grain, shards, kernel, best, self.executor.task_seconds(), nodes)

    def _step_seconds(self, shards: list[Array]) -> float:
        """Measure one optimizer step in one task; several at a time where one is too short to measure."""
        rows = sum(map(len, shards))
        arrays = [_sample(self.feeds.arrays[v], rows, self.feeds.dtype) for v in self._fed()]
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

    def close(self) -> None:
        """Let go of everything that is kept on the executor."""
        self.placement.close()
        if self.evaluation is not None:
            self.evaluation.close()

    # -- training -----------------------------------------------------------------------------------------------

    def train(self, resume: bool) -> History:
        """Run the epochs that are left."""
        if resume and self.folder is not None:
            found = read_checkpoint(self.folder)
            if found is not None:
                self._resume(*found)
        history = self.history
        self.steps_per_epoch = -(-self.feeds.samples // self.settings.optimizer.batch_size)
        steps = self.steps_per_epoch * self.epochs
        self.info = {"plan": history.plan, "samples": self.feeds.samples, "epochs": self.epochs, "steps": steps}
        self.settings.notify("on_train_begin", self.info)
        self.start = self.began = time.perf_counter()
        # Made last: it holds the state that moves on.
        self.windows = Windows(
            self.executor, self.placement, self.plan, self.rule, self.step, self.state, self._report, self._recovered
        )
        try:
            self._epochs()
        except (KeyboardInterrupt, SystemExit):
            if self.folder is not None:
                self._checkpoint()
            raise
        self._store()
        self.settings.notify("on_train_end", history)
        return history

    def _epochs(self) -> None:
        if self.evaluation is not None and not self.history.epochs:
            self._record(0, math.nan, self.evaluation.scores(self.state), 0.0)
        self.began = time.perf_counter()
        # Where the state at the end of an epoch is wanted, a window ends with it.
        stops = self.evaluation is not None or self.folder is not None
        window: list[Batch] = []
        for epoch in range(self.epoch + 1, self.epochs + 1):
            optimizer, settings = self.settings.optimizer, self.settings
            rows = epoch_batches(self.feeds.samples, optimizer.batch_size, settings.shuffle, settings.seed, epoch)
            for batch in rows[self.position if epoch == self.epoch + 1 else 0 :]:
                window.append(Batch(epoch, batch))
                if len(window) == self.plan.steps_per_window:
                    self._window(window)
                    window = []
            if stops:
                self._window(window)
                window = []
                self._end_of_epoch(epoch)
        self._window(window)

    def _window(self, batches: Sequence[Batch]) -> None:
        if not batches:
            return
        self.windows.run(batches)
        done = self.epoch * self.steps_per_epoch + self.position + len(batches)
        self.epoch, self.position = divmod(done, self.steps_per_epoch)
        self.history.window = {
            "steps": max(len(batches), self.history.window.get("steps", 0)),
            "tasks": self.windows.tasks,
            "worker_bytes": self.windows.worker_bytes,
        }

    def _report(self, batches: Sequence[Batch], losses: list[float]) -> None:
        """Take the losses of steps that are done."""
        while batches:
            epoch = batches[0].epoch
            count = sum(b.epoch == epoch for b in batches)
            self._steps(epoch, batches[:count], losses[:count])
            batches, losses = batches[count:], losses[count:]

    def _steps(self, epoch: int, batches: Sequence[Batch], losses: list[float]) -> None:
        history = self.history
        for k, loss in enumerate(losses, len(history.steps) + 1):
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
                "steps": self.info["steps"],
                "epoch": epoch,
                "samples": sum(len(b.rows) for b in batches),
                "loss": float(np.mean(losses)),
                "seconds": time.perf_counter() - self.start,
            },
        )
        if len(history.steps) % self.steps_per_epoch == 0 and self.evaluation is None and self.folder is None:
            self._end_of_epoch(epoch)

    def _recovered(self, about: dict[str, Any]) -> None:
        record = {"step": len(self.history.steps), **about}
        self.history.recoveries.append(record)
        self.settings.notify("on_recovery", dict(record))

    def _end_of_epoch(self, epoch: int) -> None:
        scores = {} if self.evaluation is None else self.evaluation.scores(self.windows.state)
        size, samples = self.settings.optimizer.batch_size, self.feeds.samples
        sizes = [min(size, samples - k) for k in range(0, samples, size)]
        losses = [loss for _, loss in self.history.steps[-len(sizes) :]]
        rate = samples / (time.perf_counter() - self.began)
        self._record(epoch, math.fsum(map(float.__mul__, losses, map(float, sizes))) / samples, scores, rate)
        self.began = time.perf_counter()
        if self.folder is not None:
            self._checkpoint()

    def _record(self, epoch: int, loss: float, scores: dict[str, float], rate: float) -> None:
        record = {
            "epoch": epoch,
            "loss": loss,
            "validation_loss": scores.get("loss"),
            "validation_accuracy": scores.get("accuracy"),
            "seconds": time.perf_counter() - self.start,
            "samples_per_second": rate,
        }
        self.history.epochs.append(record)
        self.settings.notify("on_epoch", dict(record))

    # -- results ------------------------------------------------------------------------------------------------

    def _store(self) -> None:
        """Give the final state to the variables and the optimizer."""
        state = self.windows.state
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
        """Write the state after the last window, with what it takes to go on from there."""
        assert self.folder is not None
        state = self.windows.state
        done = self.epoch * self.steps_per_epoch + self.position
        history = self.history.as_dict()
        about = {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.settings.seed,
            "history": {**history, "steps": history["steps"][:done]},
            "plan": self.plan.as_dict(),
        }
        write_checkpoint(self.folder, done, state, about)

    def _resume(self, state: dict[str, Array], about: dict[str, Any]) -> None:
        same = {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in self.state.items()}
        if not same or about["seed"] != self.settings.seed:
            raise GraphError(
                f"the checkpoint in {self.folder} is of another model, optimizer or seed; choose another folder"
            )
        self.plan = replace(self.plan, **about["plan"])
        self.state, self.history = state, History.from_dict(about["history"])
        self.epoch, self.position = about["epoch"], about["position"]


def _sample(feed: Any, rows: int, dtype: Any) -> Array:
    """Return as many rows as a step has, for measuring: the feed's own, or zeros where they are elsewhere."""
    if isinstance(feed, Chunked):
        return np.zeros((rows, feed.form.dim), dtype)
    return feed

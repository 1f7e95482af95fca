"""The trainer: epochs of mini-batches, submitted in windows ahead of their results."""

from __future__ import annotations

import math
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.errors import FeedError, FlowgradError, GraphError
from flowgrad.jacobian import Array
from flowgrad.node import Node, Variable
from flowgrad.optimizers import Optimizer, warn_independent

from . import blocks
from .checkpoint import prepare_folder, read_checkpoint, write_checkpoint
from .engine import Engine
from .executors import Handle
from .feeds import Feeds, check_feeds
from .fuse import Layout
from .history import History
from .lower import flat_values
from .lower_train import Given, compile_evaluation, compile_step, epoch_batches, lower_window
from .plan import Plan, choose_plan
from .tasks import Ref, TaskGraph, token
from .tree import bounds

# Windows that are submitted before the first of them is waited for.
LOOK_AHEAD = 3
# Samples in one task of an evaluation.
EVALUATION_SAMPLES = 5000


class Trainer:
    """Trains the variables of an optimizer's graph over many samples.

    Parameters
    ----------
    optimizer : Optimizer
        Holds graph, loss, update rule and batch size.
    engine : Engine, optional
        Where to run; ``Engine(None)`` if not given.
    shuffle : bool
        Whether each epoch takes the samples in another order, drawn from `seed` and the epoch's number.
    seed : int
    callbacks : iterable
        Objects with any of the methods ``on_train_begin(info)``, ``on_steps(info)``, ``on_epoch(record)``,
        ``on_train_end(history)``; `info` and `record` are dicts.

    Examples
    --------
    >>> import flowgrad as fg, numpy as np
    >>> with fg.Graph(seed=0) as graph:
    ...     x, label = fg.Variable(2, trainable=False), fg.Variable(1, trainable=False)
    ...     y = fg.Dot(fg.Variable(2, True, name="w"), x)
    ...     loss = fg.MeanSquaredError(y, label)
    >>> X = np.random.default_rng(0).normal(size=(64, 2))
    >>> trainer = fg.Trainer(fg.GradientDescent(graph, loss, 0.1, batch_size=8), fg.Engine("sync"))
    >>> history = trainer.fit({x: X, label: X @ [1.0, -2.0]}, epochs=20)
    >>> trainer.evaluate({x: X, label: X @ [1.0, -2.0]})["loss"] < 1e-6
    True
    """

    def __init__(
        self,
        optimizer: Optimizer,
        engine: Engine | None = None,
        shuffle: bool = True,
        seed: int = 0,
        callbacks: Iterable[Any] = (),
    ):
        if not isinstance(optimizer, Optimizer):
            raise GraphError(f"the trainer needs an optimizer such as fg.Adam(graph, loss), not {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.engine = Engine() if engine is None else engine
        self.shuffle = bool(shuffle)
        self.seed = int(seed)
        self.callbacks = tuple(callbacks)

    def fit(
        self,
        feeds: Mapping[Any, Any],
        epochs: int = 6,
        validation: Mapping[Any, Any] | None = None,
        checkpoint: Any = None,
        resume: bool = False,
    ) -> History:
        """Train; afterwards the variables hold the trained values.

        Parameters
        ----------
        feeds : dict
            ``{variable: array (N, dim)}``; class indices ``(N,)`` for a label of dim > 1.
        epochs : int
            Passes over the samples; the last mini-batch of a pass may be smaller and weighs its own samples.
        validation : dict, optional
            Feeds to evaluate before the first and after each epoch.
        checkpoint : path, optional
            A folder; after each epoch a checkpoint is written there.
        resume : bool
            Go on from the last checkpoint in that folder, if there is one.

        Returns
        -------
        History

        Raises
        ------
        FeedError, GraphError
            Before anything runs or changes, if something does not fit.
        FlowgradError
            If the loss becomes nan or inf; the variables keep the values that they had before.
        """
        if isinstance(epochs, bool) or not isinstance(epochs, (int, np.integer)) or epochs < 1:
            raise GraphError(f"epochs must be a positive integer, not {epochs!r}")
        if resume and checkpoint is None:
            raise GraphError("resume=True needs checkpoint=folder, the folder to go on from")
        run = _Run(self, feeds, validation, None if checkpoint is None else prepare_folder(Path(checkpoint)))
        try:
            return run.train(int(epochs), resume)
        finally:
            run.close()

    def evaluate(self, feeds: Mapping[Any, Any]) -> dict[str, float]:
        """Return the mean loss over the samples and, for a cross entropy, the accuracy.

        Parameters
        ----------
        feeds : dict

        Returns
        -------
        dict
            ``"loss"`` and, where the loss is `CrossEntropyWithSoftMax`, ``"accuracy"`` between 0 and 1.
        """
        target = self.optimizer.target
        checked = check_feeds(target.graph, feeds, self.engine.dtype)
        evaluation = _Evaluation(self, checked, [])
        try:
            return evaluation.result(evaluation.submit(None))
        finally:
            evaluation.close()

    def predict(self, node: Node, feeds: Mapping[Any, Any]) -> Array:
        """Return the values ``(N, node.dim)`` of a node for every sample; the same as ``engine.forward``."""
        return self.engine.forward(node, feeds)

    def _call(self, method: str, *args: Any) -> None:
        for callback in self.callbacks:
            found = getattr(callback, method, None)
            if found is not None:
                found(*args)


class _Run:
    """One call of `fit`: what is placed on the executor, and the state that moves on."""

    def __init__(self, trainer: Trainer, feeds: Any, validation: Any, folder: Path | None):
        self.trainer, self.folder = trainer, folder
        optimizer = trainer.optimizer
        self.rule = optimizer.rule
        self.executor = trainer.engine.executor
        graph, target = optimizer.graph, optimizer.target
        self.feeds = check_feeds(graph, feeds, trainer.engine.dtype)
        if self.feeds.samples < optimizer.batch_size:
            raise FeedError(
                f"the batch size {optimizer.batch_size} is larger than the data: {self.feeds.samples} samples; choose at most {self.feeds.samples}"
            )
        checked = None if validation is None else check_feeds(graph, validation, self.feeds.dtype)
        self.variables = optimizer.variables(without=self.feeds.arrays)
        warn_independent(target, self.variables)
        self.salt = uuid.uuid4().hex
        self.held: list[Handle] = []
        self.step = compile_step(target, self.feeds, self.variables, "shard")
        self.state = self._first_state()
        self.plan = self._plan()
        layout = self.step.program.layout
        if self.plan.grain == "node":
            self.step = compile_step(target, self.feeds, self.variables, "node", layout)
        self.given = self._place()
        self.evaluation = None if checked is None else _Evaluation(trainer, checked, self.variables, layout)
        self.state_handle = self._hold({f"state-{token(self.salt)}": self.state})[0]
        self.state_ref = Ref(self.state_handle.key)

    # -- what is placed -----------------------------------------------------------------------------------------

    def _first_state(self) -> dict[str, Array]:
        w = flat_values(self.step.program, self.trainer.optimizer.graph, "param", self.feeds.dtype)[0]
        state = self.rule.init(w)
        before = self.trainer.optimizer.state
        if before is not None:
            for slot in self.rule.slots:
                self._copy(before[slot], state[slot])
            state["t"] = before["t"].copy()
        return {"w": w, **state}

    def _copy(self, ordered: Array, flat: Array, back: bool = False) -> None:
        """Copy between the order of the variables and the order of a program's flat vector."""
        start = 0
        for v in self.variables:
            stop = start + v.dim
            if v.index in self.step.program.layout:
                _, lo, hi = self.step.program.layout[v.index]
                if back:
                    ordered[start:stop] = flat[lo:hi]
                else:
                    flat[lo:hi] = ordered[start:stop]
            start = stop

    def _plan(self) -> Plan:
        step = self.step
        engine, batch_size = self.trainer.engine, self.trainer.optimizer.batch_size
        arrays = [self.feeds.arrays[v] for v in step.fed]
        const = self._const()
        rows = np.arange(batch_size)
        best = math.inf
        for _ in range(4):
            start = time.perf_counter()
            blocks.run_round(step.program, step.names, self.rule, self.state, const, arrays, [[rows]])
            best = min(best, time.perf_counter() - start)
        nodes = 3 * len(self.trainer.optimizer.graph.nodes)
        return choose_plan(engine.grain, engine.shards, batch_size, best, self.executor.task_seconds(), nodes)

    def _const(self) -> Array | None:
        if not self.step.program.size("const"):
            return None
        return flat_values(self.step.program, self.trainer.optimizer.graph, "const", self.feeds.dtype)

    def _place(self) -> Given:
        values: dict[str, Any] = {f"program-{token(self.salt)}": self.step.program}
        const = self._const()
        if const is not None:
            values[f"const-{token(self.salt)}"] = const
        for v in self.step.fed:
            values[f"feed-{token(self.salt, v.index)}"] = self.feeds.arrays[v]
        refs = [Ref(h.key) for h in self._hold(values, replicate=True)]
        rest = refs[1:]
        return Given(refs[0], rest.pop(0) if const is not None else None, rest)

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

    def train(self, epochs: int, resume: bool) -> History:
        """Run the epochs that are left."""
        history = History(self.plan.as_dict())
        first = 0
        if resume and self.folder is not None:
            found = read_checkpoint(self.folder)
            if found is not None:
                history, first = self._resume(*found)
        batches = -(-self.feeds.samples // self.trainer.optimizer.batch_size)
        info = {"plan": history.plan, "samples": self.feeds.samples, "epochs": epochs, "steps": batches * epochs}
        self.trainer._call("on_train_begin", info)
        self.start = time.perf_counter()
        if self.evaluation is not None and not history.epochs:
            scores = self.evaluation.result(self.evaluation.submit(self.state_ref))
            self._record(history, 0, math.nan, scores, 0.0)
        for epoch in range(first + 1, epochs + 1):
            self._epoch(history, epoch, info)
        self._store()
        self.trainer._call("on_train_end", history)
        return history

    def _epoch(self, history: History, epoch: int, info: dict[str, Any]) -> None:
        began = time.perf_counter()
        rows = epoch_batches(
            self.feeds.samples, self.trainer.optimizer.batch_size, self.trainer.shuffle, self.trainer.seed, epoch
        )
        waiting: deque[tuple[Handle, list[Array]]] = deque()
        total = 0.0
        size = self.plan.steps_per_window
        for k in range(0, len(rows), size):
            waiting.append((self._submit(rows[k : k + size]), rows[k : k + size]))
            if len(waiting) > LOOK_AHEAD:
                total += self._finish(history, epoch, info, *waiting.popleft())
        while waiting:
            total += self._finish(history, epoch, info, *waiting.popleft())
        scores = {} if self.evaluation is None else self.evaluation.result(self.evaluation.submit(self.state_ref))
        self._record(history, epoch, total / self.feeds.samples, scores, self.feeds.samples / (time.perf_counter() - began))
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

    def _finish(self, history: History, epoch: int, info: dict[str, Any], handle: Handle, batches: list[Array]) -> float:
        """Wait for the losses of a window; return the sum of the losses of its samples."""
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
        self.trainer._call(
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
        return float(sum(loss * len(rows) for loss, rows in zip(losses, batches)))

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
        self.trainer._call("on_epoch", dict(record))

    # -- results ------------------------------------------------------------------------------------------------

    def _store(self) -> None:
        """Bring the final state here and give it to the variables and the optimizer."""
        state = self.executor.result([self.state_handle])[0]
        for v in self.variables:
            if v.index in self.step.program.layout:
                _, start, stop = self.step.program.layout[v.index]
                v._assign(np.array(state["w"][None, start:stop], np.float64))
        ordered = self.rule.init(np.zeros(sum(v.dim for v in self.variables), self.feeds.dtype))
        for slot in self.rule.slots:
            self._copy(ordered[slot], state[slot], back=True)
        self.trainer.optimizer.state = {**ordered, "t": state["t"].copy()}

    def _checkpoint(self, history: History, epoch: int) -> None:
        assert self.folder is not None
        about = {"epoch": epoch, "seed": self.trainer.seed, "history": history.as_dict(), "plan": self.plan.as_dict()}
        write_checkpoint(self.folder, epoch, self.executor.result([self.state_handle])[0], about)

    def _resume(self, state: dict[str, Array], about: dict[str, Any]) -> tuple[History, int]:
        same = {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in self.state.items()}
        if not same or about["seed"] != self.trainer.seed:
            raise GraphError(f"the checkpoint in {self.folder} is of another model, optimizer or seed; choose another folder")
        self.plan = replace(self.plan, **about["plan"])
        handle = self._hold({f"state-{token(self.salt, about['epoch'])}": state})[0]
        self.state_handle, self.state_ref = handle, Ref(handle.key)
        return History.from_dict(about["history"]), about["epoch"]


class _Evaluation:
    """Loss and accuracy over checked feeds, placed once and computed for any state."""

    def __init__(self, trainer: Trainer, feeds: Feeds, variables: list[Variable], layout: Layout | None = None):
        optimizer = trainer.optimizer
        self.executor = trainer.engine.executor
        self.samples = feeds.samples
        self.step = compile_evaluation(optimizer.target, feeds, variables, layout)
        salt = uuid.uuid4().hex
        values: dict[str, Any] = {f"program-{token(salt)}": self.step.program}
        const = None
        if self.step.program.size("const"):
            const = flat_values(self.step.program, optimizer.graph, "const", feeds.dtype)
            values[f"const-{token(salt)}"] = const
        self.shards = bounds(feeds.samples, -(-feeds.samples // EVALUATION_SAMPLES))
        for v in self.step.fed:
            for start, stop in self.shards:
                values[f"feed-{token(salt, v.index, start)}"] = feeds.arrays[v][start:stop]
        self.handles = self.executor.put(values)
        refs = [Ref(h.key) for h in self.handles]
        self.program = refs.pop(0)
        self.const = refs.pop(0) if const is not None else None
        n = len(self.shards)
        self.feeds = [[refs[k * n + s] for k in range(len(self.step.fed))] for s in range(n)]

    def submit(self, state: Ref | None) -> list[Handle]:
        """Start evaluating at a state; None: the program has no parameters."""
        graph = TaskGraph()
        keys = [
            graph.task("evaluate", blocks.evaluate_shard, self.program, state, self.const, feeds).key for feeds in self.feeds
        ]
        return self.executor.submit(graph.records, keys)

    def result(self, handles: list[Handle]) -> dict[str, float]:
        """Wait for the shards and add them up."""
        parts = self.executor.result(handles)
        self.executor.release(handles)
        scores = {"loss": math.fsum(p[0] for p in parts) / self.samples}
        if all(p[1] >= 0 for p in parts):
            scores["accuracy"] = sum(p[1] for p in parts) / self.samples
        return scores

    def close(self) -> None:
        """Let go of the feeds."""
        self.executor.release(self.handles)
        self.handles = []

"""One call of `fit`: the course of its epochs, what callbacks answer, and its checkpoints."""

from __future__ import annotations

import math
import time
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np

from flowgrad.errors import ClusterError, FlowgradError
from flowgrad.files import checked_record, same_version
from flowgrad.typing import Array

from ..costs import Plan, idle_workers
from ..feeds import Batches, Epoch, Placement
from ..machine import Interrupts
from ..telling import teller_of
from ..windows import Windows
from .callbacks import KEEP, STOP, Signal
from .checkpoint import Saver, Snapshot, check_same_run, read_checkpoint, restored_rule, rule_settings
from .estimate import plan_training
from .evaluation import Evaluation, Statistics, measured_nodes
from .history import History, StepLosses
from .job import Settings, TrainingJob
from .mirror import Mirror


class Run:
    """One call of `fit`.

    Attributes
    ----------
    epoch, position : int
        Where `windows.state` stands: epochs that are complete, and steps of the next one.
    kept : dict
        The state that a callback kept; empty if none did.
    measured : int
        Epochs after which `windows.state` has what training measures, see `Statistics`.
    telling : bool
        Whether a callback is being called, or raised something.
    """

    def __init__(
        self,
        settings: Settings,
        feeds: Any,
        validation: Any,
        saver: Saver | None,
        epochs: int,
        resume: bool,
        interrupts: Interrupts,
        mirror: Mirror,
        weights: tuple[Any, Any],
    ):
        self.settings, self.saver, self.epochs, self.interrupts = settings, saver, epochs, interrupts
        self.mirror, self.telling = mirror, False
        self.job = job = TrainingJob(settings, feeds, epochs, *weights)
        target = settings.optimizer.target
        pair = isinstance(validation, tuple) and len(validation) == 2
        of, weight = validation if pair else (validation, None)
        checked = None if of is None else settings.checked(of, job.feeds.dtype, "validation", sample_weight=weight)
        layout = job.step.program.layout
        self.epoch = self.position = 0
        self.before = self.measured = settings.optimizer.epochs
        self.identity = {} if saver is None else job.identity  # whatever callbacks make of the rule
        self.kept: dict[str, Array] = {}
        state = job.state
        checkpoint = read_checkpoint(saver.folder) if saver is not None and resume else None
        self.resumed = checkpoint is not None
        if checkpoint is None:
            self.plan = plan_training(job)
            self.history = History(self.plan.as_dict())
        else:
            assert saver is not None
            check_same_run(saver.folder, checkpoint.about.get("run", {}), self.identity)
            with same_version(f"the checkpoint in {saver.folder}"):
                state = self._go_on(checkpoint)
        job.follow(self.plan)
        self.steps_per_epoch = self._batches(1).epoch.steps
        self.placement = Placement(job.executor, job.step, *job.reads())
        held = job.variables, layout, settings.metrics
        self.evaluation = None if checked is None else Evaluation(settings.engine, target, checked, *held)
        self.seen = Evaluation(settings.engine, target, job.feeds, *held) if settings.metrics else None
        nodes = measured_nodes(job)
        self.statistics = Statistics(settings.engine, job, nodes, job.feeds) if nodes else None
        if self.statistics is not None and checkpoint is None and not self.before:
            state = self.statistics.begin(state)
        # A checkpoint of workers that shared their steps may go on where there are none: rounds have the same bits.
        alone = "collective" in (self.plan.grain, self.plan.other) and not job.executor.remote
        plan = replace(self.plan, grain="round", other="") if alone else self.plan
        # Made last: it holds the state that moves on.
        self.windows = Windows(self.placement, plan, job.step, state, self._report, self._recovered)
        self.teller = teller_of(self)

    def _batches(self, epoch: int) -> Batches:
        settings = self.settings
        number = self.before + epoch
        order = Epoch(self.job.feeds.samples, settings.batch_size, settings.shuffle, settings.seed, number)
        return Batches(order, 0, order.steps, self.plan.shards)

    def _go_on(self, checkpoint: Snapshot) -> dict[str, Array]:
        about = checkpoint.about
        self.kept = checkpoint.kept
        self.plan = checked_record(Plan, about["plan"])
        self.epoch, self.position, self.before = int(about["epoch"]), int(about["position"]), int(about["before"])
        self.measured = int(about["measured"])
        rule = restored_rule(self.job.rule, about["rule"])
        if rule != self.job.rule:  # as callbacks had it
            self.job.take_rule(rule)
            self.settings.optimizer.rule = rule
        self.history = checked_record(History, {**about["history"], "steps": StepLosses(checkpoint.losses)})
        return checkpoint.state

    def close(self) -> None:
        """Let go of everything that is kept on the executor."""
        self.windows.close()
        self.placement.close()
        for sweep in (self.evaluation, self.seen, self.statistics):
            if sweep is not None:
                sweep.close()

    # -- training -----------------------------------------------------------------------------------------------

    def train(self) -> History:
        """Run the epochs that are left."""
        self.mirror.begin(self.job, self.windows.state)
        try:
            self._train()
            self._show(self.kept or self.windows.state)
            self.mirror.close()
            self.settings.callbacks.notify("on_train_end", self.history)
        except BaseException as error:
            self.teller.end(error)
            self.mirror.undo()
            raise
        self.teller.end()
        return self.history

    def _train(self) -> None:
        history = self.history
        if self.resumed or self.statistics is not None:  # it differs from what variables have
            self._show(self.windows.state)
        self.info = {"plan": history.plan, "samples": self.job.feeds.samples, "epochs": self.epochs}
        self.info |= {"steps": self.steps_per_epoch * self.epochs, "validation": self.evaluation is not None}
        executor = self.job.executor
        self.info["hint"] = idle_workers(self.plan, len(executor.workers()), executor.threads)
        past = {"past": [dict(record) for record in history.epochs], "kept_epoch": history.kept_epoch}
        answer = self._ask("on_train_begin", self.info | past | {"optimizer": self.settings.optimizer})
        if KEEP not in answer:
            self.kept, history.kept_epoch = {}, None
        self.start = time.perf_counter()
        try:
            self._epochs(STOP in answer)
        except (KeyboardInterrupt, SystemExit):
            self._checkpoint()
            raise
        except ClusterError as error:
            if self.telling:
                raise  # a callback's, of whatever cluster
            self._checkpoint()
            advice = "a training that is given checkpoint=folder goes on from there"
            if self.saver is not None:
                advice = f"then go on from {self.saver.folder} with resume=True"
            raise ClusterError(f"{error}; {advice}") from error

    def _show(self, state: dict[str, Array]) -> None:
        """Let callbacks, or the user in the end, see a state, and how many epochs were trained in all."""
        self.mirror.show(state, self.before + self.epoch)

    def _notify(self, method: str, about: dict[str, Any]) -> Signal:
        self.telling = True
        answer = self.settings.callbacks.notify(method, about)
        self.telling = False
        self.teller.take(method, about)
        return answer

    def _ask(self, method: str, about: dict[str, Any]) -> Signal:
        """Ask callbacks between epochs; what they change of variables and the optimizer counts."""
        self.mirror.open = True
        try:
            answer = self._notify(method, about)
        finally:
            self.mirror.open = False
        if self.mirror.changed():
            self.placement.change(self.job.step)
            self.windows.change(self.job.step, self.mirror.state)
        return answer

    def _epochs(self, stop: bool) -> None:
        if self.evaluation is not None and not self.history.epochs:
            stop |= self._record(0, {"loss": math.nan}, self.evaluation.scores(self.windows.state), 0.0)
        self.began, self.samples = time.perf_counter(), 0
        if self.epoch and not self.position and all(record["epoch"] < self.epoch for record in self.history.epochs):
            stop |= self._end_of_epoch(self.epoch)  # interrupted between its last step and its record
        while self.epoch < self.epochs and not stop:
            stop = self._epoch(self.epoch + 1)

    def _epoch(self, epoch: int) -> bool:
        """Run what is left of an epoch, the last window ending with it; return whether to stop."""
        batches, size = self._batches(epoch), self.plan.steps_per_window
        k = self.position
        if self.job.ask_rates(int(self.windows.state["t"][0]), len(batches) - k) and self.job.executor.remote:
            self.placement.change(self.job.step)
        with self.job.executor.span(f"epoch {epoch}"):
            while k < len(batches):
                k += self.windows.run(batches[k : k + size], (self.epochs - epoch + 1) * len(batches) - k)
                self.epoch, self.position = (epoch, 0) if k == len(batches) else (epoch - 1, k)
                self.history.window = deepcopy(self.windows.bounds)
                if self.saver is not None and self.position and self.saver.in_epoch():
                    self._checkpoint()
        return self._end_of_epoch(epoch)

    def _report(self, batches: Batches, losses: list[float]) -> None:
        """Take the losses of steps that are done."""
        self.interrupts.check()
        epoch = self.epoch + 1
        history = self.history
        for k, loss in enumerate(losses, len(history.steps) + 1):
            if not math.isfinite(loss):
                raise FlowgradError(
                    f"the loss became {loss} at step {k} (epoch {epoch}): try a smaller learning rate or check the feeds; "
                    f"the variables keep the values that they had before"
                )
            history.steps.losses.append(loss)
        self.samples += batches.samples
        info = {"step": len(history.steps), "steps": self.info["steps"], "epoch": epoch, "samples": batches.samples}
        info |= {"loss": float(np.mean(losses)), "seconds": time.perf_counter() - self.start}
        self._notify("on_steps", info)

    def _recovered(self, about: dict[str, Any]) -> None:
        record = {"step": len(self.history.steps), **about}
        self.history.recoveries.append(record)
        self._notify("on_recovery", dict(record))

    def _end_of_epoch(self, epoch: int) -> bool:
        """Evaluate, record, save; return whether to stop."""
        if not np.isfinite(self.windows.state["w"]).all():  # the last update has no loss after it that would tell
            raise FlowgradError(
                f"the weights became inf or nan in epoch {epoch}: try a smaller learning rate; "
                f"the variables keep the values that they had before"
            )
        if self.statistics is not None and self.measured < self.before + epoch:
            self.windows.change(self.job.step, self.statistics.measure(self.windows.state))
            self.measured = self.before + epoch
        scores = {} if self.evaluation is None else self.evaluation.scores(self.windows.state)
        size, samples = self.settings.batch_size, self.job.feeds.samples
        sizes = [min(size, samples - k) for k in range(0, samples, size)]
        losses = self.history.steps.losses[-len(sizes) :]
        rate = self.samples / (time.perf_counter() - self.began)
        seen = {} if self.seen is None else self.seen.scores(self.windows.state)
        if self.before + epoch == 1:
            self.job.tell_vanished(self.windows.state)
        loss = math.fsum(map(float.__mul__, losses, map(float, sizes))) / samples
        stop = self._record(epoch, {**seen, "loss": loss}, scores, rate)
        self.began, self.samples = time.perf_counter(), 0  # what callbacks take is no training
        last = stop or epoch == self.epochs
        if self.saver is not None and (last or self.saver.after_epoch(epoch)):
            self._checkpoint()
        return stop

    def _record(self, epoch: int, seen: dict[str, Any], scores: dict[str, Any], rate: float) -> bool:
        """Note an epoch, do what callbacks answer, and return whether to stop."""
        names = [m.name for m in self.settings.metrics or ()]
        record = {
            "epoch": epoch,
            "loss": seen["loss"],
            **{name: seen.get(name, math.nan) for name in names},
            "validation_loss": scores.get("loss"),
            "validation_accuracy": scores.get("accuracy"),
            **{f"validation_{name}": scores.get(name) for name in names},
            "seconds": time.perf_counter() - self.start,
            "samples_per_second": rate,
            "learning_rate": self.job.last_rate(int(self.windows.state["t"][0])) if epoch else None,
        }
        # Whoever interrupts a callback is asked again when the run goes on: the record is there only with the answer.
        if epoch:
            self._show(self.windows.state)
        answer = self._ask("on_epoch", dict(record))
        self.history.epochs.append(record)
        if KEEP in answer:
            self.kept, self.history.kept_epoch = self.windows.state, epoch
        return STOP in answer

    def _checkpoint(self) -> None:
        """Write the state after the last window, with what it takes to go on from there, if anything is to be written."""
        if self.saver is None:
            return
        done = self.epoch * self.steps_per_epoch + self.position
        about = {
            "epoch": self.epoch,
            "position": self.position,
            "before": self.before,
            "measured": self.measured,
            "rule": rule_settings(self.job.rule),  # the optimizer's may come of a callback that is asked again
            "run": self.identity,
            "plan": self.plan.as_dict(),
            "history": {**self.history.as_dict(), "steps": []},  # they are an array
        }
        losses = np.array(self.history.steps.losses[:done])
        self.saver.write(done, Snapshot(self.windows.state, self.kept, losses, about))

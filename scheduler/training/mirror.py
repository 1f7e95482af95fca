"""What variables and the optimizer show while a training runs, and what callbacks may change of it."""

from __future__ import annotations

import os
import threading

from flowgrad.errors import GraphError
from flowgrad.graph import Variable
from flowgrad.optim import Optimizer, State

from ..machine import forked_lock
from .job import TrainingJob

_claiming = forked_lock()


class Mirror:
    """Shows a training's latest state in the variables and the optimizer, and takes in what is changed there.

    Values are copied when somebody reads them, and not before. Between epochs callbacks may set trained variables, the optimizer's
    state and its rule; at any other time, and from other threads, setting is refused.

    Attributes
    ----------
    state : dict
        What is shown.
    open : bool
        Whether variables may be set now.
    """

    def __init__(self, optimizer: Optimizer):
        """Claim the optimizer's graph, before anything of it is read."""
        optimizer.check_own_values()
        self.graph, self.optimizer, self.open = optimizer.graph, optimizer, False
        self._thread, self._process = threading.get_ident(), os.getpid()
        self._filling, self._stale = forked_lock(threading.RLock), False
        with _claiming:
            if self.graph._training is not None and self.graph._training.here():
                raise GraphError(f"{self.graph} is being trained already: one call of fit at a time")
            self.graph._training = self
        self._memory = optimizer.memory()

    def begin(self, job: TrainingJob, state: State) -> None:
        """Remember what variables and the optimizer have before the first step."""
        self.job, self.state = job, state
        self._before = [v._value for v in job.variables]
        read = (v for v in self.graph.nodes if isinstance(v, Variable) and v not in job.feeds.arrays)
        self._trainable = {v: v.trainable for v in read}
        self._rule = self.optimizer.rule

    def leave(self) -> None:
        """Give the graph free."""
        if self.graph._training is self:
            self.graph._training = None

    def show(self, state: State, epochs: int) -> None:
        """Let variables and the optimizer have this state, that of so many epochs, from now on."""
        self.state, self._stale = state, True
        self.optimizer.count(epochs)
        self.graph._pending = self._fill
        self.graph._outdate(self.job.variables)
        self.optimizer.provide(self._fill)

    def _fill(self) -> None:
        with self._filling:
            if self._stale:
                self._stale = False
                self.job.store(self.state)
                self._forget()

    def _forget(self) -> None:
        self.graph._pending = None
        self.optimizer.provide(None)

    def here(self) -> bool:
        """Whether it is this process that trains, and not one that this one was forked from meanwhile."""
        return os.getpid() == self._process

    def check(self, variable: Variable) -> None:
        """Refuse to set a variable where that could not count.

        Raises
        ------
        GraphError
        """
        if not self.here():
            return
        if threading.get_ident() != self._thread:
            raise GraphError(
                f"{variable} cannot be set by another thread while its graph is being trained: wait for fit"
            )
        if not self.open:
            raise GraphError(
                f"{variable} cannot be set in the middle of an epoch: do it in on_epoch, or before or after fit"
            )
        if variable not in self.job.variables:
            raise GraphError(
                f"{variable} is no trained variable of this training, which has read it already: set it before or after fit"
            )

    def changed(self) -> bool:
        """Take in what callbacks have set; return whether anything differs from what was shown."""
        rule, different = self.optimizer.rule, False
        if rule is not self._rule:
            if (type(rule), rule.slots) != (type(self._rule), self._rule.slots):
                was, wanted = (f"{type(r).__name__} ({', '.join(r.slots) or 'no state'})" for r in (self._rule, rule))
                raise GraphError(
                    f"the rule of {self.optimizer} was {was} when fit began, it cannot become {wanted} meanwhile: another one "
                    f"has another state"
                )
            self.job.take_rule(rule)
            self._rule, different = rule, True
        other = next((v for v, before in self._trainable.items() if v.trainable != before), None)
        if other is not None:
            what = "not being trained" if other.trainable else "being trained"
            raise GraphError(f"{other} is {what}: set its trainable before or after fit")
        if not self._stale:  # somebody read it, and may have changed it, arrays of the state in place too
            now = self.job.first_state()
            different |= any(now[k].tobytes() != self.state[k].tobytes() for k in now)
            self.state = now
        return different

    def close(self) -> None:
        """Leave variables as they are; anybody may set them again."""
        self._fill()
        self.leave()

    def undo(self) -> None:
        """Give variables and the optimizer back what they had before."""
        self._stale = False
        self._forget()
        for v, value in zip(self.job.variables, self._before):
            v._value = value
        self.graph._outdate(self.job.variables)
        self.optimizer.restore(self._memory)
        self.leave()

"""What a call of `fit` begins with: checked feeds, the step as a program, the first state, the plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from flowgrad.graph import Variable
from flowgrad.optim import Optimizer, warn_independent
from flowgrad.typing import Array

from ..costs import Fit, Plan
from ..engine import Engine
from ..feeds import Feeds, check_batch_size, check_feeds
from ..programs import flat_values
from ..steps import compile_private, compile_step
from .callbacks import Callbacks
from .checkpoint import describe_model, describe_rule


@dataclass(frozen=True)
class Settings:
    """What the user chose for a trainer."""

    optimizer: Optimizer
    engine: Engine
    shuffle: bool
    seed: int
    callbacks: Callbacks
    fit: Fit
    accumulate: int = 1

    @property
    def batch_size(self) -> int:
        """Samples of one update."""
        return self.optimizer.batch_size * self.accumulate


class TrainingJob:
    """The step of a training run, made ready.

    Parameters
    ----------
    feeds : dict
        As the user gave them.

    Attributes
    ----------
    variables : list of Variable
        Those that are trained.
    step : Step
        For the grain of the plan, once `follow` was called.
    state : dict
        Flat parameters and optimizer state to begin with.
    """

    def __init__(self, settings: Settings, feeds: Any, epochs: int):
        self.settings, self.epochs = settings, epochs
        optimizer = settings.optimizer
        self.rule, self.executor = optimizer.rule, settings.engine.executor
        self.feeds: Feeds = check_feeds(optimizer.graph, feeds, settings.engine.dtype, lazy=True)
        check_batch_size(optimizer.batch_size, self.feeds.samples, settings.accumulate)
        self.variables = optimizer.variables(without=self.feeds.arrays)
        warn_independent(optimizer.target, self.variables)
        step = compile_step(optimizer.target, self.feeds, self.variables, "shard")
        self.step = compile_private(step, optimizer.target, self.feeds, self.variables, optimizer.privacy)
        self.state = self._first_state()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes the run what it is; see `check_same_run`."""
        settings = self.settings
        return {
            "model": describe_model(settings.optimizer.target, self.step.program.size("param")),
            "optimizer": describe_rule(self.rule),
            "seed": settings.seed,
            "shuffle": settings.shuffle,
            "batch_size": settings.optimizer.batch_size,
            "accumulate": settings.accumulate,
            "private": str(settings.optimizer.privacy),  # without the seed of its noise
            "samples": self.feeds.samples,
            "dtype": self.feeds.dtype.name,
        }

    # -- state --------------------------------------------------------------------------------------------------

    def _first_state(self) -> dict[str, Array]:
        w = flat_values(self.step.program, self.settings.optimizer.graph, "param", self.feeds.dtype)[0]
        state = self.rule.init(w)
        before = self.settings.optimizer.state_now()
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

    def store(self, state: dict[str, Array]) -> None:
        """Give a state to the variables and the optimizer."""
        for v in self.variables:
            if v.index in self.step.program.layout:
                _, start, stop = self.step.program.layout[v.index]
                v._assign(np.array(state["w"][None, start:stop], np.float64))
        every = sum(v.dim for v in self.settings.optimizer.variables())
        ordered = dict(self.settings.optimizer.state_now() or self.rule.init(np.zeros(every, self.feeds.dtype)))
        for slot in self.rule.slots:
            ordered[slot] = ordered[slot].copy()
            self._copy(ordered[slot], state[slot], back=True)
        self.settings.optimizer.keep({**ordered, "t": state["t"].copy()})

    def follow(self, plan: Plan) -> None:
        """Make the step what the plan needs."""
        self.step = replace(self.step, compiled=plan.kernel == "numba")
        if plan.grain == "node":
            target, layout = self.settings.optimizer.target, self.step.program.layout
            step = compile_step(target, self.feeds, self.variables, "node", layout)
            self.step = replace(step, private=self.step.private)

    # -- what its tasks read ------------------------------------------------------------------------------------

    def fed(self) -> list[Any]:
        """Return the feeds in the order of the step."""
        nodes = self.settings.optimizer.graph.nodes
        variables = (nodes[k] for k in self.step.fed)
        return [self.feeds.arrays[v] for v in variables if isinstance(v, Variable)]

    def const(self) -> Array | None:
        """Return the flat vector of constants, None where there are none."""
        if not self.step.program.size("const"):
            return None
        return flat_values(self.step.program, self.settings.optimizer.graph, "const", self.feeds.dtype)

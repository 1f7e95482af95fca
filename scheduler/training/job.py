"""What a call of `fit` begins with: checked feeds, the step as a program, the first state, the plan."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from flowgrad.graph import Variable
from flowgrad.optim import Optimizer, warn_independent
from flowgrad.typing import Array

from ..costs import ROUND_SECONDS, Fit, Plan, choose_grain, choose_plan, choose_round_threads
from ..engine import Engine
from ..feeds import Chunked, Feeds, check_batch_size, check_feeds
from ..kernels import compiled_round
from ..machine import one_thread
from ..programs import flat_values
from ..steps import compile_private, compile_step, run_round
from ..tasks import bounds
from .callbacks import Callbacks
from .checkpoint import describe_model, describe_rule
from .estimate import case_of, choose_arithmetic, measured_costs


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


class Job:
    """The step of a training run, made ready.

    Parameters
    ----------
    settings : Settings
    feeds : dict
        As the user gave them.
    epochs : int

    Attributes
    ----------
    feeds : Feeds
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

    # -- plan ---------------------------------------------------------------------------------------------------

    def choose(self) -> Plan:
        """Return a plan, from the work and from what a step takes."""
        optimizer, engine, settings = self.settings.optimizer, self.settings.engine, self.settings
        shards, kernel = choose_arithmetic(self.step, optimizer, engine, self.feeds.samples, self.epochs)
        shards *= settings.accumulate  # accumulating gradients is having more shards, of the same size
        self.step = replace(self.step, compiled=kernel[0] == "numba")
        rows = [np.arange(start, stop) for start, stop in bounds(settings.batch_size, shards)]
        executor, costs = engine.executor, {}
        seconds = shared = self._step_seconds(rows, executor.threads)
        threads = choose_round_threads(executor.threads, executor.machine_threads(executor.workers()), seconds)
        if threads > executor.threads and engine.grain in ("auto", "round"):
            shared = self._step_seconds(rows, threads)
        if self.step.compiled:
            code = compiled_round(self.step.program, self.step.names, self.rule, self.feeds.dtype)
            kernel = (kernel[0], code.told)
        if engine.grain == "auto" and shards > 1:
            fixed = self._step_seconds([shard[:1] for shard in rows], executor.threads)
            case = case_of(self.step, optimizer, self.feeds, shards, settings.batch_size)
            costs = measured_costs(case, self.step.compiled, seconds, fixed, shared, executor, settings.fit)
        return choose_plan(
            choose_grain(engine.grain, costs), shards, kernel, shared, len(optimizer.graph.nodes), threads
        )

    def follow(self, plan: Plan) -> None:
        """Make the step what the plan needs."""
        self.step = replace(self.step, compiled=plan.kernel == "numba")
        if plan.grain == "node":
            target, layout = self.settings.optimizer.target, self.step.program.layout
            step = compile_step(target, self.feeds, self.variables, "node", layout)
            self.step = replace(step, private=self.step.private)

    def _step_seconds(self, shards: list[Array], threads: int) -> float:
        """Measure one optimizer step in one task by some threads; several at a time where one is too short to measure."""
        rows = 1 + max(int(shard.max(initial=0)) for shard in shards)  # compiled kernels do not check
        arrays = [_sample(feed, rows, self.feeds.dtype) for feed in self.fed()]
        best, steps, spent = math.inf, 1, 0.0
        for tries in range(6 if self.settings.engine.grain == "auto" else 3):  # a choice hangs on it, or only a length
            start = time.perf_counter()
            with one_thread():
                many = [shards] * steps
                run_round(self.step, self.rule, (self.state, []), self.const(), arrays, many, threads)
            seconds = time.perf_counter() - start
            best = min(best, seconds / steps)
            steps = max(1, min(32, int(0.01 / best)))
            spent += seconds if tries else 0.0  # the first one may compile
            if tries and spent > ROUND_SECONDS:
                break
        return best

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


def _sample(feed: Any, rows: int, dtype: Any) -> Array:
    """Return at least so many rows, for measuring: the feed's own, or zeros where they are elsewhere."""
    if isinstance(feed, Chunked):
        return np.zeros((rows, feed.form.dim), dtype)
    return feed

"""What a call of `fit` begins with: checked feeds, the step as a program, the first state, the plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from flowgrad.errors import GraphError, warn
from flowgrad.graph import ancestors
from flowgrad.inputs import frozen
from flowgrad.optim import Asked, Optimizer, Rule, is_own, warn_doubtful
from flowgrad.typing import Array

from ..costs import Fit, Plan
from ..engine import Engine
from ..feeds import Chunked, Feeds, check_batch_size, check_feeds, check_labels, describe_data, owned
from ..machine import one_thread
from ..programs import flat_values
from ..steps import (
    WEIGHTS,
    Metric,
    Step,
    compile_private,
    compile_step,
    labels_of,
    places_of,
    row_tables,
    shard_step,
    vanished,
    weighted,
)
from .callbacks import Callbacks
from .checkpoint import describe_model, describe_rule

# Samples whose gradient is looked at after the first epoch.
LOOKED_AT = 256
# Mean loss below which gradients may be zero for a good reason.
LEARNT = 1e-6


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
    metrics: tuple[Metric, ...] | None = None

    @property
    def batch_size(self) -> int:
        """Samples of one update."""
        return self.optimizer.batch_size * self.accumulate

    def checked(
        self,
        feeds: Any,
        dtype: Any,
        what: str = "feeds",
        training: bool = True,
        sample_weight: Any = None,
        class_weight: Any = None,
    ) -> Feeds:
        """Return checked feeds; for the length of a training copies, as workers have, where callbacks may write to what was fed."""
        target = self.optimizer.target
        checked = check_feeds(target.graph, feeds, dtype, True, self.engine.executor, what)
        checked = check_labels(checked, labels_of(target, checked))
        checked = owned(checked, feeds) if training and self.callbacks.own else checked
        return weighted(target, checked, sample_weight, class_weight, self.engine.executor)


class TrainingJob:
    """The step of a training run, made ready from feeds as the user gave them.

    Attributes
    ----------
    variables : list of Variable
        Those that are trained.
    step : Step
        For the grain of the plan, once `follow` was called.
    state : dict
        Flat parameters and optimizer state to begin with.
    """

    def __init__(
        self, settings: Settings, feeds: Any, epochs: int, sample_weight: Any = None, class_weight: Any = None
    ):
        self.settings, self.epochs = settings, epochs
        optimizer = settings.optimizer
        self.rule, self.executor = optimizer.rule, settings.engine.executor
        if optimizer.privacy is not None and not (sample_weight is None and class_weight is None):
            raise GraphError(
                "differentially private steps bound what each sample adds, and take neither sample_weight nor class_weight"
            )
        if optimizer.privacy is not None and any(n.measured_slots for n in ancestors(optimizer.target)):
            raise GraphError(
                "a BatchNorm's mean and variance are of all training samples, so differentially private steps cannot hide any: "
                "use GroupNorm"
            )
        self.feeds = settings.checked(feeds, settings.engine.dtype, "feeds", True, sample_weight, class_weight)
        check_batch_size(optimizer.batch_size, self.feeds, settings.accumulate)
        self.variables = optimizer.variables(without=self.feeds.arrays)
        warn_doubtful(optimizer.target, self.variables)
        optimizer.try_rule(self.feeds.dtype)
        step = compile_step(optimizer.target, self.feeds, self.variables, "shard", seed=settings.seed)
        self.step = compile_private(step, optimizer.target, self.feeds, self.variables, optimizer.privacy)
        self.state = self.first_state()
        t = int(self.state["t"][0]) + 1
        self._rates = Asked(t, [Rule.rate(self.rule, t)])  # the first one is enough for a plan
        self.take_rule(self.rule)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes the run what it is; see `check_same_run`."""
        settings = self.settings
        return {
            "model": describe_model(settings.optimizer.target, self.step.program.size("param")),
            "optimizer": describe_rule(self.rule),
            "rates": str(settings.optimizer.learning_rates) if settings.optimizer.learning_rates else None,
            "seed": settings.seed,
            "shuffle": settings.shuffle,
            "batch_size": settings.optimizer.batch_size,
            "accumulate": settings.accumulate,
            "private": str(settings.optimizer.privacy),  # without the seed of its noise
            "samples": self.feeds.samples,
            "dtype": self.feeds.dtype.name,
            "data": describe_data(
                self.feeds, {*ancestors(settings.optimizer.target), WEIGHTS}, settings.optimizer.privacy is not None
            ),
        }

    # -- state --------------------------------------------------------------------------------------------------

    def first_state(self) -> dict[str, Array]:
        """Return what variables and the optimizer have now."""
        w = flat_values(self.step.program, self.settings.optimizer.graph, "param", self.feeds.dtype)[0]
        state = self.rule.begin(w)
        before, every = self.settings.optimizer.state_now(), self.settings.optimizer.variables()
        order = places_of(self.step.program, every)
        rates = self.settings.optimizer.rates(every)
        if rates is not None:
            state["rates"] = rates[order].astype(self.feeds.dtype)
        if before is not None:
            for slot in self.rule.slots:
                state[slot][:] = before[slot][order]
            state["t"] = before["t"].copy()
        return {"w": w, **state}

    def store(self, state: dict[str, Array]) -> None:
        """Give a state to the variables and the optimizer."""
        layout = self.step.program.layout
        for v in self.variables:
            if v.index in layout:
                _, start, stop = layout[v.index]
                v._value = frozen(np.array(state["w"][None, start:stop], np.float64))
        self.settings.optimizer.graph._outdate(self.variables)
        every = self.settings.optimizer.variables()
        ordered = self.settings.optimizer.state_now() or self.settings.optimizer.first_state(self.feeds.dtype)
        order = places_of(self.step.program, every)
        for slot in self.rule.slots:
            ordered[slot] = ordered[slot].copy()
            ordered[slot][order] = state[slot]
        self.settings.optimizer.keep({**ordered, "t": state["t"].copy()})

    def tell_vanished(self, state: dict[str, Array]) -> None:
        """Warn if the gradient of some samples has vanished for most parameters: no number of epochs would help."""
        const, feeds = self.reads()
        if any(isinstance(feed, Chunked) for feed in feeds) or self.step.private is not None:
            return
        rows = np.arange(min(LOOKED_AT, self.feeds.samples))
        with one_thread():
            gradient, loss = shard_step(replace(self.step, tables=()), state, const, feeds, rows, len(rows))
        used, layout = ancestors(self.settings.optimizer.target), self.step.program.layout
        trained = (v for v in self.variables if v.trainable and v in used and v.index in layout)
        places = {v: layout[v.index][1:] for v in trained}
        faint = vanished(gradient, places)
        if faint and not gradient.any() and abs(loss) > LEARNT:
            warn(
                "all gradients are 0 after the first epoch, and the net learns nothing: let variables begin with other values than "
                "zeros, such as normal(0, 1 / sqrt(inputs))"
            )
        elif faint and gradient.any():
            first = next(iter(faint))
            names = ", ".join(repr(v.name) for v in list(faint)[:5]) + (", ..." if len(faint) > 5 else "")
            warn(
                f"gradients have vanished in the first epoch: that of {first.name!r} is {faint[first]:.0e} of the largest, and "
                f"{names} learn nothing; let them begin with larger values, such as normal(0, 1 / sqrt(inputs))"
            )

    def take_rule(self, rule: Rule) -> None:
        """Let steps be made by a rule from now on."""
        self.rule = rule
        if is_own(rule.learning_rate):
            rule = replace(rule, learning_rate=self._rates)
        self.step = replace(self.step, rule=rule)
        self.step = replace(
            self.step, tables=row_tables(self.step, self.settings.optimizer.target, self.settings.batch_size)
        )

    def ask_rates(self, t: int, steps: int) -> bool:
        """Ask a learning rate that is a function for the `steps` updates after update `t`; return whether steps had other ones.

        It is asked here, once before each epoch: what it reads may change, and workers have a copy of that.
        """
        if self.step.rule is self.rule:
            return False
        updates = range(t + 1, t + steps + 1)
        rates = [Rule.rate(self.rule, k) for k in updates]
        other = rates != [self._rates(k) for k in updates]
        self._rates.first, self._rates.rates = t + 1, rates
        return other

    def last_rate(self, t: int) -> float:
        """Return the learning rate of an update that was made; nobody's function is asked for it again."""
        return self.step.rule.rate(t)

    def follow(self, plan: Plan) -> None:
        """Make the step what the plan needs."""
        step = self.by_nodes() if plan.grain == "node" else self.step
        self.step = step.by(plan.kernel)

    def by_nodes(self) -> Step:
        """Return the step with an instruction for each node and edge; its parameters lie as they do in the fused one."""
        target, layout = self.settings.optimizer.target, self.step.program.layout
        step = compile_step(target, self.feeds, self.variables, "node", layout, self.settings.seed)
        return replace(self.step, program=step.program, names=step.names, fed=step.fed, draws=step.draws)

    def reads(self) -> tuple[Array | None, list[Any]]:
        """Return what its tasks read: constants and feeds."""
        return self.step.reads(self.settings.optimizer.graph, self.feeds)

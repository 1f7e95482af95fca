"""Mean and variance over all training samples of what a `BatchNorm` normalises."""

from __future__ import annotations

from collections.abc import Sequence

from flowgrad.graph import Node, ancestors
from flowgrad.optim import State

from ..engine import Engine
from ..feeds import Feeds
from ..steps import Moments, compile_evaluation, moments_of_shard, total_moments
from ..tasks import reduce_tree
from .evaluation import Sweep
from .job import TrainingJob


def measured_nodes(job: TrainingJob) -> list[Node]:
    """Return the nodes whose mean and variance a training measures, operands first."""
    trained = set(job.variables)
    return sorted(
        (n for n in ancestors(job.settings.optimizer.target) if {n.parents[k] for k in n.measured_slots} & trained),
        key=lambda n: n.index,
    )


class Statistics:
    """Measures what nodes normalise by, at any state, over feeds that are placed once.

    Parameters
    ----------
    nodes : sequence of Node
        See `measured_nodes`.
    """

    def __init__(self, engine: Engine, job: TrainingJob, nodes: Sequence[Node], feeds: Feeds):
        self.places: list[list[tuple[int, int]]] = []
        layout = job.step.program.layout
        for node in nodes:
            variables = [node.parents[k] for k in node.measured_slots]
            self.places.append([layout[v.index][1:] for v in variables])
        self.channels = tuple(mean[1] - mean[0] for mean, _ in self.places)
        target = job.settings.optimizer.target
        step = compile_evaluation(target, [n.parents[0] for n in nodes], feeds, job.variables, layout)
        self.sweep = Sweep(engine, target, step, feeds)

    def begin(self, state: State) -> State:
        """Return the state to begin with: one node after the other, for each reads what those before it normalise."""
        for k in range(len(self.places)):
            state = self.measure(state, [k])
        return state

    def measure(self, state: State, which: Sequence[int] | None = None) -> State:
        """Return a state with the mean and the variance of all nodes, or of some, as they are at this one."""
        shards, _ = self.sweep.run(state, moments_of_shard, self.channels)
        moments: list[Moments] = reduce_tree(shards, total_moments)
        named: State = {name: state[name].copy() for name in ("w", "average") if name in state}
        for k in range(len(self.places)) if which is None else which:
            size, mean, squares = moments[k]
            for (start, stop), values in zip(self.places[k], (mean, squares / size)):
                for array in named.values():  # the average of weights over updates goes by the same
                    array[start:stop] = values
        return state | named

    def close(self) -> None:
        """Let go of the feeds."""
        self.sweep.close()

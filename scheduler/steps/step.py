"""An optimizer step as a program: forward, backward, what clips and blurs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flowgrad.autodiff import differentiate
from flowgrad.graph import Graph, Node, Variable, ancestors
from flowgrad.ops import CrossEntropyWithSoftMax, LogisticCrossEntropy
from flowgrad.ops.loss import sample_sum
from flowgrad.optim import Privacy, Rule, State
from flowgrad.program import Program
from flowgrad.typing import Array

from ..derivatives import LastEdges, Recipe, clip_weights, norms_of, run_all
from ..feeds import Feeds, Labels
from ..kernels import run_by
from ..machine import canonical, without_collection
from ..programs import (
    Layout,
    backward_passes,
    compile_forward,
    flat_values,
    input_var,
    require_inputs,
    run_passes,
    weights_of,
)


@dataclass(frozen=True, eq=False)
class PrivateStep:
    """What a differentially private step needs besides its program: clipped sums straight from the factors, noise at the update.

    Attributes
    ----------
    program : Program
        Forward and backward up to the last edges; reads `leaves` and the seed. Its first output is the loss.
    leaves : tuple of int
        Which inputs of the program they read.
    order : int array
        For each entry of the flat parameter vector, its place in the order of the variables.
    size : int
        Entries of all variables.
    """

    privacy: Privacy
    program: Program
    ends: LastEdges
    leaves: tuple[int, ...]
    order: Array
    size: int

    def gradient(self, inputs: Sequence[Array], samples: int, batch: int) -> tuple[Array, float]:
        """Return a shard's share of the clipped mean gradient, and of the mean loss of `batch` samples."""
        dtype = inputs[0].dtype
        env = run_all(self.program, *(inputs[k] for k in self.leaves), np.ones((1, 1, 1), dtype))
        total = sample_sum(env[0], samples)
        if not self.ends.edges:
            return np.zeros(len(self.order), dtype), total / batch
        factors = self.ends.factors(0, samples, env)
        weights = clip_weights(norms_of([factors]), self.privacy.clip) / self.privacy.batch_size
        return factors.sum(weights)[0], total / batch

    def blurred(self, gradient: Array, update: int) -> Array:
        """Return the mean gradient with the noise of update number `update`."""
        noise = self.privacy.noise(self.size, update)[self.order]
        return gradient + noise.astype(gradient.dtype)


@dataclass(frozen=True, eq=False)
class Step:
    """One optimizer step as a program.

    Attributes
    ----------
    program : Program
        Forward and backward; output ``"0"`` is the loss.
    names : tuple of str
        The output that is the gradient of the flat parameter vector; empty if the loss depends on no parameter.
    fed : tuple of int
        The variables that are fed, by index, in the order of the program's inputs.
    private : PrivateStep, optional
        What clips each sample's gradient and adds noise, if that is asked for.
    rule : Rule
        How the mean gradient updates the state.
    """

    program: Program
    names: tuple[str, ...]
    fed: tuple[int, ...]
    private: PrivateStep | None = None
    rule: Rule = field(default_factory=Rule)

    def by(self, kernel: str) -> Step:
        """Return the step as a kernel runs it."""
        if self.private is not None:  # clipping, noise and update are NumPy's
            private = replace(self.private, program=run_by(self.private.program, kernel))
            return replace(self, private=private)
        return replace(self, program=run_by(self.program, kernel))

    def reads(self, graph: Graph, feeds: Feeds) -> tuple[Array | None, list[Any]]:
        """Return what its tasks read: the flat vector of constants, None where there are none, and the feeds in its order."""
        const = flat_values(self.program, graph, "const", feeds.dtype) if self.program.size("const") else None
        fed = (graph.nodes[k] for k in self.fed)
        return const, [feeds.arrays[v] for v in fed if isinstance(v, Variable)]


def inputs_of(program: Program, param: Any, const: Any, feeds: Iterable[Any]) -> dict[int, Any]:
    """Return the inputs of a program but the seed, in its order."""
    fed, flat = iter(feeds), {"param": param, "const": const}
    return {i.var: next(fed) if i.role == "feed" else flat[i.role] for i in program.inputs if i.role != "seed"}


def arrange(program: Program, state: State | None, const: Array | None, feeds: list[Array]) -> list[Array]:
    """Return the inputs of a program in its order, aligned as the bits of the result need it."""
    param = None if state is None else weights_of(state)
    return [canonical(x) for x in inputs_of(program, param, const, feeds).values()]


@without_collection
def compile_step(
    target: Node, feeds: Feeds, params: Sequence[Variable], grain: str, layout: Layout | None = None
) -> Step:
    """Return forward and backward of the loss by all `params`, fused or node by node."""
    forward = compile_forward([target], feeds.arrays, params, grain, layout)
    require_inputs(forward, target, feeds)
    flat = input_var(forward, "param")
    wrt = [] if flat is None else [flat]
    program = differentiate(forward, forward.outputs["0"], wrt, fold=grain != "node")
    program = run_passes(program, backward_passes(grain))
    return Step(program, tuple(n for n in program.outputs if n != "0"), _fed(program))


def compile_private(
    step: Step, target: Node, feeds: Feeds, params: Sequence[Variable], privacy: Privacy | None
) -> Step:
    """Return the step with what clips and blurs; the parameters lie as they do in `step`."""
    if privacy is None:
        return step
    recipe = Recipe(target, params, frozenset(feeds.arrays), "shard")
    task = recipe.as_one_task(cut=False)
    inputs = {(i.role, i.node): k for k, i in enumerate(step.program.inputs)}
    leaves = tuple(inputs[i.role, i.node] for var in task.leaves for i in recipe.program.inputs if i.var == var)
    layout = step.program.layout
    assert all(recipe.spans[recipe.wrt.index(v)] == (0, *layout[v.index][1:]) for v in params if v.index in layout)
    order = places_of(step.program, params)
    ends = LastEdges(task.edges, (len(order),), 1, feeds.dtype, "")
    size = sum(v.dim for v in params)
    return replace(step, private=PrivateStep(privacy, task.program, ends, leaves, order, size))


def places_of(program: Program, variables: Sequence[Variable]) -> Array:
    """Return, for each entry of the flat parameter vector, its place in the order of `variables`."""
    places, start = np.zeros(program.size("param"), np.int64), 0
    for v in variables:
        if v.index in program.layout:
            _, lo, hi = program.layout[v.index]
            places[lo:hi] = np.arange(start, start + v.dim)
        start += v.dim
    return places


def class_losses(target: Node, feeds: Feeds) -> list[Node]:
    """Return the cross entropies that a loss is made of, however they are weighted and added up.

    Those whose labels are given, if there are any: what is compared with a net's own outputs is a penalty, not a question.
    """
    found: list[Node] = [n for n in ancestors(target) if isinstance(n, (CrossEntropyWithSoftMax, LogisticCrossEntropy))]
    learned = {n for n in ancestors(target) if isinstance(n, Variable) and n.trainable and n not in feeds.arrays}
    return [n for n in found if learned.isdisjoint(ancestors(n.parents[1]))] or found


def labels_of(target: Node, feeds: Feeds) -> dict[Variable, Labels]:
    """Return what numbers may be fed as labels of the cross entropies in a loss; others would be trained towards without end."""
    found: dict[Variable, Labels] = {}
    for n in ancestors(target):
        if isinstance(n, LogisticCrossEntropy):
            labels = Labels(0.0, 1.0, str(n), "they are from 0 to 1; -1 and 1 become that by (labels + 1) / 2")
        elif isinstance(n, CrossEntropyWithSoftMax):
            labels = Labels(0.0, np.inf, str(n), "they are from 0 on; give one-hot rows, or class indices (N,)")
        else:
            continue
        v = n.parents[1]
        if isinstance(v, Variable) and v in feeds.arrays:
            found[v] = min(found.get(v, labels), labels)
    return found


@without_collection
def compile_evaluation(
    target: Node, losses: Sequence[Node], feeds: Feeds, params: Sequence[Variable], layout: Layout | None
) -> Step:
    """Return the loss, then the logits and labels of `losses`, whose classes are compared."""
    targets = [target, *(parent for loss in losses for parent in loss.parents)]
    program = compile_forward(targets, feeds.arrays, params, "shard", layout)
    require_inputs(program, target, feeds)
    return Step(program, (), _fed(program))


def _fed(program: Program) -> tuple[int, ...]:
    return tuple(i.node for i in program.inputs if i.role == "feed")

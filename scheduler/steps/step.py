"""An optimizer step as a program: forward, backward, what clips and blurs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flowgrad.autodiff import differentiate
from flowgrad.errors import FeedError, GraphError
from flowgrad.graph import Graph, Node, Variable, ancestors
from flowgrad.inputs import brief, integer, real
from flowgrad.ops import CrossEntropyWithSoftMax, LogisticCrossEntropy, Multiply, draws_of
from flowgrad.ops.embedding import row_numbers, tables_of
from flowgrad.ops.loss import sample_sum
from flowgrad.optim import Privacy, Rule, State, Table, distinct, spans_of
from flowgrad.program import Builder, Program, Type
from flowgrad.typing import Array

from ..derivatives import LastEdges, Recipe, clip_weights, norms_of, run_all
from ..executors import Executor
from ..feeds import Chunked, Feeds, Labels, check_feeds, check_labels, check_lengths
from ..kernels import run_by
from ..machine import canonical, without_collection
from ..programs import (
    Layout,
    backward_passes,
    flat_values,
    forward_passes,
    input_var,
    require_inputs,
    run_passes,
    traced,
    weights_of,
)
from .draws import Draws

# Stands for the weights of samples among feeds; in a graph of its own, at a place that no node of another one has.
with Graph():
    WEIGHTS = Variable(1, trainable=False, name="sample_weight")
object.__setattr__(WEIGHTS, "index", -2)


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
        The variables that are fed, by index, in the order of the program's inputs; but for the keys of what is drawn.
    private : PrivateStep, optional
        What clips each sample's gradient and adds noise, if that is asked for.
    rule : Rule
        How the mean gradient updates the state.
    draws : Draws, optional
        What is drawn at random, if anything is.
    tables : tuple of Table
        Parameters whose gradients go as rows, see `row_tables`.
    """

    program: Program
    names: tuple[str, ...]
    fed: tuple[int, ...]
    private: PrivateStep | None = None
    rule: Rule = field(default_factory=Rule)
    draws: Draws | None = None
    tables: tuple[Table, ...] = ()

    def by(self, kernel: str) -> Step:
        """Return the step as a kernel runs it."""
        if self.private is not None:  # clipping, noise and update are NumPy's
            private = replace(self.private, program=run_by(self.private.program, kernel))
            return replace(self, private=private)
        return replace(self, program=run_by(self.program, kernel))

    def reads(self, graph: Graph, feeds: Feeds) -> tuple[Array | None, list[Any]]:
        """Return what its tasks read: the flat vector of constants, None where there are none, and the feeds in its order."""
        const = flat_values(self.program, graph, "const", feeds.dtype) if self.program.size("const") else None
        arrays = {v.index: array for v, array in feeds.arrays.items()}
        return const, [arrays[k] for k in self.fed]

    def rows(self, const: Array | None, feeds: Sequence[Array], samples: Array) -> list[Array]:
        """Return for each table the rows that samples pick, in their order; `samples` are rows of the feeds."""
        found = []
        for table in self.tables:
            picked = [self._picked(k, const, feeds, samples) for k in table.by]
            found.append(distinct(row_numbers(np.concatenate(picked), table.rows).astype(np.int32)))
        return found

    def _picked(self, variable: int, const: Array | None, feeds: Sequence[Array], samples: Array) -> Array:
        if variable in self.fed:
            return feeds[self.fed.index(variable)][samples].ravel()
        assert const is not None
        _, start, stop = self.program.layout[variable]
        return const[0, start:stop]

    def spans(self, const: Array | None, feeds: Sequence[Array], samples: Array) -> Array:
        """Return where the gradient of samples is not zero."""
        return spans_of(self.program.size("param"), self.tables, self.rows(const, feeds, samples))

    def sent(self, samples: int, itemsize: int) -> int:
        """Return the bytes of a gradient of so many samples, at the most."""
        entries, numbers = self.program.size("param"), 0
        for t in self.tables:
            picked = min(t.rows, samples * t.picks)
            entries, numbers = entries - (t.rows - picked) * t.dim, numbers + picked
        return entries * itemsize + 4 * numbers


def inputs_of(program: Program, param: Any, const: Any, feeds: Iterable[Any]) -> dict[int, Any]:
    """Return the inputs of a program but the seed, in its order."""
    fed, flat = iter(feeds), {"param": param, "const": const}
    return {i.var: next(fed) if i.role == "feed" else flat[i.role] for i in program.inputs if i.role != "seed"}


def arrange(program: Program, state: State | None, const: Array | None, feeds: list[Array]) -> list[Array]:
    """Return the inputs of a program in its order, aligned as the bits of the result need it."""
    param = None if state is None else weights_of(state)
    return [canonical(x) for x in inputs_of(program, param, const, feeds).values()]


def row_tables(step: Step, target: Node, batch: int) -> tuple[Table, ...]:
    """Return the tables whose gradient by a batch is better off as rows: half of them at the most; all, if others must not move."""
    layout, tables = step.program.layout, []
    for v, index in tables_of(target).items():
        (role, start, _), (rows, dim) = layout.get(v.index, ("", 0, 0)), v.shape
        picks = sum(k.dim for k in index)
        if role == "param" and (step.rule.lazy_rows or 2 * batch * picks <= rows):
            tables.append(Table(start, rows, dim, picks, tuple(k.index for k in index)))
    return tuple(sorted(tables))


@without_collection
def compile_step(
    target: Node, feeds: Feeds, params: Sequence[Variable], grain: str, layout: Layout | None = None, seed: int = 0
) -> Step:
    """Return forward and backward of the loss by all `params`, fused or node by node; `seed` is that of what is drawn."""
    keys = draws_of(target)
    if keys in feeds.arrays:
        raise FeedError(f"training gives {keys} its values itself, by the trainer's seed: leave it out of the feeds")
    forward = _forward([target], target, feeds, params, grain, layout, () if keys is None else (keys,))
    flat = input_var(forward, "param")
    wrt = [] if flat is None else [flat]
    forward = replace(forward, outputs={"0": forward.outputs["0"]})
    program = differentiate(forward, forward.outputs["0"], wrt, fold=grain != "node")
    program = run_passes(program, backward_passes(grain))
    fed = _fed(program)
    names = tuple(n for n in program.outputs if n != "0")
    if keys is None or keys.index not in fed:
        return Step(program, names, fed)
    at = fed.index(keys.index)
    return Step(program, names, (*fed[:at], *fed[at + 1 :]), draws=Draws(at, seed))


def compile_private(
    step: Step, target: Node, feeds: Feeds, params: Sequence[Variable], privacy: Privacy | None
) -> Step:
    """Return the step with what clips and blurs; the parameters lie as they do in `step`."""
    if privacy is None:
        return step
    keys = draws_of(target)
    recipe = Recipe(target, params, frozenset([*feeds.arrays, *([] if keys is None else [keys])]), "shard")
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
            labels = Labels(0.0, 1.0, f"label of {n}", "they are from 0 to 1; -1 and 1 become that by (labels + 1) / 2")
        elif isinstance(n, CrossEntropyWithSoftMax):
            labels = Labels(
                0.0, np.inf, f"label of {n}", "they are from 0 on; give one-hot rows, or class indices (N,)"
            )
        else:
            continue
        v = n.parents[1]
        if isinstance(v, Variable) and v in feeds.arrays:
            found[v] = min(found.get(v, labels), labels)
    return found


def weighted(target: Node, feeds: Feeds, given: Any, classes: Any, executor: Executor | None) -> Feeds:
    """Return feeds with a weight for each sample: the one that is given, times that of its class.

    Raises
    ------
    FeedError, GraphError
        If weights are negative, all zero or too few, or nobody can tell a sample's class.
    """
    if given is None and classes is None:
        return feeds
    weights: Any = None if classes is None else _class_weights(target, feeds, classes)
    if given is not None:
        fed = check_feeds(WEIGHTS.graph, {WEIGHTS: given}, feeds.dtype, classes is None, executor)
        check_lengths({**{v: len(a) for v, a in feeds.arrays.items()}, WEIGHTS: fed.samples})
        allowed = Labels(0.0, np.inf, "weight", "they are from 0 on; a sample of weight 0 counts for nothing")
        own = check_labels(fed, {WEIGHTS: allowed}).arrays[WEIGHTS]
        # A copy: what the user writes to the array meanwhile counts nowhere.
        weights = own if isinstance(own, Chunked) else own * (own.dtype.type(1) if weights is None else weights)
    if isinstance(weights, np.ndarray) and not weights.any():
        what = "class_weight" if given is None else WEIGHTS.name
        raise FeedError(f"by {what} all samples have weight 0, and nothing would count: give some of them one above 0")
    return replace(feeds, arrays={**feeds.arrays, WEIGHTS: weights}, samples=len(weights))


def _class_weights(target: Node, feeds: Feeds, classes: Any) -> Array:
    """Return the weight of each sample's class ``(N, 1)``, told from the labels of the loss's cross entropy."""
    if not isinstance(classes, Mapping):
        raise GraphError(f"class_weight is a dict {{class: weight}}, not {brief(classes)}")
    labels = [n.parents[1] for n in class_losses(target, feeds)]
    found = {
        v for n in labels for v in ancestors(n) if isinstance(v, Variable) and v in feeds.arrays and v.dim == n.dim
    }
    binary = any(n.dim == 1 for n in labels)
    if len(found) != 1 or (
        not binary and any(isinstance(n, LogisticCrossEntropy) for n in class_losses(target, feeds))
    ):
        raise GraphError(
            f"class_weight goes by the labels of one cross entropy of classes, which {target} has not: give sample_weight, "
            f"a weight for each sample"
        )
    (label,) = found
    array, count = feeds.arrays[label], max(2, label.dim)
    if isinstance(array, Chunked):
        raise FeedError(
            f"class_weight reads the labels here, and the feed for {label.name!r} is in chunks elsewhere: give sample_weight, "
            f"which may be a dask array"
        )
    table = np.ones(count, feeds.dtype)
    for k, weight in classes.items():
        if integer(k, "a class in class_weight", 0) >= count:
            raise GraphError(
                f"class_weight has class {k}, but the feed for {label.name!r} has classes 0 to {count - 1}"
            )
        table[k] = real(weight, f"class_weight: the weight of class {k}", 0)
    return table[(array[:, 0] > 0.5).astype(int) if binary else array.argmax(axis=1)][:, None]


@without_collection
def compile_evaluation(
    target: Node, compared: Sequence[Node], feeds: Feeds, params: Sequence[Variable], layout: Layout | None
) -> Step:
    """Return the loss, then the values of what is compared: outputs and what they should be."""
    targets = [target, *compared]
    program = _forward(targets, target, feeds, params, "shard", layout)
    return Step(program, (), _fed(program))


def _forward(
    targets: Sequence[Node],
    target: Node,
    feeds: Feeds,
    params: Sequence[Variable],
    grain: str,
    layout: Layout | None,
    keys: Sequence[Variable] = (),
) -> Program:
    """Return the forward program; where samples have weights, the loss is times them, and they are output ``"weights"``."""
    program = traced(targets, [*feeds.arrays, *keys], params)
    if WEIGHTS in feeds.arrays:
        builder = Builder.of(program)
        weights = builder.input(Type(1, True), "feed", WEIGHTS.index, WEIGHTS.name)
        loss = builder.apply(Multiply, [program.outputs["0"], weights], {}, WEIGHTS.name)
        program = builder.build({**program.outputs, "0": loss, "weights": weights})
    program = run_passes(program, forward_passes(grain, layout))
    require_inputs(program, target, feeds)
    return program


def _fed(program: Program) -> tuple[int, ...]:
    return tuple(i.node for i in program.inputs if i.role == "feed")

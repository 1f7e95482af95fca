"""A rule bound to a graph and a loss; `one_step` trains with the interpreter, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import accumulate
from typing import Any, TypedDict
from weakref import WeakSet

import numpy as np

from ..errors import FlowgradError, GraphError
from ..graph import Graph, Node, Variable, ancestors, jacobians_of
from ..graph import named as named_node
from ..inputs import Settled, brief, integer, listed, nearest, real, without_underflow
from ..ops import draw_keys, draws_of
from ..ops.embedding import Embedding, row_numbers, tables_of
from ..typing import Array
from .doubts import warn_doubtful
from .privacy import Privacy
from .rows import Table, distinct, entries_of, spans_of
from .rules import Rule, RuleError, State, named

# What stays here when optimizers are pickled or copied, as they begin: it is about this process, or follows from the graph.
_STAYS: dict[str, Any] = {
    "_provide": None,
    "_candidates": (0, []),
    "_draws": (None, None),
    "_told": None,
    "_tables": (None, {}),
}
# Graphs whose variables have averages of their values for now.
_averaged: WeakSet[Graph] = WeakSet()


class Shared(TypedDict, total=False):
    """Keywords that every optimizer takes; see `Optimizer`."""

    per_sample_clip: float | None
    noise_multiplier: float
    noise_seed: int | None
    clip_norm: float | None
    ema: float
    lazy_rows: bool
    learning_rates: Mapping[Variable | str, float]
    freeze: Iterable[Variable | str]


class Common(Shared, total=False):
    """Those of optimizers that have no weight decay of their own."""

    weight_decay: float


class Optimizer(Settled):
    """An update rule bound to a graph and a scalar loss.

    Parameters
    ----------
    graph : Graph
        Its trainable variables are trained.
    target : Node
        The loss, of dim 1.
    rule : Rule
        The pure update rule. `Adam` and the others make theirs of a `learning_rate`, a float or a schedule: such as `CosineDecay`,
        a function of the update's number, from 1.
    batch_size : int
        Number of samples whose mean gradient makes one update.
    per_sample_clip : float, optional
        C: each sample's gradient is scaled down to at most this norm, and noise is added: a step of differentially private SGD.
        The gradient becomes ``(Σ gᵢ min(1, C/‖gᵢ‖) + σ C z) / batch_size`` with `z` standard normal, drawn anew at each update.
    noise_multiplier : float
        σ of it.
    noise_seed : int, optional
        Makes the noise repeatable, the same for any grain and number of workers, and no longer secret. Never saved.
    weight_decay : float
        L2: this times the weights is added to the mean gradient, after clipping. Variables that the loss does not depend on stay as
        they are.
    clip_norm : float, optional
        The mean gradient of all variables together is scaled down to this Euclidean norm, where it is longer.
    learning_rates : dict, optional
        Factors of the learning rate, of decoupled weight decay too: ``{"encoder": 0.1, w: 0.5}``, by variable, its name, or a scope
        that it is in; the closest counts. 0 leaves variables as they are: no gradient by them is computed.
    freeze : list, optional
        Variables, names or scopes whose factor is 0.
    ema : float, optional
        Above 0, such as 0.999: the exponential moving average of the weights is kept, ``average += (1 - ema) (w - average)`` after
        each update, first ``average = w``; see `averaged`.
    lazy_rows : bool
        True: of a table that only `Embedding` reads, an update moves the rows that samples of the batch pick, and leaves all others
        as they are, with their state: no momentum, no decay, no average goes on. The number of updates is everybody's, and so is
        what corrects a bias, as in TensorFlow's LazyAdam. False: every entry moves by the rule; those rows by a gradient of 0.

    Attributes
    ----------
    state : dict of ndarray, or None
        State of the rule for the trainable variables laid end to end in the order of creation; None before the first update.
    learning_rate, weight_decay, clip_norm, ... : float or callable
        Those of the rule; may be set, which makes another rule with the same state.
    epochs : int
        Epochs that `Trainer.fit` has trained; the order of samples goes on from there.
    target, batch_size, rule : optional
        As given; may be set, the first two not while the graph is being trained.

    Raises
    ------
    GraphError
        If the target is not a scalar node of `graph`, or a hyperparameter makes no sense.

    Notes
    -----
    Privacy: `Trainer` does not draw Poisson samples. An epoch is one random order of all samples (``shuffle=True``), cut into
    batches of fixed size, so that each sample is used once per epoch; account for that, or for Poisson sampling as an
    approximation that must be named as one. flowgrad does no accounting: use Opacus' accountants or Google's dp-accounting with σ,
    batch size, number of samples and number of updates. The loss that is reported is not private.
    """

    graph: Graph
    _rule: Rule

    def __init__(
        self,
        graph: Graph,
        target: Node,
        rule: Rule,
        batch_size: int = 32,
        *,
        per_sample_clip: float | None = None,
        noise_multiplier: float = 0.0,
        noise_seed: int | None = None,
        learning_rates: Mapping[Variable | str, float] | None = None,
        freeze: Iterable[Variable | str] = (),
        **of_rule: Any,
    ):
        if not isinstance(graph, Graph):
            raise GraphError(f"the first argument of {type(self).__name__} is a Graph, not {type(graph).__name__}")
        self.graph = graph
        self._target = _scalar(graph, target)
        self.rule = rule
        unknown = [name for name in of_rule if name not in _settings(rule)]
        if unknown:
            known = [*_settings(rule), *(name for name in Common.__annotations__ if name not in _settings(rule))]
            raise GraphError(f"{type(self).__name__} takes no {unknown[0]!r}{nearest(unknown[0], known)}")
        self.rule = replace(self.rule, **of_rule)
        self._privacy: Privacy | None = None
        self._batch_size = integer(batch_size, "batch_size")
        if per_sample_clip is not None:
            self._privacy = Privacy(per_sample_clip, noise_multiplier, self.batch_size, noise_seed)
        elif real(noise_multiplier, "noise_multiplier", 0) or noise_seed is not None:
            raise GraphError("noise_multiplier and noise_seed need per_sample_clip: the noise is a multiple of it")
        self._rates = self._checked_rates({} if learning_rates is None else learning_rates, freeze)
        self._epochs = 0
        self._state: State | None = None
        self._state_of: tuple[Variable, ...] = ()
        self._provide: Callable[[], None] | None = None
        self._sums: dict[tuple[Variable, ...], Array] = {}  # of gradients, by what was trainable
        self._rows: dict[Variable, Array] = {}  # that samples picked, of tables
        self._count = 0
        self._candidates: tuple[int, list[tuple[Variable, bool]]] = (0, [])  # among so many nodes, and whether measured
        self._draws: tuple[Node | None, Variable | None] = (None, None)  # of a target
        self._tables: tuple[Any, dict[Variable, list[Variable]]] = (None, {})  # that pick rows, of a target
        self._told: Any = None  # target and variables whose doubts were told
        self._check_rows(self._target, self._rule)

    def variables(self, without: Any = ()) -> list[Variable]:
        """Return what is trained or measured in the order of creation, without `without` (the feeds), and what picks rows."""
        looked, candidates = self._candidates
        if looked != len(self.graph._nodes):  # only new nodes bring edges, by which it is measured, or picks rows
            nodes = self.graph.nodes
            candidates = [(n, n.measured) for n in nodes if isinstance(n, Variable) and n.below is None]
            self._candidates = len(nodes), candidates
        trainable = [v for v, measured in candidates if (v.trainable or measured) and v not in without]
        return [v for v in trainable if self._rate(v) > 0] if self._rates else trainable

    @property
    def learning_rates(self) -> dict[Variable | str, float]:
        """Factors of the learning rate, those that are frozen among them."""
        return dict(self._rates)

    def rates(self, variables: Sequence[Variable]) -> Array | None:
        """Return the factor of each entry of variables laid end to end, 0 of what is measured; None where all are 1."""
        factors = [0.0 if v.measured else self._rate(v) for v in variables]
        return None if all(f == 1 for f in factors) else np.repeat(factors, [v.dim for v in variables])

    def _rate(self, variable: Variable) -> float:
        if variable in self._rates:
            return self._rates[variable]
        name = variable.name  # from it up through its scopes, for all variables are asked at every step
        while name and name not in self._rates:
            name = name.rpartition(".")[0]
        return self._rates.get(name, 1.0)

    def _checked_rates(self, rates: Any, freeze: Any) -> dict[Variable | str, float]:
        kind = type(self).__name__
        if not isinstance(rates, Mapping):
            raise GraphError(
                f"{kind}: learning_rates is a dict of factors by variable, name or scope, not {brief(rates)}"
            )
        frozen = None if isinstance(freeze, Node) else listed(freeze)
        if frozen is None:
            raise GraphError(
                f"{kind}: freeze is a list of variables, names or scopes, not {brief(freeze)}: write [...]"
            )
        checked: dict[Variable | str, float] = {}
        variables = [n for n in self.graph.nodes if isinstance(n, Variable)]
        for key, factor in [*rates.items(), *((key, 0.0) for key in frozen)]:
            if not any(v is key or (isinstance(key, str) and _names(key, v)) for v in variables):
                if isinstance(key, Node) and key in self.graph:
                    raise GraphError(
                        f"{kind}: {key} is computed, and has no values to train: give the variables, or the scope, {key.name!r}"
                    )
                raise GraphError(
                    f"{kind}: {self.graph} has no variable {brief(key)}, and none in a scope of that name: give "
                    f"learning_rates and freeze variables, names or scopes that are there"
                )
            checked[key] = real(factor, f"{kind}: the learning rate's factor of {brief(key)}", 0)
        return checked

    @property
    def state(self) -> State | None:
        """The state that was kept or set last."""
        if self._provide is not None:
            self._provide()
        return self._state

    @state.setter
    def state(self, state: State | None) -> None:
        if state is not None and not isinstance(state, Mapping):
            raise GraphError(f"an optimizer's state is a dict of arrays by name, or None, not {brief(state)}")
        checked = None if state is None else {name: _state_array(name, value) for name, value in state.items()}
        if self._provide is not None:
            self._provide()  # or what a training shows would be laid over this one when it is read
        self._state, self._state_of = checked, ()

    def keep(self, state: State) -> None:
        """Keep a state of the rule for the variables that are trainable now, laid end to end."""
        self._state, self._state_of = state, tuple(self.variables())

    def provide(self, state: Callable[[], None] | None) -> None:
        """Have something called, which keeps a state, when the state is asked for; None: no more."""
        self._provide = state

    def count(self, epochs: int) -> None:
        """Have this number of epochs, with the state that a training shows."""
        self._epochs = epochs

    def memory(self) -> tuple[Any, ...]:
        """Return what `restore` gives back: state, rule and epochs."""
        state = self.state
        kept = None if state is None else {name: value.copy() for name, value in state.items()}
        return kept, self._state_of, self.rule, self._epochs

    def restore(self, memory: tuple[Any, ...]) -> None:
        """Have again what there was."""
        self._state, self._state_of, self.rule, self._epochs = memory

    @property
    def batch_size(self) -> int:
        """Number of samples whose mean gradient makes one update; may be set, but not while the graph is being trained."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        size = integer(size, "batch_size")
        self._check_idle("batch size")
        self._batch_size = size
        if self._privacy is not None:
            self._privacy = replace(self._privacy, batch_size=size)

    @property
    def target(self) -> Node:
        """The loss; may be set, but not while the graph is being trained."""
        return self._target

    @target.setter
    def target(self, target: Node) -> None:
        target = _scalar(self.graph, target)
        self._check_idle("target")
        self._check_rows(target, self.rule)
        self._target = target

    @property
    def epochs(self) -> int:
        """Epochs that were trained; may be set, but not while the graph is being trained."""
        return self._epochs

    @epochs.setter
    def epochs(self, epochs: int) -> None:
        epochs = integer(epochs, "epochs", 0)
        self._check_idle("number of epochs")
        self._epochs = epochs

    @property
    def privacy(self) -> Privacy | None:
        """How gradients are clipped and blurred, if they are; see `per_sample_clip`."""
        return self._privacy

    def _check_idle(self, what: str) -> None:
        if self.graph._training is not None:
            raise GraphError(
                f"the {what} of {self.graph} cannot change while it is being trained: set it before or after fit"
            )

    @property
    def rule(self) -> Rule:
        """The pure update rule; may be set."""
        return self._rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        if not isinstance(rule, Rule):
            raise GraphError(f"a rule is an object such as fg.Adam(graph, loss).rule, not {brief(rule)}")
        rule.alone  # noqa: B018 (what is wrong with its formulas is told here)
        if "_count" in vars(self):  # all is there that it is checked against
            self._check_rows(self._target, rule)
            if self._count and rule.lazy_rows > self._rule.lazy_rows:
                raise GraphError(
                    f"lazy_rows cannot begin after {self._count} of {self.batch_size} samples, whose rows nobody noted: set it "
                    f"before a batch"
                )
        self._rule = rule

    def _check_rows(self, target: Node, rule: Rule) -> None:
        """Refuse `lazy_rows` where it would do nothing, or what must not be.

        Raises
        ------
        GraphError
        """
        if not rule.lazy_rows:
            return
        kind = type(self).__name__
        if self.privacy is not None:
            raise GraphError(
                f"{kind}: lazy_rows would tell which rows samples pick, which per_sample_clip and its noise hide: leave out one "
                f"of them"
            )
        if not tables_of(target):
            picked = [n.parents[0] for n in ancestors(target) if isinstance(n, Embedding)]
            why = f"the table {picked[0]} is read otherwise too, or computed" if picked else "there is none"
            raise GraphError(
                f"{kind}: lazy_rows is for variables that Embedding alone reads, and among those of {target} {why}: leave it out"
            )

    def __getattr__(self, name: str) -> Any:
        """Return what the rule is set to: its learning rate and the like."""
        rule = vars(self).get("_rule")
        if rule is not None and name in _settings(rule):
            return getattr(rule, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        rule = vars(self).get("_rule")
        if rule is not None and name in _settings(rule):
            self.rule = replace(rule, **{name: value})
        else:
            super().__setattr__(name, value)

    def _may_be_set(self) -> set[str]:
        return {*super()._may_be_set(), *_settings(self.rule)}

    def first_state(self, dtype: Any = np.float64) -> State:
        """Return the state before the first update, of the variables that are trainable now."""
        values = (np.zeros(v.dim) if v.value is None else v.value for v in self.variables())
        return self.rule.begin(np.concatenate([np.zeros(0), *values]).astype(dtype))

    def state_now(self) -> State | None:
        """Return the state for the variables that are trainable now: of those that came since, it is as before the first update.

        Raises
        ------
        GraphError
            If a state was set that is for other variables.
        """
        state = self.state
        if state is None:
            return None
        variables = self.variables()
        size = sum(v.dim for v in variables)
        lacking = [slot for slot in self.rule.slots if slot not in state]
        if lacking:
            raise GraphError(
                f"{self}: its state is another rule's, it has no {', '.join(map(repr, lacking))}: "
                f"set optimizer.state = None to begin anew"
            )
        arrays = {slot: state[slot] for slot in self.rule.slots}
        if self._state_of and self._state_of != tuple(variables):
            new = self.first_state()
            arrays = {slot: _laid_out(array, self._state_of, variables, new[slot]) for slot, array in arrays.items()}
        for slot, array in arrays.items():
            if len(array) != size:
                raise GraphError(
                    f"{self}: its state has {len(array)} entries ({slot!r}), the trainable variables have {size}: "
                    f"set optimizer.state = None to begin anew"
                )
        return {"t": state.get("t", np.zeros(1, np.int64)), **arrays}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let trained variables have the averages of their values, within a ``with`` block: to evaluate, predict or save.

        Afterwards they have again what they had, whatever was set meanwhile; so training is refused within.

        Raises
        ------
        GraphError
            If no averages are kept: `ema` is 0.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph() as graph:
        ...     w = fg.Variable(1, [2.0])
        ...     loss = w * w
        >>> optimizer = fg.GradientDescent(graph, loss, 0.25, batch_size=1, ema=0.5)
        >>> optimizer.one_step(), optimizer.one_step(), w.value.tolist()
        (4.0, 1.0, [0.5])
        >>> with optimizer.averaged():
        ...     w.value.tolist()
        [0.75]
        """
        if not self.rule.ema:
            raise GraphError(f"{self} keeps no averages of weights: make it with ema=0.999")
        used, variables = ancestors(self.target), self.variables()
        averages = _parts((self.state_now() or self.first_state())["average"], variables)
        before = {v: v.value for v in variables if v in used and v.value is not None}
        for v in before:
            v.set_value(averages[v])
        inner = self.graph in _averaged
        _averaged.add(self.graph)
        try:
            yield
        finally:
            if not inner:
                _averaged.discard(self.graph)
            for v, value in before.items():
                v.set_value(value)

    def check_own_values(self) -> None:
        """Raise an error while variables have averages: what is trained then would be lost."""
        if self.graph in _averaged:
            raise GraphError(
                f"the variables of {self.graph} have averages of their values, and have again what they had before when "
                f"`with optimizer.averaged()` ends: train outside of it"
            )

    @without_underflow
    def one_step(self, seed: int = 0) -> float:
        """Add the gradient of one sample, the values now set; after `batch_size` samples update the variables.

        Parameters
        ----------
        seed : int
            Of what is drawn at random (`Dropout`, `Noise`), as that of `Trainer`.

        Returns
        -------
        float
            The loss of the sample, before the update.

        Raises
        ------
        GraphError
            If a variable that the target needs has no value.
        FlowgradError
            If the loss or weights became nan or inf; the variables keep the values that they had before.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph() as graph:
        ...     w = fg.Variable(1, [2.0])
        ...     loss = w * w
        >>> fg.GradientDescent(graph, loss, learning_rate=0.25, batch_size=1).one_step()
        4.0
        >>> w.value
        array([1.])
        """
        self.check_own_values()
        variables = tuple(self.variables())
        with self._drawing(integer(seed, "seed", 0)):
            loss = float(self.target.forward()[0])
            if not math.isfinite(loss):
                raise FlowgradError(
                    f"the loss {self.target} became {loss}: try a smaller learning rate or check the values that are set; "
                    f"the variables keep the values that they had before"
                )
            if self._told != (self.target, variables):
                warn_doubtful(self.target, [v for v in variables if v.value is not None])
                self._told = self.target, variables
            gradient = np.concatenate([np.zeros((1, 1, 0)), *jacobians_of(self.target, variables)], axis=2)[0, 0]
        if self.privacy is not None:
            gradient = self.privacy.clipped(gradient)
        if variables not in self._sums:
            self._sums[variables] = np.zeros_like(gradient)
        self._sums[variables] += gradient
        if self.rule.lazy_rows:
            read = self.target, len(self.graph._nodes)  # only new nodes read a table otherwise
            if self._tables[0] != read:
                self._tables = read, tables_of(self.target)
            for v, index in self._tables[1].items():
                picked = [row_numbers(k.value, v.shape[0]).ravel() for k in index if k.value is not None]
                self._rows[v] = distinct(np.concatenate([self._rows.get(v, picked[0]), *picked]))
        self._count += 1
        if self._count == self.batch_size:
            total = np.sum(
                [_laid_out(part, of, variables, np.zeros_like(gradient)) for of, part in self._sums.items()], axis=0
            )
            count, rows, self._sums, self._rows, self._count = self._count, self._rows, {}, {}, 0
            self._update(variables, total / count, rows)
        return loss

    @contextmanager
    def _drawing(self, seed: int) -> Iterator[None]:
        """Let what the target draws at random be that of this sample."""
        if self._draws[0] is not self.target:
            self._draws = self.target, draws_of(self.target)
        _, draws = self._draws
        if draws is None:
            yield
            return
        before = draws.value
        draws.set_value(draw_keys(seed, _made(self.state) + 1, self._count, 1)[0])
        try:
            yield
        finally:
            draws.set_value(before)

    def _update(self, variables: Sequence[Variable], gradient: Array, rows: Mapping[Variable, Array]) -> None:
        # What the loss does not depend on is not decayed either: it counts as zero, and is not assigned.
        used = ancestors(self.target)
        moved = {v: v.value for v in variables if v in used and v.value is not None}
        values = np.concatenate([np.zeros(0), *(moved.get(v, np.zeros(v.dim)) for v in variables)])
        state = self.state_now()
        if self.privacy is not None:
            gradient = gradient + self.privacy.noise(len(gradient), _made(state) + 1)
        values, state = self._updated(variables, values, gradient, state, self._moving(variables, rows))
        if not np.isfinite(values).all():
            raise FlowgradError(
                f"an update by {self} would make weights inf or nan: try a smaller learning rate; the variables keep the values "
                f"that they had before"
            )
        self.keep(state)
        for variable, value in _parts(values, variables).items():
            if variable in moved:
                variable._assign(value[None])

    def _moving(self, variables: Sequence[Variable], rows: Mapping[Variable, Array]) -> Array | None:
        """Return the entries of variables that an update moves, of tables these rows; None: all of them."""
        if not self.rule.lazy_rows:
            return None
        stops = accumulate(v.dim for v in variables)
        tables = [Table(stop - v.dim, *v.shape) for v, stop in zip(variables, stops) if v in rows]
        size = sum(v.dim for v in variables)
        return entries_of(spans_of(size, tables, [rows[v] for v in variables if v in rows]))

    def _updated(
        self,
        variables: Sequence[Variable],
        values: Array,
        gradient: Array,
        state: State | None,
        moving: Array | None = None,
    ) -> tuple[Array, State]:
        """Return values and state after an update; name the variables if the rule fails."""
        rates = self.rates(variables)
        more = {} if rates is None else {"rates": rates.astype(values.dtype)}
        try:
            state = state or self.rule.begin(values)
            values, state = named(
                f"update of {type(self.rule).__name__}", self.rule.update, values, gradient, {**state, **more}, moving
            )
        except RuleError as error:
            stops = zip(variables, accumulate(v.dim for v in variables))
            of = [v.name for v, stop in stops if error.entry is None or stop - v.dim <= error.entry < stop]
            names = ", ".join(map(repr, of[:5])) + (", ..." if len(of) > 5 else "")
            raise RuleError(f"{error}; it was given {names}") from error
        return values, {name: array for name, array in state.items() if name != "rates"}

    def try_rule(self, dtype: Any) -> None:
        """Make an update that is dropped by a rule of one's own, for what is wrong with it is told best here.

        Raises
        ------
        RuleError
            Names the rule, what it gave, and the variables.
        """
        if not self.rule.own:
            return
        variables = self.variables()
        values = np.concatenate([np.zeros(0), *(np.zeros(v.dim) if v.value is None else v.value for v in variables)])
        gradient = np.random.default_rng(0).normal(size=values.shape).astype(dtype)
        self._updated(variables, values.astype(dtype), gradient, None)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the training that runs here; its last state goes along."""
        state = self.state  # asked for first: it may bring what follows up to date
        sums = {of: part.copy() for of, part in self._sums.items()}
        return {**vars(self), **_STAYS, "_state": state, "_sums": sums, "_rows": dict(self._rows)}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.target}, batch size {self.batch_size}, {self.rule}>"


def _settings(rule: Rule) -> list[str]:
    return [f.name for f in fields(rule)]


def _scalar(graph: Graph, target: Any) -> Node:
    """Return a target that can be trained."""
    target = named_node(graph, target, "target")
    if not isinstance(target, Node) or target.graph is not graph:
        raise GraphError(f"the target {brief(target)} is not a node of {graph}")
    if target.dim != 1:
        raise GraphError(
            f"the target {target} is not a scalar: a loss has dim 1, this node has dim {target.dim}; "
            f"reduce it with Sum or a loss node"
        )
    return target


def _made(state: State | None) -> int:
    """Return how many updates led to a state."""
    return 0 if state is None else int(state["t"][0])


def _names(text: str, variable: Variable) -> bool:
    """Whether a text is a variable's name, or that of a scope that it is in."""
    return f"{variable.name}.".startswith(f"{text}.")


def _state_array(name: str, value: Any) -> Array:
    """Return an array of an optimizer's state as it can be used."""
    try:
        array = np.array(value)
        good = array.dtype.kind in "fiu" and array.ndim == 1 and bool(np.isfinite(array).all())
    except (TypeError, ValueError):
        good = False
    if good and name == "t":  # the count of updates
        good = len(array) == 1 and array.dtype.kind in "iu" and int(array[0]) >= 0
    if not good:
        what = "one integer, the count of updates, as np.array([0])" if name == "t" else "a vector of finite numbers"
        raise GraphError(f"an optimizer's state has {what}, under {name!r}, not {value!r:.60}")
    return array


def _parts(array: Array, variables: Sequence[Variable]) -> dict[Variable, Array]:
    """Return the entries of each variable, which lie end to end."""
    stops = accumulate(v.dim for v in variables)
    return {v: array[stop - v.dim : stop] for v, stop in zip(variables, stops)}


def _laid_out(array: Array, before: Sequence[Variable], variables: Sequence[Variable], new: Array) -> Array:
    """Return the entries of each variable in another order; `new` ones for a variable that was not there before."""
    parts = {**_parts(new.astype(array.dtype), variables), **_parts(array, before)}
    return np.concatenate([array[:0], *(parts[v] for v in variables)])

"""The trainer: the user's handle on training, evaluation and prediction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

import numpy as np

from flowgrad.draw import Shown
from flowgrad.errors import GraphError
from flowgrad.graph import Node, named
from flowgrad.inputs import Settled, brief, flag, integer, path_of, without_underflow
from flowgrad.optim import Optimizer
from flowgrad.typing import Array

from ..engine import Engine
from ..executors import Executor
from ..feeds import check_mapping
from ..machine import Interrupts
from ..steps import metrics_of
from ..telling import untold
from .callbacks import Callback, Callbacks
from .checkpoint import Checkpoints, Saver
from .estimate import estimate, explain_training
from .evaluation import Evaluation
from .history import History
from .job import Settings, TrainingJob
from .mirror import Mirror
from .run import Run


class Trainer(Shown, Settled):
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
        Objects with any of the methods of `Callback`, such as `EarlyStopping`.
    accumulate : int
        Mini-batches whose gradients are accumulated for one update: an update is made by the mean gradient of ``accumulate *
        batch_size`` samples, in so many times as many shards. Memory does not grow with it at grain ``"round"``.
    metrics : iterable, optional
        Names and functions ``f(y_true, y_pred, sample_weight=None)`` as in scikit-learn; if none are given accuracy, of classes.
        `evaluate` gives them; the history has each as ``validation_name``, and as ``name`` over the training samples after each
        epoch, weighed as in training, which is one more pass over them. Of classes: ``"accuracy"``, ``"top_5"``, ``"precision"``,
        ``"recall"``, ``"f1"`` (of class 1 of two, the mean over more), ``"confusion_matrix"`` (rows: true); of values: ``"r2"``,
        ``"mean_squared_error"``, ``"mean_absolute_error"``. They are sums over shards. Any other name is a function of
        `sklearn.metrics`, such as ``"roc_auc"``: these and your own get the predictions of a whole pass, on one worker. ``y_true``
        are class indices, or values; ``y_pred`` as well, or where the second parameter is called ``y_score``, ``y_prob`` or
        ``y_proba`` probabilities ``(N, classes)``, of two classes ``(N,)`` of class 1.

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
    >>> trainer = fg.Trainer(trainer.optimizer, trainer.engine, metrics=["r2"])
    >>> trainer.evaluate({x: X, label: X @ [1.0, -2.0]})["r2"] > 0.999
    True
    """

    settings: Settings

    def __init__(
        self,
        optimizer: Optimizer,
        engine: Engine | None = None,
        shuffle: bool = True,
        seed: int = 0,
        callbacks: Iterable[Any] = (),
        accumulate: int = 1,
        metrics: Iterable[Any] | None = None,
    ):
        if not isinstance(optimizer, Optimizer):
            raise GraphError(
                f"the trainer needs an optimizer such as fg.Adam(graph, loss), not {type(optimizer).__name__}"
            )
        accumulate = integer(accumulate, "accumulate")
        if optimizer.privacy is not None and accumulate > 1:
            raise GraphError(
                f"differentially private steps divide by the batch size: give batch_size={optimizer.batch_size * accumulate} "
                f"to the optimizer instead of accumulate={accumulate}"
            )
        engine = Engine() if engine is None else engine
        called = Callbacks(callbacks)
        if not isinstance(engine, Engine):
            raise GraphError(f"the trainer's engine is an Engine, not {brief(engine)}: give fg.Engine({brief(engine)})")
        self.settings = Settings(
            optimizer,
            engine,
            flag(shuffle, "shuffle"),
            integer(seed, "seed", 0),
            called,
            shortest_epoch,
            accumulate,
            metrics_of(metrics),
        )

    @property
    def optimizer(self) -> Optimizer:
        """What is trained by."""
        return self.settings.optimizer

    @property
    def engine(self) -> Engine:
        """Where it runs."""
        return self.settings.engine

    @without_underflow
    def fit(
        self,
        feeds: Mapping[Any, Any],
        epochs: int = 6,
        validation: Mapping[Any, Any] | tuple[Mapping[Any, Any], Any] | None = None,
        checkpoint: Any = None,
        resume: bool = False,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
    ) -> History:
        """Train; afterwards the variables hold the trained values.

        Epochs go on where the last call ended (``optimizer.epochs`` counts): n calls of ``fit(epochs=1)`` take the samples in n
        different orders, and give the bits of ``fit(epochs=n)``.

        Parameters
        ----------
        feeds : dict
            ``{variable: array (N, dim)}``; class indices ``(N,)`` for a label of dim > 1. What callbacks write to arrays in memory
            meanwhile counts nowhere.
        epochs : int
            Passes over the samples; the last mini-batch of a pass may be smaller and weighs its own samples.
        validation : dict or (dict, array), optional
            Feeds to evaluate before the first and after each epoch; with a weight for each sample.
        checkpoint : path or Checkpoints, optional
            A folder where a checkpoint is written after each epoch, or `Checkpoints`: a folder, how often, and how many are kept.
            After the last epoch one is always written, and when training is interrupted by Ctrl-C or SIGTERM.
        resume : bool
            Go on from the last checkpoint in that folder that can be read, if there is one, with its plan: bit by bit as if the
            training had never been interrupted. Without it a folder that has checkpoints is refused.
        sample_weight : array (N,), optional
            Of whatever kind feeds are. The loss of a mini-batch is ``sum(weight * loss)`` by the number of its samples, as in
            Keras, a penalty that is part of it included; gradients keep their size where the mean of the weights is 1.
        class_weight : dict, optional
            ``{class: weight}``, by the labels of the loss's cross entropy; 1 for other classes. Times `sample_weight`, if both are
            given.

        Raises
        ------
        FeedError, GraphError
            Before anything runs or changes, if something does not fit, or the checkpoint is of another model, optimizer, seed,
            batch size or data size; both values are named. Labels outside of those of a cross entropy are named with the sample.
        DataError
            If checkpoints cannot be written, or none of those there can be read.
        FlowgradError
            If the loss becomes nan or inf; the variables keep the values that they had before.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph() as graph:
        ...     x, t = fg.Variable(1, trainable=False), fg.Variable(1, trainable=False)
        ...     y = fg.Variable(1, [0.0]) * x
        ...     loss = fg.MeanSquaredError(y, t)
        >>> feeds = {x: [1.0, 2.0, 3.0, 4.0], t: [2.0, 4.0, 6.0, 8.0]}
        >>> trainer = fg.Trainer(fg.GradientDescent(graph, loss, 0.05, batch_size=2), fg.Engine("sync"))
        >>> history = trainer.fit(feeds, epochs=20, validation=feeds)
        >>> len(history.steps), history.epochs[-1]["validation_loss"] < 1e-9
        (40, True)
        """
        check_mapping(feeds)  # first: `fit(X, y)` would take labels for the number of epochs
        epochs = integer(epochs, "epochs")
        if flag(resume, "resume") and checkpoint is None:
            raise GraphError("resume=True needs checkpoint=folder, the folder to go on from")
        if checkpoint is not None and not isinstance(checkpoint, Checkpoints):
            checkpoint = Checkpoints(path_of(checkpoint, "checkpoint"))
        saver = None if checkpoint is None else Saver(checkpoint, resume)
        mirror, weights = Mirror(self.optimizer), (sample_weight, class_weight)
        try:
            with (
                self.engine.executor.waiting(),
                Interrupts() as interrupts,
                closing(
                    Run(self.settings, feeds, validation, saver, epochs, resume, interrupts, mirror, weights)
                ) as run,
            ):
                return run.train()
        finally:
            mirror.leave()

    def fingerprint(self) -> str:
        """Return 32 hex digits that stand for the weights and the state of the optimizer.

        They are the same after the same training, on any number of workers, whatever happened to them meanwhile.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph() as graph:
        ...     w = fg.Variable(1, [2.0])
        >>> trainer = fg.Trainer(fg.Adam(graph, w * w), fg.Engine("sync"))
        >>> before = trainer.fingerprint()
        >>> w.set_value([3.0])
        >>> before != trainer.fingerprint() and len(before) == 32
        True
        """
        digest = hashlib.blake2b(digest_size=16)
        for v in self.optimizer.variables():
            digest.update(f"{v.index} {v.dim};".encode())
            digest.update(b"" if v.value is None else np.ascontiguousarray(v.value, "<f8").data)
        for name, array in sorted((self.optimizer.state or {}).items()):
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            digest.update(f"{name} {little.dtype.str};".encode())
            digest.update(little.data)
        return digest.hexdigest()

    @without_underflow
    def explain(self, feeds: Mapping[Any, Any], epochs: int = 6, again: bool = False) -> str:
        """Say what training with these feeds would do and cost, without training.

        The training's own step is run in this process to be timed, whole and at three sizes, by the plan's kernel and by NumPy's;
        no variable changes. What tasks cost on this engine is measured once, in about a second. Compiling is told apart. The text
        holds the plan, what each grain and kernel would cost, and the batch sizes from which on 2, 4 and 16 workers pay.

        Parameters
        ----------
        again : bool
            Measure anew what tasks cost, even if that is known from earlier.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph() as graph:
        ...     x = fg.Variable(1, trainable=False)
        ...     y = fg.Variable(1, [2.0]) * x
        >>> trainer = fg.Trainer(fg.Adam(graph, y * y, batch_size=2), fg.Engine("sync"))
        >>> "plan: grain" in trainer.explain({x: [1.0, 2.0]})
        True
        """
        epochs, again = integer(epochs, "epochs"), flag(again, "again")
        return explain_training(estimate(TrainingJob(self.settings, feeds, epochs), again))

    @without_underflow
    def evaluate(self, feeds: Mapping[Any, Any], sample_weight: Any = None) -> dict[str, Any]:
        """Return ``"loss"``, its mean over the samples, and the metrics; if none were given, accuracy where there are classes.

        Accuracy, between 0 and 1, is how many of the samples have the largest logit where the largest label is, or for a
        `LogisticCrossEntropy` a logit above 0 where the label is above 0.5; the mean, if there are several cross entropies. Factors
        and what is added do not matter.
        With `sample_weight` ``(N,)`` the loss is ``sum(weight * loss) / N``, and the accuracy the share of the weights.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph() as graph:
        ...     x = fg.Variable(1, trainable=False)
        ...     y = fg.Variable(1, [2.0]) * x
        >>> trainer = fg.Trainer(fg.Adam(graph, y * y, batch_size=2), fg.Engine("sync"))
        >>> trainer.evaluate({x: [1.0, 3.0]})
        {'loss': 20.0}
        """
        checked = self.settings.checked(feeds, self.engine.dtype, training=False, sample_weight=sample_weight)
        with (
            self.engine.executor.waiting(),
            closing(
                Evaluation(self.engine, self.optimizer.target, checked, metrics=self.settings.metrics)
            ) as evaluation,
        ):
            return evaluation.scores(None)

    @without_underflow
    def predict(self, node: Node | str, feeds: Mapping[Any, Any]) -> Array:
        """Return the values of a node, or of its name, for every sample, ``(N, node.dim)``; the same as ``engine.forward``.

        Raises
        ------
        FeedError
            If a feed is missing or cannot be used.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph() as graph:
        ...     x = fg.Variable(1, trainable=False)
        ...     y = fg.Variable(1, [2.0]) * x
        >>> trainer = fg.Trainer(fg.Adam(graph, y * y, batch_size=2), fg.Engine("sync"))
        >>> trainer.predict(y, {x: [1.0, 3.0]}).tolist()
        [[2.0], [6.0]]
        """
        return self.engine.forward(named(self.optimizer.graph, node, "forward"), feeds)


def shortest_epoch(
    optimizer: Optimizer, executor: Executor, grain: str, shards: int, feeds: Mapping[Any, Any], epochs: int
) -> float:
    """Train as `Trainer` does and return the seconds of the shortest epoch; a callback lets each have a time of its own."""
    engine = Engine(executor, "float32", grain, shards, "numpy")
    with untold():
        history = Trainer(optimizer, engine, callbacks=[Callback()]).fit(feeds, epochs)
    return min(len(next(iter(feeds.values()))) / record["samples_per_second"] for record in history.epochs)

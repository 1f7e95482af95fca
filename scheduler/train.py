"""The trainer: the user's handle on training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.errors import GraphError
from flowgrad.jacobian import Array
from flowgrad.node import Node
from flowgrad.optimizers import Optimizer

from .checkpoint import prepare_folder
from .engine import Engine
from .estimate import estimate
from .evaluate import Evaluation
from .explain import explain_training
from .feeds import check_feeds
from .history import History
from .run import Run, Settings


class Trainer:
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
        Objects with any of the methods ``on_train_begin(info)``, ``on_steps(info)``, ``on_epoch(record)``,
        ``on_train_end(history)``; `info` and `record` are dicts.

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
    """

    def __init__(
        self,
        optimizer: Optimizer,
        engine: Engine | None = None,
        shuffle: bool = True,
        seed: int = 0,
        callbacks: Iterable[Any] = (),
    ):
        if not isinstance(optimizer, Optimizer):
            raise GraphError(
                f"the trainer needs an optimizer such as fg.Adam(graph, loss), not {type(optimizer).__name__}"
            )
        self.optimizer = optimizer
        self.engine = Engine() if engine is None else engine
        self.settings = Settings(optimizer, self.engine, bool(shuffle), int(seed), tuple(callbacks), train_once)

    def fit(
        self,
        feeds: Mapping[Any, Any],
        epochs: int = 6,
        validation: Mapping[Any, Any] | None = None,
        checkpoint: Any = None,
        resume: bool = False,
    ) -> History:
        """Train; afterwards the variables hold the trained values.

        Parameters
        ----------
        feeds : dict
            ``{variable: array (N, dim)}``; class indices ``(N,)`` for a label of dim > 1.
        epochs : int
            Passes over the samples; the last mini-batch of a pass may be smaller and weighs its own samples.
        validation : dict, optional
            Feeds to evaluate before the first and after each epoch.
        checkpoint : path, optional
            A folder; after each epoch a checkpoint is written there.
        resume : bool
            Go on from the last checkpoint in that folder, if there is one.

        Returns
        -------
        History

        Raises
        ------
        FeedError, GraphError
            Before anything runs or changes, if something does not fit.
        FlowgradError
            If the loss becomes nan or inf; the variables keep the values that they had before.
        """
        if isinstance(epochs, bool) or not isinstance(epochs, (int, np.integer)) or epochs < 1:
            raise GraphError(f"epochs must be a positive integer, not {epochs!r}")
        if resume and checkpoint is None:
            raise GraphError("resume=True needs checkpoint=folder, the folder to go on from")
        folder = None if checkpoint is None else prepare_folder(Path(checkpoint))
        run = Run(self.settings, feeds, validation, folder, int(epochs))
        try:
            return run.train(resume)
        finally:
            run.close()

    def explain(self, feeds: Mapping[Any, Any], epochs: int = 6, again: bool = False) -> str:
        """Say what training with these feeds would do and cost, without training.

        The cost of a step is predicted from its operations and from how fast this engine was found to work; what is not known
        about the machine yet is measured first, which takes about a second (longer if compiled kernels are measured for
        the first time).

        Parameters
        ----------
        feeds : dict
            As for `fit`.
        epochs : int
        again : bool
            Measure the machine anew, even if it is known from earlier.

        Returns
        -------
        str
            The plan, what each grain and kernel would cost, and the batch size from which on tasks side by side pay.
        """
        return explain_training(estimate(self.optimizer, self.engine, feeds, epochs, train_once, again))

    def evaluate(self, feeds: Mapping[Any, Any]) -> dict[str, float]:
        """Return the mean loss over the samples and, for a cross entropy, the accuracy.

        Parameters
        ----------
        feeds : dict

        Returns
        -------
        dict
            ``"loss"`` and, where the loss is `CrossEntropyWithSoftMax`, ``"accuracy"`` between 0 and 1.
        """
        target = self.optimizer.target
        checked = check_feeds(target.graph, feeds, self.engine.dtype)
        evaluation = Evaluation(self.engine.executor, target, checked)
        try:
            return evaluation.result(evaluation.submit(None))
        finally:
            evaluation.close()

    def predict(self, node: Node, feeds: Mapping[Any, Any]) -> Array:
        """Return the values ``(N, node.dim)`` of a node for every sample; the same as ``engine.forward``."""
        return self.engine.forward(node, feeds)


def train_once(optimizer: Optimizer, engine: Engine, feeds: Mapping[Any, Any], epochs: int) -> History:
    """Train as `Trainer` does; for measurements."""
    return Trainer(optimizer, engine).fit(feeds, epochs)

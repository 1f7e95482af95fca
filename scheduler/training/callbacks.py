"""Callbacks: what a trainer calls while it trains, what they may answer, early stopping, and logs."""

from __future__ import annotations

import csv
import importlib.util
import math
import os
from collections.abc import Iterable, Mapping
from enum import Flag, auto
from typing import Any

import numpy as np

from flowgrad.errors import DataError, GraphError
from flowgrad.inputs import brief, flag, integer, listed, nearest, one_of, path_of, real

from .history import History


class Signal(Flag):
    """What a callback may answer; combined with ``|``."""

    STOP = auto()
    KEEP = auto()


STOP, KEEP = Signal.STOP, Signal.KEEP
# Of a record, what is about the run and neither about training nor about validation samples.
RUN = ("seconds", "samples_per_second", "learning_rate")


class Callback:
    """What a trainer calls; any object with some of these methods will do.

    A subclass may have no other ones that begin with ``on_``, for nobody would call them.
    All callbacks are called, in the order in which they were given to the trainer, in the process and the thread that called `fit`.
    Variables and the optimizer have the weights and state of the last finished epoch. In `on_train_begin` and `on_epoch` trained
    variables, ``optimizer.learning_rate``, ``optimizer.rule`` and ``optimizer.state`` may be set, and training goes on with them;
    anywhere else setting a variable is refused. An exception ends the training and comes out of `fit` as it is: the variables and
    the optimizer then have again what they had before `fit`, nothing stays on the executor, and what was trained so far is in the
    last checkpoint, if checkpoints are written.

    Examples
    --------
    >>> import flowgrad as fg
    >>> class UntilGoodEnough(fg.Callback):
    ...     def on_epoch(self, record):
    ...         return fg.STOP if record["loss"] < 0.1 else None
    """

    def on_train_begin(self, info: Mapping[str, Any]) -> Signal | None:
        """Return ``fg.STOP`` to train nothing, ``fg.KEEP`` to stay with the state that was kept before a checkpoint, or both.

        `info` holds ``optimizer``, ``plan``, ``samples``, ``epochs``, ``steps`` (of the whole training), ``validation`` (whether
        there is any), ``hint`` (workers that the plan leaves idle, and why; empty if none) and, where training goes on from a
        checkpoint, ``past`` (the records of the epochs that are done) and ``kept_epoch``.
        """

    def on_steps(self, info: Mapping[str, Any]) -> None:
        """Receive news of some steps.

        `info` holds ``step`` (number of the last one), ``steps``, ``epoch``, ``samples`` (of these steps), ``loss`` (their mean)
        and ``seconds``.
        """

    def on_epoch(self, record: Mapping[str, Any]) -> Signal | None:
        """Return ``fg.STOP`` to end the training after this epoch, ``fg.KEEP`` to keep its state, or both: ``fg.STOP | fg.KEEP``.

        What is kept is the state with what callbacks changed of it in this epoch.

        `record` is an entry of ``History.epochs``. When training ends the variables and the optimizer get the state that was kept
        last, or the last one if none was kept.
        """

    def on_recovery(self, record: Mapping[str, Any]) -> None:
        """Hear of a failure that was got over; steps that were lost are done again.

        `record` is an entry of ``History.recoveries``: ``step`` (the last one that was done), ``again`` (steps that are done a
        second time), ``cause``.
        """

    def on_train_end(self, history: History) -> None:
        """Receive the whole history; the variables hold the trained values."""


METHODS = tuple(name for name in vars(Callback) if name.startswith("on_"))


class Callbacks:
    """The callbacks of a trainer."""

    def __init__(self, callbacks: Iterable[Any] = ()):
        given = listed(callbacks)
        if given is None:
            kind = type(callbacks).__name__
            raise GraphError(f"callbacks is a list of them, not {brief(callbacks)}: write [{kind}(...)]")
        self.callbacks = tuple(given)
        for callback in self.callbacks:
            if isinstance(callback, type):
                raise GraphError(
                    f"callbacks are objects, {callback.__name__} is a class: write {callback.__name__}(...)"
                )
            answers = [getattr(callback, name) for name in METHODS if getattr(callback, name, None) is not None]
            unknown = [name for name in dir(callback) if name.startswith("on_") and name not in METHODS]
            unknown = [name for name in unknown if callable(getattr(callback, name, None))]
            if unknown and (isinstance(callback, Callback) or not answers):
                raise GraphError(
                    f"{type(callback).__name__} has {unknown[0]!r}, which is never called{nearest(unknown[0], METHODS)}"
                )
            if not answers or not all(map(callable, answers)):
                raise GraphError(
                    f"callbacks are objects with some of the methods {', '.join(METHODS)}, not {brief(callback)}"
                )

    @property
    def own(self) -> bool:
        """Whether any of them is somebody's own, which may do anything."""
        return any(type(callback).__module__.partition(".")[0] != "flowgrad" for callback in self.callbacks)

    def notify(self, method: str, *args: Any) -> Signal:
        """Call a method of every callback that has it, and return all their answers together.

        Raises
        ------
        GraphError
            If the answer is something else; ``None``, and other things that are false, are no answer.
        """
        answer = Signal(0)
        getattr(Callback, method)  # nothing is told that nobody can know of
        for callback in self.callbacks:
            handler = getattr(callback, method, None)
            said = None if handler is None else handler(*args)
            if isinstance(said, Signal):
                answer |= said
            elif _says_something(said):
                raise GraphError(
                    f"{method} of {type(callback).__name__} returned {said!r}: return fg.STOP, fg.KEEP or None"
                )
        return answer


def _says_something(said: Any) -> bool:
    try:
        return bool(said)
    except Exception:  # an array, say, is neither true nor false
        return True


class _Watching(Callback):
    """What watches a loss or accuracy, and counts epochs without a better one."""

    def __init__(self, monitor: str, patience: int, min_delta: float):
        kind, known = type(self).__name__, ("validation_loss", "validation_accuracy", "loss")
        metric = isinstance(monitor, str) and monitor.startswith("validation_")
        self.monitor = monitor if metric else one_of(monitor, f"{kind}: monitor", known)
        self.patience = integer(patience, f"{kind}: patience")
        self.min_delta = real(min_delta, f"{kind}: min_delta", 0)
        self._forget()

    def _forget(self) -> None:
        self.best, self._waited = math.nan, 0

    def _begin(self, info: Mapping[str, Any]) -> None:
        if self.monitor != "loss" and not info["validation"]:
            raise GraphError(
                f"{type(self).__name__} watches {self.monitor!r}, but there is nothing to validate on: "
                f"give fit(..., validation=feeds), or monitor='loss'"
            )
        self._forget()

    def _better(self, record: Mapping[str, Any]) -> bool:
        """Whether an epoch is the best so far; if not, it was waited for one."""
        value = record.get(self.monitor)
        if not isinstance(value, (float, int)):
            raise GraphError(
                f"{type(self).__name__} watches {self.monitor!r}, but epoch {record['epoch']} has no such number: only a loss made "
                f"of CrossEntropyWithSoftMax or LogisticCrossEntropy has an accuracy, others come by fg.Trainer(metrics=[...])"
            )
        less = any(word in self.monitor for word in ("loss", "error", "deviance"))
        gain = self.best - value if less else value - self.best
        if not math.isnan(value) and (math.isnan(self.best) or gain > self.min_delta):
            self.best, self._waited = value, 0
            return True
        self._waited += record["epoch"] > 0 or not math.isnan(value)  # before the first epoch there is no training loss
        return False


class EarlyStopping(_Watching):
    """Stop when a loss or accuracy has not become better for some epochs; give back the best weights.

    An epoch is better if it beats the best one so far by more than `min_delta` (L. Prechelt, "Early stopping - but when?",
    1998). The evaluation before the first epoch counts as well. When training goes on from a checkpoint, the epochs before it
    count, and the best weights among them are in the checkpoint; where they are not, because something else was watched then,
    counting begins anew.

    Parameters
    ----------
    monitor : str
        ``"validation_loss"``, ``"validation_accuracy"``, ``"loss"``, or ``"validation_"`` and the name of a metric; less is
        better of a loss, error or deviance, more of all else.
    patience : int
        Epochs without a better one after which training ends.
    min_delta : float
    restore_best : bool
        Whether the variables and the optimizer get the state of the best epoch when training ends, for whatever reason it ends
        regularly.

    Attributes
    ----------
    best : float
    best_epoch, stopped_epoch : int or None

    Examples
    --------
    >>> import flowgrad as fg, numpy as np
    >>> with fg.Graph(seed=0) as graph:
    ...     x, y = fg.Variable(1, trainable=False), fg.Variable(1, trainable=False)
    ...     loss = fg.MeanSquaredError(fg.Variable(1, [0.0]) @ x, y)
    >>> stopping = fg.EarlyStopping("loss", patience=2, min_delta=0.001)
    >>> trainer = fg.Trainer(fg.GradientDescent(graph, loss, 0.1, batch_size=4), fg.Engine("sync"), callbacks=[stopping])
    >>> history = trainer.fit({x: np.ones((4, 1)), y: np.ones((4, 1))}, epochs=1000)
    >>> len(history.epochs) < 50, history.epochs[-1]["epoch"] - stopping.best_epoch
    (True, 2)
    """

    def __init__(
        self, monitor: str = "validation_loss", patience: int = 3, min_delta: float = 0.0, restore_best: bool = True
    ):
        self.restore_best = flag(restore_best, "EarlyStopping: restore_best")
        super().__init__(monitor, patience, min_delta)

    def _forget(self) -> None:
        super()._forget()
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None

    def on_train_begin(self, info: Mapping[str, Any]) -> Signal | None:
        """Begin anew, with the epochs that are done already."""
        self._begin(info)
        answers = [self._see(record) for record in info["past"]]
        if self.restore_best and self.best_epoch != info["kept_epoch"]:
            self._forget()
            return None
        stay = KEEP if self.restore_best else Signal(0)
        return stay | STOP if answers and STOP in answers[-1] else stay

    def on_epoch(self, record: Mapping[str, Any]) -> Signal | None:
        """Compare with the best epoch so far."""
        return self._see(record)

    def _see(self, record: Mapping[str, Any]) -> Signal:
        if self._better(record):
            self.best_epoch = record["epoch"]
            return KEEP if self.restore_best else Signal(0)
        if self._waited < self.patience:
            return Signal(0)
        self.stopped_epoch = record["epoch"]
        return STOP


class ReduceLROnPlateau(_Watching):
    """Multiply the learning rate by a factor when a loss or accuracy has not become better for some epochs.

    Epochs are compared as `EarlyStopping` does, and when training goes on from a checkpoint, those before it count. The learning
    rate stays what it became when training ends.

    Parameters
    ----------
    monitor : str
        ``"validation_loss"``, ``"validation_accuracy"`` or ``"loss"``.
    factor : float
        Above 0, below 1.
    patience : int
        Epochs without a better one after which the learning rate is reduced.
    min_delta : float
    cooldown : int
        Epochs after that which are not waited for.
    min_lr : float
        The learning rate does not fall below it.

    Attributes
    ----------
    best : float
    reduced : list of int
        Epochs after which it was reduced.

    Examples
    --------
    >>> import flowgrad as fg, numpy as np
    >>> with fg.Graph() as graph:
    ...     x, w = fg.Variable(1, trainable=False), fg.Variable(1, [2.0])
    ...     optimizer = fg.GradientDescent(graph, fg.Dot(w * w, x), 1.0, batch_size=2)  # jumps to and fro
    >>> plateau = fg.ReduceLROnPlateau("loss", factor=0.5, patience=2)
    >>> trainer = fg.Trainer(optimizer, fg.Engine("sync"), callbacks=[plateau])
    >>> _ = trainer.fit({x: np.ones((2, 1))}, epochs=4)
    >>> plateau.reduced, optimizer.learning_rate, w.value.tolist()
    ([3], 0.5, [0.0])
    """

    def __init__(
        self,
        monitor: str = "validation_loss",
        factor: float = 0.1,
        patience: int = 10,
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ):
        self.factor = real(factor, "ReduceLROnPlateau: factor", 0, above=True)
        if self.factor >= 1:
            raise GraphError(f"ReduceLROnPlateau: factor must be below 1, not {factor!r}")
        self.cooldown = integer(cooldown, "ReduceLROnPlateau: cooldown", 0)
        self.min_lr = real(min_lr, "ReduceLROnPlateau: min_lr", 0)
        super().__init__(monitor, patience, min_delta)

    def _forget(self) -> None:
        super()._forget()
        self.reduced: list[int] = []

    def on_train_begin(self, info: Mapping[str, Any]) -> None:
        """Begin anew, with the epochs that are done already."""
        self._optimizer = info["optimizer"]
        rate = self._optimizer.learning_rate
        if callable(rate):
            raise GraphError(
                f"ReduceLROnPlateau needs a learning rate that is a number, not {rate!r}: leave out one of both"
            )
        self._begin(info)
        for record in info["past"]:
            self._see(record)

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Compare with the best epoch so far."""
        if self._see(record):
            rate = self._optimizer.learning_rate
            self._optimizer.learning_rate = min(rate, max(self.min_lr, rate * self.factor))

    def _see(self, record: Mapping[str, Any]) -> bool:
        if self._better(record):
            return False
        if self.reduced and record["epoch"] <= self.reduced[-1] + self.cooldown:
            self._waited = 0
        if self._waited < self.patience:
            return False
        self.reduced.append(record["epoch"])
        self._waited = 0
        return True


class CSVLog(Callback):
    """Writes a row for each epoch to a CSV file, as soon as the epoch is done.

    The columns are those of ``History.epochs``; metrics that are no numbers are left out. Where a training goes on from a
    checkpoint, the rows of the epochs before it are written as well.

    Parameters
    ----------
    path : str or path

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     x, w = fg.Variable(1, trainable=False), fg.Variable(1, [2.0])
    ...     optimizer = fg.GradientDescent(graph, fg.Sum(w * w * x), 0.25, batch_size=1)
    >>> _ = fg.Trainer(optimizer, fg.Engine("sync"), callbacks=[fg.CSVLog("log.csv")]).fit({x: [1.0]}, epochs=2)
    >>> [row.split(",")[:2] for row in open("log.csv").read().split()]
    [['epoch', 'loss'], ['1', '4.0'], ['2', '1.0']]
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = path_of(path, "CSVLog: path")
        self._columns: list[str] = []

    def on_train_begin(self, info: Mapping[str, Any]) -> None:
        """Begin the file anew."""
        self._columns = []
        for record in info["past"]:
            self.on_epoch(record)

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Write a row."""
        first = not self._columns
        if first:
            self._columns = [key for key, value in record.items() if value is None or isinstance(value, (int, float))]
        try:
            with self.path.open("w" if first else "a", newline="", encoding="utf-8") as file:
                rows = csv.writer(file, lineterminator="\n")
                if first:
                    rows.writerow(self._columns)
                values = [record.get(column) for column in self._columns]
                rows.writerow(["" if value is None or value != value else value for value in values])
        except OSError as error:
            raise DataError(
                f"cannot write {str(self.path)!r}: {error.strerror or error}: choose another place"
            ) from error


class TensorBoard(Callback):
    """Writes what TensorBoard shows: scalars for each epoch, the loss of steps, and a histogram of the weights of each layer.

    A layer is what names have before their last dot: ``h0.w3`` is of ``h0``. This needs tensorboardX, which comes with
    ``pip install 'flowgrad[tensorboard]'``; ``tensorboard --logdir FOLDER`` shows it.

    Parameters
    ----------
    folder : str or path
        Of one run; runs in folders beside each other can be compared.
    histograms : bool
        Whether to write weights, which are read from the workers for it.

    Raises
    ------
    DataError
        If tensorboardX is missing.

    Examples
    --------
    >>> import flowgrad as fg
    >>> fg.Trainer(optimizer, callbacks=[fg.TensorBoard("logs/first")])  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str], histograms: bool = True):
        self.folder, self.histograms = (
            path_of(folder, "TensorBoard: folder"),
            flag(histograms, "TensorBoard: histograms"),
        )
        if importlib.util.find_spec("tensorboardX") is None:
            raise DataError("TensorBoard needs tensorboardX: pip install 'flowgrad[tensorboard]'")
        self._writer: Any = None

    def on_train_begin(self, info: Mapping[str, Any]) -> None:
        """Open the folder."""
        from tensorboardX import SummaryWriter

        self.close()
        try:
            self._writer = SummaryWriter(str(self.folder))
        except OSError as error:
            raise DataError(
                f"cannot write to {str(self.folder)!r}: {error.strerror or error}: choose another folder"
            ) from error
        self._optimizer = info["optimizer"]
        for record in info["past"]:
            self._scalars(record)

    def on_steps(self, info: Mapping[str, Any]) -> None:
        """Write the mean loss of some steps."""
        self._writer.add_scalar("steps/loss", info["loss"], info["step"])

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Write scalars and histograms."""
        self._scalars(record)
        layers: dict[str, list[Any]] = {}
        for variable in self._optimizer.variables() if self.histograms else ():
            layers.setdefault(variable.name.rpartition(".")[0] or variable.name, []).append(np.ravel(variable.value))
        for layer, values in layers.items():
            self._writer.add_histogram(f"weights/{layer}", np.concatenate(values), record["epoch"])
        self._writer.flush()

    def _scalars(self, record: Mapping[str, Any]) -> None:
        for key, value in record.items():
            if key != "epoch" and isinstance(value, (int, float)) and math.isfinite(value):
                name = key.removeprefix("validation_")
                of = "validation" if name != key else "training"
                tag = f"run/{key}" if key in RUN else f"{name}/{of}"
                self._writer.add_scalar(tag, value, record["epoch"])

    def on_train_end(self, history: History) -> None:
        """Close the files."""
        self.close()

    def close(self) -> None:
        """Close the files; after an exception, too, what was written is there."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

"""What a training run leaves behind: a record per epoch, the loss of every step, and the plan."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, overload

from flowgrad.draw import Shown, curves


class StepLosses(Sequence[tuple[int, float]]):
    """Pairs of step, from 1, and loss, like a list of them; kept in eight bytes each, for a run may have millions."""

    def __init__(self, losses: Iterable[float] = ()):
        self.losses = array("d", losses)

    def __len__(self) -> int:
        return len(self.losses)

    @overload
    def __getitem__(self, index: int) -> tuple[int, float]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, float]]: ...

    def __getitem__(self, index: int | slice) -> Any:
        at = range(len(self.losses))[index]
        return (at + 1, self.losses[at]) if isinstance(at, int) else [(k + 1, self.losses[k]) for k in at]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StepLosses):
            return self.losses == other.losses
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"<{len(self)} steps>" if len(self) > 3 else repr(list(self))


@dataclass
class History(Shown):
    """The course of a training run; `print` writes a line for each epoch.

    Attributes
    ----------
    epochs : list of dict
        ``epoch``, ``loss`` (mean over the epoch's samples; nan for epoch 0), ``validation_loss``, ``validation_accuracy`` (None
        where there is none), ``seconds`` since the start of `fit`, ``samples_per_second``, ``learning_rate`` (of the epoch's last
        update; None for epoch 0); of a trainer's metrics ``name`` and ``validation_name``. Epoch 0 is the evaluation before
        training, present if there are validation feeds.
    steps : sequence of (int, float)
        Number of the step, from 1, and the mean loss of its mini-batch before the update.
    plan : dict
        Grain, shards, steps per task and window, and the reason.
    window : dict
        What bounds the work ahead: the most ``steps`` and ``tasks`` from one state that the client sent, and an estimate of the
        memory that it takes on a worker, ``worker_bytes``; and ``grains``: how many steps ran at which, where another one than the
        planned one was tried.
    recoveries : list of dict
        Failures that were got over: ``step`` that was the last one done, ``again``: steps known to be done that were done a second
        time, ``cause``.
    kept_epoch : int, optional
        The epoch whose state the variables got in the end, where a callback kept one; None: the last.
    """

    plan: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: StepLosses = field(default_factory=StepLosses)
    window: dict[str, Any] = field(default_factory=dict)
    recoveries: list[dict[str, Any]] = field(default_factory=list)
    kept_epoch: int | None = None

    def __str__(self) -> str:
        rows = [[(name, float(v)) for name, v in record.items() if isinstance(v, Real)] for record in self.epochs]
        told = ([f"{name} {v:.4g}" if abs(v) < 1000 else f"{name} {v:,.0f}" for name, v in row] for row in rows)
        return "\n".join(map("  ".join, told))

    def as_dict(self) -> dict[str, Any]:
        """Return the history as plain values, for JSON."""
        return {**vars(self), "steps": [list(step) for step in self.steps]}

    def plot(self, title: str = "") -> Any:
        """Return a matplotlib figure: loss, metrics and the learning rate where it changes, by epoch, and which one was best.

        Raises
        ------
        DataError
            When matplotlib is missing.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph() as graph:
        ...     x, w = fg.Variable(1, trainable=False), fg.Variable(1, [2.0])
        ...     optimizer = fg.GradientDescent(graph, fg.Sum(w * w * x), 0.1, batch_size=2)
        >>> history = fg.Trainer(optimizer, fg.Engine("sync")).fit({x: [1.0, 2.0]}, epochs=3)
        >>> history.plot().savefig("curves.png")
        """
        return curves(self.epochs, self.steps.losses, self.kept_epoch, title)

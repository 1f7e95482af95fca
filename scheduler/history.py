"""What a training run leaves behind: a record per epoch, the loss of every step, and the plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """The course of a training run.

    Attributes
    ----------
    epochs : list of dict
        ``epoch``, ``loss`` (mean over the epoch's samples; nan for epoch 0), ``validation_loss``, ``validation_accuracy`` (None
        where there is none), ``seconds`` since the start of `fit`, ``samples_per_second``. Epoch 0 is the evaluation before
        training, present if there are validation feeds.
    steps : list of (int, float)
        Number of the step, from 1, and the mean loss of its mini-batch before the update.
    plan : dict
        Grain, shards, steps per task and window, and the reason.
    window : dict
        What bounds the work ahead: ``steps`` and ``tasks`` of a window, and an estimate of the memory that it takes on a worker,
        ``worker_bytes``.
    recoveries : list of dict
        Failures that were got over: ``step`` that was the last one done, ``again`` (steps that were done a second time), ``cause``.
    kept_epoch : int, optional
        The epoch whose state the variables got in the end, where a callback kept one; None: the last.
    """

    plan: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: list[tuple[int, float]] = field(default_factory=list)
    window: dict[str, int] = field(default_factory=dict)
    recoveries: list[dict[str, Any]] = field(default_factory=list)
    kept_epoch: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the history as plain values, for JSON."""
        steps = [list(s) for s in self.steps]
        return {
            "plan": self.plan,
            "epochs": self.epochs,
            "steps": steps,
            "window": self.window,
            "recoveries": self.recoveries,
            "kept_epoch": self.kept_epoch,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """Return the history that `as_dict` wrote."""
        steps = [(int(k), float(loss)) for k, loss in values["steps"]]
        return cls(
            values["plan"], values["epochs"], steps, values["window"], values["recoveries"], values["kept_epoch"]
        )

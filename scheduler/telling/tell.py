"""What a training tells: messages, in a batch about once a second."""

from __future__ import annotations

import math
import os
import socket
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from flowgrad.errors import warn
from flowgrad.graph import ancestors

from ..dashboard import QUIET, cause_of, describe, rows_of
from .link import link_of
from .measure import Measures

# Seconds between two messages, at the least, and points of a curve in one of them.
EVERY, POINTS = 0.8, 40
# Seconds that a training has to last before its graph is told, looked at or not.
LATER = 3.0


class Teller:
    """Tells of one call of `fit`; nothing that goes wrong here reaches the training.

    Parameters
    ----------
    run : Any
        The course of the call; see `flowgrad.scheduler.training.run.Run`.
    """

    def __init__(self, run: Any):
        self.run, self.name = run, f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self.link = link_of(run.job.executor.client)
        self.link.off = ""  # what was wrong may have been mended since the last training
        self.measures = Measures(run.job, run.settings.batch_size)
        self.start = self._last = time.perf_counter()
        self._queue: list[tuple[str, Mapping[str, Any]]] = []
        self._samples = self._steps = 0
        self._begin: list[tuple[str, Mapping[str, Any]]] = []
        self._over = False

    def take(self, method: str, about: Mapping[str, Any]) -> None:
        """Hear of what callbacks are told."""
        if self.link.off or self._over:
            self._say_off()
            return
        try:
            getattr(self, f"_{method}", _nothing)(about)
        except Exception as error:
            self._over = True
            self._begin.clear()
            warn(f"the page of this training stands still: {describe(error)}; the training goes on")

    def end(self, error: BaseException | None = None) -> None:
        """Tell that the training is over, and why if it broke off."""
        if self.link.off or self._over:
            return
        if time.perf_counter() - self.start < EVERY:  # over before it was worth a word
            self._begin.clear()
            return
        if error is None:
            self._queue.append(("end", {"status": "done"}))
        else:
            self._queue.append(("end", {"status": "stopped", "cause": cause_of(error)}))
        self._over = True
        self._send(whatever=True)
        self.link.wait()

    def _say_off(self) -> None:
        if self.link.off and not self.link.told_off and not self.link.off.startswith(QUIET):
            self.link.told_off = True
            warn(f"no live page: {self.link.off}; the training goes on")

    # -- what is heard ------------------------------------------------------------------------------------------

    def _on_train_begin(self, info: Mapping[str, Any]) -> None:
        run, self.start = self.run, time.perf_counter()
        optimizer = run.settings.optimizer
        told = {
            "plan": dict(info["plan"]),
            "samples": int(info["samples"]),
            "epochs": int(info["epochs"]),
            "steps": int(info["steps"]),
            "batch": run.settings.batch_size,
            "dtype": run.job.feeds.dtype.name,
            "optimizer": type(optimizer).__name__,
            "graph": f"{len(ancestors(optimizer.target)):,} nodes, {len(run.windows.state['w']):,} numbers trained",
            "script": script_of(sys.argv),
            "process": os.getpid(),
            "host": socket.gethostname(),
            "began": time.time(),
            "past": [
                {**_plain(record), "step": record["epoch"] * run.steps_per_epoch} for record in run.history.epochs
            ],
        }
        self._begin.append(("begin", told))
        self.link.send(self.name, self._begin, EVERY)

    def _on_steps(self, info: Mapping[str, Any]) -> None:
        self._samples += info["samples"]
        now = time.perf_counter()
        if now - self._last < EVERY or not self.link.ready:
            return
        self._tell_steps(info["epoch"])
        elapsed = now - self.start
        if self.link.drawn != self.name and (self.link.looked_at or elapsed > LATER):
            nodes, counted = rows_of(self.run.settings.optimizer.target)
            self._queue.append(("graph", {"nodes": nodes, "counted": counted}))
        if self.link.looked_at:
            measured = self.measures.due(self.run.windows.state, elapsed)
            self._queue += [(kind, {**told, "seconds": elapsed, "step": self._steps}) for kind, told in measured]
        self._send()

    def _on_epoch(self, record: Mapping[str, Any]) -> None:
        if record["epoch"]:
            self._tell_steps(record["epoch"])
        self._queue.append(("epoch", {**_plain(record), "step": len(self.run.history.steps)}))
        if time.perf_counter() - self._last >= EVERY:
            self._send()

    def _on_recovery(self, record: Mapping[str, Any]) -> None:
        self._queue.append(("recovery", {**_plain(record), "seconds": time.perf_counter() - self.start}))

    def _tell_steps(self, epoch: int) -> None:
        losses = self.run.history.steps.losses
        new, first = losses[self._steps :], self._steps + 1
        if not new:
            return
        width = -(-len(new) // POINTS)
        rows = []
        for k in range(0, len(new), width):
            part = new[k : k + width]
            rows.append([first + k, len(part), math.fsum(part) / len(part), min(part), max(part)])
        self._steps = len(losses)
        told = {
            "step": self._steps,
            "epoch": epoch,
            "samples": self._samples,
            "seconds": time.perf_counter() - self.start,
            "first": losses[0],
            "losses": rows,
            "grain": self.run.windows.grain,
            "seats": self.run.windows.seats,
        }
        self._queue.append(("steps", told))

    def _send(self, whatever: bool = False) -> None:
        """Send what was heard, when the last message was answered; at the end in any case."""
        if self._queue and (whatever or self.link.ready):
            if self.link.known != self.name:  # nor may it have come yet
                self._queue = [*self._begin, *self._queue]
            self.link.send(self.name, self._queue)
            self._queue, self._last = [], time.perf_counter()
        elif len(self._queue) > 200:  # of a scheduler that does not answer
            del self._queue[1:100]


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a record is a number or words: others, such as a confusion matrix, are no curve."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, (int, str)):
            found[name] = value
        elif isinstance(value, float) or getattr(value, "ndim", 1) == 0:
            found[name] = float(value)
    return found


def script_of(argv: Sequence[str]) -> str:
    """Return what a person calls a program: a script's name; of our own command what it trains, too; others' may be secret.

    Examples
    --------
    >>> script_of(["/home/me/train.py", "--token", "xyz"])
    'train.py'
    >>> script_of(["/bin/flowgrad", "train", "mnist", "--epochs", "3"])
    'flowgrad train mnist'
    """
    path = Path(argv[0] if argv else "")
    name = path.parent.name if path.name == "__main__.py" else path.name
    if "kernel_launcher" in name:
        return "notebook"
    if name == "dask" and argv[1:2] == ["flowgrad"]:
        return script_of(argv[1:])
    if name.removesuffix(".exe") == "flowgrad":
        return " ".join(["flowgrad", *takewhile(lambda word: word[:1] != "-", argv[1:3])])
    return "python" if name in ("", "-c") else name


def _nothing(about: Mapping[str, Any]) -> None:
    pass

"""Checkpoints: verified safetensors files in a folder, written atomically, pruned to the last few."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from flowgrad.errors import DataError, GraphError, warn
from flowgrad.files import arrays_under, read_arrays, write_arrays
from flowgrad.graph import Node, ancestors
from flowgrad.inputs import integer, path_of, real
from flowgrad.optim import Rule, Schedule, describe, restore
from flowgrad.reads import code_token
from flowgrad.typing import Array

from ..feeds import ROWS

PATTERN = "step-*.safetensors"
# Stands for a setting that no file can hold, with what tells functions apart.
OWN = "a function of one's own, "
# How that is told: Python's versions write code otherwise.
CODE = re.compile(r" \(code [0-9a-f]{16} of (Python [\d.]+)\)")
PYTHON = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
# What tells that two runs are the same, by key in a checkpoint; and then the data.
WORDS = {
    "model": "a model of",
    "optimizer": "the optimizer",
    "rates": "learning rates by variable",
    "seed": "seed",
    "shuffle": "shuffle",
    "batch_size": "batch size",
    "accumulate": "accumulate",
    "private": "private steps",
    "samples": "number of training samples",
    "dtype": "dtype",
}


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often a training is saved.

    Parameters
    ----------
    folder : path
        A relative one is of the folder where this is made, wherever a callback goes.
    every_epochs : int, optional
        After so many epochs; None: not by epochs.
    every_seconds : float, optional
        Also within an epoch, when so many seconds have passed since the last checkpoint and a window of steps is done.
    keep : int
        The last so many files are kept.

    Examples
    --------
    >>> import flowgrad as fg
    >>> fg.Checkpoints("runs/net", every_epochs=None, every_seconds=60.0).keep
    3
    """

    folder: str | os.PathLike[str]
    every_epochs: int | None = 1
    every_seconds: float | None = None
    keep: int = 3

    def __post_init__(self) -> None:
        folder = path_of(self.folder, "Checkpoints: folder")
        with suppress(OSError):  # there is no folder any more where this is: writing will tell
            object.__setattr__(self, "folder", folder.absolute())
        integer(self.keep, "Checkpoints: keep")
        if self.every_epochs is not None:
            integer(self.every_epochs, "Checkpoints: every_epochs")
        if self.every_seconds is not None:
            real(self.every_seconds, "Checkpoints: every_seconds", 0, above=True)
        if self.every_epochs is None and self.every_seconds is None:
            raise GraphError("Checkpoints: give every_epochs or every_seconds; with neither, nothing is ever written")


class Snapshot(NamedTuple):
    """What a checkpoint holds.

    Attributes
    ----------
    state, kept : dict
        The state to go on from; the one that a callback kept, or an empty dict.
    losses : ndarray
        Of all steps so far.
    about : dict
        Plain values: ``epoch``, ``position`` (steps of the next epoch that are done), ``run``, ``plan``, ``history``.
    """

    state: dict[str, Array]
    kept: dict[str, Array]
    losses: Array
    about: dict[str, Any]


class Saver:
    """Writes the checkpoints of one run, when they are due; with `resume` it may go on from what is there.

    Raises
    ------
    DataError
        If the folder cannot be written, or has checkpoints that `resume` does not ask for.
    """

    def __init__(self, settings: Checkpoints, resume: bool):
        self.settings, self.folder = settings, Path(settings.folder)
        try:  # so that training does not start if nothing can be written
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(f".{PATTERN}.*.tmp"):  # what a killed run left half-written
                path.unlink(missing_ok=True)
            probe = self.folder / ".probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise DataError(f"cannot write checkpoints to {self.folder}: {error.strerror or error}") from error
        there = sorted(self.folder.glob(PATTERN))
        if there and not resume:
            raise DataError(
                f"{self.folder} holds checkpoints of a run before ({there[-1].name}): resume to go on from there (resume=True, "
                f"--resume on the command line), or choose another folder to begin anew"
            )
        self.last = time.monotonic()

    def after_epoch(self, epoch: int) -> bool:
        """Return whether a checkpoint is due after this epoch."""
        every = self.settings.every_epochs
        return (every is not None and epoch % every == 0) or self.in_epoch()

    def in_epoch(self) -> bool:
        """Return whether so much time has passed that a checkpoint is due at once."""
        seconds = self.settings.every_seconds
        return seconds is not None and time.monotonic() - self.last >= seconds

    def write(self, step: int, checkpoint: Snapshot) -> Path:
        """Write a checkpoint of a run that has done so many steps; then remove all but the last `keep` files up to it."""
        path = self.folder / f"step-{step:09d}.safetensors"
        parts = {"state": checkpoint.state, "kept": checkpoint.kept}
        arrays = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        write_arrays(path, {**arrays, "losses": checkpoint.losses}, {**checkpoint.about, "kind": "checkpoint"})
        # Files of later steps were not readable when this run began: they are written again when it comes there.
        for old in sorted(p for p in self.folder.glob(PATTERN) if p.name <= path.name)[: -self.settings.keep]:
            old.unlink(missing_ok=True)
        self.last = time.monotonic()
        return path


def read_checkpoint(folder: Path) -> Snapshot | None:
    """Return the last checkpoint that can be read, or None if there is none.

    A file that is damaged, foreign or of a newer version is said so and the one before it is used.

    Raises
    ------
    DataError
        If there are files and none can be read.
    """
    problems = []
    for path in sorted(folder.glob(PATTERN), reverse=True):
        try:
            arrays, about = read_arrays(path)
            if about.get("kind") != "checkpoint":
                raise DataError(f"{path} is a file of flowgrad, but not a checkpoint")
        except DataError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warn(f"{problem}; going on from {path.name}")
        return Snapshot(arrays_under("state", arrays), arrays_under("kept", arrays), arrays["losses"], about)
    if problems:
        raise DataError(f"no checkpoint in {folder} can be read: {problems[0]}")
    return None


def check_same_run(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run.

    Raises
    ------
    GraphError
        Names what differs, and both values; of data, for which variables.
    """
    for key, word in WORDS.items():
        if _only_python_differs(before.get(key), now[key]):
            warn(
                f"the checkpoint in {folder} was written by another Python, which tells the code of functions otherwise: make sure "
                f"that {word} {CODE.sub('', now[key])} has the same ones"
            )
        elif before.get(key) != now[key]:
            raise GraphError(
                f"the checkpoint in {folder} is of another run: it has {word} {before.get(key)}, this run has {word} "
                f"{now[key]}; use the same, or another folder"
            )
    _check_same_data(folder, before.get("data"), now["data"])


def _only_python_differs(before: Any, now: Any) -> bool:
    """Whether words differ, but are the same without the code of functions, which another version of Python wrote."""
    both = isinstance(before, str) and isinstance(now, str) and CODE.sub("", before) == CODE.sub("", now)
    return both and CODE.findall(before) != CODE.findall(now)


def _check_same_data(folder: Path, before: list[dict[str, Any]] | None, now: list[dict[str, Any]]) -> None:
    """Refuse other data; warn where nobody can tell. Feeds are told apart by their places: names do not matter."""
    if before is None:  # written by a version that did not look at data
        return
    advice = "give the same data in the same order, or another folder"
    fed = [", ".join(repr(feed["name"]) for feed in feeds) for feeds in (before, now)]
    if len(before) != len(now):
        raise GraphError(
            f"the checkpoint in {folder} is of another run: it was fed {fed[0]}, this run is fed {fed[1]}; {advice}"
        )
    pairs = list(zip(before, now))
    other = [b["name"] for a, b in pairs if "rows" in a and "rows" in b and a["rows"] != b["rows"]]
    if other:
        rows = min(ROWS, now[0]["shape"][0])
        raise GraphError(
            f"the checkpoint in {folder} is of another run: it has other values or another order of samples for "
            f"{', '.join(map(repr, other))} (by {rows:,} rows that were compared); {advice}"
        )
    unknown = [b["name"] for a, b in pairs if "chunks" in {**a, **b} and a.get("chunks") != b.get("chunks")]
    if unknown:
        warn(
            f"the checkpoint in {folder} may be of other data: {', '.join(map(repr, unknown))} came from other dask chunks then, "
            f"which may have the same values or not; make sure that it is the same data in the same order"
        )


def describe_rule(rule: Rule) -> str:
    """Return words that tell an optimizer with its settings from another."""
    return f"{type(rule).__name__.removesuffix('Rule')}({_settings(rule)})"


def rule_settings(rule: Rule) -> dict[str, Any]:
    """Return a rule's settings as plain values; `OWN` stands for what is no such value."""
    return {f.name: _plain(getattr(rule, f.name)) for f in fields(rule)}


def _plain(value: Any) -> Any:
    if not (value is None or callable(value) or isinstance(value, (bool, int, float, str))):
        return OWN
    try:
        return describe(value)
    except DataError:  # a function of the user's
        return f"{OWN}{_words(value)}"


def restored_rule(rule: Rule, settings: Mapping[str, Any]) -> Rule:
    """Return a rule with the settings of a checkpoint; what it could not hold stays as it is, which is told if it differs."""
    now = rule_settings(rule)
    own = {name for name, value in settings.items() if str(value).startswith(OWN)}
    lost = [name for name in own if settings[name] != now[name] and not _only_python_differs(settings[name], now[name])]
    if lost:
        warn(
            f"a callback had set the {lost[0].replace('_', ' ')} to a function of its own, which no checkpoint holds: "
            f"this run goes on with {now[lost[0]]} until it is set again"
        )
    changed = {name: value for name, value in settings.items() if name not in own and value != now[name]}
    return replace(rule, **{name: restore(value) for name, value in changed.items()})


def _settings(of: Any) -> str:
    return ", ".join(f"{f.name}={_words(getattr(of, f.name))}" for f in fields(of))


def _words(value: Any) -> Any:
    if isinstance(value, Schedule) and type(value).__module__ == Schedule.__module__:
        return f"{type(value).__name__}({_settings(value)})"
    if callable(value):  # its repr may tell where it lies in memory
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{name} (code {code_token(value)} of {PYTHON})"
    return value


def describe_model(target: Node, parameters: int) -> str:
    """Return words that tell a model from another; names of nodes do not matter."""
    nodes = sorted(ancestors(target), key=lambda n: n.index)
    place = {n.index: k for k, n in enumerate(nodes)}
    text = ""
    for n in nodes:
        trainable = getattr(n, "trainable", None)
        attrs = sorted(getattr(n, "attrs", {}).items())
        text += f"{type(n).__name__} {n.dim} {[place[p.index] for p in n.parents]} {attrs} {trainable};"
    return f"{parameters} parameters ({len(nodes)} nodes, {blake2b(text.encode(), digest_size=6).hexdigest()})"

"""Checkpoints: verified safetensors files in a folder, written atomically, pruned to the last few."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from flowgrad.errors import DataError
from flowgrad.files import read_arrays, write_arrays
from flowgrad.jacobian import Array

KEEP = 3


def write_checkpoint(folder: Path, step: int, state: dict[str, Array], about: dict[str, Any], keep: int = KEEP) -> Path:
    """Write the state after so many steps and remove all but the last `keep` files."""
    path = folder / f"step-{step:09d}.safetensors"
    write_arrays(path, state, about)
    for old in sorted(folder.glob("step-*.safetensors"))[:-keep]:
        old.unlink(missing_ok=True)
    return path


def read_checkpoint(folder: Path) -> tuple[dict[str, Array], dict[str, Any]] | None:
    """Return the last checkpoint that can be read, or None if there is none.

    A file that is damaged is said so and the one before it is used.

    Raises
    ------
    DataError
        If there are files and none can be read.
    """
    problems = []
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            found = read_arrays(path)
        except DataError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"{problem}; going on from {path.name}", stacklevel=2)
        return found
    if problems:
        raise DataError(f"no checkpoint in {folder} can be read: {problems[0]}")
    return None


def prepare_folder(folder: Path) -> Path:
    """Make the folder, so that training does not start if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"cannot write checkpoints to {folder}: {error.strerror or error}") from error
    return folder

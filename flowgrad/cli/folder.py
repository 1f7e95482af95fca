"""The folder of one run: reserved before the work, filled at its end."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path

from ..errors import DataError

PARTIAL = ".partial"


@contextmanager
def writing(folder: Path, advice: str = "") -> Iterator[None]:
    """Tell in one line if the folder cannot be written to."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror or error}{advice}") from error


@contextmanager
def run_folder(out: str | os.PathLike[str] | None, name: str) -> Iterator[Path]:
    """Reserve a folder for results, which appear there when the block ends well, and not at all otherwise.

    The folder is `out`, or ``runs/NAME-<date>-<time>``; what is given is a hidden one inside of it, to write to.

    Raises
    ------
    DataError
        When the folder cannot be written, holds something already, or is in use by another run.
    """
    partial, made = _reserve(Path(out) if out is not None else _fresh(name))
    # Found at the end, too, wherever somebody's callback or op has gone meanwhile.
    partial, made = partial.absolute(), [path.absolute() for path in made]
    folder = partial.parent
    try:
        yield partial
        with writing(folder):
            for file in sorted(partial.iterdir()):
                os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # not empty: the run ended well
            for path in made:
                path.rmdir()


def _fresh(name: str) -> Path:
    stamp = f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = chain([stamp], (f"{stamp}-{n}" for n in count(2)))
    return next(path for path in map(Path, names) if not path.exists())


def _reserve(folder: Path) -> tuple[Path, list[Path]]:
    """Make the folder and its hidden part; return the latter and which folders were made, innermost first."""
    advice = "choose another folder with --out"
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with writing(folder, f": {advice}"):
            folder.mkdir(parents=True, exist_ok=True)
            present = sorted(path.name for path in folder.iterdir())
            if PARTIAL in present:
                raise DataError(
                    f"{folder} is in use by another run, or one that was killed left {folder / PARTIAL}: "
                    f"remove that, or {advice}"
                )
            if present:
                what = "a run" if "history.csv" in present else f"files ({present[0]}, ...)"
                raise DataError(f"{folder} already holds {what}: {advice}")
            (folder / PARTIAL).mkdir()
    except DataError:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise
    return folder / PARTIAL, made

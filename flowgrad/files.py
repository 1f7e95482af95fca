"""Models on disk: one safetensors file, its arrays checked by a hash, graph and optimizer as JSON. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from .errors import DataError
from .graph import Graph
from .jacobian import Array
from .node import Node, Variable
from .op import Op
from .optimizers import Optimizer
from .schedules import describe, restore

FORMAT = "flowgrad"
VERSION = 1


class Saved(NamedTuple):
    """What `load` returns: ``graph, optimizer = fg.load(path)``."""

    graph: Graph
    optimizer: Optimizer | None


def save(path: str | os.PathLike[str], graph: Graph, optimizer: Optimizer | None = None) -> None:
    """Write a graph, the values of its variables and an optimizer with its state to one file.

    The file is written beside `path`, flushed, and renamed: it is whole or not there.

    Parameters
    ----------
    path : path
        For example ``"model.safetensors"``.
    graph : Graph
    optimizer : Optimizer, optional

    Raises
    ------
    DataError
        If the file cannot be written, or the learning rate is a function of your own.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     w = fg.Variable(2, [1.0, 2.0], name="w")
    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> fg.save(path, graph)
    >>> fg.load(path).graph.nodes[0].value
    array([1., 2.])
    """
    arrays = {f"value/{n.index}": n._value for n in graph.nodes if isinstance(n, Variable) and n._value is not None}
    about: dict[str, Any] = {"graph": _describe(graph), "seed": graph.seed, "optimizer": None}
    if optimizer is not None:
        about["optimizer"] = {
            "kind": type(optimizer).__name__,
            "settings": {f.name: describe(getattr(optimizer.rule, f.name)) for f in fields(optimizer.rule)},
            "batch_size": optimizer.batch_size,
            "target": optimizer.target.index,
        }
        if optimizer.privacy is not None:  # without the seed: it is a secret
            about["optimizer"]["settings"] |= {
                "per_sample_clip": optimizer.privacy.clip,
                "noise_multiplier": optimizer.privacy.noise_multiplier,
            }
        arrays |= {f"state/{k}": v for k, v in (optimizer.state or {}).items()}
    write_arrays(path, arrays, about)


def load(path: str | os.PathLike[str]) -> Saved:
    """Read what `save` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    Saved
        ``.graph`` and ``.optimizer`` (None if none was saved).

    Raises
    ------
    DataError
        If the file is missing, truncated, changed, not flowgrad's, of a newer version, or uses an op that is not defined.
    """
    arrays, about = read_arrays(path)
    try:
        graph = _rebuild(about, arrays)
        optimizer = None
        if about["optimizer"] is not None:
            o = about["optimizer"]
            kinds = {cls.__name__: cls for cls in Optimizer.__subclasses__()}
            settings = {**{k: restore(v) for k, v in o["settings"].items()}, "batch_size": o["batch_size"]}
            optimizer = kinds[o["kind"]](graph, graph.nodes[o["target"]], **settings)
            state = {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}
            optimizer.state = state or None
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a model of flowgrad: {type(error).__name__} {error}") from error
    return Saved(graph, optimizer)


def write_arrays(path: str | os.PathLike[str], arrays: dict[str, Array], about: dict[str, Any]) -> None:
    """Write arrays and a JSON-able description atomically as one safetensors file with a checksum."""
    arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    text = json.dumps(about, sort_keys=True)
    metadata = {"format": FORMAT, "version": str(VERSION), "about": text, "sha256": _checksum(arrays, text)}
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(to_bytes(arrays, metadata=metadata))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise DataError(f"cannot write {target}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename last, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read and verify what `write_arrays` wrote."""
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path} is a safetensors file, but not one of flowgrad")
    version, about = metadata.get("version", ""), metadata.get("about", "")
    if version != str(VERSION):
        raise DataError(f"{path} has format version {version!r}; this flowgrad reads version {VERSION}: update it")
    if _checksum(arrays, about) != metadata.get("sha256"):
        raise DataError(f"{path} is damaged: its checksum does not match its content")
    return arrays, json.loads(about)


def _checksum(arrays: dict[str, Array], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype.str} {arrays[key].shape}".encode())
        digest.update(arrays[key].tobytes())
    return digest.hexdigest()


def _describe(graph: Graph) -> list[dict[str, Any]]:
    rows = []
    for node in graph.nodes:
        row: dict[str, Any] = {"op": type(node).__name__, "name": node.name}
        if isinstance(node, Variable):
            row |= {"dim": node.dim, "trainable": node.trainable}
        else:
            row |= {"parents": [p.index for p in node.parents], "attrs": node.attrs}
        rows.append(row)
    return rows


def _rebuild(about: dict[str, Any], arrays: dict[str, Array]) -> Graph:
    known = _ops()
    graph = Graph(seed=about["seed"])
    with graph:
        for i, row in enumerate(about["graph"]):
            if row["op"] == "Variable":
                value = arrays.get(f"value/{i}")
                Variable(row["dim"], False if value is None else value[0], row["trainable"], row["name"])
                continue
            if row["op"] not in known:
                raise DataError(
                    f"the model uses op {row['op']!r}, which is not defined here: import its module before loading"
                )
            cls = known[row["op"]]
            node: Node = cls.__new__(cls)
            attrs = {k: tuple(v) if isinstance(v, list) else v for k, v in row["attrs"].items()}
            Op.__init__(node, *(graph._nodes[p] for p in row["parents"]), name=row["name"], **attrs)  # type: ignore[arg-type]
    return graph


def _ops() -> dict[str, type[Op]]:
    """Return every op class that is defined now, by name."""
    found: dict[str, type[Op]] = {}
    stack: list[type[Op]] = [Op]
    while stack:
        cls = stack.pop()
        found[cls.__name__] = cls
        stack += cls.__subclasses__()
    return found

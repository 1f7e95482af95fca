"""Models on disk: one safetensors file, its arrays checked by a hash, graph and optimizer as JSON. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from .errors import DataError, GraphError
from .graph import Constant, Graph, Node, Variable, outside_scopes
from .inputs import brief, file_of, listed
from .op import Op
from .optim import (
    AdaGrad,
    Adam,
    AdamW,
    AMSGrad,
    GradientDescent,
    Lion,
    Momentum,
    Nesterov,
    Optimizer,
    RMSProp,
    describe,
    restore,
)
from .typing import Array

FORMAT = "flowgrad"
VERSION = 1


_KINDS = (GradientDescent, Momentum, Nesterov, AdaGrad, RMSProp, Adam, AdamW, AMSGrad, Lion)
OPTIMIZERS = {kind.__name__: kind for kind in _KINDS}


class Saved(NamedTuple):
    """What `load` returns: ``graph, optimizer = fg.load(path)``."""

    graph: Graph
    optimizer: Optimizer | None


def save(path: str | os.PathLike[str], graph: Graph, optimizer: Optimizer | None = None) -> None:
    """Write a graph, the values of its variables and an optimizer with its state to one file.

    The file is written beside `path`, such as ``"model.safetensors"``, flushed, and renamed: it is whole or not there.

    Raises
    ------
    DataError
        If the file cannot be written, or could not be read again: the optimizer or the learning rate is of your own, or a node has
        an attribute that is no number, text, range or tuple of such.

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
    target = file_of(path)
    if not isinstance(graph, Graph) or not (optimizer is None or isinstance(optimizer, Optimizer)):
        raise GraphError(f"save takes a path, a graph and an optimizer: fg.save({str(target)!r}, graph, optimizer)")
    if optimizer is not None and optimizer.graph is not graph:
        raise GraphError(f"the optimizer is of {optimizer.graph}, not of {graph}: save it with its own graph")
    arrays = {f"value/{n.index}": n._value for n in graph.nodes if isinstance(n, Variable) and n._value is not None}
    about: dict[str, Any] = {
        "graph": _describe(graph),
        "seed": graph.seed,
        "rng": graph.rng.bit_generator.state,
        "optimizer": None,
    }
    if optimizer is not None:
        if OPTIMIZERS.get(type(optimizer).__name__) is not type(optimizer):
            raise DataError(
                f"a {type(optimizer).__name__} cannot be written to a file: use one of {', '.join(OPTIMIZERS)}, "
                f"or save the graph alone"
            )
        about["optimizer"] = {
            "kind": type(optimizer).__name__,
            "settings": {f.name: describe(getattr(optimizer.rule, f.name)) for f in fields(optimizer.rule)},
            "batch_size": optimizer.batch_size,
            "epochs": optimizer.epochs,
            "target": optimizer.target.index,
            "rates": [[k if isinstance(k, str) else k.index, rate] for k, rate in optimizer.learning_rates.items()],
        }
        if optimizer.privacy is not None:  # without the seed: it is a secret
            about["optimizer"]["settings"] |= {
                "per_sample_clip": optimizer.privacy.clip,
                "noise_multiplier": optimizer.privacy.noise_multiplier,
            }
        arrays |= {f"state/{k}": v for k, v in (optimizer.state_now() or {}).items()}
    write_arrays(target, arrays, about)


def load(path: str | os.PathLike[str], ops: Iterable[type[Op]] = ()) -> Saved:
    """Read what `save` wrote: ``.graph`` and ``.optimizer`` (None if none was saved).

    Parameters
    ----------
    ops : list of op classes, optional
        Ops of your own that the model uses, where their modules do not have them: defined in a script, or moved.

    Raises
    ------
    DataError
        If the file is missing, truncated, changed, not flowgrad's, of a newer version, or uses an op that is not defined.
    GraphError
        If `ops` is something else.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     w = fg.Variable(1, [2.0])
    ...     loss = w * w
    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> fg.save(path, graph, fg.Adam(graph, loss, batch_size=1))
    >>> graph, optimizer = fg.load(path)
    >>> optimizer.one_step()
    4.0
    """
    given = _given(ops)
    arrays, about = read_arrays(file_of(path))
    with same_version(path):
        graph = _rebuild(about, arrays, given)
        optimizer = None
        if about["optimizer"] is not None:
            o = about["optimizer"]
            settings = {**{k: restore(v) for k, v in o["settings"].items()}, "batch_size": o["batch_size"]}
            rates = {k if isinstance(k, str) else graph.nodes[k]: rate for k, rate in o.get("rates", [])}
            optimizer = OPTIMIZERS[o["kind"]](graph, graph.nodes[o["target"]], learning_rates=rates, **settings)
            optimizer.epochs = o["epochs"]
            state = arrays_under("state", arrays)
            if state:
                optimizer.keep(state)
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


def arrays_under(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    """Return the arrays called ``prefix/name``, by name."""
    return {k.removeprefix(f"{prefix}/"): v for k, v in arrays.items() if k.startswith(f"{prefix}/")}


Record = TypeVar("Record")


@contextmanager
def same_version(path: str | os.PathLike[str]) -> Iterator[None]:
    """Read what a file says; what another version wrote is told in one line.

    Raises
    ------
    DataError
        If something is not there, or not what it must be.
    """
    try:
        yield
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise DataError(
            f"{path} is not as this version of flowgrad writes it ({type(error).__name__}: {error}): read it with the version that "
            f"wrote it, or begin anew"
        ) from error


def checked_record(kind: type[Record], values: Any) -> Record:
    """Return a dataclass of values that a file holds.

    Raises
    ------
    TypeError
        If a field is missing, unknown, or of another type.
    """
    types: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
    for f in fields(kind):  # type: ignore[arg-type]
        wanted = types.get(str(f.type))
        if f.name in values and wanted and (type(values[f.name]) not in wanted):
            raise TypeError(f"{f.name} is {values[f.name]!r}, not {f.type}")
    return kind(**values)


def _checksum(arrays: dict[str, Array], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype.str} {arrays[key].shape}".encode())
        digest.update(arrays[key].tobytes())
    return digest.hexdigest()


def _describe(graph: Graph) -> list[dict[str, Any]]:
    rows = []
    known = _ops()
    for node in graph.nodes:
        if known.get(_name(type(node)), type(node)) is not type(node):
            raise DataError(
                f"{node} cannot be written to a file: another class is called {_name(type(node))} now, and would be taken for it"
            )
        if isinstance(node, Variable) and type(node) not in (Variable, Constant):
            raise DataError(f"{node} cannot be written to a file: its class is no op and not Variable itself")
        row: dict[str, Any] = {"op": _name(type(node)), "name": node.name}
        if isinstance(node, Variable):
            row |= {"shape": node.shape, "trainable": node.trainable}
        else:
            row |= {"parents": [p.index for p in node.parents], "attrs": {}}
            for name, value in node.attrs.items():
                try:
                    row["attrs"][name] = _plain(value)
                except (TypeError, ValueError):
                    raise DataError(
                        f"{node} cannot be written to a file: its attribute {name!r} is {brief(value)}, "
                        f"no number, text, range or tuple of such"
                    ) from None
        rows.append(row)
    return rows


def _rebuild(about: dict[str, Any], arrays: dict[str, Array], given: list[type[Op]]) -> Graph:
    known = _found({row["op"] for row in about["graph"]} - {_name(Variable), _name(Constant)}, given)
    graph = Graph(seed=about["seed"])
    with graph, outside_scopes():
        for i, row in enumerate(about["graph"]):
            if row["op"] == _name(Variable):
                value = arrays.get(f"value/{i}")
                Variable(row["shape"], False if value is None else value[0], row["trainable"], row["name"])
                continue
            if row["op"] == _name(Constant):
                Constant(arrays[f"value/{i}"][0].reshape(row["shape"]), row["name"])
                continue
            cls = known[row["op"]]
            node: Node = cls.__new__(cls)
            attrs = {k: _restored(v) for k, v in row["attrs"].items()}
            Op.__init__(node, *(graph._nodes[p] for p in row["parents"]), name=row["name"], **attrs)  # type: ignore[arg-type]
    graph.rng.bit_generator.state = about["rng"]  # the next random values are new ones
    return graph


def _given(ops: Any) -> list[type[Op]]:
    given = listed(ops)
    if given is None:
        raise GraphError(f"ops is a list of op classes, not {brief(ops)}: give [{getattr(ops, '__name__', '...')}]")
    for cls in given:
        if not isinstance(cls, type) or not issubclass(cls, Op):
            raise GraphError(f"ops is a list of op classes; {brief(cls, 80)} is none")
    return given


def _found(names: set[str], given: list[type[Op]]) -> dict[str, type[Op]]:
    """Return the op of each name in a file: one that was given counts by its last name too, before any other."""
    known = {**_ops(), **{_name(cls): cls for cls in given}}
    spare = [cls for cls in dict.fromkeys(given) if _name(cls) not in names]
    lacking = []
    for name in sorted(names):
        by_name = [cls for cls in spare if "." in name and cls.__name__ == name.rpartition(".")[2]]
        if len(by_name) > 1:
            words = " and ".join(map(_name, by_name))
            raise DataError(
                f"the model uses the op {name}, and ops has several of that name: {words}; give one of them"
            )
        if by_name and not any(_name(cls) == name for cls in given):
            known[name] = by_name[0]
        lacking += [] if name in known else [name]
    if lacking:
        several = len(lacking) > 1
        classes = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in lacking))
        raise DataError(
            f"the model uses the op{'s' * several} {', '.join(lacking)}, which {'are' if several else 'is'} not defined here: "
            f"import the module, or pass the class{'es' * several}: fg.load(path, ops=[{classes}])"
        )
    return known


def _ops() -> dict[str, type[Op]]:
    """Return every op class that is defined now, by the name that files have for it."""
    ops: dict[str, type[Op]] = {}
    stack: list[type[Op]] = [Op]
    while stack:
        cls = stack.pop()
        ops.setdefault(_name(cls), cls)  # of those defined again under their name the last one
        stack += cls.__subclasses__()
    return ops


def _name(cls: type[Node]) -> str:
    """Return what a class is called in files: flowgrad's own by their names, others by their modules too."""
    own = cls.__module__.startswith(f"{__package__}.")
    return cls.__qualname__ if own else f"{cls.__module__}.{cls.__qualname__}"


def _plain(value: Any) -> Any:
    """Return an attribute for JSON; what JSON has no word for is an object that says what it was.

    Raises
    ------
    TypeError, ValueError
        If no file can hold it.
    """
    if type(value) is tuple:
        return list(map(_plain, value))
    if type(value) is range:
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, np.generic) and value.dtype.kind not in "VO":
        return {"dtype": value.dtype.str, "bytes": value.tobytes().hex()}
    if value is not None and type(value) not in (bool, int, float, str):
        raise TypeError
    json.dumps(value)  # which refuses integers of very many digits
    return value


def _restored(value: Any) -> Any:
    """Return the attribute that `_plain` wrote."""
    if isinstance(value, list):
        return tuple(map(_restored, value))
    if isinstance(value, dict):
        return (
            range(*value["range"])
            if "range" in value
            else np.frombuffer(bytes.fromhex(value["bytes"]), value["dtype"])[0]
        )
    return value

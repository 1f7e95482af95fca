"""Task records as a dask graph, a dask array's chunks for records; only this and `sealed` use dask's task specification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import dask.local
from dask.core import flatten
from dask.optimization import cull
from dask.task_spec import Alias, DataNode, GraphNode, List, TaskRef
from dask.task_spec import Task as DaskTask

from .keys import Key, Ref
from .records import Data, Record


class _Keyed:
    """Something that its key stands for. dask names graphs by a hash of all that is in them, which takes longer than the rest."""

    __slots__ = ()
    key: Any

    def __dask_tokenize__(self) -> Any:
        return self.key


class KeyedTask(_Keyed, DaskTask):
    """A task of which dask hashes the key alone."""

    __slots__ = ()


class KeyedData(_Keyed, DataNode):
    """A value of which dask hashes the key alone."""

    __slots__ = ()


def to_dask(records: dict[Key, Record], run: Callable[..., Any] | None = None) -> dict[Key, GraphNode]:
    """Return `records` as a dask graph with the same keys; with `run`, tasks call ``run(func, *args)``."""
    first = () if run is None else (run,)
    graph: dict[Key, GraphNode] = {}
    for key, r in records.items():
        if isinstance(r, Data):
            graph[key] = KeyedData(key, r.value)
        else:
            graph[key] = KeyedTask(key, *first, r.func, *map(_argument, r.args))
    return graph


class Load:
    """How a chunk of a dask array is loaded, again and again, without any other task.

    Parameters
    ----------
    key : hashable
        Of the chunk.
    graph : dict
        What is needed for it.
    """

    def __init__(self, key: Any, graph: dict[Any, GraphNode]):
        self.key = key
        self.graph = graph

    def __repr__(self) -> str:
        return f"Load({self.key!r})"

    def __call__(self) -> Any:
        """Load the chunk."""
        return dask.local.get_sync(self.graph, self.key)


def row_chunks(x: Any) -> list[Any]:
    """Return the chunks of a dask array that is cut along its rows alone: arrays where the client has them, futures, or `Load`s."""
    keys = list(flatten(x.__dask_keys__()))
    graph = dict(x.__dask_graph__())
    if not all(_future_of(graph.get(key)) is not None for key in keys):
        (x,) = dask.optimize(x)
        graph = dict(x.__dask_graph__())
    return [_chunk(key, graph) for key in keys]


def partitions(frame: Any, name: str, ndim: int) -> dict[Any, Any]:
    """Return the graph of a frame with its partitions under the keys that chunks of an array of this name have."""
    frame = frame.optimize()
    graph = dict(frame.__dask_graph__())
    # dask keeps some aliases under other keys than they have; what fuses tasks loses what those stand for.
    graph |= {k: Alias(k, node.target) for k, node in graph.items() if isinstance(node, Alias) and node.key != k}
    for k, key in enumerate(flatten(frame.__dask_keys__())):
        chunk = (name, k, *(0,) * (ndim - 1))
        future = _future_of(graph[key])
        graph[chunk] = Alias(chunk, key) if future is None else future
    return graph


def futures_in(collection: Any) -> list[Any]:
    """Return the futures that a dask collection is made of."""
    found: list[Any] = []
    for node in dict(collection.__dask_graph__()).values():
        own = _future_of(node)
        found += [own] if own is not None else filter(is_future, getattr(node, "args", ()))
    return found


def is_future(value: Any) -> bool:
    """Whether something is a future of dask's."""
    return type(value).__module__.startswith("distributed.") and hasattr(value, "client") and hasattr(value, "key")


def _chunk(key: Any, graph: dict[Any, Any]) -> Any:
    node = graph[key]
    if _future_of(node) is not None:
        return _future_of(node)
    if isinstance(node, DataNode):
        return node.value
    return Load(key, cull(graph, [key])[0])


def _future_of(node: Any) -> Any:
    value = node.value if isinstance(node, DataNode) else node
    return value if is_future(value) else None


def _argument(arg: Any) -> Any:
    if isinstance(arg, Ref):
        return TaskRef(arg.key)
    if isinstance(arg, list):
        items = list(map(_argument, arg))
        return List(*items) if any(isinstance(item, (TaskRef, List)) for item in items) else arg
    return arg

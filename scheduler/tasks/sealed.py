"""Graphs that a scheduler reads without the modules that they name: functions and values are bytes, unpickled where tasks run."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable, Mapping
from operator import call
from typing import Any

from dask._expr import HLGExpr, LLGExpr
from dask._task_spec import convert_legacy_graph
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Alias, DataNode, GraphNode, TaskRef
from dask.task_spec import Task as DaskTask

from flowgrad.reads import PLAIN


def sealed(expr: Any, dumps: Callable[[Any], bytes]) -> Any:
    """Return an expression of the same tasks that names Python and dask alone; keys and annotations stay as they are."""
    graph = seal(expr.__dask_graph__(), dumps)
    annotations = {kind: by_key.get for kind, by_key in expr.__dask_annotations__().items()}
    if not annotations:
        return LLGExpr(graph, _determ_token=uuid.uuid4().hex)  # else dask hashes all of it
    return HLGExpr(HighLevelGraph({"sealed": MaterializedLayer(graph, annotations)}, {"sealed": set()}))


def seal(graph: Mapping[Any, Any], dumps: Callable[[Any], bytes]) -> dict[Any, GraphNode]:
    """Return a graph with the same keys and dependencies; what several tasks share is pickled once.

    Examples
    --------
    >>> class Here:
    ...     @staticmethod
    ...     def add(a, b):
    ...         return a + b
    >>> graph = {"c": DaskTask("c", Here.add, TaskRef("a"), 2)}
    >>> from cloudpickle import dumps
    >>> task = pickle.loads(pickle.dumps(seal(graph, dumps)["c"]))
    >>> task.key, set(task.dependencies), task({"a": 1})
    ('c', {'a'}, 3)
    """
    graph = convert_legacy_graph(graph)
    known: dict[int, GraphNode] = {}  # by what the graph holds meanwhile

    def part(thing: Any) -> Any:
        if isinstance(thing, (TaskRef, Alias)) or type(thing) in PLAIN:
            return thing
        if id(thing) not in known:
            known[id(thing)] = whole(None, thing)
        return known[id(thing)]

    def whole(key: Any, thing: Any) -> GraphNode:
        if isinstance(thing, DaskTask):
            kwargs = {name: part(value) for name, value in thing.kwargs.items()}
            producer = thing.data_producer
            return DaskTask(key, call, part(thing.func), *map(part, thing.args), _data_producer=producer, **kwargs)
        value = thing.value if isinstance(thing, DataNode) else thing
        return DaskTask(key, pickle.loads, dumps(value), _data_producer=isinstance(thing, DataNode))

    # A scheduler that lets a coroutine run has to know that it is one.
    return {k: node if isinstance(node, Alias) or node.is_coro else whole(k, node) for k, node in graph.items()}

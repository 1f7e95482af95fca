"""Task records as a dask graph; the only file that uses dask's task specification."""

from __future__ import annotations

from typing import Any

from dask.task_spec import DataNode, GraphNode, List, TaskRef
from dask.task_spec import Task as DaskTask

from .tasks import Data, Record, Ref


def to_dask(records: dict[str, Record]) -> dict[str, GraphNode]:
    """Return `records` as a dask graph with the same keys."""
    return {
        key: DataNode(key, r.value) if isinstance(r, Data) else DaskTask(key, r.func, *map(_argument, r.args))
        for key, r in records.items()
    }


def _argument(arg: Any) -> Any:
    if isinstance(arg, Ref):
        return TaskRef(arg.key)
    if isinstance(arg, list) and _has_ref(arg):
        return List(*map(_argument, arg))
    return arg


def _has_ref(items: list[Any]) -> bool:
    return any(isinstance(i, Ref) or (isinstance(i, list) and _has_ref(i)) for i in items)

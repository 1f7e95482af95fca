"""A sealed graph is the same graph, and to read it takes dask and Python alone."""

import io
import pickle

import dask
import dask.array as da
import numpy as np
import oracles
import pytest
from dask._expr import LLGExpr
from dask.base import collections_to_expr
from dask.delayed import delayed
from dask.local import get_sync
from dask.task_spec import Alias, DataNode, List, Task, TaskRef
from distributed.protocol.pickle import dumps

from flowgrad.scheduler.tasks import sealed


class Reader(pickle.Unpickler):
    """Notes the packages that it needs."""

    def __init__(self, data):
        super().__init__(io.BytesIO(data))
        self.needed = set()

    def find_class(self, module, name):
        self.needed.add(module.partition(".")[0])
        return super().find_class(module, name)


def read(expr):
    """Return an expression as a scheduler has it, without modules of ours and NumPy."""
    reader = Reader(pickle.dumps(expr))
    found = reader.load()
    assert reader.needed <= {"dask", "builtins", "_pickle", "operator", "_operator"}
    return found


def join(*parts, last=None):
    return oracles.__name__, *map(str, parts), last


def twice(a):
    return 2 * a


VALUE = np.arange(3)
GRAPH = {
    "data": DataNode("data", VALUE),
    "plain": DataNode("plain", "data"),
    "other": Alias("other", "data"),
    ("a", 0): Task(("a", 0), join, TaskRef("data"), "data", last=TaskRef("other")),
    "nested": Task("nested", join, List(TaskRef("plain"), 2, List(TaskRef(("a", 0)), VALUE)), [VALUE]),
    "within": Task("within", join, Task(None, join, TaskRef("plain")), last=Task(None, len, VALUE)),
    "fused": Task.fuse(Task("x", join, TaskRef("nested")), Task("y", join, TaskRef("x")), key="fused"),
}


def test_a_sealed_graph_computes_the_same():
    found = read(sealed(LLGExpr(GRAPH), dumps)).__dask_graph__()
    assert list(found) == list(GRAPH)
    for key, node in GRAPH.items():
        assert found[key].key == key
        assert found[key].dependencies == node.dependencies
        assert found[key].data_producer == node.data_producer
        assert str(get_sync(found, key)) == str(get_sync(GRAPH, key))


def test_what_tasks_share_is_sent_once():
    shared = np.random.default_rng(0).random(10_000)
    graph = {k: Task(k, join, shared, k) for k in "abcdef"}
    assert len(pickle.dumps(sealed(LLGExpr(graph), dumps))) < 1.1 * shared.nbytes


@pytest.mark.parametrize("annotated", [False, True])
def test_collections_keep_keys_and_annotations(annotated):
    with dask.annotate(workers=["a"], retries=3) if annotated else dask.annotate():
        x = da.from_array(np.arange(12.0), chunks=4).map_blocks(twice)
        y = delayed(join)(x.to_delayed()[0], delayed(1))
    expr = collections_to_expr([x, y]).optimize()
    before, after = expr.__dask_annotations__(), read(sealed(expr, dumps)).__dask_annotations__()
    told = {kind: {k: v for k, v in by_key.items() if v is not None} for kind, by_key in after.items()}
    assert told == before
    assert bool(told) == annotated
    assert set(sealed(expr, dumps).__dask_graph__()) == set(expr.__dask_graph__())


async def later(a):
    return a


def test_a_coroutine_is_left_to_be_seen():
    node = Task("a", later, 1)
    assert sealed(LLGExpr({"a": node}), dumps).__dask_graph__()["a"].is_coro

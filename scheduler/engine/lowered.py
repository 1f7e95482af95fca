"""`Lowered`: a job as a dask collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dask.threaded
from dask.base import DaskMethodsMixin
from dask.utils import key_split

from flowgrad import draw
from flowgrad.inputs import without_underflow

from ..costs import explain_job, program_times, task_links
from ..executors import Executor
from ..programs import Computation
from ..tasks import Data, Key, references, to_dask

MOST_SHOWN = 5000  # keys of a graph that a notebook shows unasked


class Lowered(draw.Shown, DaskMethodsMixin):
    """What will run, as a dask collection: ``dask.compute``, ``.persist()``, ``.visualize()`` work on it.

    Attributes
    ----------
    dask : dict
        The dask graph: current task-spec objects by key. A key is ``("dot-5f0c9e21", "h0.3", "9d3be01f24c8a6b7")``: what is done,
        with the group that dask shows it in; the node, or the edge as ``"h0.3 by w"``; and what alone says which value it is.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     x = fg.Variable(2, trainable=False)
    ...     y = fg.Dot(x, x)
    >>> lowered = fg.Engine("sync").lower(y, {x: [[1.0, 2.0], [3.0, 4.0]]}, grain="node")
    >>> lowered.compute().tolist()
    [[5.0], [25.0]]
    """

    __dask_optimize__ = None
    __dask_scheduler__ = staticmethod(dask.threaded.get)

    def __init__(
        self,
        job: Computation,
        graph: dict[Key, Any] | None = None,
        executor: Executor | None = None,
        lower: Callable[[str], Computation] | None = None,
    ):
        self.job = job
        self._executor, self._lower = executor, lower
        self.dask = to_dask(job.graph.records, _run) if graph is None else graph

    def __dask_graph__(self) -> dict[Key, Any]:
        return self.dask

    def __dask_keys__(self) -> list[Key]:
        return [ref.key for ref in self.job.keys]

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("flowgrad", *self.__dask_keys__())

    def __dask_postcompute__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.job.finish, ()

    def __dask_postpersist__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._rebuild, ()

    def _rebuild(self, graph: Any, *extra: Any) -> Lowered:
        return Lowered(self.job, dict(graph), self._executor, self._lower)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_executor": None, "_lower": None}  # a connection does not travel

    def tasks(self) -> dict[str, int]:
        """Return the number of tasks by key prefix."""
        records = self.job.graph.records
        return dict(Counter(key_split(key) for key, r in records.items() if not isinstance(r, Data)))

    def visualize(self, filename: str = "lowered.png", *, fold: int = draw.FOLD_TASKS, **kwargs: Any) -> str:
        """Draw the task graph, feeds and parameters included, into a picture file and return its path; needs the extra ``viz``.

        A box tells what is done, and for which node or edge; more than `fold` tasks that look alike are one box.
        """
        edges = {key: references([r]) for key, r in self.job.graph.records.items()}
        labels = {key: "\n".join([key_split(key), *([key[1]] if isinstance(key, tuple) else [])]) for key in edges}
        return str(draw.draw_tasks(edges, labels, filename, fold))

    def _shows(self) -> dict[str, Any]:
        job = self.job
        return {"grain": job.grain, "samples": job.samples, "shards": job.shards, "tasks": self.tasks()}

    def _repr_html_(self) -> str | None:
        table, picture = super()._repr_html_(), ""
        if table and len(self.dask) <= MOST_SHOWN:
            with suppress(Exception), TemporaryDirectory() as folder:
                picture = Path(self.visualize(str(Path(folder) / "tasks.svg"))).read_text()
        return table and table + picture

    @without_underflow
    def explain(self) -> str:
        """Say in words and numbers what will run, and what other grains would cost.

        Its program is run in this process on up to 4096 samples, to be timed; what tasks cost on the engine is measured once.
        """
        job, tasks = self.job, self.tasks()
        counts = sorted(tasks.items(), key=lambda item: -item[1])
        lines = [
            f"grain {job.grain}: {sum(tasks.values())} tasks for {job.samples} samples in {job.shards} shard(s)",
            f"program: {len(job.program.instrs)} instructions, {job.program.size('param')} parameters",
            "tasks by prefix: " + ", ".join(f"{n} {prefix}" for prefix, n in counts),
        ]
        if self._executor is not None and self._lower is not None:
            lines += explain_job(job, self._lower, program_times, task_links(self._executor))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Lowered: {len(self.dask)} keys, grain {self.job.grain}>"


@without_underflow
def _run(func: Callable[..., Any], *args: Any) -> Any:
    """Run a task for somebody who computes the collection."""
    return func(*args)

"""`watch`: a page that plays one step of one sample."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowgrad.draw.paint import write
from flowgrad.errors import FeedError, GraphError
from flowgrad.graph import Node, Variable, ancestors
from flowgrad.inputs import brief, file_of, integer, without_underflow
from flowgrad.typing import Array

from ..engine import Engine
from ..executors import LocalExecutor
from ..feeds import check_feeds, require_values
from .numbers import Numbers
from .page import write_page
from .run import run_course

# Nodes of a step up to which it is watched.
MOST_NODES = 5000


class Watched:
    """A page that was written; a notebook shows it.

    Attributes
    ----------
    path : Path
    """

    def __init__(self, path: Path, text: str):
        self.path, self._text = path, text

    def __repr__(self) -> str:
        return f"<Watched: {self}>"

    def __str__(self) -> str:
        return f"{self.path}, {len(self._text.encode()) / 1e6:.1f} MB; open it in a browser"

    def _repr_html_(self) -> str:
        page = html.escape(self._text, quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:680px;border:0"></iframe>'


@without_underflow
def watch(
    result: Node,
    feeds: Mapping[Any, Any] | None = None,
    path: str | os.PathLike[str] = "watch.html",
    engine: Engine | None = None,
    sample: int = 0,
    title: str | None = None,
) -> Watched:
    """Run one step of one sample, and write a page that plays it: forward node by node, and back edge by edge.

    It shows the graph, at each point the values, the local Jacobians, the cotangents, and the sums where several children meet,
    in the order in which tasks were done, with the time and the thread of each. Nothing is updated. A click on a node shows its
    numbers. The page is one file, of at most 5 MB, that needs no network; what is left out is said.

    Parameters
    ----------
    result : Node
        What is differentiated; of a vector the cotangents have a row for each entry.
    feeds : dict, optional
        Arrays by variable or name, as for `Engine`; the values now set if not given.
    path : str or path
        The file to write.
    engine : Engine, optional
        Where the tasks run; two threads of this process if not given.
    sample : int
        Which row of the feeds.
    title : str, optional
        What is said of the sample, in a line; its number if not given.

    Raises
    ------
    GraphError
        If the result is no node, or depends on more than 5,000.
    FeedError
        If there is no such sample, or a variable has no value.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     x = fg.Variable(2, [1.0, 2.0], name="x")
    ...     y = fg.Dot(x, x, name="y")
    >>> fg.watch(y, path="dot.html")
    <Watched: dot.html, 0.0 MB; open it in a browser>
    """
    if not isinstance(result, Node):
        raise GraphError(f"watch shows the step of a node, not of {brief(result)}")
    if engine is not None and not isinstance(engine, Engine):
        raise GraphError(f"watch: engine is an Engine, or None for two threads here, not {brief(engine)}")
    needed = ancestors(result)
    if len(needed) > MOST_NODES:
        raise GraphError(
            f"{result} depends on {len(needed):,} nodes, of which nobody could watch so many: up to {MOST_NODES:,}"
        )
    target = file_of(path)
    executor = LocalExecutor(True, 2) if engine is None else engine.executor
    values = values_of(result, feeds, integer(sample, "sample", 0))
    leaves = [n for n in needed if isinstance(n, Variable) and n.below is None]
    course = run_course(executor, result, values, leaves)
    about = title or (f"sample {sample} of the feeds" if feeds else "the values that are set")
    text = write_page(Numbers(result, values), course, str(about))
    write(target, text.encode())
    return Watched(target, text)


def values_of(result: Node, feeds: Mapping[Any, Any] | None, sample: int) -> dict[Variable, Array]:
    """Return what each variable has, ``(1, dim)``: its row of the feeds, or the value that is set."""
    graph = result.graph
    checked = check_feeds(graph, feeds, np.float64)
    variables = [n for n in ancestors(result) if isinstance(n, Variable)]
    require_values(variables, checked, result)
    if sample >= checked.samples:
        raise FeedError(f"watch: there is no sample {sample}, the feeds have {checked.samples}, from 0 on")
    arrays = checked.arrays
    return {v: arrays[v][sample : sample + 1] if v in arrays else np.array(v.value)[None] for v in variables}

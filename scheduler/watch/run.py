"""A sample's step at grain ``node``: in which order its tasks ran, when, and on which thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flowgrad.autodiff import differentiate
from flowgrad.graph import Node, Variable, ancestors
from flowgrad.op import Op
from flowgrad.program import Instr, verify
from flowgrad.typing import Array

from ..executors import Executor
from ..programs import traced
from ..tasks import TaskGraph, prefix_of
from .work import Noted, run_noted


class Event(NamedTuple):
    """Something that happened: a node got its value, or sent its cotangent back to a parent.

    Attributes
    ----------
    back : bool
    node : int
        Index of the node.
    slots : tuple of int
        Those whose parents the cotangent went to, if it is one of the way back.
    start, end : float
        Seconds since the first task began.
    lane : int
        Which thread, in the order in which they began.
    """

    back: bool
    node: int
    slots: tuple[int, ...]
    start: float
    end: float
    lane: int


class Course(NamedTuple):
    """What a step did: its events in the order in which they ended, how many tasks they were, and what threads are called."""

    events: list[Event]
    tasks: int
    lanes: list[str]


def run_course(executor: Executor, result: Node, values: Mapping[Variable, Array], wrt: Sequence[Variable]) -> Course:
    """Run forward and backward of a sample, a task for each node and each edge, and return what happened."""
    leaves = [n for n in ancestors(result) if isinstance(n, Variable)]
    program = traced([result], leaves, ())
    inputs = {i.node: i.var for i in program.inputs}
    program = differentiate(program, program.outputs["0"], [inputs[v.index] for v in wrt], fold=False)
    verify(program)
    graph = TaskGraph()
    refs = {inputs[v.index]: graph.data("input", values[v]) for v in leaves}
    refs[program.inputs[-1].var] = graph.data("seed", np.eye(result.dim)[:, None])
    keys = {}
    for i in program.instrs:
        args = (i._replace(out=0, args=()), *(refs[a] for a in i.args))
        ref = graph.task(prefix_of(i), run_noted, *args, name=i.name)
        refs[i.out] = ref
        keys[i.out] = ref.key
    workers = [w.address for w in executor.workers()]
    wanted = list(dict.fromkeys(keys.values()))
    noted = dict(zip(wanted, executor.run(graph.records, wanted, workers)))
    return _course(result, program.instrs, {var: noted[key] for var, key in keys.items()})


def _course(result: Node, instrs: Sequence[Instr], noted: Mapping[int, Noted]) -> Course:
    """Put the tasks of each node, and of each edge, together: an op that programs hold by other ops has several."""
    nodes = {n.name: n for n in ancestors(result)}
    parts: dict[tuple[bool, int, tuple[int, ...]], list[Noted]] = {}
    for i in instrs:
        node = nodes.get(i.label)
        if i.verb in ("add", "scatter") or not isinstance(node, Op):
            continue  # a sum, or zeros
        back = i.verb != "apply"
        whole = type(node).expand.__func__ is not Op.expand.__func__ or len(node.parents) != i.arity  # type: ignore[attr-defined]
        slots = () if not back else tuple(range(len(node.parents))) if whole else (i.slot,)
        parts.setdefault((back, node.index, slots), []).append(noted[i.out])
    zero = min((n.start for n in noted.values()), default=0.0)
    places = list(dict.fromkeys(n.place for n in sorted(noted.values(), key=lambda n: n.start)))
    events = []
    for (back, index, slots), several in parts.items():
        last = max(several, key=lambda n: n.end)
        start = min(n.start for n in several)
        events.append(Event(back, index, slots, start - zero, last.end - zero, places.index(last.place)))
    events += _silent(nodes.values(), events)
    # What is first in the graph is first where the clock cannot tell.
    events.sort(key=lambda e: (e.back, e.end, -e.node if e.back else e.node))
    return Course(_in_order(events, nodes), len(set(noted)), _names(places))


def _silent(nodes: Iterable[Node], events: Sequence[Event]) -> list[Event]:
    """Return events of nodes that programs do without, such as `Reshape`: as soon as they can be, and in no time."""
    came = {e.node: e for e in events if not e.back}
    sent: dict[int, Event] = {}
    ordered = sorted(nodes, key=lambda n: n.index)
    by_index = {n.index: n for n in ordered}
    for e in events:
        for slot in e.slots:
            parent = by_index[e.node].parents[slot].index
            sent[parent] = max(e, sent.get(parent, e), key=lambda e: e.end)
    made = []
    silent = [n for n in ordered if n.parents and n.index not in came]
    for n in silent:
        last = max((came[p.index] for p in n.parents if p.index in came), key=lambda e: e.end, default=None)
        came[n.index] = Event(
            False, n.index, (), last.end if last else 0.0, last.end if last else 0.0, last.lane if last else 0
        )
        made.append(came[n.index])
    for n in reversed(silent):
        if n.index in sent:
            last = sent[n.index]
            made.append(Event(True, n.index, tuple(range(len(n.parents))), last.end, last.end, last.lane))
            for p in n.parents:
                sent[p.index] = max(made[-1], sent.get(p.index, made[-1]), key=lambda e: e.end)
    return made


def _in_order(events: list[Event], nodes: Mapping[str, Node]) -> list[Event]:
    """Let each event come after those that it needs, whatever clocks of several machines say."""
    by_index = {n.index: n for n in nodes.values()}
    placed: list[Event] = []
    valued: set[int] = {n.index for n in nodes.values() if not n.parents}
    left: dict[int, int] = {}
    for e in events:
        if e.back:
            for slot in e.slots:
                parent = by_index[e.node].parents[slot].index
                left[parent] = left.get(parent, 0) + 1
    waiting = list(events)
    while waiting:
        e = next((e for e in waiting if _ready(e, by_index[e.node], valued, left)), waiting[0])
        waiting.remove(e)
        placed.append(e)
        if e.back:
            for slot in e.slots:
                left[by_index[e.node].parents[slot].index] -= 1
        else:
            valued.add(e.node)
    return placed


def _ready(e: Event, node: Node, valued: set[int], left: Mapping[int, int]) -> bool:
    return not left.get(e.node) if e.back else all(p.index in valued for p in node.parents)


def _names(places: Sequence[tuple[str, int, int]]) -> list[str]:
    hosts, processes = {p[0] for p in places}, {p[:2] for p in places}
    names = []
    for k, (host, process, _) in enumerate(places):
        where = [host] if len(hosts) > 1 else []
        where += [f"process {process}"] if len(processes) > 1 else []
        names.append(", ".join([*where, f"thread {k + 1}"]))
    return names

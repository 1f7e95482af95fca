"""A sample's step at grain ``node``: in which order its tasks ran, when, and on which thread."""

from __future__ import annotations

from collections import Counter
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
from .work import Noted, run_noted, run_seed


class Span(NamedTuple):
    """When and where a task ran: seconds since the first one began, and which thread, in the order in which they began."""

    start: float
    end: float
    lane: int


class Event(NamedTuple):
    """Something that happened: a node got its value, or its cotangent went back to a parent.

    Attributes
    ----------
    back : bool
    node : int
        Index of the node.
    slots : tuple of int
        Those whose parents the cotangent went to, if it is one of the way back.
    end : float
        When it was done: when the last of its tasks was, or all that it needs, if it has none.
    spans : tuple of Span
        Its tasks. An op that programs hold by other ops has several; `Reshape`, which computes nothing, none.
    """

    back: bool
    node: int
    slots: tuple[int, ...]
    end: float
    spans: tuple[Span, ...] = ()


class Course(NamedTuple):
    """What a step did: its events in the order in which they were done, and what threads are called."""

    events: list[Event]
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
    seed, keys = program.inputs[-1].var, {}
    for i in program.instrs:
        if seed in i.args and seed not in refs:  # the way back begins when the result is there
            refs[seed] = graph.task("seed", run_seed, np.eye(result.dim)[:, None], refs[program.outputs["0"]])
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
    applied = Counter(i.label for i in instrs if i.verb == "apply")
    zero = min((n.start for n in noted.values()), default=0.0)
    places = list(dict.fromkeys(n.place for n in sorted(noted.values(), key=lambda n: n.start)))
    parts: dict[tuple[bool, int, tuple[int, ...]], list[Span]] = {}
    within: dict[Node, list[Span]] = {}

    def held(node: Node) -> str:
        """Return what a program calls a node: it does without some, such as `Reshape`."""
        while node.parents and node.name not in applied:
            node = node.parents[0]
        return node.name

    for i in instrs:
        node = nodes.get(i.label)
        if i.verb in ("add", "scatter") or not isinstance(node, Op):
            continue  # a sum, or zeros
        n = noted[i.out]
        span = Span(n.start - zero, n.end - zero, places.index(n.place))
        if i.verb == "apply":
            parts.setdefault((False, node.index, ()), []).append(span)
        elif i.by == i.label:
            within.setdefault(node, []).append(span)
        else:
            alone = applied[i.label] == 1 and i.op is type(node) and i.arity == len(node.parents)
            slots = (i.slot,) if alone else tuple(k for k, p in enumerate(node.parents) if held(p) == i.by)
            parts.setdefault((True, node.index, slots or _slots(node)), []).append(span)
    last = {key[1]: key for key in sorted(parts, key=lambda key: max(s.end for s in parts[key])) if key[0]}
    for node, spans in within.items():  # all edges but the last may be done before these
        parts.setdefault(last.get(node.index, (True, node.index, _slots(node))), []).extend(spans)
    events = [Event(*key, max(s.end for s in spans), tuple(spans)) for key, spans in parts.items()]
    events += _silent(nodes.values(), events)
    # What is first in the graph is first where the clock cannot tell.
    events.sort(key=lambda e: (e.back, e.end, -e.node if e.back else e.node))
    return Course(_in_order(events, nodes), _names(places))


def _slots(node: Node) -> tuple[int, ...]:
    return tuple(range(len(node.parents)))


def _silent(nodes: Iterable[Node], events: Sequence[Event]) -> list[Event]:
    """Return events without a task, of `Reshape`, and back from a range of a variable: done as soon as they can be."""
    done = {e.node: e.end for e in events if not e.back}
    told = {e.node for e in events if e.back}
    by_index = {n.index: n for n in nodes}
    sent: dict[int, float] = {}

    def send(e: Event) -> None:
        for slot in e.slots:
            parent = by_index[e.node].parents[slot].index
            sent[parent] = max(e.end, sent.get(parent, 0.0))

    made = []
    for k in sorted(by_index):
        if by_index[k].parents and k not in done:
            done[k] = max(done.get(p.index, 0.0) for p in by_index[k].parents)
            made.append(Event(False, k, (), done[k]))
    for e in events:
        send(e)
    for k in sorted(by_index, reverse=True):
        node = by_index[k]
        if isinstance(node, Op) and k in sent and k not in told and node.differentiable:
            made.append(Event(True, k, _slots(node), sent[k]))
            send(made[-1])
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

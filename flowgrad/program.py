"""Programs: straight-line, single-assignment lists of instructions; the only thing that passes transform and kernels run.

A program variable is an integer; its type says what it holds: a value ``(N, dim)`` or a cotangent ``(V, N, dim)``, batched
(``N`` samples) or shared (``N == 1``). Tangents are held as cotangents are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from .errors import GraphError
from .graph import Node, Variable, ancestors
from .inputs import brief
from .op import Op

Verb = Literal["apply", "pull", "pull_sum", "add", "scatter", "push", "bend", "bend_sum"]
Role = Literal["param", "const", "feed", "seed", "tangent"]


class Type(NamedTuple):
    """What a program variable holds."""

    dim: int
    batched: bool
    cotangent: bool = False

    def __str__(self) -> str:
        samples = "N" if self.batched else "1"
        return f"({'V, ' if self.cotangent else ''}{samples}, {self.dim})"


class Instr(NamedTuple):
    """One instruction.

    ``apply``: ``out = op.apply(*args)``. ``pull``/``pull_sum``: `args` are the cotangent, then the forward values that
    ``op.needs(slot, arity)`` lists. ``add``: the sum of the arguments, in their order. ``scatter``: each argument is added
    into a zero cotangent at its start in ``attrs["starts"]``. ``push``: a tangent, then the same values. ``bend``/``bend_sum``:
    the pull of a cotangent by the tangent of the local Jacobian; then come values, and as many tangents, see
    `tangents.bent_slots`. `dim` is the length of `out`. `label` is the node that it is about, of an edge `by` the other end.
    """

    verb: Verb
    out: int
    args: tuple[int, ...]
    op: type[Op] = Op
    attrs: tuple[tuple[str, Any], ...] = ()
    slot: int = 0
    arity: int = 0
    label: str = ""
    dim: int = 0
    by: str = ""

    @property
    def name(self) -> str:
        """What people call it: the node, or the edge by both of its ends."""
        return f"{self.label} by {self.by}" if self.by else self.label


class Input(NamedTuple):
    """A program variable that is given: its role, and index and name of the graph's variable that it stands for (or -1)."""

    var: int
    role: Role
    node: int = -1
    label: str = ""


@dataclass(frozen=True, eq=False)
class Program:
    """A verified list of instructions.

    Attributes
    ----------
    types : tuple of Type
        By program variable.
    inputs : tuple of Input
        What must be given: a flat vector of parameters, one of constants, feeds, a seed cotangent, tangents.
    instrs : tuple of Instr
    outputs : dict
        Program variable by name.
    layout : dict
        Where each graph variable (by index) lies in its flat vector: role, start, stop.
    compiled : bool
        Whether machine code runs it, or NumPy: the last digits differ.
    """

    types: tuple[Type, ...]
    inputs: tuple[Input, ...]
    instrs: tuple[Instr, ...]
    outputs: dict[str, int]
    layout: dict[int, tuple[Role, int, int]] = field(default_factory=dict)
    compiled: bool = False

    def tiles(self, i: Instr) -> bool:
        """Return whether the pieces of a ``scatter`` lie end to end and fill it, so that nothing is added up."""
        starts = dict(i.attrs)["starts"]
        ends = [start + self.types[a].dim for start, a in zip(starts, i.args)]
        return [0, *ends] == [*starts, self.types[i.out].dim]

    def labels(self) -> dict[int, str]:
        """Return what each variable is called: by the nodes that it holds."""
        return {v.var: v.label for v in self.inputs} | {i.out: i.label for i in self.instrs}

    def size(self, role: Role) -> int:
        """Return the length of the flat vector of a role, ``"param"`` or ``"const"``."""
        return sum(self.types[i.var].dim for i in self.inputs if i.role == role)

    def pretty(self) -> str:
        """Return the program as text, one instruction a line."""
        lines = [
            f"in   %{i.var} {self.types[i.var]} {i.role}" + (f" of node {i.node}" if i.node >= 0 else "")
            for i in self.inputs
        ]
        for i in self.instrs:
            what = i.verb if i.verb in ("add", "scatter") else i.op.__name__
            if i.verb not in ("apply", "add", "scatter"):
                what = f"{i.verb} {what}[{i.slot}]"
            args = ", ".join(f"%{a}" for a in i.args[:8]) + (f", ... {len(i.args)}" if len(i.args) > 8 else "")
            attrs = "".join(f" {k}={brief(v, 24)}" for k, v in i.attrs)
            lines.append(f"%{i.out} {self.types[i.out]} = {what}({args}){attrs}" + (f"  # {i.name}" if i.name else ""))
        lines += [f"out  {name} = %{var}" for name, var in self.outputs.items()]
        return "\n".join(lines)


@dataclass(eq=False)
class Builder:
    """Collects instructions; passes write their result with it."""

    types: list[Type] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    instrs: list[Instr] = field(default_factory=list)
    layout: dict[int, tuple[Role, int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, program: Program) -> Builder:
        """Return a builder that goes on where `program` ends."""
        return cls(list(program.types), list(program.inputs), list(program.instrs), dict(program.layout))

    def input(self, type_: Type, role: Role, node: int = -1, label: str = "") -> int:
        """Add a given variable."""
        self.types.append(type_)
        self.inputs.append(Input(len(self.types) - 1, role, node, label))
        return len(self.types) - 1

    def emit(self, verb: Verb, type_: Type, args: Iterable[int], **fields: Any) -> int:
        """Add an instruction and return its variable."""
        return self.copy(Instr(verb, -1, (), **fields), type_, args)

    def copy(self, instr: Instr, type_: Type, args: Iterable[int]) -> int:
        """Add an instruction of another program on variables of this one; return its variable."""
        self.types.append(type_)
        out = len(self.types) - 1
        # Written out: there are many, and `_replace` takes three times as long.
        verb, _, _, op, attrs, slot, arity, label, _, by = instr
        self.instrs.append(Instr(verb, out, tuple(args), op, attrs, slot, arity, label, type_.dim, by))
        return out

    def apply(self, op: type[Op], args: Sequence[int], attrs: dict[str, Any], label: str = "") -> int:
        """Add ``op.apply``; its type follows from the arguments."""
        given = [self.types[a] for a in args]
        dim, batched = op.shape(*[t.dim for t in given], **attrs), any([t.batched for t in given])
        self.types.append(Type(dim, batched))
        out = len(self.types) - 1
        self.instrs.append(Instr("apply", out, tuple(args), op, tuple(attrs.items()), 0, len(given), label, dim))
        return out

    def build(self, outputs: dict[str, int]) -> Program:
        """Return the program, without verification."""
        return Program(tuple(self.types), tuple(self.inputs), tuple(self.instrs), outputs, self.layout)


def trace(
    targets: Sequence[Node],
    feeds: Iterable[Variable],
    params: Iterable[Variable],
    marks: Mapping[Node, type[Op]] | None = None,
) -> Program:
    """Write what `targets` need as a program, node by node.

    Parameters
    ----------
    targets : sequence of Node
        Outputs ``"0"``, ``"1"``, ...
    feeds : iterable of Variable
        Given per sample.
    params : iterable of Variable
        Shared by the samples, to be differentiated by; the other variables are constants.
    marks : dict, optional
        Inner nodes, each with an op that is put behind it: whoever reads the node reads that. Outputs ``"at <index>"``.
    """
    marks = marks or {}
    fed, trained = set(feeds), set(params)
    needed = ancestors(*targets)
    builder = Builder()
    var: dict[Node, int] = {}
    for node in sorted(needed, key=lambda n: n.index):
        if isinstance(node, Op):
            var[node] = type(node).expand(builder, [var[p] for p in node.parents], node.attrs, node.name)
            if node in marks:
                var[node] = builder.apply(marks[node], [var[node]], {"node": node.index}, node.name)
        else:
            role: Role = "feed" if node in fed else "param" if node in trained else "const"
            var[node] = builder.input(Type(node.dim, role == "feed"), role, node.index, node.name)
    marked = {f"at {node.index}": var[node] for node in marks if node in needed}
    return builder.build({str(i): var[t] for i, t in enumerate(targets)} | marked)


def verify(program: Program) -> Program:
    """Check single assignment, order, dims and batching of every instruction; return the program.

    Raises
    ------
    GraphError
        Names the first instruction that is wrong.
    """
    types = program.types
    known = [False] * len(types)
    for entry in program.inputs:
        known[entry.var] = True
    for i in program.instrs:
        if known[i.out]:
            wrong = "assigned twice"
        elif not all([0 <= a < len(types) and known[a] for a in i.args]):
            wrong = f"one of {i.args[:8]} is not known yet"
        else:
            wrong = _type_error(i, types)
        if wrong:
            raise GraphError(f"instruction %{i.out} = {i.verb} {i.op.__name__} {i.label}: {wrong}")
        known[i.out] = True
    for name, var in program.outputs.items():
        if not known[var]:
            raise GraphError(f"output {name} = %{var} is never computed")
    return program


def _type_error(i: Instr, types: tuple[Type, ...]) -> str:
    out = types[i.out]
    if i.verb == "apply":
        args = [types[a] for a in i.args]
        wanted = Type(i.op.shape(*[t.dim for t in args], **dict(i.attrs)), any([t.batched for t in args]))
        return (
            "" if out == wanted and not any([t.cotangent for t in args]) else f"has type {out}, its op gives {wanted}"
        )
    args = [types[a] for a in i.args]
    if not out.cotangent or not all([t.cotangent for t in args[:1]]):
        return "is no cotangent"
    if i.verb in ("pull_sum", "bend_sum") and out.batched:
        return "sums over the samples, but its result is batched"
    if i.verb in ("pull", "bend") and out.batched != args[0].batched:
        return "keeps samples apart, but its result is batched otherwise"
    if i.verb == "push" and out.batched != any([t.batched for t in args]):
        return "is batched otherwise than what it reads"
    if i.verb not in ("add", "scatter"):
        needs = len(i.op.needs(i.slot, i.arity))
        given = len(i.args) - 1
        fits = given in (2 * needs, 2 * (1 + i.arity)) if i.verb.startswith("bend") else given == needs
        return "" if fits else f"has {given} forward values, its rule uses {needs}"
    if i.verb == "add":
        fits = all([t.dim == out.dim and t.cotangent for t in args]) and any([t.batched for t in args]) == out.batched
        return "" if fits else f"adds {', '.join(map(str, args))} into {out}"
    starts = dict(i.attrs)["starts"]
    fits = len(starts) == len(args) and all(s + t.dim <= out.dim for s, t in zip(starts, args))
    return "" if fits else f"pieces leave {out}"

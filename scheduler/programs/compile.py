"""The passes, in the order in which they run; a program is verified after each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from flowgrad.autodiff import differentiate
from flowgrad.errors import FeedError, warn
from flowgrad.graph import Graph, Node, Variable
from flowgrad.inputs import one_of
from flowgrad.op import Op
from flowgrad.program import Program, Role, trace, verify
from flowgrad.samples import check_first_use
from flowgrad.typing import Array

from ..feeds import Feeds, require_values
from ..tasks import attrs_tokens
from .fuse import Layout, fuse, pack

Pass = Callable[[Program], Program]
# Instructions from which on a program is verified once.
LARGE = 5000
GRAINS = ("node", "sample", "shard", "round", "collective", "auto")


def forward_passes(grain: str, layout: Layout | None = None) -> list[Pass]:
    """Return the passes of a traced program: siblings are fused, but at grain ``node``, where each node is a task."""
    if grain == "node":
        return [lambda program: pack(program, layout)]
    return [lambda program: fuse(program, layout), common]


def backward_passes(grain: str) -> list[Pass]:
    """Return the passes of a differentiated program."""
    return [] if grain == "node" else [common, prune]


def run_passes(program: Program, passes: Sequence[Pass]) -> Program:
    """Run passes one after the other, and verify the program after each; a large one at the end."""
    for run in passes:
        if len(program.instrs) < LARGE:
            verify(program)
        program = run(program)
    return verify(program)


def common(program: Program) -> Program:
    """Compute equal instructions once: same verb, op, attributes, slot and arguments."""
    known: dict[Any, int] = {}
    same: dict[int, int] = {}
    kept = []
    attrs = attrs_tokens(program.instrs)
    for i in program.instrs:
        args = tuple(same.get(a, a) for a in i.args)
        key = (i.verb, i.op, attrs[id(i.attrs)], i.slot, i.arity, args)
        if key in known:
            same[i.out] = known[key]
            continue
        known[key] = i.out
        kept.append(i if args == i.args else i._replace(args=args))
    outputs = {name: same.get(var, var) for name, var in program.outputs.items()}
    return replace(program, instrs=tuple(kept), outputs=outputs)


def prune(program: Program) -> Program:
    """Drop instructions that no output needs."""
    needed = set(program.outputs.values())
    kept = []
    for i in reversed(program.instrs):
        if i.out in needed:
            needed.update(i.args)
            kept.append(i)
    return replace(program, instrs=tuple(reversed(kept)))


def check_grain(grain: str) -> str:
    """Return `grain`, or raise with the list of those there are."""
    return one_of(grain, "grain", GRAINS)


def traced(
    targets: Sequence[Node],
    fed: Iterable[Variable],
    params: Iterable[Variable],
    marks: Mapping[Node, type[Op]] | None = None,
) -> Program:
    """Trace `targets`; ops of one's own are checked when they are used first, for shards would show what is wrong with them."""
    program = trace(targets, fed, params, marks)
    for i in {i.op: i for i in reversed(program.instrs)}.values():
        dims = [program.types[a].dim for a in i.args]
        check_first_use(i.op, dict(i.attrs), dims, program.types[i.out].dim, i.label)
    return program


def compile_forward(
    targets: Sequence[Node],
    fed: Collection[Variable],
    params: Sequence[Variable],
    grain: str,
    layout: Layout | None = None,
) -> Program:
    """Trace `targets` and lay out their program for a grain: fused, or node by node.

    With `layout`, parameters lie where they lie in another program over the same parameters.
    """
    return run_passes(traced(targets, fed, params), forward_passes(grain, layout))


def require_inputs(program: Program, target: Node, feeds: Feeds) -> None:
    """Raise for the first variable of a program that is neither fed nor set."""
    nodes = target.graph.nodes
    require_values([cast(Variable, nodes[k]) for k in program.layout], feeds, target)


def flat_values(program: Program, graph: Graph, role: Role, dtype: Any) -> Array:
    """Return the values of all parameters or constants of a program as one vector ``(1, P)``; warn of those that become 0.

    Raises
    ------
    FeedError
        If a value is too large for the dtype.
    """
    flat = np.zeros((1, program.size(role)), dtype)
    nodes = graph.nodes
    with np.errstate(over="ignore"):
        for index, (of, start, stop) in program.layout.items():
            value = nodes[index].value
            if of == role and value is not None:
                flat[0, start:stop] = value
    if not np.isfinite(flat).all():
        index = next(
            k for k, (of, a, b) in program.layout.items() if of == role and not np.isfinite(flat[0, a:b]).all()
        )
        largest = float(np.abs(cast(Variable, nodes[index]).value).max())  # type: ignore[arg-type]
        raise FeedError(
            f"{nodes[index]} has the value {largest:.3g}, which {flat.dtype} does not hold (up to {np.finfo(flat.dtype).max:.2g}): "
            f"use Engine(dtype='float64'), or smaller values"
        )
    if flat.dtype != np.float64 and not flat.all():
        _warn_of_zeros(program, nodes, role, flat)
    return flat


def _warn_of_zeros(program: Program, nodes: Sequence[Node], role: Role, flat: Array) -> None:
    for index, (of, start, stop) in program.layout.items():
        value = nodes[index].value
        if of == role and value is not None and (lost := (flat[0, start:stop] == 0) & (value != 0)).any():
            warn(
                f"{nodes[index]} has the value {value[lost][0]:.3g}, which {flat.dtype} takes for 0 (it holds "
                f"{np.finfo(flat.dtype).smallest_subnormal:.2g} and more): use Engine(dtype='float64'), or larger values"
            )
            return


def input_var(program: Program, role: Role, node: int = -1) -> int | None:
    """Return the program variable of an input, or None if the program has no such input."""
    return next((i.var for i in program.inputs if i.role == role and i.node == node), None)


def compile_gradient(
    target: Node, feeds: Collection[Variable], wrt: Sequence[Variable], grain: str
) -> tuple[Program, list[tuple[str, list[Variable]]]]:
    """Return forward and backward program, and per output name the variables whose derivatives it holds."""
    params = [v for v in wrt if v not in feeds]
    fed = [v for v in wrt if v in feeds]
    program = compile_forward([target], feeds, params, grain)
    where = [(input_var(program, "param"), params), *((input_var(program, "feed", v.index), [v]) for v in fed)]
    pairs = [(var, vs) for var, vs in where if var is not None and vs]
    program = differentiate(program, program.outputs["0"], [var for var, _ in pairs], fold=grain != "node")
    program = run_passes(program, backward_passes(grain))
    named = [(f"d{k}", vs) for k, (_, vs) in enumerate(pairs) if f"d{k}" in program.outputs]
    return program, named

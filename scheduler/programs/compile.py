"""The passes, in the order in which they run; a program is verified after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flowgrad.program import Instr, Program, verify

from ..tasks.records import token
from .fuse import Layout, fuse, pack

Pass = Callable[[Program], Program]


def forward_passes(grain: str, layout: Layout | None = None) -> list[Pass]:
    """Return the passes of a traced program: siblings are fused, but at grain ``node``, where each node is a task."""
    if grain == "node":
        return [lambda program: pack(program, layout)]
    return [lambda program: fuse(program, layout), common]


def backward_passes(grain: str) -> list[Pass]:
    """Return the passes of a differentiated program."""
    return [] if grain == "node" else [common, prune]


def run_passes(program: Program, passes: Sequence[Pass]) -> Program:
    """Run passes one after the other, and verify the program after each."""
    verify(program)
    for run in passes:
        program = verify(run(program))
    return program


def common(program: Program) -> Program:
    """Compute equal instructions once: same verb, op, attributes, slot and arguments."""
    known: dict[Any, int] = {}
    same: dict[int, int] = {}
    kept = []
    # Every pull of a wide node has the node's attributes, which name all its parents: hash each such object once.
    contents: dict[str, int] = {}
    numbers: dict[int, int] = {}
    for i in program.instrs:
        if id(i.attrs) not in numbers:
            numbers[id(i.attrs)] = contents.setdefault(token(i.attrs), len(contents))
        args = tuple(same.get(a, a) for a in i.args)
        key = (i.verb, i.op, numbers[id(i.attrs)], i.slot, i.arity, args)
        if key in known:
            same[i.out] = known[key]
            continue
        known[key] = i.out
        kept.append(i if args == i.args else i._replace(args=args))
    return _with(program, kept, {name: same.get(var, var) for name, var in program.outputs.items()})


def prune(program: Program) -> Program:
    """Drop instructions that no output needs."""
    needed = set(program.outputs.values())
    kept = []
    for i in reversed(program.instrs):
        if i.out in needed:
            needed.update(i.args)
            kept.append(i)
    return _with(program, kept[::-1], program.outputs)


def _with(program: Program, instrs: Sequence[Instr], outputs: dict[str, int]) -> Program:
    return Program(program.types, program.inputs, tuple(instrs), outputs, program.layout)

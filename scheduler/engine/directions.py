"""Directions and cotangents that a user gives, checked and laid out for a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flowgrad.errors import FeedError
from flowgrad.graph import Node, Variable
from flowgrad.program import Program
from flowgrad.typing import Array

from ..feeds.check import Feeds
from ..programs.lower import input_var


def vectors_of(what: str, node: Node, value: Any, feeds: Feeds) -> Array:
    """Return a vector that is given for a node, ``(1, dim)`` or ``(N, dim)``, checked."""
    try:
        array = np.asarray(value, feeds.dtype)
    except (TypeError, ValueError):
        raise FeedError(f"{what} is not an array of numbers") from None
    if array.shape == (node.dim,):
        return array[None]
    if array.shape != (feeds.samples, node.dim):
        raise FeedError(
            f"{what} for {node} has shape {array.shape}; it must be ({node.dim},) or ({feeds.samples}, {node.dim})"
        )
    return array


def tangents_of(graph: Any, given: Any, feeds: Feeds) -> dict[Variable, Array]:
    """Return directions by variable, checked."""
    if not isinstance(given, Mapping) or not given:
        raise FeedError("directions are given as a dict {variable: array (dim,)} of at least one variable")
    found = {}
    for v, value in given.items():
        if not isinstance(v, Variable) or v.graph is not graph:
            raise FeedError(f"a direction is given for a variable of the graph, not for {v!r}")
        found[v] = vectors_of("the direction", v, value, feeds)
        if len(found[v]) > 1 and v not in feeds.arrays:
            raise FeedError(f"{v} is shared by all samples: its direction must be ({v.dim},), not {found[v].shape}")
    return found


def flat_tangents(program: Program, moved: Mapping[Variable, Array], feeds: Feeds) -> dict[int, Array]:
    """Return the tangents of the program's inputs, by variable."""
    found: dict[int, Array] = {}
    param = input_var(program, "param")
    if param is not None:
        flat = found[param] = np.zeros((1, program.types[param].dim), feeds.dtype)
        for v, tangent in moved.items():
            if v.index in program.layout and v not in feeds.arrays:
                flat[:, slice(*program.layout[v.index][1:])] = tangent
    for v in moved:
        var = input_var(program, "feed", v.index)
        if var is not None:
            found[var] = moved[v]
    return found


def cut_tangents(flat: dict[int, Array], start: int, stop: int, samples: int) -> dict[int, Array]:
    """Return the tangents of some samples."""
    return {var: t[start:stop] if len(t) == samples and samples > 1 else t for var, t in flat.items()}

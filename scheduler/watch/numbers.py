"""The interpreter's numbers of one sample: values, local Jacobians, cotangents, and what they are the sums of."""

from __future__ import annotations

import base64
import inspect
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from flowgrad.graph import Node, Variable, ancestors, jacobians_of
from flowgrad.inputs import times
from flowgrad.jacobians import Diagonal
from flowgrad.typing import Array

# Numbers of an array up to which it is written out, the first that makes a page small enough; of a dense local Jacobian, likewise.
CAPS = (16384, 4096, 1024, 256, 64)
DENSE = 1024
# Kinds of local Jacobians in words, with the size of their factor; others are told by their docstrings.
KINDS = {
    "Identity": "identity",
    "Diagonal": "diagonal",
    "Selection": "selection of entries",
    "Still": "zero",
    "Outer": "outer product with a row of {0}",
    "Dense": "matrix of {0}",
}
# Bytes of all arrays of a page, as text.
MOST = 4_300_000


class Numbers:
    """What a page shows of a sample.

    Attributes
    ----------
    nodes : dict
        By index: a dict with ``value`` and ``cotangent`` (None if it has none), ``parts``, the contributions of children, and
        ``local``, the local Jacobians by slot. Arrays are dicts, see `_packed`.
    left_out : int
        Arrays that are only told in numbers: norm, least, largest and mean.
    cap : int
        How many entries the largest has that is written out.
    """

    def __init__(self, result: Node, values: Mapping[Variable, Array]):
        graph = deepcopy(result.graph)
        self.result: Node = graph.nodes[result.index]
        needed = sorted(ancestors(self.result), key=lambda n: n.index)
        for variable, value in values.items():
            node: Any = graph.nodes[variable.index]
            node._assign(np.asarray(value, np.float64).reshape(1, -1))
        self.result.forward()
        self.cotangents = {n: g[:, 0] for n, g in zip(needed, jacobians_of(self.result, tuple(needed)))}
        self.needed, within = needed, set(needed)
        self.edges = {n: [(c, slot) for c, slot in n._edges if c in within] for n in needed}
        self.local = {n: [n.local_jacobian(slot) for slot in range(len(n.parents))] for n in needed if n.parents}
        for cap in CAPS:
            self.cap, self.left_out, self.size = cap, 0, 0
            self.nodes = {n.index: self._of(n) for n in needed}
            if self.size <= MOST:
                break

    def _of(self, node: Node) -> dict[str, Any]:
        parts = []
        edges = self.edges[node]
        for child, slot in edges if len(edges) > 1 else []:
            pulled = self.local[child][slot].pull(self.cotangents[child][:, None])[:, 0]
            parts.append({"node": child.index, "slot": slot, "array": self._array(pulled)})
        return {
            "value": self._array(np.asarray(node.value)),
            "cotangent": self._array(self.cotangents[node]),
            "parts": parts,
            "local": [self._local(local, node.dim, p.dim) for local, p in zip(self.local.get(node, ()), node.parents)],
        }

    def _local(self, local: Any, rows: int, columns: int) -> dict[str, Any]:
        told: dict[str, Any] = {"shape": [rows, columns], "text": _words(local)}
        if rows * columns <= min(DENSE, self.cap):
            told["dense"] = self._array(local.dense()[0])
        elif isinstance(local, Diagonal):
            told["diagonal"] = self._array(np.broadcast_to(local.d, (1, rows))[0])  # one number may stand for all
        return told

    def _array(self, array: Array) -> dict[str, Any]:
        told = _told(array)
        if array.size <= self.cap:
            told["data"] = base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()
            self.size += len(told["data"])
        else:
            self.left_out += 1
        self.size += 90
        return told


def _words(local: Any) -> str:
    """Say what kind of Jacobian it is."""
    kind = type(local).__name__
    if kind in KINDS:
        factors = [times(np.shape(value)[1:]) for value in vars(local).values() if np.ndim(value) > 1]
        return KINDS[kind].format(*factors, "1")
    return summary_of(type(local))


def summary_of(thing: type) -> str:
    """Return the first sentence of a docstring, without its markup."""
    return (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ").replace("`", "")


def _told(array: Array) -> dict[str, Any]:
    """Return what is said of an array in any case."""
    some = {"norm": np.linalg.norm(array), "least": array.min(), "most": array.max(), "mean": array.mean()}
    told = {name: float(f"{x:.6g}") if np.isfinite(x) else None for name, x in some.items()}  # JSON knows no nan
    return {"shape": list(array.shape), **told}

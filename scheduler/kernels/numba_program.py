"""Programs as walks: values, gradients, Jacobians."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from flowgrad.program import Program
from flowgrad.typing import Array

from . import numba_walk as w
from .numba_code import Code, aligned_bytes, lay, run_threads
from .table import FEEDS, ROLES, Assembler


class CompiledProgram:
    """A program made ready to run; called as `Kernel` is."""

    def __init__(self, program: Program):
        self.program = program
        self._table = lru_cache(maxsize=2)(lambda seeds: Assembler(program, seeds=seeds).write())
        self._code = lru_cache(maxsize=8)(lambda seeds, *key: Code(self._table(seeds), *key))
        feeds = 0
        self.spaces = []
        for i in program.inputs:
            self.spaces.append(ROLES.get(i.role, FEEDS + feeds))
            feeds += i.role == "feed"

    def __call__(self, inputs: Sequence[Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run on the inputs, in the order of ``program.inputs``; return the outputs by name, some of them `into` arrays."""
        program, types = self.program, self.program.types
        dtype = np.dtype(np.result_type(*inputs)) if inputs else np.dtype(float)
        samples = max((len(x) if i.role != "seed" else x.shape[1] for i, x in zip(program.inputs, inputs)), default=1)
        directions = max((len(x) for i, x in zip(program.inputs, inputs) if i.role == "seed"), default=1)
        seeds = any(x.shape[1] > 1 for i, x in zip(program.inputs, inputs) if i.role == "seed")
        code: Code = self._code(seeds, dtype, samples, directions)
        given = {w.BASES + s: np.ascontiguousarray(x, dtype) for s, x in zip(self.spaces, inputs)}
        outputs: dict[str, Array] = {}
        made: dict[int, Array] = {}
        for name, var in program.outputs.items():
            type_ = types[var]
            shape = (samples if type_.batched else 1, type_.dim)
            shape = (directions, *shape) if type_.cotangent else shape
            if var not in made:
                asked = (into or {}).get(name)
                fits = asked is not None and asked.shape == shape and asked.dtype == dtype and asked.flags.c_contiguous
                made[var] = asked if fits else np.empty(shape, dtype)
                given[w.BASES + FEEDS + code.table.feeds + len(made) - 1] = made[var]
            outputs[name] = made[var]
        frame, sync = aligned_bytes(code.frame), np.zeros(2, np.int64)
        ctx = code.context(frame, sync)
        lay(ctx, given)
        run_threads(lambda _: code.walk(ctx), 1, sync)
        return outputs

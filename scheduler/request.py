"""One request for derivatives: the records that are missing, between what is cached and the last tasks. Pure but for the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.jacobian import Array

from . import blocks
from .cache import Cache
from .known import KnownFeeds
from .recipe import Recipe
from .steps import run_spread, run_unit
from .tasks import Data, Record, Ref, Task, token
from .units import Unit, combine

# What the client gives and is larger stays on a worker like a computed value.
PLACED = 1 << 20
# Operations of an instruction from which on its samples are dealt out to threads; a thread takes 0.1 ms to wake.
SPREAD_FLOPS = 1e8


class Request:
    """Collects the records of one request over some blocks of samples.

    Parameters
    ----------
    recipe : Recipe
    known : KnownFeeds
    cache : Cache
    seed : ndarray (V, 1 or N, dim), optional
        The cotangent to begin with; rows of the identity if not given.
    threads : int
        To which large products may deal out their samples.
    """

    def __init__(self, recipe: Recipe, known: KnownFeeds, cache: Cache, seed: Array | None = None, threads: int = 1):
        cache.check()
        self.threads = threads
        self.recipe, self.known, self.cache = recipe, known, cache
        self.records: dict[str, Record] = {}
        self.sizes: dict[str, int] = {}  # bytes of values that are worth keeping
        self.fed: set[str] = set()  # those that depend on the feeds
        self.used: set[str] = set()  # keys whose use is counted
        if seed is None:
            seed = np.eye(recipe.result.dim, dtype=known.feeds.dtype)[:, None, :]
            self.seed_token = f"eye{len(seed)}{seed.dtype.str}"
        else:
            self.seed_token = token(seed)
        self.seed = seed
        self.statics = recipe.values_now(known.feeds)

    def refs(self, start: int, stop: int, wanted: Sequence[int]) -> dict[int, Ref]:
        """Return references to program variables for samples ``start:stop``; records are added for what is missing."""
        recipe = self.recipe
        whole = (start, stop) == (0, self.known.feeds.samples)
        names = self._leaves(start, stop, whole)
        keys: dict[int, str] = dict(names)
        outs: dict[int, tuple[str, int | None]] = {}
        for unit in recipe.units:
            key = f"{unit.prefix}-{combine(unit.token, *[keys[a] for a in unit.reads])}"
            single = len(unit.writes) == 1
            for number, var in enumerate(unit.writes):
                outs[var] = (key, None if single else number)
                keys[var] = key if single else f"{key}.{number}"
        emitted: dict[str, Unit] = {}
        stack = [recipe.through(var) for var in wanted]
        wants = list(stack)
        seen = set(stack)
        while stack:
            var = stack.pop()
            if var not in outs:
                self._leaf(var, names[var], start, stop, whole)
                continue
            key, _ = outs[var]
            if key in emitted or (key in self.records):
                continue
            if key not in self.used:
                self.used.add(key)
                if self.cache.has(key):
                    continue
            elif key in self.cache.held:
                continue
            unit = recipe.unit_of[var]
            emitted[key] = unit
            for a in unit.reads:
                if a not in seen:
                    seen.add(a)
                    stack.append(a)
        refs = {var: Ref(name) for var, name in names.items()}
        for unit in recipe.units:
            key, at = outs[unit.writes[0]]
            if key in emitted:
                args: dict[str, int] = {}
                reads = []
                for a in unit.reads:
                    name, position = outs.get(a, (names.get(a, ""), None))
                    reads.append((args.setdefault(name, len(args)), position))
                how: tuple[Any, ...] = (unit.instrs, tuple(reads), at is not None)
                if self.threads > 1 and unit.flops and unit.flops * len(self.seed) * (stop - start) >= SPREAD_FLOPS:
                    self.records[key] = Task(run_spread, (self.threads, stop - start, *how, *map(Ref, args)))
                else:
                    self.records[key] = Task(run_unit, (*how, *map(Ref, args)))
                self.sizes[key] = self._bytes(unit, stop - start)
                if unit.fed:
                    self.fed.add(key)
        found = {var: self._ref(outs, refs, var) for var in wants}
        return {var: found[recipe.through(var)] for var in wanted}

    def task(self, prefix: str, func: Any, *args: Any) -> Ref:
        """Add a last task."""
        key = f"{prefix}-{combine(func.__qualname__, *(_name(a) for a in args))}"
        self.records[key] = Task(func, args)
        return Ref(key)

    def _ref(self, outs: dict[int, tuple[str, int | None]], leaves: dict[int, Ref], var: int) -> Ref:
        if var not in outs:
            return leaves[var]
        key, position = outs[var]
        if position is None:
            return Ref(key)
        picked = f"pick-{key}.{position}"
        if picked not in self.records:
            self.records[picked] = Task(blocks.pick, (Ref(key), position))
        return Ref(picked)

    def _leaves(self, start: int, stop: int, whole: bool) -> dict[int, str]:
        names = {var: f"value-{name}" for var, (name, _) in self.statics.items()}
        for i in self.recipe.program.inputs:
            if i.role == "feed":
                name = self.known.tokens[self.recipe.feeds[i.var]]
                names[i.var] = f"feed-{name}" if whole else f"take-{combine(name, str(start), str(stop))}"
            elif i.role == "seed":
                cut = "" if whole or self.seed.shape[1] == 1 else f".{start}.{stop}"
                names[i.var] = f"seed-{self.seed_token}{cut}"
        return {var: f"{name}{self.cache.salt}" for var, name in names.items()} if self.cache.salt else names

    def _leaf(self, var: int, name: str, start: int, stop: int, whole: bool) -> None:
        """Add the record of something given, unless it is held already."""
        if name in self.records or name in self.cache.held:
            return
        if var in self.statics:
            self._data(name, self.statics[var][1])
        elif var == self.recipe.derivation.seed:
            self._data(name, self.seed if self.seed.shape[1] == 1 else self.seed[:, start:stop])
        else:
            array = self.known.feeds.arrays[self.recipe.feeds[var]]
            self._data(name, array if whole else blocks.cut(array, start, stop))

    def _data(self, name: str, value: Array) -> None:
        self.records[name] = Data(value)
        if self.cache.executor.remote and value.nbytes > PLACED:
            self.sizes[name] = value.nbytes

    def _bytes(self, unit: Unit, samples: int) -> int:
        types, rows = self.recipe.program.types, len(self.seed)
        size = self.known.feeds.dtype.itemsize
        return sum(
            types[var].dim * (samples if types[var].batched else 1) * (rows if types[var].cotangent else 1) * size
            for var in unit.writes
        )


def _name(arg: Any) -> str:
    if isinstance(arg, Ref):
        return arg.key
    if isinstance(arg, (list, tuple)):
        return f"[{' '.join(map(_name, arg))}]"
    name = getattr(arg, "token", None)
    return name if isinstance(name, str) else token(arg)

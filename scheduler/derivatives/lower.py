"""One request for derivatives: the records that are missing, between what is cached and the last tasks. Pure but for the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowgrad.typing import Array

from ..feeds import RememberedFeeds
from ..programs import cut_rows, pick
from ..tasks import Data, Record, Ref, Task, combine, token
from .cache import ValueCache
from .recipe import Recipe
from .units import Unit
from .work import factors_block, jacobian_block, run_block, run_spread, run_unit

# What the client gives and is larger stays on a worker like a computed value.
PLACED = 1 << 20
# Operations of an instruction from which on its samples are dealt out to threads; a thread takes 0.1 ms to wake.
SPREAD_FLOPS = 1e8


class Request:
    """Collects the records of one request over some blocks of samples.

    Parameters
    ----------
    seed : ndarray (V, 1 or N, dim), optional
        The cotangent to begin with; rows of the identity if not given.
    threads : int
        To which large products may deal out their samples.
    """

    def __init__(
        self, recipe: Recipe, feeds: RememberedFeeds, cache: ValueCache, seed: Array | None = None, threads: int = 1
    ):
        cache.check()
        self.threads = threads
        self.recipe, self.feeds, self.cache = recipe, feeds, cache
        self.records: dict[str, Record] = {}
        self.sizes: dict[str, int] = {}  # bytes of values that are worth keeping
        self.fed: set[str] = set()  # those that depend on the feeds
        self.used: set[str] = set()  # keys whose use is counted
        dim, dtype = recipe.result.dim, feeds.dtype
        eye = f"eye{dim}{dtype.str}" if seed is None else ""
        self.seed = np.eye(dim, dtype=dtype)[:, None, :] if seed is None else seed
        self.seed_token = eye or token(seed)
        self.statics = recipe.values_now(feeds)
        self.names = recipe.names(self.statics, eye)

    def refs(self, start: int, stop: int, wanted: Sequence[int]) -> list[Ref]:
        """Return references to program variables for samples ``start:stop``; records are added for what is missing."""
        recipe, samples = self.recipe, (start, stop)
        holders = [recipe.holder(var) for var in wanted]
        stack = [var for var, _ in holders]
        suffixes: dict[tuple[int, ...], str] = {}
        keys: dict[int, str] = {}
        missing = []
        while stack:
            var = stack.pop()
            if var in keys:
                continue
            stem, feeds = self.names[var]
            if feeds not in suffixes:
                suffixes[feeds] = self._suffix(feeds, samples)
            key = keys[var] = stem + suffixes[feeds]
            if var not in recipe.made_by:
                self._leaf(var, key, samples)
            elif key not in self.records and not self._kept(key):
                missing.append(recipe.made_by[var])
                stack += recipe.units[missing[-1]].holders
        for number in sorted(missing):
            self._emit(recipe.units[number], keys, stop - start)
        return [self._ref(keys[holder], position) for holder, position in holders]

    def _suffix(self, feeds: tuple[int, ...], samples: tuple[int, int]) -> str:
        """Return the half of a key that stands for the content of feeds."""
        if not feeds:
            return self.cache.salt
        whole = samples == (0, self.feeds.samples)
        feed_tokens, fed = self.feeds.tokens, self.recipe.feeds
        parts = [feed_tokens[fed[var]] if var in fed else self.seed_token for var in feeds]
        return combine(*parts, *(() if whole else map(str, samples)), self.cache.salt)

    def _kept(self, key: str) -> bool:
        """Whether the cache has a value; asking counts once for a request."""
        if key in self.used:
            return key in self.cache.held
        self.used.add(key)
        return self.cache.has(key)

    def _emit(self, unit: Unit, keys: Mapping[int, str], samples: int) -> None:
        """Add the record of a unit."""
        key = keys[unit.writes[0]]
        args = [Ref(keys[var]) for var in unit.holders]
        if unit.program is not None:
            block = (unit.token, unit.program)
            self.records[key] = Task(run_block, (block, unit.where, unit.results is not None, *args))
        elif self.threads > 1 and unit.flops and unit.flops * len(self.seed) * samples >= SPREAD_FLOPS:
            self.records[key] = Task(run_spread, (self.threads, samples, unit.instrs[0], unit.where, *args))
        else:
            self.records[key] = Task(run_unit, (unit.instrs, unit.where, unit.results, *args))
        fed = self.names[unit.writes[0]].feeds
        # What no feed reaches has one row, whatever its type says.
        self.sizes[key] = unit.entries(samples if fed else 1, len(self.seed)) * self.feeds.dtype.itemsize
        if fed:
            self.fed.add(key)

    def task(self, prefix: str, func: Any, *args: Any) -> Ref:
        """Add a last task."""
        key = f"{prefix}-{combine(func.__qualname__, *(_name(a) for a in args))}"
        self.records[key] = Task(func, args)
        return Ref(key)

    def _ref(self, key: str, position: int | None) -> Ref:
        if position is None:
            return Ref(key)
        picked = f"pick-{key}.{position}"
        if picked not in self.records:
            self.records[picked] = Task(pick, (Ref(key), position))
        return Ref(picked)

    def _leaf(self, var: int, key: str, samples: tuple[int, int]) -> None:
        """Add the record of something given, unless it is held already."""
        if key in self.records or key in self.cache.held:
            return
        start, stop = samples
        if var in self.statics:
            value = self.statics[var][1]
        elif var == self.recipe.derivation.seed:
            value = self.seed if self.seed.shape[1] == 1 else self.seed[:, start:stop]
        else:
            value = self.feeds.arrays[self.recipe.feeds[var]]
            value = value if samples == (0, self.feeds.samples) else cut_rows(value, start, stop)
        self.records[key] = Data(value)
        if self.cache.executor.remote and value.nbytes > PLACED:
            self.sizes[key] = value.nbytes


def _name(arg: Any) -> str:
    if isinstance(arg, Ref):
        return arg.key
    if isinstance(arg, (list, tuple)):
        return f"[{' '.join(map(_name, arg))}]"
    name = getattr(arg, "token", None)
    return name if isinstance(name, str) else token(arg)


def lower_reverse(request: Request, start: int, stop: int) -> Ref:
    """Add the task that runs the last edges back for samples ``start:stop``."""
    return _lower_ends(request, start, stop, "jacobian", jacobian_block, request.recipe.spans)


def lower_factors(request: Request, start: int, stop: int) -> Ref:
    """Add the task that keeps the derivative as factors for samples ``start:stop``."""
    return _lower_ends(request, start, stop, "factors", factors_block)


def _lower_ends(request: Request, start: int, stop: int, prefix: str, func: Any, *args: Any) -> Ref:
    recipe = request.recipe
    ends = recipe.ends(len(request.seed), request.feeds.dtype)
    return request.task(prefix, func, ends, *args, stop - start, *request.refs(start, stop, recipe.end_reads))

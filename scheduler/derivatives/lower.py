"""One request for derivatives: the records that are missing, between what is cached and the last tasks. Pure but for the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowgrad.typing import Array

from ..feeds import RememberedFeeds
from ..programs import cut_rows, pick
from ..tasks import Data, Key, Record, Ref, Task, combine, group_of, token
from .cache import ValueCache
from .recipe import Recipe
from .units import Unit
from .work import factors_block, jacobian_block, run_block, run_spread, run_unit

# What the client gives and is larger stays on a worker like a computed value.
PLACED = 1 << 20
# Operations of an instruction from which on its samples are dealt out to threads; a thread takes 0.1 ms to wake.
SPREAD_FLOPS = 1e8
# The group of what is picked for the last tasks out of several results.
PICKED = group_of("pick")


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
        self.records: dict[Key, Record] = {}
        self.known: dict[str, Ref] = {}  # by token, as all of these: what a value is called
        self.sizes: dict[str, int] = {}  # bytes of values that are worth keeping
        self.fed: set[str] = set()  # those that depend on the feeds
        dim, dtype = recipe.result.dim, feeds.dtype
        eye = f"eye{dim}{dtype.str}" if seed is None else ""
        self.seed = np.eye(dim, dtype=dtype)[:, None, :] if seed is None else seed
        self.seed_token = eye or token(seed)
        self.statics = recipe.values_now(feeds)
        self.names = recipe.names(self.statics, eye)

    def refs(self, start: int, stop: int, wanted: Sequence[int]) -> list[Ref]:
        """Return references to program variables for samples ``start:stop``; records are added for what is missing."""
        recipe, samples, known = self.recipe, (start, stop), self.known
        names, heads, made_by, held = self.names, recipe.heads, recipe.made_by, self.cache.held
        holders = [recipe.holder(var) for var in wanted]
        stack = [var for var, _ in holders]
        suffixes: dict[tuple[int, ...], str] = {}
        refs: dict[int, Ref] = {}
        missing: list[int] = []
        pending: set[str] = set()  # of units that are alike the first one stands for all, by the name of one
        while stack:
            var = stack.pop()
            if var in refs:
                continue
            stem, feeds = names[var]
            if feeds not in suffixes:
                suffixes[feeds] = self._suffix(feeds, samples)
            hashed = stem + suffixes[feeds]
            ref = known.get(hashed)
            if ref is None:
                new = hashed not in held
                if var in made_by and not self.cache.has(hashed):
                    pending.add(hashed)
                # What is held keeps the name under which it was computed.
                ref = known[hashed] = Ref(heads[var] + (hashed,) if new else held[hashed][0].key, hashed)
                if new and var not in made_by:
                    self._leaf(var, ref, samples)
            refs[var] = ref
            if hashed in pending:
                missing.append(made_by[var])
                stack += recipe.units[missing[-1]].holders
        for number in sorted(missing):
            self._emit(recipe.units[number], refs, stop - start)
        return [self._ref(refs[holder], position) for holder, position in holders]

    def _suffix(self, feeds: tuple[int, ...], samples: tuple[int, int]) -> str:
        """Return the half of a token that stands for the content of feeds."""
        if not feeds:
            return self.cache.salt
        whole = samples == (0, self.feeds.samples)
        feed_tokens, fed = self.feeds.tokens, self.recipe.feeds
        parts = [feed_tokens[fed[var]] if var in fed else self.seed_token for var in feeds]
        return combine(*parts, *(() if whole else map(str, samples)), self.cache.salt)

    def _emit(self, unit: Unit, refs: Mapping[int, Ref], samples: int) -> None:
        """Add the record of a unit."""
        key, hashed = refs[unit.writes[0]]
        args = [refs[var] for var in unit.holders]
        if unit.program is not None:
            block = (unit.token, unit.program)
            self.records[key] = Task(run_block, (block, unit.where, unit.results is not None, *args))
        elif self.threads > 1 and unit.flops and unit.flops * len(self.seed) * samples >= SPREAD_FLOPS:
            self.records[key] = Task(run_spread, (self.threads, samples, unit.instrs[0], unit.where, *args))
        else:
            self.records[key] = Task(run_unit, (unit.instrs, unit.where, unit.results, *args))
        fed = self.names[unit.writes[0]].feeds
        # What no feed reaches has one row, whatever its type says.
        self.sizes[hashed] = unit.entries(samples if fed else 1, len(self.seed)) * self.feeds.dtype.itemsize
        if fed:
            self.fed.add(hashed)

    def task(self, prefix: str, func: Any, *args: Any) -> Ref:
        """Add a last task."""
        hashed = combine(func.__qualname__, *(_name(a) for a in args))
        ref = Ref((group_of(prefix), self.recipe.name, hashed), hashed)
        self.records[ref.key] = Task(func, args)
        return ref

    def _ref(self, ref: Ref, position: int | None) -> Ref:
        if position is None:
            return ref
        hashed = f"{ref.token}.{position}"
        if hashed not in self.known:
            self.known[hashed] = Ref((PICKED, ref.key[1], hashed), hashed)
            self.records[self.known[hashed].key] = Task(pick, (ref, position))
        return self.known[hashed]

    def _leaf(self, var: int, ref: Ref, samples: tuple[int, int]) -> None:
        """Add the record of something given."""
        start, stop = samples
        if var in self.statics:
            value = self.statics[var][1]
        elif var == self.recipe.derivation.seed:
            value = self.seed if self.seed.shape[1] == 1 else self.seed[:, start:stop]
        else:
            value = self.feeds.arrays[self.recipe.feeds[var]]
            value = value if samples == (0, self.feeds.samples) else cut_rows(value, start, stop)
        self.records[ref.key] = Data(value)
        if self.cache.executor.remote and value.nbytes > PLACED:
            self.sizes[ref.token] = value.nbytes


def _name(arg: Any) -> str:
    if isinstance(arg, Ref):
        return arg.token
    if type(arg) is int:  # spans have many
        return repr(arg)
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

"""Rounds as one compiled call: generated text, compiled by numba, kept on disk between runs.

The text of a kernel lies in a folder of the user's cache under a name that hashes it; numba keeps machine code beside it. Several
threads may share a round: each takes every so many shards and a slice of the parameters, so the bits do not depend on how many.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Sequence
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from flowgrad.errors import FlowgradError
from flowgrad.optim import NORM_BLOCK, Rule, State
from flowgrad.program import Program
from flowgrad.typing import Array

from ..machine import COMPILED_BLAS, cache_folder, one_thread, without_subnormals
from ..tasks import FAN_IN, SIDE_BY_SIDE, is_named, levels, token
from .numba_loops import Source, Unsupported
from .numba_module import round_text
from .numba_text import generate

_loading = threading.RLock()


@cache
def can_compile() -> bool:
    """Return whether numba and the BLAS that it calls are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("numba", "scipy"))


def why_not_compiled(program: Program, names: tuple[str, ...]) -> str:
    """Return why a program cannot be compiled, or an empty string if it can."""
    if not can_compile():
        return "numba is not installed (pip install 'flowgrad[fast]')"
    try:
        _check_functions(_source(program, names))
    except Unsupported as error:
        return f"{error} has no compiled form"
    return ""


@lru_cache(maxsize=128)
def _source(program: Program, names: tuple[str, ...]) -> Source:
    return generate(program, names[0] if names else None)


def _check_functions(source: Source) -> None:
    for name, function in source.functions.items():
        if not is_named(function) or function.__qualname__.count(".") != 1:
            raise Unsupported(f"{name}, of an op that is not defined at the top of a module,")


class CompiledRound:
    """A step as machine code.

    Attributes
    ----------
    told : str
        Where the machine code of rounds came from and how long that took; empty before the first round.
    loading : float
        Seconds that text and compiler took to load before.
    """

    def __init__(self, program: Program, names: tuple[str, ...], rule: Rule, dtype: np.dtype[Any]):
        self.rule, self.dtype, self.told = rule, dtype, ""
        self.size = program.size("param")
        traits = (rule.clip_norm is not None, rule.weight_decay != 0)
        began = time.perf_counter()
        self.module = _kernels(program, names, type(rule), *traits, dtype)  # type: ignore[arg-type]
        importlib.import_module(COMPILED_BLAS)
        self.loading = time.perf_counter() - began

    def _constants(self, t: int, steps: int) -> Array:
        """Return the rule's numbers for the updates after `t`, a row each."""
        if callable(self.rule.learning_rate) or getattr(self.rule, "bias_correction", False):
            return np.array([self.rule.constants(t + k) for k in range(1, steps + 1)], self.dtype)
        return np.tile(np.array(self.rule.constants(t + 1), self.dtype), (steps, 1))

    def run(
        self, state: State, const: Array | None, feeds: list[Array], steps: Sequence[Sequence[Array]], threads: int = 1
    ) -> tuple[State, list[float]]:
        """Run several optimizer steps; the inputs stay as they are."""
        order, cuts, counts = _schedule(steps)
        shards = int(counts.max())
        new = {k: np.array(v, order="C") for k, v in state.items()}
        w = new["w"]
        none = np.zeros(0, self.dtype)
        threads = max(1, min(threads, shards))
        wave = FAN_IN ** levels(max(SIDE_BY_SIDE, threads))
        shares = np.empty((min(shards, wave), self.size), self.dtype)
        folded = np.empty((levels(-(-shards // wave)), self.size), self.dtype)
        norms = np.empty(-(-self.size // NORM_BLOCK))
        losses = np.zeros((len(steps), shards))
        sync = np.zeros(2, np.int64)
        t = int(new["t"][0])
        clip, decay = self.rule.clip_norm or 0.0, self.dtype.type(self.rule.weight_decay)
        shared = (
            sync, order, cuts, counts, const[0] if const is not None else none, w, new.get("v", none), new.get("s", none),
            shares, wave, folded, losses, t, self._constants(t, len(steps)), norms, clip, decay, *map(_bytes, feeds),
        )  # fmt: skip
        began = time.perf_counter()
        with one_thread():
            _in_threads(lambda k: self.module.round(k, threads, *shared), threads, sync)
        if not self.told:
            how = "loaded" if any(self.module.round.stats.cache_hits.values()) else "compiled"
            self.told = f"{how} in {self.loading + time.perf_counter() - began:.1f} s"
        new["t"] += len(steps)
        return new, [float(x) for x in losses[:, 0]]

    def gradient(
        self, state: State, const: Array | None, feeds: list[Array], rows: Array, batch: int
    ) -> tuple[Array, float]:
        """Return one shard's share of the mean gradient and loss."""
        grad = np.empty(self.size, self.dtype)
        none = np.zeros(0, self.dtype)
        with one_thread():
            loss = self.module.shard(
                np.ascontiguousarray(rows, np.int64),
                batch,
                const[0] if const is not None else none,
                state["w"],
                grad,
                *map(_bytes, feeds),
            )
        return grad, float(loss)

    def update(self, state: State, gradient: Array) -> State:
        """Return the state after one update by the mean gradient."""
        new = {k: np.array(v, order="C") for k, v in state.items()}
        none = np.zeros(0, self.dtype)
        t = int(new["t"][0])
        new["t"] += 1
        gradient = self.rule.prepare(new["w"], gradient, self.rule.scale(gradient))
        self.module.update(new["w"], gradient, new.get("v", none), new.get("s", none), t + 1, self._constants(t, 1)[0])
        return new


def _bytes(feed: Array) -> Array:
    """Return a feed as rows of bytes: what came over the network may lie at any address, and is only copied from."""
    return np.ascontiguousarray(feed).view(np.uint8)


@lru_cache(maxsize=32)
def compiled_round(program: Program, names: tuple[str, ...], rule: Rule, dtype: np.dtype[Any]) -> CompiledRound:
    """Return the compiled step of a program; made once per process."""
    return CompiledRound(program, names, rule, dtype)


@lru_cache(maxsize=32)
def _kernels(
    program: Program, names: tuple[str, ...], rule: type[Rule], clips: bool, decays: bool, dtype: np.dtype[Any]
) -> ModuleType:
    return _load(round_text(_source(program, names), program, rule, dtype, clips, decays))


def _schedule(steps: Sequence[Sequence[Array]]) -> tuple[Array, Array, Array]:
    """Return all rows in one array, where each shard of each step begins in it, and the number of shards by step."""
    order = np.concatenate([rows for shards in steps for rows in shards]).astype(np.int64)
    counts = np.array([len(shards) for shards in steps], np.int64)
    cuts = np.zeros((len(steps), int(counts.max()) + 1), np.int64)
    at = 0
    for k, shards in enumerate(steps):
        for s in range(cuts.shape[1]):
            cuts[k, s] = at
            at += len(shards[s]) if s < len(shards) else 0
    return order, cuts, counts


def _in_threads(work: Any, threads: int, sync: Array) -> None:
    """Run ``work(k)`` in `threads` threads; an error in one of them ends them all."""
    errors: list[BaseException] = []

    @without_subnormals
    def guarded(k: int) -> None:
        try:
            work(k)
        except BaseException as error:
            sync[1] = 1
            errors.append(error)

    helpers = [threading.Thread(target=guarded, args=(k,), daemon=True) for k in range(1, threads)]
    for helper in helpers:
        helper.start()
    guarded(0)
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]


def _load(text: str) -> ModuleType:
    with _loading:  # two tasks of one worker may want the same kernel at once
        return _loaded(text)


def _loaded(text: str) -> ModuleType:
    name = f"flowgrad_kernel_{token(text, sys.version)}"
    if name in sys.modules:
        return sys.modules[name]
    path = cache_folder() / f"{name}.py"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
            scratch.write_text(text)
            scratch.replace(path)
    except OSError as error:
        raise FlowgradError(
            f"cannot keep compiled kernels in {path.parent}: set FLOWGRAD_CACHE_DIR to a folder ({error})"
        ) from error
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

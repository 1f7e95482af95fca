"""Large parameter vectors: who updates them, and what travels for it.

*Small* ones are updated by every lane, in the task that then computes its next gradients: one hop per step, and the optimizer's
state travels along with the gradients. *Middle-sized* ones are updated by every lane in a task of its own: two hops, and gradients
alone travel. *Large* ones are cut into slices, each reduced and updated by itself on a worker of its own, so that no worker has the
whole optimizer state or updates everything.

A gradient is cut where it was computed; a slice's parts go to the slice's worker, which adds them up in the order of the tree and
updates its slice of parameters and optimizer state. Only parameters go back to the gradients' workers. Every rule is elementwise
and the tree is by shard index, so that slices change no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowgrad.jacobian import Array
from flowgrad.optim import Rule

from .blocks import State, Step, update
from .kernel import canonical
from .lane_work import Part, Shares, gradients, total
from .tree import bounds

# Parameters up to this size are small; from this size on they are large.
SMALL_BYTES = 1 << 20
LARGE_BYTES = 16 << 20


def choose_slices(grain: str, parameter_bytes: int, lanes: int) -> int:
    """Return into how many slices parameters are cut: one per lane, if they are large.

    Examples
    --------
    >>> choose_slices("shard", 3 << 20, 2), choose_slices("shard", 30 << 20, 2), choose_slices("round", 30 << 20, 2)
    (1, 2, 1)
    """
    return lanes if grain == "shard" and parameter_bytes >= LARGE_BYTES else 1


def travels_along(parameter_bytes: int) -> bool:
    """Return whether parameters are so small that the whole state may travel with the gradients."""
    return parameter_bytes <= SMALL_BYTES


def cut_state(state: State, slices: int) -> list[State]:
    """Cut a state into slices; each has its own count of updates."""
    if slices == 1:
        return [state]
    return [
        {k: v.copy() if k == "t" else v[start:stop].copy() for k, v in state.items()}
        for start, stop in bounds(len(state["w"]), slices)
    ]


def join_state(slices: Sequence[State]) -> State:
    """Undo `cut_state`."""
    if len(slices) == 1:
        return slices[0]
    first = slices[0]
    return {k: first[k] if k == "t" else np.concatenate([s[k] for s in slices]) for k in first}


def sliced_gradient(
    step: Step, rule: Rule, weights: list[Array], const: Array | None, feeds: list[Array], part: Part
) -> Shares:
    """Compute the gradients of a lane's shards at parameters that come in slices."""
    return gradients(step, rule, {"w": np.concatenate(weights)}, const, feeds, part)


def cut_shares(shares: Shares, k: int, slices: int) -> Shares:
    """Return slice `k` of a lane's gradients, and their losses."""
    start, stop = bounds(len(next(iter(shares.values()))[0]), slices)[k] if shares else (0, 0)
    return {key: (gradient[start:stop], loss) for key, (gradient, loss) in shares.items()}


def update_slice(
    step: Step, rule: Rule, before: tuple[State, list[float]], parts: list[Shares], shards: int
) -> tuple[State, list[float]]:
    """Update a slice by its parts of all lanes' gradients; return it and the mean losses of all steps so far."""
    gradient, loss = total(parts, shards)
    state = {k: canonical(v) for k, v in before[0].items()}
    return update(step, rule, state, (gradient, loss)), [*before[1], loss]


def begin(state: State, lane: int) -> tuple[State, list[float]]:
    """Return a slice, or a lane's copy of the whole, before the first step."""
    return state, []


def gradient_at(
    step: Step, rule: Rule, done: tuple[State, Any], const: Array | None, feeds: list[Array], part: Part
) -> Shares:
    """Compute the gradients of a lane's shards at the state that the lane has."""
    return gradients(step, rule, {k: canonical(v) for k, v in done[0].items()}, const, feeds, part)


def pick_weights(done: tuple[State, Any]) -> Array:
    """Return the parameters of a slice."""
    weights: Array = done[0]["w"]
    return weights

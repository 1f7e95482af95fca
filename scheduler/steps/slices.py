"""What the tasks of updates run where several workers share a step: on a lane's own copy of the state, or on a slice of it.

A gradient is cut where it was computed; a slice's parts go to the slice's worker, which adds them up in the order of the tree and
updates its slice of parameters and optimizer state. Only parameters go back to the gradients' workers. Every rule is elementwise
and the tree is by shard index, so that slices change no bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowgrad.optim import State
from flowgrad.typing import Array

from ..machine import canonical, without_subnormals
from ..tasks import bounds
from .lanes import LaneBatch, LaneInputs, Subtotals, gradients, total_gradient
from .work import Done, update


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


@without_subnormals
def sliced_gradient(lane: LaneInputs, weights: list[Array], part: LaneBatch) -> Subtotals:
    """Compute the gradients of a lane's shards at parameters that come in slices."""
    return gradients(lane, {"w": np.concatenate(weights)}, part)


def cut_shares(shares: Subtotals, k: int, slices: int) -> Subtotals:
    """Return slice `k` of a lane's gradients, and their losses."""
    start, stop = bounds(len(next(iter(shares.values()))[0]), slices)[k] if shares else (0, 0)
    return {key: (gradient[start:stop], loss) for key, (gradient, loss) in shares.items()}


@without_subnormals
def update_slice(lane: LaneInputs, before: Done, first: bool, parts: list[Subtotals], shards: int) -> Done:
    """Update a slice by its parts of all lanes' gradients; the losses of earlier steps are kept unless it is the `first` one."""
    gradient, loss = total_gradient(parts, shards)
    state = {k: canonical(v) for k, v in before[0].items()}
    return update(lane.step, state, (gradient, loss)), [loss] if first else [*before[1], loss]


def pick_weights(done: Done) -> Array:
    """Return the parameters of a slice."""
    return done[0]["w"]

"""Keys of samples for what a step draws at random: by seed, update and place in the mini-batch, whoever computes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowgrad.ops import draw_keys
from flowgrad.optim import State
from flowgrad.typing import Array


class Draws(NamedTuple):
    """What a step draws from.

    Attributes
    ----------
    at : int
        The place of the keys among the feeds of its program.
    seed : int
    """

    at: int
    seed: int


class Span(NamedTuple):
    """Neighbouring samples of a mini-batch: that of the next update (1) or of one after it; the first of them; how many."""

    after: int
    first: int
    samples: int


def keys_of(draws: Draws, state: State, spans: Iterable[Span]) -> Array:
    """Return the keys of all samples of the spans, one after the other, at the state before the next update."""
    t, dtype = int(state["t"][0]), state["w"].dtype
    return np.concatenate([draw_keys(draws.seed, t + s.after, s.first, s.samples, dtype) for s in spans])


def with_keys(draws: Draws | None, state: State, feeds: Sequence[Any], spans: Iterable[Span]) -> list[Any]:
    """Return the feeds of a program, and at their place among them the keys, if it draws anything."""
    feeds = list(feeds)
    if draws is not None:
        feeds.insert(draws.at, keys_of(draws, state, spans))
    return feeds

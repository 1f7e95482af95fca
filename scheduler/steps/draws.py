"""Keys of samples for what a step draws at random: by seed, update and place in the mini-batch, whoever computes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowgrad.ops.random import keys_at
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
    after, first, samples = np.array([*spans], np.int64).reshape(-1, 3).T
    # All at once: a round has many steps, of which each is over in the time of some of NumPy's calls.
    begun = np.cumsum(samples) - samples
    places = np.arange(samples.sum()) + np.repeat(first - begun, samples)
    return keys_at(draws.seed, np.repeat(state["t"][0] + after, samples), places, state["w"].dtype)


def with_keys(draws: Draws | None, state: State, feeds: Sequence[Any], spans: Iterable[Span]) -> list[Any]:
    """Return the feeds of a program, and at their place among them the keys, if it draws anything."""
    feeds = list(feeds)
    if draws is not None:
        feeds.insert(draws.at, keys_of(draws, state, spans))
    return feeds

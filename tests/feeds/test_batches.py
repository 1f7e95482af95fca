"""The order of the samples: what travels is small, what is read is the permutation that the seed gives."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrad.scheduler.feeds.order import Batches, Epoch, order_of
from flowgrad.scheduler.tasks.keys import token
from flowgrad.scheduler.tasks.tree import bounds


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 5), st.booleans(), st.integers(0, 3), st.data())
def test_batches_are_the_permutation_cut_up(samples, size, shards, shuffle, seed, data):
    epoch = Epoch(samples, size, shuffle, seed, 2)
    rows = np.random.default_rng([seed, 2]).permutation(samples) if shuffle else np.arange(samples)
    whole = [rows[k : k + size] for k in range(0, samples, size)]
    first = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(first + 1, len(whole)))
    batches, expected = Batches(epoch, 0, epoch.steps, shards)[first:stop], whole[first:stop]
    there = pickle.loads(pickle.dumps(batches))
    assert len(there) == len(expected)
    assert there.samples == sum(map(len, expected))
    assert there.largest == len(expected[0])
    for found, want in zip(there, expected):
        parts = [want[a:b].tolist() for a, b in bounds(len(want), shards)]
        assert [part.tolist() for part in found] == parts
        assert [found[k].tolist() for k in range(len(found))] == parts
        assert [part.tolist() for part in pickle.loads(pickle.dumps(found[1:]))] == parts[1:]


def test_what_travels_is_small():
    assert len(pickle.dumps(Batches(Epoch(1_000_000, 32, True, 0, 1), 0, 31_250, 4))) < 300


def test_each_has_a_key_of_its_own():
    batches = [Batches(Epoch(64, 8, True, 0, number), 0, 8, 2) for number in (1, 2)]
    parts = [*batches, batches[0][1:], batches[0][1:3], batches[0][1], batches[0][1][1:], batches[1][1][1:]]
    assert len({token(p) for p in parts}) == len(parts)
    assert token(batches[0][2:4][1]) == token(batches[0][3])


def test_nobody_can_change_the_order():
    with pytest.raises(ValueError, match="read-only"):
        order_of(Epoch(8, 2, True, 0, 1))[0] = 3

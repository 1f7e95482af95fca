"""Outer products in place: the same numbers for rows of any length, and NumPy's buffer as it was."""

import numpy as np
import pytest

from flowgrad.jacobians import Factors, Outer, OuterShare
from flowgrad.jacobians.base import add_at
from flowgrad.jacobians.outer import SMALLEST_BUFFER, WIDE, scale_rows


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 7, WIDE - 1, WIDE, WIDE + 1, 5 * WIDE])
@pytest.mark.parametrize(("samples", "rows"), [((4, 4), 1), ((1, 4), 1), ((4, 1), 1), ((4, 4), 3), ((4, 1), 3)])
def test_rows_of_any_length(samples, rows, width, dtype):
    random = np.random.default_rng(0)
    g = random.normal(size=(2, samples[0], 3)).astype(dtype)
    factor = random.normal(size=(samples[1], rows, width)).astype(dtype)
    room = np.full((2, 4, 3 * width + 5), np.nan, dtype)  # within something larger
    out = room[:, :, 2 : 2 + 3 * width].reshape(2, 4, 3, width)
    assert np.shares_memory(out, room)
    scale_rows(g, factor, out)
    assert out.tobytes() == np.broadcast_to(g[..., None] * factor, out.shape).tobytes()
    assert np.isnan(room[:, :, [0, 1, -3, -2, -1]]).all()


@pytest.mark.parametrize("width", [WIDE - 1, WIDE])
@pytest.mark.parametrize("samples", [(4, 4), (1, 4), (4, 1)])
def test_shares_of_narrow_and_wide_rows(samples, width):
    random = np.random.default_rng(0)
    delta, row = random.normal(size=(1, samples[0], 3)), random.normal(size=(samples[1], width))
    share = OuterShare(delta, row, 0)
    found = Factors([share], 1, 4, 3 * width, np.float64).block(0, 3 * width)
    wanted = np.broadcast_to(delta[..., None] * row[:, None, :], (1, 4, 3, width)).reshape(found.shape)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_row_that_one_number_scales(rows, dtype):
    random = np.random.default_rng(0)
    g, local = random.normal(size=(1, 1, 1)).astype(dtype), Outer(random.normal(size=(rows, WIDE)).astype(dtype))
    out = np.empty((1, rows, WIDE), dtype)
    assert local.pull(g).dtype == dtype
    assert local.pull(g).tobytes() == (g[0, 0, 0] * local.row)[None].tobytes() == local.pull(g, out).tobytes()
    assert local.pull(g, out) is out


def test_the_buffer_is_put_back():
    before = np.getbufsize()
    assert before > SMALLEST_BUFFER
    out = np.empty((1, 1, 2, WIDE))
    scale_rows(np.ones((1, 1, 2)), np.ones((1, 1, WIDE)), out)
    assert np.getbufsize() == before
    with pytest.raises(ValueError, match="broadcast"):
        scale_rows(np.ones((1, 1, 3)), np.ones((1, 1, WIDE)), out)
    assert np.getbufsize() == before


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2)])
@pytest.mark.parametrize(("places", "each"), [(6, 784), (2, 9), (1, 50), (5, 3), (1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_added_to_a_place_is_added_in_order(shape, places, each, dtype):
    rng = np.random.default_rng(0)
    cols = rng.permutation(np.repeat(np.arange(places), each))
    values = rng.normal(size=(*shape, places * each)).astype(dtype)
    out = np.zeros((*shape, places + 1), dtype)
    add_at(out, cols, values)
    expected = np.zeros_like(out)
    for entry, col in enumerate(cols):
        expected[..., col] += values[..., entry]
    assert out.tobytes() == expected.tobytes()

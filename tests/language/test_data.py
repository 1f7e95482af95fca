"""Data sets: what is loaded, and what files that cannot be used get."""

import zipfile
from contextlib import suppress

import numpy as np
import pytest

from flowgrad.data import load, load_digits, load_mnist, load_npz
from flowgrad.errors import DataError


def arrays(**changed):
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.integers(0, 256, (20, 6)).astype(np.uint8),
        "y_train": (np.arange(20) % 3).astype(np.uint8),
        "x_test": rng.integers(0, 256, (5, 6)).astype(np.uint8),
        "y_test": np.array([0, 1, 2, 1, 0]),
    }
    return {key: value for key, value in {**good, **changed}.items() if value is not None}


@pytest.fixture
def write(tmp_path):
    def write(**changed):
        path = tmp_path / "some.npz"
        np.savez_compressed(path, **arrays(**changed))
        return path

    return write


def test_mnist():
    data = load_mnist()
    assert data.name == "mnist"
    assert (data.dim, data.classes) == (784, 10)
    assert data.x_train.shape == (60000, 784)
    assert data.x_test.shape == (10000, 784)
    assert data.x_train.dtype == np.float32
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert data.y_train.dtype == np.int64
    assert np.bincount(data.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.y_train[:5].tolist() == [5, 0, 4, 1, 9]


def test_digits():
    pytest.importorskip("sklearn")
    data, again = load_digits(np.float64), load("digits", np.float64)
    assert data.x_train.shape == (1437, 64)
    assert data.x_test.shape == (360, 64)
    assert data.classes == 10
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    np.testing.assert_array_equal(data.x_train, again.x_train)
    assert set(np.unique(data.y_test)) == set(range(10))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_npz_scales_bytes_and_leaves_other_numbers(write, dtype):
    raw = arrays()
    data = load(write(x_test=np.full((5, 6), 3.5)), dtype)
    np.testing.assert_array_equal(data.x_train, raw["x_train"].astype(dtype) / dtype(255))
    np.testing.assert_array_equal(data.x_test, np.full((5, 6), 3.5))
    assert (data.x_train.dtype, data.x_test.dtype, data.y_test.dtype) == (dtype, dtype, np.int64)
    assert (data.name, data.classes) == ("some", 3)


def test_npz_flattens_images(write):
    assert load_npz(write(x_train=np.zeros((20, 2, 3)))).x_train.shape == (20, 6)


def test_head():
    data = load_mnist().head(100, 10)
    assert len(data.x_train) == len(data.y_train) == 100
    assert len(data.x_test) == len(data.y_test) == 10
    assert data.head().classes == 10
    with pytest.raises(DataError, match="100 training samples, 101 asked for"):
        data.head(101)


def nan(value=np.nan):
    x = np.zeros((20, 6))
    x[7, 2] = value
    return x


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_test": None, "y_test": None}, "lacks x_test, y_test"),
        ({"x_train": np.zeros(20)}, r"x_train has shape \(20,\)"),
        ({"y_train": np.zeros((20, 3), int)}, r"y_train has shape \(20, 3\)"),
        ({"y_train": np.zeros(19, int)}, "20 samples, y_train 19 labels"),
        ({"x_test": np.zeros((5, 7))}, "x_train have length 6, of x_test 7"),
        ({"x_train": np.zeros((0, 6))}, "x_train is empty"),
        ({"x_train": np.zeros((20, 0))}, "x_train is empty"),
        ({"x_train": nan()}, "NaN or infinite .* 1 of 20 samples, the first is sample 7"),
        ({"x_train": nan(np.inf)}, "NaN or infinite"),
        ({"x_train": nan(1e300)}, "infinite values .as float32"),
        ({"x_train": np.full((20, 6), "a")}, "dtype <U1"),
        ({"x_train": np.zeros((20, 6), complex)}, "dtype complex128"),
        ({"y_train": np.zeros(20)}, "y_train has dtype float64"),
        ({"y_train": np.full(20, -1)}, "label -1"),
        ({"y_train": np.full(20, 10**9)}, "label 1000000000"),
        ({"y_train": np.zeros(20, int), "y_test": np.zeros(5, int)}, "highest label is 0"),
        ({"x_train": np.full((20, 6), None)}, "cannot be read: Object arrays"),
    ],
)
def test_npz_that_cannot_be_used(write, changed, message):
    with pytest.raises(DataError, match=message) as caught:
        load_npz(write(**changed))
    text = str(caught.value)
    assert "\n" not in text
    assert text.count("some.npz") == 1


def test_paths_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"no data set 'mnits': give mnist, digits, or the path"):
        load("mnits")
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "absent.npz")
    with pytest.raises(DataError, match="not a file"):
        load_npz(tmp_path)
    with pytest.raises(DataError, match="samples cannot be kept as int64"):
        load_mnist(int)
    with pytest.raises(DataError, match="is not a dtype"):
        load_mnist("float33")


def test_damaged_files(tmp_path, write):
    path = write()
    whole = path.read_bytes()
    damaged = tmp_path / "damaged.npz"
    cuts = [0, 1, 100, len(whole) // 2, len(whole) - 1]
    flips = range(0, len(whole), 37)
    for content in [*(whole[:cut] for cut in cuts), b"not a zip file" * 9]:
        damaged.write_bytes(content)
        with pytest.raises(DataError, match=r"damaged\.npz"):
            load_npz(damaged)
    for at in flips:  # wrong bytes are told, or make no difference
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with suppress(DataError):
            load_npz(damaged)


def test_members_that_are_no_arrays(tmp_path):
    path = tmp_path / "text.npz"
    with zipfile.ZipFile(path, "w") as file:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            file.writestr(f"{key}.npy", b"hello")
    with pytest.raises(DataError, match=r"text\.npz"):
        load_npz(path)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(DataError, match=r"pip install 'flowgrad\[ml\]'"):
        load_digits()

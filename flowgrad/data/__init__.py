"""Data sets: the embedded MNIST, scikit-learn's digits, and ``.npz`` files of one's own."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..errors import DataError
from ..inputs import path_of

__all__ = ["DataSet", "load", "load_digits", "load_mnist", "load_npz"]

KEYS = ("x_train", "y_train", "x_test", "y_test")
MAX_CLASSES = 10_000


@dataclass(frozen=True)
class DataSet:
    """A classification task, split into a training and a test part.

    Attributes
    ----------
    name : str
        For messages and folder names.
    x_train, x_test : ndarray, (N, dim), float
        One row per sample, pixel intensities in [0, 1].
    y_train, y_test : ndarray, (N,), int64
        Class indices, 0 to ``classes - 1``.
    classes : int
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int

    @property
    def dim(self) -> int:
        """Length of one sample."""
        return int(self.x_train.shape[1])

    def head(self, train: int | None = None, test: int | None = None) -> DataSet:
        """Return the first `train` and `test` samples, all where not given: views of the same arrays; ``classes`` stays the same.

        Raises
        ------
        DataError
            When there are fewer samples than asked for, or a number is below 1.
        """
        for part, wanted, have in (("training", train, len(self.x_train)), ("test", test, len(self.x_test))):
            if wanted is not None and not 1 <= wanted <= have:
                raise DataError(f"{self.name} has {have} {part} samples, {wanted} asked for: give 1 to {have}")
        return DataSet(
            self.name, self.x_train[:train], self.y_train[:train], self.x_test[:test], self.y_test[:test], self.classes
        )


def load(name: str | os.PathLike[str], dtype: DTypeLike = np.float32) -> DataSet:
    """Load a data set by name, or an ``.npz`` file by path.

    Parameters
    ----------
    name : str or path
        ``"mnist"``, ``"digits"``, or the path of a file for `load_npz`.
    dtype : dtype, default float32
        Floating-point type of the samples.

    Raises
    ------
    DataError
        When there is no such set or file, or the file is not usable.
    """
    if name == "mnist":
        return load_mnist(dtype)
    if name == "digits":
        return load_digits(dtype)
    if not os.path.exists(name) and not str(name).endswith(".npz"):
        raise DataError(f"no data set {str(name)!r}: give mnist, digits, or the path of an .npz file")
    return load_npz(name, dtype)


def load_mnist(dtype: DTypeLike = np.float32) -> DataSet:
    """Load the embedded MNIST set: 60,000 training and 10,000 test images of 28 × 28 pixels, 10 classes.

    Samples have length 784, pixels are divided by 255; for `dtype` see `load`.

    Raises
    ------
    DataError
        When the file is missing or damaged, or `dtype` is not a floating-point type.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition",
    Proceedings of the IEEE 86(11), 1998. Licence: Creative Commons Attribution-Share Alike 3.0.
    """
    return replace(load_npz(Path(__file__).with_name("mnist.npz"), dtype), name="mnist")


def load_digits(dtype: DTypeLike = np.float32) -> DataSet:
    """Load scikit-learn's digits: 1,797 images of 8 × 8 pixels, 10 classes.

    The set comes without a split: 1,437 training and 360 test samples are drawn, the same ones every time. Samples have length 64,
    pixels are divided by 16; for `dtype` see `load`.

    Raises
    ------
    DataError
        When scikit-learn is not installed, or `dtype` is not a floating-point type.
    """
    dtype = _float_dtype(dtype)
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError("the digits data set needs scikit-learn: pip install 'flowgrad[ml]'") from error
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = (images[order] / 16).astype(dtype)
    y = labels[order].astype(np.int64)
    return DataSet("digits", x[:1437], y[:1437], x[1437:], y[1437:], 10)


def load_npz(path: str | os.PathLike[str], dtype: DTypeLike = np.float32) -> DataSet:
    """Load a data set from an ``.npz`` file, and name it after the file.

    The file has the arrays ``x_train``, ``y_train``, ``x_test``, ``y_test``. Samples are rows, (N, dim); further axes are
    flattened. ``uint8`` samples are taken as pixels and divided by 255, other numbers are taken as they are. Labels are integer
    class indices counted from 0, (N,). For `dtype` see `load`.

    Raises
    ------
    DataError
        When the file is missing, unreadable or truncated, lacks a key, or holds arrays of a wrong shape or
        type, NaN or infinite values, no samples at all, or labels that are not class indices.
    """
    dtype = _float_dtype(dtype)
    path = path_of(path, "path")
    arrays = _read(path)
    data: dict[str, Any] = {}
    for part in ("train", "test"):
        data[f"x_{part}"] = x = _samples(path, f"x_{part}", arrays[f"x_{part}"], dtype)
        data[f"y_{part}"] = y = _labels(path, f"y_{part}", arrays[f"y_{part}"])
        if len(x) != len(y):
            raise DataError(f"{path}: x_{part} has {len(x)} samples, y_{part} {len(y)} labels: give one per sample")
    train, test = (data[key].shape[1] for key in ("x_train", "x_test"))
    if train != test:
        raise DataError(f"{path}: samples of x_train have length {train}, of x_test {test}: make them equal")
    classes = 1 + int(max(data["y_train"].max(), data["y_test"].max()))
    if not 2 <= classes <= MAX_CLASSES:
        raise DataError(
            f"{path}: the highest label is {classes - 1}: number the classes 0, 1, ... (2 to {MAX_CLASSES})"
        )
    return DataSet(path.stem, **data, classes=classes)


def _float_dtype(dtype: DTypeLike) -> np.dtype:
    try:
        result = np.dtype(dtype)
    except TypeError as error:
        raise DataError(f"{dtype!r} is not a dtype: give float32 or float64") from error
    if result.kind != "f":
        raise DataError(f"samples cannot be kept as {result}: give float32 or float64")
    return result


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: not a file: give the path of an .npz file")
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path}: not a complete .npz file: write it again with numpy.savez")
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in KEYS if key not in file]
            if missing:
                names = ", ".join(sorted(file)[:8]) or "nothing"
                raise DataError(
                    f"{path}: lacks {', '.join(missing)} (it has {names}): name the arrays {', '.join(KEYS)}"
                )
            arrays = {key: file[key] for key in KEYS}
            for key, array in arrays.items():
                if not isinstance(array, np.ndarray):
                    raise DataError(f"{path}: {key} is not an array: write the file again with numpy.savez")
    except DataError:
        raise
    except Exception as error:  # of zipfile, zlib or NumPy: any, depending on which byte is wrong
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read: {reason[:200]}") from error
    return arrays


def _samples(path: Path, key: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    _check(path, key, array, "(N, dim)", array.ndim >= 2, "a number", array.dtype.kind in "buif")
    rows = array.reshape(len(array), -1)
    if array.dtype == np.uint8:
        return np.divide(rows, 255, dtype=dtype)
    with np.errstate(over="ignore"):
        result = rows.astype(dtype)
    if array.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(result).all(axis=1))
        if bad.size:
            raise DataError(
                f"{path}: {key} has NaN or infinite values (as {dtype}) in {bad.size} of {len(result)} "
                f"samples, the first is sample {bad[0]}: remove or replace them"
            )
    return result


def _labels(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    _check(path, key, array, "(N,)", array.ndim == 1, "an integer", array.dtype.kind in "ui")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= MAX_CLASSES:
        wrong = low if low < 0 else high
        raise DataError(f"{path}: {key} has the label {wrong}: class indices go from 0 to at most {MAX_CLASSES - 1}")
    return array.astype(np.int64)


def _check(path: Path, key: str, array: np.ndarray, shape: str, fits: bool, kind: str, right: bool) -> None:
    """Raise for what is wrong with the form of an array, before any value is looked at."""
    if not right:
        raise DataError(f"{path}: {key} has dtype {array.dtype}: each entry must be {kind}")
    if not fits:
        raise DataError(f"{path}: {key} has shape {array.shape}: give {shape}")
    if array.size == 0:
        raise DataError(f"{path}: {key} is empty, shape {array.shape}: give at least one sample")

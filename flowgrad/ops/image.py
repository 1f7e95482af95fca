"""Convolution and pooling of images ``(channels, height, width)``; programs hold gathers and matrix products of patches."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from ..errors import ShapeError
from ..graph import Node
from ..inputs import Shape, brief, count, times
from ..jacobians import Averages, ByImage, ByKernel, Chosen, LocalJacobian, unfold
from ..op import Op
from ..typing import Array
from .batch import BatchMatVec
from .elementwise import Add, Elementwise, Scale
from .select import written_gather, written_join, written_slice

Pair = tuple[int, int]


def pair(value: Any, what: str, least: int) -> Pair:
    """Return two numbers, height and width, from one or two."""
    numbers = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    whole = all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= least for n in numbers)
    if len(numbers) != 2 or not whole:
        raise ShapeError(f"{what} is a number from {least} on, or two of them, height and width; not {brief(value)}")
    return int(numbers[0]), int(numbers[1])


def _around(padding: Any, image: Shape, kernel: Shape, stride: Pair) -> tuple[Pair, Pair]:
    """Return the zeros before and after, by axis; ``"same"`` makes as many positions as strides fit."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        p = pair(padding, "padding ('valid', 'same', or a size)", 0)
        return (p[0], p[0]), (p[1], p[1])
    lacking = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(image, kernel, stride)]
    return (lacking[0] // 2, -(-lacking[0] // 2)), (lacking[1] // 2, -(-lacking[1] // 2))


@lru_cache(maxsize=256)
def windows(image: Shape, kernel: Pair, stride: Pair, around: tuple[Pair, Pair]) -> Array:
    """Return where the entries of each window lie, ``(channels, rows, columns, height, width)``; the image's dim is a zero."""
    channels, height, width = image
    place = np.full((channels, height + sum(around[0]), width + sum(around[1])), math.prod(image))
    top, left = around[0][0], around[1][0]
    place[:, top : top + height, left : left + width] = np.arange(math.prod(image)).reshape(image)
    cut = np.lib.stride_tricks.sliding_window_view(place, kernel, axis=(1, 2))
    return np.ascontiguousarray(cut[:, :: stride[0], :: stride[1]])


def image_of(x: Any, what: str) -> Shape:
    """Return the three axes of an image.

    Raises
    ------
    ShapeError
        If it has others.
    """
    shape: Shape = getattr(x, "shape", ())
    if len(shape) != 3:
        raise ShapeError(
            f"{what}: {brief(x, 80)} must have the axes (channels, height, width), not {times(shape)}; "
            f"fg.Variable((1, 28, 28)) or x.reshape(1, 28, 28) says so"
        )
    return shape


class Zero(Op):
    """A zero for each sample of an operand; what patches find outside of an image."""

    uses = ((),)
    differentiable = False
    slopes = ("0.0",)

    @staticmethod
    def apply(a: Array) -> Array:
        """Return zeros."""
        return np.zeros_like(a)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array) -> LocalJacobian:
        """Programs do not differentiate through it."""
        raise NotImplementedError

    @staticmethod
    def row_value(y: Array, a: Array) -> None:
        """Write zeros."""
        for j in range(y.shape[0]):
            y[j] = 0


class Larger(Elementwise):
    """The larger of two entries; of equal ones the first has the derivative."""

    formula = "maximum(a, b)"
    slopes = ("a >= b", "b > a")
    bends: ClassVar = {(0, 0): "0", (0, 1): "0", (1, 1): "0"}


class Conv2D(Op):
    """Cross-correlation of an image with kernels: each channel of the result is a `Dot` with every patch.

    Parameters
    ----------
    W : Node
        Kernels, of shape ``(channels out, channels in / groups, height, width)``.
    x : Node
        Of shape ``(channels in, height, width)``.
    stride : int or two
    padding : "valid", "same", int or two
        Zeros around: none, as many as keep the size at stride 1, or so many on each side.
    groups : int
        Channels are cut into so many groups, each with kernels of its own.

    Raises
    ------
    ShapeError
        If shapes do not fit.

    Notes
    -----
    V. Dumoulin and F. Visin, *A guide to convolution arithmetic for deep learning*, 2016.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     x = fg.Variable((1, 2, 3), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    ...     y = fg.Conv2D(fg.Variable((1, 1, 2, 2), [1.0, 0.0, 0.0, 1.0]), x)
    >>> y.shape, y.forward()
    ((1, 1, 2), array([6., 8.]))
    """

    kinds = (ByKernel, ByImage)
    uses = ((1,), (0,))

    def __init__(
        self, W: Node, x: Node, stride: Any = 1, padding: Any = "valid", groups: int = 1, *, name: str | None = None
    ):
        image = image_of(x, "Conv2D")
        kernel: Any = getattr(W, "shape", ())
        if len(kernel) != 4:
            raise ShapeError(
                f"Conv2D: the kernels {W} must have the axes (out, in, height, width), not {times(kernel)}"
            )
        pair(groups, "Conv2D: groups", 1)
        if kernel[1] * groups != image[0] or kernel[0] % groups:
            raise ShapeError(
                f"Conv2D: kernels of {times(kernel)} do not fit an image of {times(image)} in {count(groups, 'group')}: "
                f"they must be (a multiple of {groups}) x {image[0]}/{groups} x height x width"
            )
        steps = pair(stride, "Conv2D: stride", 1)
        around = _around(padding, image[1:], kernel[2:], steps)
        super().__init__(
            W, x, name=name, image=image, kernel=kernel, stride=steps, around=around, groups=int(groups)
        )  # fmt: skip

    @staticmethod
    def places(image: Shape, kernel: Shape, stride: Pair, around: tuple[Pair, Pair], groups: int) -> Array:
        """Return where the entries of each patch lie, ``(groups, positions, n)``."""
        where = windows(image, kernel[2:], stride, around)
        where = where.reshape(groups, kernel[1], *where.shape[1:]).transpose(0, 2, 3, 1, 4, 5)
        return where.reshape(groups, where.shape[1] * where.shape[2], -1)

    @staticmethod
    def out_shape(*shapes: Shape, image: Shape, kernel: Shape, stride: Pair, around: Any, groups: int) -> Shape:
        """Return the kernels and their positions."""
        size = [n + sum(a) - k for n, a, k in zip(image[1:], around, kernel[2:])]
        if min(size) < 0:
            raise ShapeError(f"a kernel of {times(kernel[2:])} is larger than the image of {times(image[1:])}")
        return kernel[0], size[0] // stride[0] + 1, size[1] // stride[1] + 1

    @classmethod
    def apply(cls, W: Array, x: Array, **attrs: Any) -> Array:
        """Return the products of kernels and patches."""
        patches = unfold(x, cls.places(**attrs))
        kernel = W.reshape(len(W), attrs["groups"], -1, patches.shape[-1])
        product = kernel @ np.swapaxes(patches, 2, 3)
        return product.reshape(len(product), -1)

    @classmethod
    def jacobian(cls, slot: int, y: Array, W: Array, x: Array, **attrs: Any) -> LocalJacobian:
        """Return the patches by the kernels, the kernels by the image."""
        index = cls.places(**attrs)
        if slot == 0:
            return ByKernel(unfold(x, index))
        return ByImage(W.reshape(len(W), attrs["groups"], -1, index.shape[2]), index, math.prod(attrs["image"]))

    @classmethod
    def expand(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> int:
        """Write patches, and for each group one matrix applied to all of them; then channels come first."""
        index, dim = cls.places(**attrs), math.prod(attrs["image"])
        groups, positions, n = index.shape
        source = _padded(program, args[1], index, dim, label)
        rows = program.types[args[0]].dim // groups
        parts = []
        for k in range(groups):
            kernel = written_slice(program, args[0], k * rows, (k + 1) * rows, label)
            patches = written_gather(program, source, index[k], label)
            parts.append(program.apply(BatchMatVec, [kernel, patches], {"count": positions, "n": n}, label))
        whole = parts[0] if groups == 1 else written_join(program, parts, label)
        order = np.arange(groups * positions * (rows // n)).reshape(groups, positions, -1)
        return written_gather(program, whole, np.swapaxes(order, 1, 2), label)


class _Pool(Op):
    """Base of what is made of windows, in each channel."""

    uses: ClassVar[tuple[tuple[int, ...], ...] | None] = ((0,),)

    def __init__(self, x: Node, size: Any, stride: Any = None, *, name: str | None = None):
        what = type(self).__name__
        image, extent = image_of(x, what), pair(size, f"{what}: size", 1)
        steps = extent if stride is None else pair(stride, f"{what}: stride", 1)
        super().__init__(x, name=name, image=image, size=extent, stride=steps)

    @staticmethod
    def out_shape(*shapes: Shape, image: Shape, size: Pair, stride: Pair) -> Shape:
        """Return the channels and the windows that fit."""
        left = [n - k for n, k in zip(image[1:], size)]
        if min(left) < 0:
            raise ShapeError(f"a window of {times(size)} is larger than the image of {times(image[1:])}")
        return image[0], left[0] // stride[0] + 1, left[1] // stride[1] + 1

    @staticmethod
    def places(image: Shape, size: Pair, stride: Pair) -> Array:
        """Return where the entries of each window lie, ``(out, size)``."""
        return windows(image, size, stride, ((0, 0), (0, 0))).reshape(-1, math.prod(size))

    @classmethod
    def pieces(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> list[int]:
        """Write the first entry of all windows, the second, and so on."""
        index = cls.places(**attrs)
        picked = written_gather(program, args[0], index.T, label)
        return [
            written_slice(program, picked, k * len(index), (k + 1) * len(index), label) for k in range(index.shape[1])
        ]


class MaxPool2D(_Pool):
    """Largest entry of each window, in each channel; of equal ones the first has the derivative.

    Parameters
    ----------
    x : Node
        Of shape ``(channels, height, width)``.
    size : int or two
        Of the windows.
    stride : int or two, optional
        From one window to the next; the size if not given. What is left at the edges is not read.

    Raises
    ------
    ShapeError
        If shapes do not fit.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.MaxPool2D(fg.Variable((1, 2, 4), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]), 2)
    >>> y.shape, y.forward()
    ((1, 1, 2), array([6., 8.]))
    """

    kinds = (Chosen,)

    @classmethod
    def apply(cls, x: Array, **attrs: Any) -> Array:
        """Return the largest entries."""
        return np.asarray(x[:, cls.places(**attrs)].max(axis=2))

    @classmethod
    def jacobian(cls, slot: int, y: Array, x: Array, **attrs: Any) -> LocalJacobian:
        """Return where the largest entries are."""
        index = cls.places(**attrs)
        first = x[:, index].argmax(axis=2)
        return Chosen(index[np.arange(len(index)), first], x.shape[1])

    @classmethod
    def expand(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> int:
        """Write the larger of each two, from the first to the last."""
        best, *others = cls.pieces(program, args, attrs, label)
        for piece in others:
            best = program.apply(Larger, [best, piece], {}, label)
        return best


class AveragePool2D(_Pool):
    """Mean of each window, in each channel; see `MaxPool2D`.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.AveragePool2D(fg.Variable((1, 2, 4), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]), 2)
    >>> y.forward()
    array([3.5, 5.5])
    """

    kinds = (Averages,)
    uses = ((),)

    @classmethod
    def apply(cls, x: Array, **attrs: Any) -> Array:
        """Return the means."""
        return np.asarray(x[:, cls.places(**attrs)].mean(axis=2))

    @classmethod
    def jacobian(cls, slot: int, y: Array, x: Array, **attrs: Any) -> LocalJacobian:
        """Return the windows."""
        return Averages(cls.places(**attrs), math.prod(attrs["image"]))

    @classmethod
    def expand(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> int:
        """Write the sum of all, scaled."""
        total, *others = cls.pieces(program, args, attrs, label)
        for piece in others:
            total = program.apply(Add, [total, piece], {}, label)
        return int(program.apply(Scale, [total], {"c": 1 / (1 + len(others))}, label))


def _padded(program: Any, x: int, index: Array, dim: int, label: str) -> int:
    """Return an image with a zero behind it, if patches reach beyond it."""
    if index.max() < dim:
        return x
    zero = program.apply(Zero, [written_slice(program, x, 0, 1, label)], {}, label)
    return written_join(program, [x, zero], label)

"""Layers of images ``(channels, height, width)``."""

from __future__ import annotations

from typing import Any

from ..graph import Node, Variable
from ..inputs import integer
from ..ops import Broadcast, Conv2D, MaxPool2D
from ..ops.image import image_of, pair
from .naming import activation_of, finished, free_name, suited, within


def conv2d(
    x: Node,
    channels: int,
    kernel: Any,
    stride: Any = 1,
    padding: Any = "same",
    groups: int = 1,
    activation: Any = None,
    init: Any = None,
    name: str | None = None,
) -> Node:
    """Return ``activation(Conv2D(W, x) + b)``, a bias for each channel.

    Parameters
    ----------
    x : Node
        Of shape ``(channels, height, width)``.
    channels : int
        Of the result.
    kernel : int or two
        Height and width.
    stride, padding, groups
        See `Conv2D`.
    activation, init, name
        See `dense`.

    Raises
    ------
    ShapeError
        If shapes do not fit.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0):
    ...     x = fg.Variable((1, 28, 28), name="x")
    ...     h = fg.layers.conv2d(x, 8, 5, activation="relu", name="c0")
    >>> h
    ReLU 'c0' (8 x 28 x 28)
    """
    op, size, image = activation_of(activation), pair(kernel, "conv2d: kernel", 1), image_of(x, "conv2d")
    channels, name = integer(channels, "conv2d: channels"), free_name(x, "conv2d", name)
    with within(x, name):
        inputs = max(1, image[0] // integer(groups, "conv2d: groups"))
        W = Variable((channels, inputs, *size), suited(init, op), name="W")
        y: Node = Conv2D(W, x, stride, padding, groups)
        y = y + Broadcast(Variable((channels, 1, 1), "zeros", name="b"), y.shape)
        return finished(y, op)


def max_pool2d(x: Node, size: Any, stride: Any = None, init: None = None, name: str | None = None) -> Node:
    """Return ``MaxPool2D(x, size, stride)``; it has no weights, so nothing is drawn.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.layers.max_pool2d(fg.Variable((1, 4, 4), name="x"), 2, name="p0")
    >>> y
    MaxPool2D 'p0' (1 x 2 x 2)
    """
    return MaxPool2D(x, size, stride, name=free_name(x, "max_pool2d", name))

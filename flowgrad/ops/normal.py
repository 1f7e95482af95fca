"""Normalisation: of a sample by its own mean and variance, or by those of all training samples, which are measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import GraphError, ShapeError
from ..graph import Node, Variable
from ..inputs import Shape, brief, integer
from ..jacobians import EPSILON, Diagonal, LocalJacobian, Still
from ..op import Op
from ..typing import Array
from .elementwise import Add, Elementwise, Multiply, Subtract
from .functions import StopGradient
from .rowwise import Standardize
from .select import Broadcast, Reshape, written_gather


def LayerNorm(a: Node, gain: Node | None = None, shift: Node | None = None, name: str | None = None) -> Node:
    """Return ``Standardize(a)``, times `gain` and plus `shift`, vectors as long as the last axis, if given.

    See J. Ba, J. Kiros and G. Hinton, *Layer Normalization*, 2016.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.LayerNorm(fg.Variable((2, 2), [1.0, 3.0, 5.0, 5.0]), fg.Variable(2, [2.0, 2.0]))
    >>> y.shape, y.forward().round(4).tolist()
    ((2, 2), [-2.0, 2.0, 0.0, 0.0])
    """
    return _affine(Standardize(a, name=None if gain or shift else name), gain, shift, name)


def GroupNorm(
    a: Node, groups: int, gain: Node | None = None, shift: Node | None = None, name: str | None = None
) -> Node:
    """Return `a`, of shape ``(channels, ...)``, standardised in groups of neighbouring channels; `gain`, `shift` are per channel.

    See Y. Wu and K. He, *Group Normalization*, ECCV 2018.

    Raises
    ------
    ShapeError
        If the channels are no multiple of the groups.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.GroupNorm(fg.Variable((2, 1, 2), [1.0, 3.0, 5.0, 9.0]), 2)
    >>> y.shape, y.forward().round(3).tolist()
    ((2, 1, 2), [-1.0, 1.0, -1.0, 1.0])
    """
    channels = a.shape[0]
    if channels % integer(groups, "GroupNorm: groups"):
        raise ShapeError(f"GroupNorm of {a}: {channels} channels cannot be cut into {groups} groups")
    y = Reshape(Standardize(Reshape(a, (groups, -1))), a.shape, name=None if gain or shift else name)
    return _per_channel(y, gain, shift, name)


class Precision(Elementwise):
    """One over the deviation that belongs to a variance."""

    formula = f"1 / sqrt(a + {EPSILON})"
    slopes = ("0.0",)
    differentiable = False


class Whiten(Op):
    """``(a - mean) / sqrt(variance + 1e-5)``, each channel by its own: by what training measures, and does not differentiate.

    Parameters
    ----------
    a : Node
        Of shape ``(channels, ...)``.
    mean, variance : Variable
        A number for each channel, not trainable. Training sets them to those of all its samples.

    Raises
    ------
    GraphError
        If mean or variance is no such variable.
    ShapeError
        If the channels do not fit.
    """

    kinds = (Diagonal, Still, Still)
    uses = ((2,), (), ())
    measured_slots = (1, 2)

    def __init__(self, a: Node, mean: Variable, variance: Variable, *, name: str | None = None):
        for v in (mean, variance):
            if not isinstance(v, Variable) or v.trainable:
                raise GraphError(
                    f"Whiten: mean and variance are measured: Variable(n, trainable=False), not {brief(v, 80)}"
                )
        super().__init__(a, mean, variance, name=name, channels=mean.dim, dim=a.dim)

    @staticmethod
    def out_shape(*shapes: Shape, channels: int, dim: int) -> Shape:
        """Return the shape of the operand."""
        if not shapes[0][0] == channels == shapes[2][0]:
            raise ShapeError(
                f"has {shapes[0][0]} channels, mean and variance have {channels} and {shapes[2][0]} numbers"
            )
        return shapes[0]

    @staticmethod
    def shape(*dims: int, channels: int, dim: int) -> int:
        """Return the length of the operand."""
        return dims[0]

    @staticmethod
    def apply(a: Array, mean: Array, variance: Array, *, channels: int, dim: int) -> Array:
        """Return the entries in deviations from the mean."""
        each = dim // channels
        return (a - np.repeat(mean, each, axis=1)) * np.repeat(1 / np.sqrt(variance + EPSILON), each, axis=1)

    @staticmethod
    def jacobian(slot: int, y: Any, a: Any, mean: Any, variance: Array, *, channels: int, dim: int) -> LocalJacobian:
        """Return one over the deviations; zero by what is measured."""
        return (
            Still(channels) if slot else Diagonal(np.repeat(1 / np.sqrt(variance + EPSILON), dim // channels, axis=1))
        )

    @staticmethod
    def jacobian_tangent(
        slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...], **attrs: Any
    ) -> LocalJacobian | None:
        """Return None: what is measured does not move."""
        return None

    @classmethod
    def expand(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> int:
        """Write differences and products with what belongs to the channel of each entry."""
        a, mean, variance = args
        spread = np.repeat(np.arange(attrs["channels"]), attrs["dim"] // attrs["channels"])
        mean = written_gather(program, program.apply(StopGradient, [mean], {}, label), spread, label)
        precision = written_gather(program, program.apply(Precision, [variance], {}, label), spread, label)
        moved = program.apply(Subtract, [a, mean], {}, label)
        return int(program.apply(Multiply, [moved, precision], {}, label))


def BatchNorm(a: Node, gain: Node | None = None, shift: Node | None = None, name: str | None = None) -> Node:
    """Return `a`, of shape ``(channels, ...)``, in deviations from each channel's mean over all training samples.

    `gain` and `shift` are per channel. Unlike elsewhere the mean and the variance are not those of a mini-batch, for then a
    sample's loss would depend on others: they are constants, ``name.mean`` and ``name.variance``, first 0 and 1. `Trainer.fit`
    measures them over all training samples: before the first epoch, one `BatchNorm` after the other, and after each epoch, all
    at once. So a net trains, evaluates and predicts by the same numbers, at any batch size, and its gradients are exact; but they
    lag behind the weights within an epoch, and a pass over the samples is added to each epoch, before the first one a pass for
    each `BatchNorm`. No derivative goes through them. `GroupNorm` needs none of that.

    See S. Ioffe and C. Szegedy, *Batch Normalization*, ICML 2015.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     y = fg.BatchNorm(fg.Variable((2, 2), [1.0, 3.0, 5.0, 9.0]), name="bn")
    >>> graph["bn.mean"].set_value([2.0, 7.0])
    >>> y.shape, y.forward().round(3).tolist()
    ((2, 2), [-1.0, 1.0, -2.0, 2.0])
    """
    if not isinstance(a, Node):
        raise GraphError(f"BatchNorm: operand 0 is {type(a).__name__} {brief(a)}, not a node")
    base = name or f"batchnorm{len(a.graph.nodes)}"
    with a.graph:
        mean, variance = (
            Variable(a.shape[0], np.full(a.shape[0], first), trainable=False, name=f"{base}.{what}")
            for what, first in (("mean", 0.0), ("variance", 1.0))
        )
    return _per_channel(Whiten(a, mean, variance, name=None if gain or shift else name), gain, shift, name)


def _per_channel(y: Node, gain: Node | None, shift: Node | None, name: str | None) -> Node:
    spread = (y.shape[0], *[1] * (len(y.shape) - 1))
    gain, shift = (None if v is None else Reshape(v, spread) for v in (gain, shift))
    return _affine(y, gain, shift, name)


def _affine(y: Node, gain: Node | None, shift: Node | None, name: str | None) -> Node:
    if gain is not None:
        y = Multiply(y, Broadcast(gain, y.shape), name=None if shift else name)
    return y if shift is None else Add(y, Broadcast(shift, y.shape), name=name)

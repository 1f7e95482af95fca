"""The derivative of a node by a parent, and of a result by a variable: kind and factor; nothing large is built on the way."""

from .base import Diagonal, Identity, LocalJacobian, Selection, Still
from .embedding import Picked
from .factors import Factors, projection
from .image import Averages, ByImage, ByKernel, Chosen, unfold
from .matrix import Blocks, Dense, LeftProduct, Outer, OuterSum, Rows
from .rowwise import (
    EPSILON,
    LogSoftMaxJacobian,
    LogSoftMaxTangent,
    SoftMaxJacobian,
    SoftMaxTangent,
    StandardizeJacobian,
    StandardizeTangent,
    scale,
)
from .shares import OuterShare

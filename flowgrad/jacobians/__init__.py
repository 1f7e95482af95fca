"""The derivative of a node by a parent, and of a result by a variable: kind and factor; nothing large is built on the way."""

from .base import (
    Diagonal,
    Identity,
    LocalJacobian,
    LogSoftMaxJacobian,
    LogSoftMaxTangent,
    Selection,
    SoftMaxJacobian,
    SoftMaxTangent,
)
from .factors import Factors, projection
from .matrix import Blocks, Dense, Outer, OuterSum, Rows
from .shares import OuterShare

"""The ops: one class each, which states shape, value, local Jacobian and how siblings stack."""

from .batch import BatchMatVec
from .elementwise import Add, Exp, Log, Logistic, Multiply, Negative, Reciprocal, ReLU, Scale, Subtract, Tanh
from .linear import Dot, Gather, MatVec, RowDot, Slice, Sum, Vectorize
from .loss import CrossEntropyWithSoftMax, MeanSquaredError, SoftMax
from .mark import Mark
from .operators import install

install()

__all__ = [
    "Add",
    "BatchMatVec",
    "CrossEntropyWithSoftMax",
    "Dot",
    "Exp",
    "Gather",
    "Log",
    "Logistic",
    "Mark",
    "MatVec",
    "MeanSquaredError",
    "Multiply",
    "Negative",
    "ReLU",
    "Reciprocal",
    "RowDot",
    "Scale",
    "Slice",
    "SoftMax",
    "Subtract",
    "Sum",
    "Tanh",
    "Vectorize",
]

"""The ops: one class each, which states shape, value, local Jacobian and how siblings stack."""

from .batch import BatchMatVec
from .elementwise import Add, Elementwise, Multiply, Negative, Scale, Subtract
from .functions import Exp, Log, Logistic, Reciprocal, ReLU, Tanh
from .linear import Dot, MatVec, RowDot, Sum
from .loss import CrossEntropyWithSoftMax, LogisticCrossEntropy, LogSoftMax, MeanSquaredError, SoftMax
from .mark import Mark
from .operators import install
from .select import Gather, Slice, Vectorize

install()

__all__ = [
    "Add",
    "BatchMatVec",
    "CrossEntropyWithSoftMax",
    "Dot",
    "Exp",
    "Gather",
    "Log",
    "LogSoftMax",
    "Logistic",
    "LogisticCrossEntropy",
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

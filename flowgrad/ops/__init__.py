"""The ops: one class each, which states shape, value, local Jacobian and how siblings stack."""

from .batch import BatchMatVec
from .elementwise import Add, Elementwise, Multiply, Negative, Scale, Subtract
from .embedding import Embedding
from .functions import (
    GELU,
    Abs,
    Exp,
    LeakyReLU,
    Log,
    Logistic,
    Maximum,
    Minimum,
    Power,
    Reciprocal,
    ReLU,
    SiLU,
    Softplus,
    Sqrt,
    Step,
    StopGradient,
    Tanh,
)
from .image import AveragePool2D, Conv2D, MaxPool2D
from .linear import Dot, MatMul, MatVec, Mean, OuterProduct, RowDot, Sum
from .loss import CrossEntropyWithSoftMax, Huber, KullbackLeibler, LogisticCrossEntropy, MeanSquaredError
from .mark import Mark
from .normal import BatchNorm, GroupNorm, LayerNorm, Whiten
from .operators import install
from .random import Dropout, Noise, draw_keys, draws_of
from .rowwise import LogSoftMax, Max, SoftMax, Standardize
from .select import Broadcast, Concat, Gather, Reshape, Slice, Transpose, Vectorize

install()

__all__ = [
    "GELU",
    "Abs",
    "Add",
    "AveragePool2D",
    "BatchMatVec",
    "BatchNorm",
    "Broadcast",
    "Concat",
    "Conv2D",
    "CrossEntropyWithSoftMax",
    "Dot",
    "Dropout",
    "Elementwise",
    "Embedding",
    "Exp",
    "Gather",
    "GroupNorm",
    "Huber",
    "KullbackLeibler",
    "LayerNorm",
    "LeakyReLU",
    "Log",
    "LogSoftMax",
    "Logistic",
    "LogisticCrossEntropy",
    "Mark",
    "MatMul",
    "MatVec",
    "Max",
    "MaxPool2D",
    "Maximum",
    "Mean",
    "MeanSquaredError",
    "Minimum",
    "Multiply",
    "Negative",
    "Noise",
    "OuterProduct",
    "Power",
    "ReLU",
    "Reciprocal",
    "Reshape",
    "RowDot",
    "Scale",
    "SiLU",
    "Slice",
    "SoftMax",
    "Softplus",
    "Sqrt",
    "Standardize",
    "Step",
    "StopGradient",
    "Subtract",
    "Sum",
    "Tanh",
    "Transpose",
    "Vectorize",
    "Whiten",
    "draw_keys",
    "draws_of",
]

"""flowgrad: a computational-graph engine for NumPy people, on a laptop or a dask cluster.

The graph language and the reference interpreter need NumPy only. ``fg.Engine`` and ``fg.Trainer`` lower graphs to dask and are
loaded when they are first used, like ``fg.save`` and ``fg.load``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors, layers, losses, summary
from .check import check_gradients
from .errors import FlowgradError
from .graph import Constant, Graph, Node, Variable, default_graph, scope
from .jacobians import Dense, Diagonal, Identity, LocalJacobian, Outer, Rows, Selection, SoftMaxJacobian
from .op import Op, Stacked
from .ops import (
    GELU,
    Abs,
    Add,
    AveragePool2D,
    BatchMatVec,
    Broadcast,
    Concat,
    Conv2D,
    CrossEntropyWithSoftMax,
    Dot,
    Elementwise,
    Embedding,
    Exp,
    Gather,
    GroupNorm,
    Huber,
    KullbackLeibler,
    LayerNorm,
    LeakyReLU,
    Log,
    Logistic,
    LogisticCrossEntropy,
    LogSoftMax,
    MatMul,
    MatVec,
    Max,
    Maximum,
    MaxPool2D,
    Mean,
    MeanSquaredError,
    Minimum,
    Multiply,
    Negative,
    OuterProduct,
    Power,
    Reciprocal,
    ReLU,
    Reshape,
    RowDot,
    Scale,
    SiLU,
    Slice,
    SoftMax,
    Softplus,
    Sqrt,
    Standardize,
    Step,
    StopGradient,
    Subtract,
    Sum,
    Tanh,
    Transpose,
    Vectorize,
)
from .optim import (
    AdaGrad,
    Adam,
    AdamW,
    AMSGrad,
    CosineDecay,
    ExponentialDecay,
    GradientDescent,
    Lion,
    Momentum,
    Nesterov,
    Optimizer,
    RMSProp,
    Schedule,
    StepDecay,
    WarmUp,
)

if TYPE_CHECKING:
    from .files import load, save
    from .scheduler.collective import gang
    from .scheduler.engine import Engine
    from .scheduler.training import KEEP, STOP, Callback, Checkpoints, EarlyStopping, ReduceLROnPlateau, Trainer

__version__ = "0.1.0"

_LAZY = {
    ".files": ("load", "save"),
    ".scheduler.collective": ("gang",),
    ".scheduler.engine": ("Engine",),
    ".scheduler.training": ("KEEP", "STOP", "Callback", "Checkpoints", "EarlyStopping", "ReduceLROnPlateau", "Trainer"),
}


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            value = getattr(import_module(module, __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'flowgrad' has no attribute {name!r}")


__all__ = [
    "GELU",
    "KEEP",
    "STOP",
    "AMSGrad",
    "Abs",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Add",
    "AveragePool2D",
    "BatchMatVec",
    "Broadcast",
    "Callback",
    "Checkpoints",
    "Concat",
    "Constant",
    "Conv2D",
    "CosineDecay",
    "CrossEntropyWithSoftMax",
    "Dense",
    "Diagonal",
    "Dot",
    "EarlyStopping",
    "Elementwise",
    "Embedding",
    "Engine",
    "Exp",
    "ExponentialDecay",
    "FlowgradError",
    "Gather",
    "GradientDescent",
    "Graph",
    "GroupNorm",
    "Huber",
    "Identity",
    "KullbackLeibler",
    "LayerNorm",
    "LeakyReLU",
    "Lion",
    "LocalJacobian",
    "Log",
    "LogSoftMax",
    "Logistic",
    "LogisticCrossEntropy",
    "MatMul",
    "MatVec",
    "Max",
    "MaxPool2D",
    "Maximum",
    "Mean",
    "MeanSquaredError",
    "Minimum",
    "Momentum",
    "Multiply",
    "Negative",
    "Nesterov",
    "Node",
    "Op",
    "Optimizer",
    "Outer",
    "OuterProduct",
    "Power",
    "RMSProp",
    "ReLU",
    "Reciprocal",
    "ReduceLROnPlateau",
    "Reshape",
    "RowDot",
    "Rows",
    "Scale",
    "Schedule",
    "Selection",
    "SiLU",
    "Slice",
    "SoftMax",
    "SoftMaxJacobian",
    "Softplus",
    "Sqrt",
    "Stacked",
    "Standardize",
    "Step",
    "StepDecay",
    "StopGradient",
    "Subtract",
    "Sum",
    "Tanh",
    "Trainer",
    "Transpose",
    "Variable",
    "Vectorize",
    "WarmUp",
    "check_gradients",
    "default_graph",
    "errors",
    "gang",
    "layers",
    "load",
    "losses",
    "save",
    "scope",
]

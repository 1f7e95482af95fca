"""flowgrad: a computational-graph engine for NumPy people, on a laptop or a dask cluster.

The graph language and the reference interpreter need NumPy only. ``fg.Engine`` and ``fg.Trainer`` lower graphs to dask and are
loaded when they are first used, like ``fg.save`` and ``fg.load``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors
from .check import check_gradients
from .errors import FlowgradError
from .graph import Graph, Node, Variable, default_graph
from .jacobians import Dense, Diagonal, Identity, LocalJacobian, Outer, Rows, Selection, SoftMaxJacobian
from .op import Op, Stacked
from .ops import (
    Add,
    BatchMatVec,
    CrossEntropyWithSoftMax,
    Dot,
    Elementwise,
    Exp,
    Gather,
    Log,
    Logistic,
    LogisticCrossEntropy,
    LogSoftMax,
    MatVec,
    MeanSquaredError,
    Multiply,
    Negative,
    Reciprocal,
    ReLU,
    RowDot,
    Scale,
    Slice,
    SoftMax,
    Subtract,
    Sum,
    Tanh,
    Vectorize,
)
from .optim import (
    AdaGrad,
    Adam,
    CosineDecay,
    ExponentialDecay,
    GradientDescent,
    Momentum,
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
    from .scheduler.training import KEEP, STOP, Callback, Checkpoints, EarlyStopping, Trainer

__version__ = "0.1.0"

_LAZY = {
    ".files": ("load", "save"),
    ".scheduler.collective": ("gang",),
    ".scheduler.engine": ("Engine",),
    ".scheduler.training": ("KEEP", "STOP", "Callback", "Checkpoints", "EarlyStopping", "Trainer"),
}


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            value = getattr(import_module(module, __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'flowgrad' has no attribute {name!r}")


__all__ = [
    "KEEP",
    "STOP",
    "AdaGrad",
    "Adam",
    "Add",
    "BatchMatVec",
    "Callback",
    "Checkpoints",
    "CosineDecay",
    "CrossEntropyWithSoftMax",
    "Dense",
    "Diagonal",
    "Dot",
    "EarlyStopping",
    "Elementwise",
    "Engine",
    "Exp",
    "ExponentialDecay",
    "FlowgradError",
    "Gather",
    "GradientDescent",
    "Graph",
    "Identity",
    "LocalJacobian",
    "Log",
    "LogSoftMax",
    "Logistic",
    "LogisticCrossEntropy",
    "MatVec",
    "MeanSquaredError",
    "Momentum",
    "Multiply",
    "Negative",
    "Node",
    "Op",
    "Optimizer",
    "Outer",
    "RMSProp",
    "ReLU",
    "Reciprocal",
    "RowDot",
    "Rows",
    "Scale",
    "Schedule",
    "Selection",
    "Slice",
    "SoftMax",
    "SoftMaxJacobian",
    "Stacked",
    "StepDecay",
    "Subtract",
    "Sum",
    "Tanh",
    "Trainer",
    "Variable",
    "Vectorize",
    "WarmUp",
    "check_gradients",
    "default_graph",
    "errors",
    "gang",
    "load",
    "save",
]

"""flowgrad: a computational-graph engine for NumPy people, on a laptop or a dask cluster.

The graph language and the reference interpreter need NumPy only. ``fg.Engine`` and ``fg.Trainer`` lower graphs to dask and are
loaded when they are first used, like ``fg.save`` and ``fg.load``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors
from .check import check_gradients
from .errors import FlowgradError
from .graph import Graph, default_graph
from .jacobian import Dense, Diagonal, Identity, LocalJacobian, Outer, Rows, Selection, SoftMaxJacobian
from .node import Node, Op, Stacked, Variable
from .ops import (
    Add,
    BatchMatVec,
    CrossEntropyWithSoftMax,
    Dot,
    Exp,
    Gather,
    Log,
    Logistic,
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
from .optimizers import AdaGrad, Adam, GradientDescent, Momentum, Optimizer, RMSProp

if TYPE_CHECKING:
    from .files import load, save
    from .scheduler.engine import Engine
    from .scheduler.train import Trainer

__version__ = "0.1.0"

_LAZY = {"Engine": ".scheduler.engine", "Trainer": ".scheduler.train", "load": ".files", "save": ".files"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'flowgrad' has no attribute {name!r}")


__all__ = [
    "AdaGrad",
    "Adam",
    "Add",
    "BatchMatVec",
    "CrossEntropyWithSoftMax",
    "Dense",
    "Diagonal",
    "Dot",
    "Engine",
    "Exp",
    "FlowgradError",
    "Gather",
    "GradientDescent",
    "Graph",
    "Identity",
    "LocalJacobian",
    "Log",
    "Logistic",
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
    "Selection",
    "Slice",
    "SoftMax",
    "SoftMaxJacobian",
    "Stacked",
    "Subtract",
    "Sum",
    "Tanh",
    "Trainer",
    "Variable",
    "Vectorize",
    "check_gradients",
    "default_graph",
    "errors",
    "load",
    "save",
]

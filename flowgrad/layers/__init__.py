"""Layers: functions of a few lines that build nodes and return the last; open one and read what it is.

Every layer takes ``init`` and ``name`` last. ``init`` says how its weights are drawn (see `Variable`; None: as suits its
activation), biases begin at 0. Names of its nodes begin with ``name.``; the last node has the name itself.
"""

from typing import Any

from ..inputs import meant
from .dense import dense
from .image import conv2d, max_pool2d
from .sequence import attention, gru, lstm, rnn
from .table import embedding, factorization_machine, wide_and_deep

__all__ = [
    "attention",
    "conv2d",
    "dense",
    "embedding",
    "factorization_machine",
    "gru",
    "lstm",
    "max_pool2d",
    "rnn",
    "wide_and_deep",
]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{meant(name, __all__)}")

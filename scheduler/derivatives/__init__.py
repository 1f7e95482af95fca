"""Jacobians and per-sample gradients out of values that are kept."""

from importlib import import_module
from typing import Any

from .cache import DEFAULT_BYTES, CacheInfo, ValueCache
from .forward import cheaper_mode, hvp_block, jvp_block, lower_push
from .lower import Request, lower_factors, lower_reverse
from .per_sample import Blocks, PerSampleGradients
from .recipe import Recipe
from .work import LastEdges, clip_weights, join, norms_of, run_all

_LAZY = ("check_chunks", "chunk_feeds", "chunked_factors", "lazy_jacobian")


def __getattr__(name: str) -> Any:
    """Load what works with dask arrays, which take a while to import, when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".arrays", __name__), name)

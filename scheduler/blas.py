"""One BLAS thread per task: tasks run side by side, and another number of threads gives other bits."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

from threadpoolctl import ThreadpoolController

# The BLAS that numba calls; it is loaded late, and must be there to be told.
COMPILED_BLAS = "scipy.linalg.cython_blas"


def one_thread() -> AbstractContextManager[Any]:
    """Limit every BLAS that is loaded in this process to one thread, for the length of a ``with`` block."""
    return _controller(COMPILED_BLAS in sys.modules).limit(limits=1, user_api="blas")


@lru_cache(maxsize=2)
def _controller(compiled: bool) -> ThreadpoolController:
    return ThreadpoolController()

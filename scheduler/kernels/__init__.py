"""A program as something that runs: NumPy calls on kept buffers, or compiled."""

from .compiled import (
    compiled_round,
    forget_kernels,
    kernel_named,
    kernel_of,
    load_kernels,
    run_by,
    why_not_chosen,
    why_not_compiled,
)
from .numpy_kernel import run_instr
from .table import MOVED

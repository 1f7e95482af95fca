"""A program as something that runs: NumPy calls on kept buffers, or compiled."""

from .compiled import compiled_round, why_not_compiled
from .numpy_kernel import kernel_of, run_instr

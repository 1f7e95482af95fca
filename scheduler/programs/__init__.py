"""From nodes to a fused, differentiated program, its counts, and values and gradients as records."""

from .compile import (
    backward_passes,
    check_grain,
    compile_forward,
    compile_gradient,
    flat_values,
    forward_passes,
    input_var,
    run_passes,
)
from .counts import Product, Work, count, flops, work_of
from .fuse import Layout
from .lower import Job, Placed, cut_samples, lower_forward, lower_gradient, lower_share
from .work import (
    Gradient,
    add_gradients,
    collect,
    cut_rows,
    flat_gradient,
    mean_seed,
    pick,
    run_seeded,
    take_rows,
    weights_of,
)

__all__ = [
    "Gradient",
    "Job",
    "Layout",
    "Placed",
    "Product",
    "Work",
    "add_gradients",
    "backward_passes",
    "check_grain",
    "collect",
    "compile_forward",
    "compile_gradient",
    "count",
    "cut_rows",
    "cut_samples",
    "flat_gradient",
    "flat_values",
    "flops",
    "forward_passes",
    "input_var",
    "lower_forward",
    "lower_gradient",
    "lower_share",
    "mean_seed",
    "pick",
    "run_passes",
    "run_seeded",
    "take_rows",
    "weights_of",
    "work_of",
]

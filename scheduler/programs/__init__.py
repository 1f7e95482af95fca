"""From nodes to a fused, differentiated program, its counts, and values and gradients as records."""

from .compile import (
    backward_passes,
    check_grain,
    compile_forward,
    compile_gradient,
    flat_values,
    forward_passes,
    input_var,
    prune,
    require_inputs,
    run_passes,
    traced,
)
from .counts import Counts, counts_of
from .fuse import Layout, ends_of
from .lower import (
    SHARD_SAMPLES,
    Computation,
    JobInputs,
    choose_by_size,
    cut_samples,
    lower_forward,
    lower_gradient,
    lower_share,
)
from .work import (
    Gradient,
    add_gradients,
    collect,
    cut_rows,
    flat_gradient,
    pick,
    run_program,
    run_seeded,
    seed_of,
    take_rows,
    weights_of,
)

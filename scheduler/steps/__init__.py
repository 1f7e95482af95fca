"""One optimizer step: its program, its tasks at each grain, its update."""

from .lanes import LaneInputs
from .lower import lower_steps
from .metrics import ACCURACY, Metric, joined_scores, metrics_of, questions_of, scores_of
from .moments import Moments, moments_of_shard, total_moments
from .shared import Shared, shared_steps
from .step import (
    WEIGHTS,
    Step,
    compile_evaluation,
    compile_private,
    compile_step,
    labels_of,
    places_of,
    row_tables,
    weighted,
)
from .vanished import vanished
from .work import (
    THREAD_FLOPS,
    Done,
    Scratch,
    compiled,
    evaluate_shard,
    run_round,
    shard_inputs,
    shard_step,
    update,
)

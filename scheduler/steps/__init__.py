"""One optimizer step: its program, its tasks at each grain, its update."""

from .lanes import LaneInputs
from .lower import lower_steps
from .shared import Shared, shared_steps
from .step import Step, class_losses, compile_evaluation, compile_private, compile_step, labels_of, places_of
from .vanished import vanished
from .work import THREAD_FLOPS, Done, evaluate_shard, run_round, shard_step

"""What work costs on this machine and this cluster, and the plan that follows."""

from .explain import TASKS, explain_job
from .forecast import (
    LARGEST_BATCH,
    Case,
    blas_threads_of,
    crossing,
    measured_seconds,
    spreading,
    step_seconds,
)
from .links import Fit, links_of, task_links
from .measure import curve_of, program_times, seconds_by_node, seconds_of
from .plan import (
    SURE,
    Plan,
    best_grain,
    choose_grain,
    choose_kernel,
    choose_round_threads,
    choose_shards,
    idle_workers,
    make_plan,
    steps_per_round,
    tasks_per_step,
    worth_trying,
)
from .times import Links, Times
from .words import about, columns, idle, ms, ratio, short

"""This process and machine: threads, memory, floating point, signals, and what is known of them."""  # noqa: D404

from .arrays import CACHE_LINE, ROOM, aligned, canonical, clear_room, empty_array, frames, keep_freed_memory, room_bytes
from .blas import blas_threads, one_thread, product_address
from .collector import without_collection
from .doctor import Finding, examine
from .facts import cache_folder, cache_problem, read_facts
from .floats import without_subnormals
from .forks import after_fork, forked_lock
from .signals import Interrupts
from .threads import Pace, each_side_by_side, run_threads, spread, threads_can_start

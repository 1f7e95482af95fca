"""What the tasks of a watched step run: an instruction, and a note of when and where."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any, NamedTuple

from flowgrad.program import Instr
from flowgrad.typing import Array

from ..kernels import run_instr


class Noted(NamedTuple):
    """A task's value, when it began and ended, in seconds since 1970, and the thread that ran it."""

    value: Any
    start: float
    end: float
    place: tuple[str, int, int]


def run_noted(instr: Instr, *args: Any) -> Noted:
    """Run an instruction."""
    values = [a.value if isinstance(a, Noted) else a for a in args]
    start = time.time()
    value = run_instr(instr, *values)
    return Noted(value, start, time.time(), (socket.gethostname(), os.getpid(), threading.get_ident()))


def run_seed(seed: Array, _result: Any) -> Array:
    """Return the cotangent that the way back begins with, once there is a result."""
    return seed

"""Ctrl-C and SIGTERM while a training runs: both end it after its last window, and neither gets lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Raises `KeyboardInterrupt` for SIGINT and `SystemExit` for SIGTERM, for the length of a ``with`` block.

    Handlers that somebody set stay. Python ignores what is raised in a destructor, and those of dask's futures run at any time, so
    `check` raises once more what came.
    """

    def __init__(self) -> None:
        self.came: BaseException | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
            self._before = {number: handler for number, handler in ours.items() if signal.getsignal(number) is handler}
            for number in self._before:
                signal.signal(number, self._raise)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.came = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
        raise self.came

    def check(self) -> None:
        """Raise what came and was ignored."""
        if self.came is not None:
            raise self.came

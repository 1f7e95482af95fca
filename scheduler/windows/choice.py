"""Which of two grains with the same bits runs the next steps: what was planned, unless the other one proves faster. Pure."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

from ..costs import SURE

# Seconds that a trial takes, that lie between two trials at the least, and that a training goes on for to make one worthwhile.
TRIAL, BETWEEN, LONG = 0.3, 5.0, 20.0
# Trials together take this share of the time at the most, and what counts is the median of the latest looks.
SHARE, LOOKS = 0.03, 3


class Choice:
    """Tells which grain is next, and is told what steps took.

    Parameters
    ----------
    grains : sequence of str
        One or two; the first is the one that was planned.

    Attributes
    ----------
    steps : dict
        How many steps each grain ran.
    """

    def __init__(self, grains: Sequence[str]):
        self.steps = dict.fromkeys(grains, 0)
        self._looks: dict[str, deque[float]] = {grain: deque(maxlen=LOOKS) for grain in grains}
        self._best = grains[0]
        self._since = 0.0  # seconds since the latest trial
        self._cost = 0.0  # of that trial

    def next(self, steps: int, left: int) -> tuple[str, int]:
        """Return by which grain, and how many of the next `steps` run; `left` are left in all."""
        other = next((grain for grain in self.steps if grain != self._best), None)
        if other is None or not self._looks[self._best]:
            return self._best, steps
        step = statistics.median(self._looks[self._best])
        due = self._since >= max(BETWEEN, self._cost / SHARE) or self._half_known(other)
        if not due or left * step < LONG:
            return self._best, steps
        return other, min(steps, max(1, round(TRIAL / step)))

    def _half_known(self, grain: str) -> bool:
        """Whether a grain was run, but what that took does not count: everything was placed for it."""
        return self.steps[grain] > 0 and not self._looks[grain]

    def note(self, grain: str, steps: int, seconds: float) -> None:
        """Take in that steps took so many seconds; the first ones of a grain do not count."""
        trial = grain != self._best
        self._since, self._cost = (0.0, seconds) if trial else (self._since + seconds, self._cost)
        if self.steps[grain]:
            self._looks[grain].append(seconds / steps)
        self.steps[grain] += steps
        known = {grain: statistics.median(looks) for grain, looks in self._looks.items() if looks}
        if self._best in known:
            self._best = min(known, key=lambda g: known[g] / (1.0 if g == self._best else SURE))

"""How often something may be done that takes time from a training."""

from __future__ import annotations

# Seconds that a training runs before the first time, whose cost nobody knows.
BEGIN = 1.0


class Budget:
    """Lets something be done now and then, as often as its cost allows; the first time counts for little, for it prepares things.

    Examples
    --------
    >>> budget = Budget(0.01, 1.0)
    >>> budget.allows(0.5), budget.allows(2.0)
    (False, True)
    >>> budget.spent(2.0, 0.5), budget.allows(3.0)
    (None, True)
    >>> budget.spent(3.0, 0.1), budget.allows(5.0), budget.allows(13.1)
    (None, False, True)
    """

    def __init__(self, share: float, every: float, begin: float = BEGIN):
        self.share, self.every = share, every
        self._next, self._last = begin, 0.0

    def allows(self, elapsed: float) -> bool:
        """Whether it may be done, so many seconds after the beginning."""
        return elapsed >= self._next

    def spent(self, elapsed: float, seconds: float) -> None:
        """Note what it cost; that something else had the processor once does not count."""
        self._next = elapsed + max(self.every, min(seconds, self._last) / self.share)
        self._last = seconds

"""Which variables have a gradient that has vanished, as in a deep net whose weights begin near zero."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flowgrad.graph import Variable
from flowgrad.typing import Array

# Root mean square of a variable's gradient by the largest of all, below which it moves nothing.
FAINT = 1e-6
# Share of all parameters from which on it is the net, and not a unit that rests.
MANY = 0.5


def vanished(gradient: Array, places: Mapping[Variable, tuple[int, int]]) -> dict[Variable, float]:
    """Return variables whose gradients are next to nothing beside the largest, and what part of it; empty if those are few.

    Where all are zero that is all of them: so it is in a net that begins with zeros, and in one that has learnt all there is.

    Parameters
    ----------
    gradient : array (P,)
    places : dict
        First and last entry of each variable.

    Examples
    --------
    >>> import flowgrad as fg, numpy as np
    >>> with fg.Graph():
    ...     a, b = fg.Variable(3, name="a"), fg.Variable(1, name="b")
    >>> vanished(np.array([1e-9, 1e-9, 1e-9, 1.0]), {a: (0, 3), b: (3, 4)})
    {Variable 'a' (dim 3): 1e-09}
    """
    sizes = {v: float(np.sqrt(np.mean(np.square(gradient[a:b], dtype=np.float64)))) for v, (a, b) in places.items()}
    largest = max(sizes.values(), default=0.0)
    if not largest > 0:
        return dict.fromkeys(places, 0.0)
    faint = {v: float(f"{size / largest:.3g}") for v, size in sizes.items() if size < FAINT * largest}
    return faint if sum(v.dim for v in faint) > MANY * sum(v.dim for v in places) else {}

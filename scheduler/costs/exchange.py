"""Who updates the parameters, and what travels between workers for it: ways to the same bits, and what each takes. Pure.

``"together"``: every lane updates the whole state in the task that then computes its next gradients. One hop per step; gradients
alone travel, for every lane has the state. ``"slices"``: parameters and state are cut into a slice per lane, each reduced and
updated by itself on a worker of its own, so that no worker has the whole optimizer state or updates everything. Four hops;
each lane sends its gradients' other slices and gets the other slices of the parameters.

There is a third, ``"carried"``: like ``"together"``, but the state travels along with the gradients. It is taken where a state
was missing: where tasks moved to a worker that had none, or a worker wrote values to its disk.
"""

from __future__ import annotations

from .rates import Links, update_bytes

WAYS = ("together", "slices")


def exchange_seconds(way: str, parameter_bytes: int, slots: int, lanes: int, links: Links) -> float:
    """Predict the seconds per step of updating and of what travels, beside the gradients' own work.

    Parameters
    ----------
    way : str
        One of `WAYS`.
    parameter_bytes : int
    slots : int
        Arrays of state that the update rule keeps per parameter.
    lanes : int
        Workers that compute gradients.
    links : Links
    """
    others = lanes - 1
    update = (update_bytes(parameter_bytes, slots) + 3 * others * parameter_bytes) * links.update
    if way == "together":
        tasks, hops, travels = others, 1, others * parameter_bytes
    else:
        tasks, hops, travels = 3 * others + lanes**2 - 1, 4, 2 * others * parameter_bytes // lanes
        update = update / lanes + 2 * parameter_bytes * links.update  # slices are put together again
    # A hop is a task that waits for another one; those beside it come on top.
    return hops * links.hop + tasks * links.task + travels * links.move + update


def choose_way(parameter_bytes: int, slots: int, lanes: int, links: Links) -> str:
    """Return the way that takes the least time.

    Examples
    --------
    >>> near = Links(workers=2, threads=1, slots=2, hop=2e-3, task=5e-4, move=1e-9, update=1e-10)
    >>> [choose_way(n << 20, 2, 2, near) for n in (0, 64)]
    ['together', 'slices']
    """
    return min(WAYS, key=lambda way: exchange_seconds(way, parameter_bytes, slots, lanes, links))

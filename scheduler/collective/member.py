"""What each task of a gang runs: it meets the others, runs the function with them, and leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from distributed import get_worker

from ..executors import sendable
from .group import GangBroken, Group
from .mailbox import UNREACHABLE, Line, Mailbox

# Seconds that a member waits for the others before it gives its thread back: when a gang is formed first, and at most.
PATIENCE, LONGEST_PATIENCE = 1.0, 30.0
# Topic of dask's events under which members tell how long they exchanged.
TOPIC = "flowgrad-gang"
# Seconds in which a connection is made wherever there is a network, to a busy worker too.
CONNECTED = 4.0

_inside = threading.local()


@dataclass(frozen=True)
class Spec:
    """A gang: its name, which no other attempt has, its workers by rank, and for how many seconds members wait to meet."""

    name: str
    addresses: tuple[str, ...]
    patience: float = PATIENCE


@dataclass(frozen=True)
class Absent:
    """What a member returns that did not meet all others: the ranks that were not there, and why if one cannot be reached."""

    ranks: tuple[int, ...]
    unreachable: str = ""


@contextmanager
def joined(spec: Spec, rank: int) -> Iterator[Group | Absent]:
    """Meet the other members for the length of a block; or find out that not all of them come."""
    began, mailbox = time.monotonic(), Mailbox.of(get_worker())
    box = mailbox.enter(spec.name)
    lines = {
        k: Line(mailbox, box, spec.name, rank, k, address) for k, address in enumerate(spec.addresses) if k != rank
    }

    def away() -> set[int]:
        return {k for k, line in lines.items() if not line.open or k not in box.here or k in box.lost}

    try:
        box.wait_for(lambda: not away() or bool(box.lost), spec.patience)
        if away():
            cut_off = [f"{spec.addresses[k]} {why}" for k, why in box.lost.items() if why.startswith(UNREACHABLE)]
            if (waited := time.monotonic() - began) >= CONNECTED:
                told = f"{UNREACHABLE} (no connection within {waited:.1f} s)"
                cut_off += [f"{spec.addresses[k]} {told}" for k, line in lines.items() if not line.open]
            yield Absent(tuple(sorted(away())), cut_off[0] if cut_off else "")
            return
        group = Group(rank, spec.addresses, box, lines)
        try:
            group.barrier()  # who comes through knows that everybody is committed
        except GangBroken:
            yield Absent(tuple(sorted(box.lost)))
            return
        yield group
    finally:
        for line in lines.values():
            line.close()
        mailbox.leave(spec.name)


def run_member(spec: Spec, rank: int, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function as a member of a gang; return what it returns, or `Absent` where the gang did not meet.

    Raises
    ------
    GangBroken
        If an argument is `Absent`: what it should be was lost, and dask ran again one member of the gang that made it.
    """
    if any(isinstance(arg, Absent) for arg in args):
        raise GangBroken("what an earlier gang left on this worker is gone")
    with joined(spec, rank) as group:
        if isinstance(group, Absent):
            return group
        _inside.depth = depth = getattr(_inside, "depth", 0) + 1
        try:
            result = function(group, *args)
            worker = get_worker()
            worker.log_event(TOPIC, {"key": worker.get_current_task(), "seconds": group.seconds})
            return result
        except GangBroken:
            raise
        except Exception as error:
            who = f"rank {rank} ({spec.addresses[rank]})"
            if (told := sendable(error, who)) is error:
                if not str(error).startswith(who):
                    error.add_note(f"{who} of a gang of {group.size} raised this")
                raise
        finally:
            _inside.depth = depth - 1
    raise told  # not in the `except`, whose error would go along


def inside_a_gang() -> bool:
    """Whether this thread runs a member's function."""
    return getattr(_inside, "depth", 0) > 0

"""Where a window of steps runs, and what of it is under way."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import NamedTuple

from ..executors import Handle, Worker
from ..feeds.order import Batches
from ..steps.lower import Lane


class Piece(NamedTuple):
    """A submission that is under way.

    Attributes
    ----------
    loss : Handle, or None
        The mean losses of its steps; None at the last piece of a window, whose state comes with them.
    kept : list of Handle
        What is needed until it is done.
    batches : Batches
        Its steps.
    """

    loss: Handle | None
    kept: list[Handle]
    batches: Batches


@dataclass
class Site:
    """Where a window runs; what runs at one may go on at an equal one."""

    workers: list[Worker]
    lanes: list[Lane]
    exchange: str
    salt: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)

    @property
    def addresses(self) -> list[str]:
        """Addresses of the workers."""
        return [w.address for w in self.workers]

    @property
    def needed(self) -> set[str]:
        """Addresses of the workers without which a window cannot end."""
        return {self.workers[lane.worker].address for lane in self.lanes}

    @property
    def slices(self) -> int:
        """Into how many slices the state is cut."""
        return len(self.lanes) if self.exchange == "slices" else 1


class Ahead(NamedTuple):
    """The first piece of the next window, submitted before this one has ended.

    Attributes
    ----------
    site : Site
    after : list of Handle
        The states after it.
    piece : Piece
    tasks : int
        Its number of tasks, and of those before it that a worker's death would bring back.
    """

    site: Site
    after: list[Handle]
    piece: Piece
    tasks: int

    def begins(self, batches: Batches) -> bool:
        """Whether these steps begin with the piece, and end with it where it is the last one."""
        mine = self.piece.batches
        alike = (mine.epoch, mine.first, mine.shards) == (batches.epoch, batches.first, batches.shards)
        return alike and len(mine) <= len(batches) and (self.piece.loss is None) == (len(mine) == len(batches))

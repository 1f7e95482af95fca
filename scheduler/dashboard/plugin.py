"""A plugin of the scheduler: it takes what trainings tell, notes what their tasks take, and adds the page to dask's dashboard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import import_module
from itertools import islice
from typing import Any

from distributed import SchedulerPlugin

from ..collective import TOPIC
from ..tasks import is_readable
from .budget import Budget
from .state import Board

# Operation of the scheduler that takes messages.
OPERATION = "flowgrad_tell"
# Seconds for which a page that was shown counts as looked at, and tasks whose owner is remembered.
LOOKED, OWNED = 3.0, 100_000
# Of the scheduler's time, and seconds between two looks, that looking at what a client keeps may take; keys looked at.
KEPT_SHARE, KEPT_SECONDS, KEPT_KEYS = 0.004, 2.0, 20_000


class Dashboard(SchedulerPlugin):
    """Keeps a `Board`, and shows it at ``/flowgrad``.

    Attributes
    ----------
    off : str
        Why there is no page; empty if there is one.
    prefix : str
        What paths of the dashboard begin with.
    """

    name = "flowgrad-dashboard"

    def __init__(self) -> None:
        self.off = self.prefix = ""

    async def start(self, scheduler: Any) -> None:
        """Begin to listen, and add the page."""
        self.scheduler, self.board, self.looked = scheduler, Board(), 0.0
        self._owners: dict[Any, Any] = {}
        self._gangs: dict[Any, float] = {}
        self._kept: dict[str, tuple[Budget, frozenset[tuple[str, str]]]] = {}
        scheduler.handlers[OPERATION] = self.tell
        try:
            self.off = import_module(".page", __package__).add_page(scheduler, self)
        except ImportError as error:
            self.off = (
                f"the scheduler {scheduler.address} cannot show it ({error}): run `pip install bokeh` where it runs"
            )

    def tell(self, comm: Any = None, run: str = "", client: str = "", messages: Any = ()) -> dict[str, Any]:
        """Take messages of a run; answer whether somebody looks."""
        now = time.time()
        self.board.take(run, client, messages, now)
        shown = self.board.runs.get(run)
        told = {"known": shown is not None, "drawn": shown is not None and bool(shown.counted)}
        return {"looked_at": now - self.looked < LOOKED, "off": self.off, "prefix": self.prefix, **told}

    # -- what tasks take ----------------------------------------------------------------------------------------

    def update_graph(self, scheduler: Any, *, client: str, tasks: Any = (), **more: Any) -> None:
        """Note whose tasks come."""
        run = self.board.of(client)
        if run is not None:
            if len(self._owners) > OWNED:
                self._owners.clear()
            self._owners.update(dict.fromkeys(tasks, run))

    def transition(self, key: Any, start: Any, finish: Any, *args: Any, **more: Any) -> None:
        """Note what a task took."""
        if finish not in ("memory", "erred", "forgotten") or key not in self._owners:
            return
        run = self._owners.pop(key)
        if finish == "memory" and start == "processing":
            spent: dict[str, float] = {"exchange": self._gangs.pop(key, 0.0)}
            for part in more.get("startstops") or ():
                spent[part["action"]] = spent.get(part["action"], 0.0) + part["stop"] - part["start"]
            name = key if isinstance(key, str) else str(key[0])
            run.ran(key, name.partition("-")[0], str(more.get("worker", "")), spent)
            if is_readable(key):
                run.ran_node(key, spent.get("compute", 0.0))

    def log_event(self, topic: Any, msg: Any) -> None:
        """Hear from members of gangs for how long they exchanged."""
        if topic == TOPIC and isinstance(msg, Mapping) and msg.get("key") in self._owners:
            self._gangs[msg["key"]] = float(msg["seconds"])

    # -- what is kept -------------------------------------------------------------------------------------------

    def kept(self, client: str) -> frozenset[tuple[str, str]]:
        """Return groups and names of the nodes and edges whose values a client keeps in memory; looked at now and then."""
        there = self.scheduler.clients.get(client)
        if there is None:
            return frozenset()
        budget, found = self._kept.get(client) or (Budget(KEPT_SHARE, KEPT_SECONDS, 0.0), frozenset())
        start = time.perf_counter()
        if budget.allows(start):
            wanted = islice(there.wants_what, KEPT_KEYS)
            found = frozenset(task.key[:2] for task in wanted if is_readable(task.key) and task.state == "memory")
            budget.spent(start, time.perf_counter() - start)
            self._kept[client] = budget, found
        return found

    def remove_worker(self, scheduler: Any, worker: str, **more: Any) -> None:
        """Note that a worker is gone, so that who loses something by it can say so."""
        self.board.worker_left(worker)

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Note that a client is gone."""
        self.board.left(client)
        self._kept.pop(client, None)


async def dask_setup(scheduler: Any) -> None:
    """Add the page to a scheduler that is started with ``--preload flowgrad.scheduler.dashboard``."""
    await scheduler.register_scheduler_plugin(Dashboard(), idempotent=True)

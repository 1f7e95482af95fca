"""The way from a client to the page of its scheduler, for messages that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary, ref

from distributed.protocol.pickle import dumps

from ..dashboard import OPERATION, PAGE, QUIET, Dashboard, describe
from ..executors import disagreement, lacks_flowgrad

# Seconds that the scheduler may take for an answer, and messages in a row that may fail before no more are sent.
PATIENCE, FAILURES = 10.0, 3
# Seconds that the end of `fit` may wait for an answer.
MOMENT = 1.0

_links: WeakKeyDictionary[Any, Link] = WeakKeyDictionary()


class Link:
    """The way from a client to the page of its scheduler.

    Attributes
    ----------
    off : str
        Why nothing can be told; empty if it can.
    looked_at : bool
        Whether somebody had the page open when the scheduler answered last.
    known, drawn : str
        The run of which the scheduler said last that it knows of its beginning, and has its graph.
    """

    def __init__(self, client: Any):
        self._client = ref(client)  # links are kept by client
        self.off = self.known = self.drawn = self.prefix = ""
        self.looked_at = self.told_off = False
        self._waiting: Any = None
        self._shown, self._failures = False, 0

    @property
    def client(self) -> Any:
        """The client, as long as somebody has it."""
        return self._client()

    @property
    def ready(self) -> bool:
        """Whether the last message was answered, so that the next one may go."""
        return self._waiting is None or self._waiting.done()

    def send(self, run: str, messages: Sequence[Any], delay: float = 0.0) -> None:
        """Send messages, if there are any after the delay; return at once."""
        loop = self.client.loop.asyncio_loop
        self._waiting = asyncio.run_coroutine_threadsafe(self._send(run, messages, delay), loop)

    def wait(self) -> None:
        """Wait for the answer to the last message, a moment at the most: a client that is closed at once would take it along."""
        with suppress(Exception):
            self._waiting.result(MOMENT)

    async def show(self) -> None:
        """Have the scheduler add the page; know afterwards whether it could."""
        await self._send("", [("hello", {})])

    async def _send(self, run: str, messages: Sequence[Any], delay: float = 0.0) -> None:
        await asyncio.sleep(delay)
        if not messages:
            return
        if lacks_flowgrad(self.client):
            self.off = f"{QUIET} it was said when it was asked for its version"
            return
        try:
            self.off = await asyncio.wait_for(self._sent(run, messages), PATIENCE)
            self._failures = 0
        except Exception as error:  # whatever the scheduler is
            self._shown, self._failures, self.known = False, self._failures + 1, ""
            if isinstance(error, ImportError):
                self.off = disagreement(f"the scheduler {self.client.scheduler.address}", ("", str(error)))
            elif self._failures >= FAILURES:
                self.off = f"the scheduler takes no messages ({describe(error)})"

    async def _sent(self, run: str, messages: Sequence[Any]) -> str:
        rpc = self.client.scheduler
        if not self._shown:
            await rpc.register_scheduler_plugin(plugin=dumps(Dashboard()), name=Dashboard.name, idempotent=True)
            self._shown = True
        answer = await getattr(rpc, OPERATION)(run=run, client=self.client.id, messages=messages)
        self.prefix = str(answer["prefix"])
        self.looked_at = bool(answer["looked_at"])
        self.known, self.drawn = (run if answer[what] else "" for what in ("known", "drawn"))
        return str(answer["off"])


def link_of(client: Any) -> Link:
    """Return the link of a client, one for all its trainings."""
    return _links.setdefault(client, Link(client))


def page_address(client: Any) -> str | None:
    """Add the page to the dashboard of a client's scheduler, and return its address; None where there is none."""
    link = link_of(client)
    client.sync(link.show)
    base, _, _ = str(client.dashboard_link).rpartition("/status")
    return None if link.off else f"{base.removesuffix(link.prefix)}{link.prefix}/{PAGE}"

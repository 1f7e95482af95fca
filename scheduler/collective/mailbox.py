"""A worker's letters from the other members of its gangs: connections between workers, what came over them, and who is gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from distributed import Worker
from distributed.comm import CommClosedError
from distributed.core import Status
from distributed.protocol import to_serialize

from ..machine import keep_freed_memory
from .letter import Letter

# What dask's workers know us by.
OPERATION = "flowgrad_letters"
# Seconds between signs of life, and without any after which a member counts as gone.
BEAT, SILENCE = 1.0, 10.0
GONE = (CommClosedError, OSError, RuntimeError)
UNREACHABLE, BROKEN = "cannot be reached", "is gone: its connection broke"


@dataclass
class Box:
    """What came for one gang.

    Attributes
    ----------
    letters : dict
        By rank of the sender and number.
    here : set
        Ranks that said that they are there.
    lost : dict
        By rank that is gone: why.
    """

    changed: threading.Condition = field(default_factory=threading.Condition)
    letters: dict[tuple[int, int], Letter] = field(default_factory=dict)
    here: set[int] = field(default_factory=set)
    lost: dict[int, str] = field(default_factory=dict)

    def put(self, rank: int, letter: Letter | None) -> None:
        """Take a letter, or word that a member is there."""
        with self.changed:
            self.here.add(rank)
            if letter is not None:
                self.letters[rank, letter.number] = letter
            self.changed.notify_all()

    def lose(self, rank: int, reason: str) -> None:
        """Note that nothing more will come from a member."""
        with self.changed:
            self.lost.setdefault(rank, reason)
            self.changed.notify_all()

    def take(self, rank: int, number: int) -> Letter | str:
        """Wait for a letter; return why it will not come, if it will not."""
        with self.changed:
            while (rank, number) not in self.letters:
                if rank in self.lost:
                    return self.lost[rank]
                self.changed.wait()
            return self.letters.pop((rank, number))

    def wait_for(self, done: Callable[[], bool], seconds: float) -> bool:
        """Wait until something holds, for so long at most; return whether it does."""
        with self.changed:
            return self.changed.wait_for(done, seconds)


class Mailbox:
    """All gangs of a worker.

    Its coroutines run on the worker's event loop, members in threads of tasks.
    """

    def __init__(self, worker: Worker):
        self.worker = worker
        self.boxes: dict[str, Box] = {}
        self._lock = threading.Lock()
        self._guests: dict[str, int] = {}  # connections and members of each gang
        worker.handlers[OPERATION] = self._listen
        keep_freed_memory()

    @classmethod
    def of(cls, worker: Worker) -> Mailbox:
        """Return the mailbox of a worker; it is made when it is asked for first."""
        handler = worker.handlers.get(OPERATION)
        return cls(worker) if handler is None else handler.__self__

    def enter(self, gang: str) -> Box:
        """Return the box of a gang, which stays until everybody has left it."""
        with self._lock:
            self._guests[gang] = self._guests.get(gang, 0) + 1
            return self.boxes.setdefault(gang, Box())

    def leave(self, gang: str) -> None:
        """Let go of a box."""
        with self._lock:
            self._guests[gang] -= 1
            if not self._guests[gang]:
                del self._guests[gang], self.boxes[gang]

    def run(self, coroutine: Any) -> Future[Any]:
        """Run something on the event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.worker.loop.asyncio_loop)

    async def _listen(self, comm: Any, gang: str, rank: int) -> Any:
        """Take what a member sends, until its connection ends; tell it meanwhile that this process lives."""
        box = self.enter(gang)
        box.put(rank, None)
        beating = asyncio.create_task(_beat(comm))
        reason = BROKEN
        try:
            while (message := await comm.read()) is not None:
                box.put(rank, Letter(**message))
            reason = "has ended"
        except GONE:
            pass
        finally:  # whatever a letter may hold that cannot be read
            beating.cancel()
            box.lose(rank, reason)
            self.leave(gang)
        await comm.close()  # the sender waits for this: everything has arrived
        return Status.dont_reply


async def _beat(comm: Any) -> None:
    """Give signs of life on the way back of a connection: letters are on others, and no array, however large, delays them."""
    with suppress(*GONE):
        while True:
            await comm.write(None)
            await asyncio.sleep(BEAT)


class Line:
    """The connection to one member, on which this one writes, and reads that the other one lives."""

    def __init__(self, mailbox: Mailbox, box: Box, gang: str, rank: int, peer: int, address: str):
        self.mailbox, self.box, self.peer, self.address = mailbox, box, peer, address
        self.comm: Any = None
        self.open = False
        self._watching: asyncio.Task[None] | None = None
        self._opening = mailbox.run(self._open(gang, rank))

    async def _open(self, gang: str, rank: int) -> None:
        try:
            self.comm = await self.mailbox.worker.rpc.connect(self.address)
            self._watching = asyncio.create_task(self._watch())
            await self.comm.write({"op": OPERATION, "gang": gang, "rank": rank, "reply": False})
        except GONE as error:
            self.box.lose(self.peer, f"{UNREACHABLE} ({type(error).__name__}: {error})")
            return
        self.open = True
        with self.box.changed:
            self.box.changed.notify_all()

    def send(self, letter: Letter) -> None:
        """Send a letter; its array must stay as it is until a later one of the receiver's has come."""
        data = letter.data
        if data is not None:
            data = [to_serialize(a) for a in data] if isinstance(data, list) else to_serialize(data)
        self.mailbox.run(self._write(letter._replace(data=data)._asdict()))

    async def _write(self, message: Any) -> None:
        try:
            await self.comm.write(message)
        except GONE:
            self.box.lose(self.peer, BROKEN)
        except Exception as error:  # an array that cannot be sent: nobody waits for it
            self.box.lose(self.peer, f"could not be sent to: {type(error).__name__}: {error}")
            self.comm.abort()
            raise

    async def _watch(self) -> None:
        """Notice when the connection breaks or nothing comes back on it any more; then let go of it."""
        reason = BROKEN
        try:
            while True:
                await asyncio.wait_for(self.comm.read(), SILENCE)
        except TimeoutError:
            reason = f"has given no sign of life for {SILENCE:g} s"
        except GONE:
            pass
        finally:
            self.box.lose(self.peer, reason)
            self.comm.abort()
            self.mailbox.worker.rpc.reuse(self.address, self.comm)

    def close(self) -> None:
        """End the connection; what was sent before arrives, however long it takes."""
        self.mailbox.run(self._close())

    async def _close(self) -> None:
        await asyncio.wrap_future(self._opening)
        if self._watching is not None:
            with suppress(*GONE):
                await self.comm.write(None)

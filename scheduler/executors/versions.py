"""Which flowgrad a scheduler and its workers have, asked once of each for each client; what is sent to a scheduler without it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary, ref

from distributed import Client, get_worker
from distributed.protocol.pickle import dumps

import flowgrad as fg
from flowgrad.errors import ClusterError, warn

from ..tasks import sealed
from .base import Lost

# Seconds that a scheduler and workers may take to answer: some of them import flowgrad first.
ANSWER = 10.0
# Addresses of workers that a client has asked, and "" for the scheduler; None: it asks nobody.
_asked: WeakKeyDictionary[Client, set[str] | None] = WeakKeyDictionary()
# Clients that seal what they send, and whether their scheduler has another flowgrad or none.
_sealing: WeakKeyDictionary[Client, bool] = WeakKeyDictionary()


class Unread(Lost):
    """A scheduler could not read what it was sent, and can read it the next time."""


def asking(prepare: Callable[[Any], None] | None = None) -> Callable[..., tuple[str, str]]:
    """Return a function that says which flowgrad there is where it runs, and why there is none; it may `prepare` a worker too."""

    def version(dask_worker: Any = None) -> tuple[str, str]:
        # Pickled by value, being local: so it can say what is missing where flowgrad is.
        try:
            found = str(import_module("flowgrad").__version__)
            if prepare is not None:
                prepare(dask_worker)
        except (ImportError, AttributeError) as error:
            return "", str(error)
        return found, ""

    return version


def disagreement(who: str, answer: tuple[str, str]) -> str:
    """Return what is wrong with the flowgrad that there is, and what mends it; nothing if it is the one that is here."""
    found, error = answer
    if found == fg.__version__:
        return ""
    what = f"has flowgrad {found}" if found else f"cannot import flowgrad ({error})"
    return (
        f"{who} {what}, this client has flowgrad {fg.__version__}: install flowgrad {fg.__version__} where it runs, "
        f"and start it again"
    )


def unreadable(error: BaseException | None, client: Client) -> Unread | None:
    """Return what to raise where a scheduler could not read a graph; None of any other error.

    dask has schedulers unpickle graphs, and so import all modules that these name: flowgrad's, for tasks and their functions, and
    those of ops. From the first one on that it cannot read, a client seals what it sends.
    """
    if not isinstance(error, RuntimeError) or "deserialization of the task graph" not in str(error):
        return None
    _seal(client, lacks_flowgrad(client))
    why = f" ({error.__cause__})" if error.__cause__ else ""
    address = client.scheduler.address if client.scheduler else ""
    return Unread(
        f"the scheduler {address} could not read the graph that it was sent{why}: call again, for now it is sent what it can read"
    )


def lacks_flowgrad(client: Client) -> bool:
    """Whether the scheduler of a client said that it has another flowgrad or none."""
    return _sealing.get(client, False)


def _seal(client: Client, lacking: bool) -> None:
    """Have a client send, whatever is computed by it, graphs that its scheduler can read without flowgrad and modules of ops.

    There what is submitted, computed and persisted comes by, by whomever: arrays and collections that engines give, too.
    """
    if client not in _sealing:
        # A client that held itself would be collected at some time, in any thread.
        send, own = type(client)._graph_to_futures, ref(client)

        def send_sealed(expr: Any, *args: Any, **kwargs: Any) -> Any:
            with suppress(Exception):  # of what cannot be pickled dask tells as ever
                expr = sealed(expr, dumps)
            return send(own(), expr, *args, **kwargs)

        client._graph_to_futures = send_sealed
    _sealing[client] = lacking


def known_to_agree(client: Client) -> None:
    """Never ask the cluster of this client."""
    _asked[client] = None


def check_versions(client: Client, workers: Collection[str]) -> None:
    """Ask the scheduler, and those of the workers that have not been asked, which flowgrad they have; all in one round trip.

    To a scheduler that has another one or none all is sent sealed. Who does not answer is told of later, by who needs that answer.

    Raises
    ------
    ClusterError
        Names the worker that has another one or none, both versions and what to do.
    """
    asked = _asked.setdefault(client, set())
    if asked is None:
        return
    if workers:  # who has gone may come back as another one
        asked &= {"", *workers}
    new = {"", *workers} - asked
    if not new or client.asynchronous or not client.scheduler or client.status != "running":
        return
    with suppress(ValueError):  # no task; what a task runs in was asked by who sent it
        get_worker()
        return
    asked |= new
    if client.scheduler.address.startswith("inproc"):
        return
    waiting = asyncio.run_coroutine_threadsafe(_ask(client, new), client.loop.asyncio_loop)
    try:
        scheduler, others = waiting.result(ANSWER)
    except Exception:
        waiting.cancel()
        return
    who = f"the scheduler {client.scheduler.address}"
    if told := _told(who, scheduler, others):
        asked -= new
        raise ClusterError(told)
    if scheduler and (told := disagreement(who, scheduler)):
        _seal(client, True)
        warn(f"no live page: {told}; work goes on")


async def _ask(client: Client, who: set[str]) -> tuple[Any, dict[str, Any]]:
    version, workers = asking(), sorted(who - {""})
    return await asyncio.gather(
        client.run_on_scheduler(version, asynchronous=True) if "" in who else asyncio.sleep(0),
        client.run(version, workers=workers, on_error="return", asynchronous=True),
    )


def _told(scheduler: str, its: Any, others: Mapping[str, Any]) -> str:
    """Return what is wrong with workers, and what mends it; nothing if that is nothing."""
    answers = {f"worker {address}": answer for address, answer in others.items() if isinstance(answer, tuple)}
    there = {found for found, _ in (its or ("", ""), *answers.values())}
    if answers and len(there) == 1 and (found := there.pop()) not in ("", fg.__version__):
        return (
            f"{scheduler} and all of its workers have flowgrad {found}, this client has flowgrad {fg.__version__}: "
            f"install flowgrad {found} here, or {fg.__version__} there and start them again"
        )
    wrong = {who: answer for who, answer in answers.items() if disagreement(who, answer)}
    if not wrong:
        return ""
    who, answer = next(iter(wrong.items()))
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return disagreement(who + more, answer)

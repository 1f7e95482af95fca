"""Which flowgrad a scheduler and its workers have, asked once of each for each client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

from distributed import Client, get_worker

import flowgrad as fg
from flowgrad.errors import ClusterError

# Seconds that a scheduler and workers may take to answer: some of them import flowgrad first.
ANSWER = 10.0
# Addresses of workers that a client has asked, and "" for the scheduler; None: it asks nobody.
_asked: WeakKeyDictionary[Client, set[str] | None] = WeakKeyDictionary()


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
        f"{who} {what}, this client has flowgrad {fg.__version__}: run `pip install flowgrad=={fg.__version__}` where it runs, "
        f"and start it again"
    )


def unreadable(error: BaseException | None, client: Client) -> ClusterError | None:
    """Return what to say where a scheduler could not read a graph; None of any other error.

    dask has schedulers unpickle graphs, and so import all modules that these name: flowgrad's, for tasks and their functions, and
    those of ops.
    """
    if not isinstance(error, RuntimeError) or "deserialization of the task graph" not in str(error):
        return None
    why = f" ({error.__cause__})" if error.__cause__ else ""
    address = client.scheduler.address if client.scheduler else ""
    return ClusterError(
        f"the scheduler {address} cannot read the graph that it is sent{why}: it needs flowgrad {fg.__version__} and the "
        f"modules of your ops as workers do; run `pip install flowgrad=={fg.__version__}` where it runs, and start it again"
    )


def known_to_agree(client: Client) -> None:
    """Never ask the cluster of this client."""
    _asked[client] = None


def check_versions(client: Client, workers: Collection[str]) -> None:
    """Ask the scheduler, and those of the workers that have not been asked, which flowgrad they have; all in one round trip.

    A scheduler reads the graphs that it is sent, and with them what they name of flowgrad. Who does not answer is told of later, by
    who needs that answer.

    Raises
    ------
    ClusterError
        Names who has another one or none, both versions and what to do.
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
        answers = waiting.result(ANSWER)
    except Exception:
        waiting.cancel()
        return
    if told := _told({who: answer for who, answer in answers.items() if isinstance(answer, tuple)}):
        asked -= new
        raise ClusterError(told)


async def _ask(client: Client, who: set[str]) -> dict[str, Any]:
    version, workers = asking(), sorted(who - {""})
    scheduler, others = await asyncio.gather(
        client.run_on_scheduler(version, asynchronous=True) if "" in who else asyncio.sleep(0),
        client.run(version, workers=workers, on_error="return", asynchronous=True),
    )
    answers = {f"worker {address}": answer for address, answer in others.items()}
    return ({f"the scheduler {client.scheduler.address}": scheduler} if "" in who else {}) | answers


def _told(answers: Mapping[str, tuple[str, str]]) -> str:
    there = {found for found, _ in answers.values()}
    first = next(iter(answers), "")
    everybody = first.startswith("the scheduler") and len(there) == 1 and len(answers) > 1
    if everybody and (found := there.pop()) not in ("", fg.__version__):
        return (
            f"{first} and all of its workers have flowgrad {found}, this client has flowgrad {fg.__version__}: "
            f"run `pip install flowgrad=={found}` here, or that of {fg.__version__} there and start them again"
        )
    wrong = {who: answer for who, answer in answers.items() if disagreement(who, answer)}
    if not wrong:
        return ""
    who, answer = next(iter(wrong.items()))
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return disagreement(who + more, answer)

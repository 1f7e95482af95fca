"""The client's side of a gang: one order for all of its workers, a task for each member, and again where not all of them met."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

from distributed import Client, Future, Semaphore
from distributed.protocol.pickle import dumps
from distributed.scheduler import KilledWorker

from flowgrad.errors import ClusterError
from flowgrad.inputs import real

from ..executors import (
    Handle,
    Lost,
    TaskFailed,
    Unread,
    answered,
    asking,
    check_versions,
    disagreement,
    known_workers,
    own_thread_left,
    unreadable,
)
from .group import GangBroken
from .member import LONGEST_PATIENCE, PATIENCE, Absent, Spec, inside_a_gang, run_member

# Seconds between looks at whether the workers are still there, and that one may be gone before it counts as lost.
LOOK, GONE = 1.0, 3.0
# How often a gang is formed whose members have a thread but cannot reach each other.
TRIES = 3
# Seconds that a gang within a gang waits for a worker, which the outer one may hold until this one ends.
NESTED = 10.0
# Seconds that workers may take to make their mailboxes.
PREPARING = 30.0
# Addresses of workers that have a mailbox.
_prepared: WeakKeyDictionary[Client, set[str]] = WeakKeyDictionary()


def gang(
    client: Client,
    function: Callable[..., Any],
    arguments: Sequence[Any],
    workers: Sequence[str] | None = None,
    timeout: float | None = None,
) -> list[Any]:
    """Call a function once on each of several workers, all at the same time, and return the answers in order.

    The function is called as ``function(group, *arguments[i])`` on the worker of rank ``i``. By ``group.all_reduce(a)``,
    ``reduce_scatter(a)``, ``all_gather(a)`` and ``barrier()`` the members exchange arrays; ``group.rank`` and ``group.size`` tell
    which one it is. All members run at the same time or none: two gangs on the same workers never wait for each other's halves.

    Nothing is run again: if a member is lost or raises an exception, all of them end, and that error is raised here.

    Parameters
    ----------
    client : distributed.Client
        Of any cluster whose workers have flowgrad installed.
    function : callable
    arguments : sequence
        For each member a tuple of arguments; anything else is its only one.
    workers : sequence of str, optional
        Their addresses, by rank; any that there are if not given.
    timeout : float, optional
        Seconds after which it is given up.

    Raises
    ------
    ClusterError
        If there are fewer workers than arguments, a worker is lost, or time is over.

    Examples
    --------
    >>> import flowgrad as fg, numpy as np
    >>> from distributed import Client, LocalCluster
    >>> def mean(group, part):
    ...     return float(group.all_reduce(np.array([part.sum(), len(part)])).tolist()[0] / 6)
    >>> cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None)
    >>> with cluster, Client(cluster) as client:
    ...     fg.gang(client, mean, [np.arange(4.0), np.arange(4.0, 6.0)])
    [2.5, 2.5]
    """
    _check_client(client)
    if not callable(function):
        raise ClusterError(f"a gang calls a function on each worker, and {function!r} is none")
    if timeout is not None:
        timeout = real(timeout, "a gang's timeout, in seconds,", 0, above=True)
    if not isinstance(arguments, Iterable):
        raise ClusterError(f"a gang's arguments are a sequence, an entry for each member, not {arguments!r}")
    calls = [a if isinstance(a, tuple) else (a,) for a in arguments]
    known = known_workers(client)
    places = list(known) if workers is None else list(workers)
    if not calls or len(calls) > len(places):
        raise ClusterError(
            f"a gang of {len(calls)} needs as many workers, and there are {len(places)}: give fewer arguments or start workers"
        )
    strange = [address for address in places if address not in known]
    if strange or len(set(places)) < len(places):
        raise ClusterError(
            f"workers are given by their addresses, each once: {strange[0] if strange else places} is none"
        )
    places = places[: len(calls)]

    def submit(spec: Spec) -> list[Future]:
        try:
            return [
                client.submit(
                    run_member, spec, rank, function, *own, key=f"gang-{spec.name}-{rank}", workers=[address],
                    allow_other_workers=False, pure=False, retries=0,
                )
                for rank, (own, address) in enumerate(zip(calls, places))
            ]  # fmt: skip
        except TypeError as error:
            raise _unsendable(function, calls) or error from None

    values, futures = run_together(client, places, submit, timeout)
    _release(futures)
    return values


def _unsendable(function: Callable[..., Any], calls: list[Any]) -> ClusterError | None:
    """Return which part of a gang's tasks cannot be sent; dask names the task only."""
    parts = {"function": function} | {f"arguments of rank {rank}": own for rank, own in enumerate(calls)}
    for name, part in parts.items():
        try:
            dumps(part)
        except Exception as error:
            return ClusterError(f"the {name} of a gang cannot be sent to a worker: {_line(error)}")
    return None


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]


def run_together(
    client: Client, addresses: Sequence[str], submit: Callable[[Spec], list[Future]], timeout: float | None = None
) -> tuple[list[Any], list[Future]]:
    """Run a gang's tasks; return their values, and the futures, which keep them on the workers.

    Parameters
    ----------
    addresses : sequence of str
        The workers, by rank.
    submit : callable
        Submits a task for each rank, which runs `run_member` on its worker and nowhere else; is called once for each attempt.
    """
    end = None if timeout is None else time.monotonic() + timeout
    _check_client(client)
    unreachable, patience, unread = 0, PATIENCE, False
    members = {address: f"rank {rank} ({address})" for rank, address in enumerate(addresses)}
    with own_thread_left(), _order(client, members, end):
        while True:
            _prepare(client, addresses)
            spec = Spec(uuid.uuid4().hex, tuple(addresses), patience)
            futures = submit(spec)
            try:
                values = _outcome(client, futures, members, end)
            except Unread:
                if unread:
                    raise
                unread = True
                continue
            if not any(isinstance(value, Absent) for value in values):
                return values, futures
            _release(futures)
            if not all(isinstance(value, Absent) for value in values):
                absent = next(rank for value in values if isinstance(value, Absent) for rank in value.ranks)
                raise GangBroken(f"{members[addresses[absent]]} was lost while the gang met")
            unreachable += any(value.unreachable for value in values)
            if unreachable == TRIES:
                cut_off = next(value.unreachable for value in values if value.unreachable)
                raise ClusterError(
                    f"workers of a gang cannot reach each other: {cut_off}; open the network between them"
                )
            away = {addresses[rank] for value in values for rank in value.ranks}
            _wait_for_threads(client, {address: members[address] for address in sorted(away)}, end)
            # It may be a worker that was started again at its address; or what its task needs takes longer to come.
            _prepared[client] -= away
            patience = min(2 * patience, LONGEST_PATIENCE)


def run_gang(
    executor: Any, addresses: Sequence[str], submit: Callable[[Spec], list[Handle]]
) -> tuple[list[Any], list[Handle]]:
    """Run a gang of an executor's tasks, see `run_together`; a broken one may be run again.

    Raises
    ------
    Lost
        If a member is gone.
    TaskFailed
        If one raised an exception.
    """
    held: list[Handle] = []

    def futures(spec: Spec) -> list[Future]:
        executor.release(held)
        held[:] = submit(spec)
        return [handle.future for handle in held]

    try:
        return run_together(executor.client, addresses, futures)[0], held
    except GangBroken as error:
        failure: Exception = Lost(str(error))
    except KilledWorker as error:
        failure = Lost(str(error), killed=str(error.task))
    except ClusterError:
        raise
    except Exception as error:
        worker = getattr(error, "flowgrad_worker", "")
        # What no task raised is about connections; if it is the scheduler that is gone, who asks for workers next is told.
        lost = isinstance(error, (OSError, TimeoutError, CancelledError)) and not worker
        failure = Lost(f"{type(error).__name__}: {error}") if lost else TaskFailed(error, worker)
    executor.release(held)
    raise failure


def _check_client(client: Client) -> None:
    if not isinstance(client, Client):
        raise ClusterError(
            f"a gang is formed by a distributed.Client, not by {client!r}: give Client(cluster) or Client(address)"
        )
    if client.status in ("closing", "closed"):
        raise ClusterError("the client is closed: make a new one")
    if client.asynchronous:
        raise ClusterError(
            "a gang is waited for, which an asynchronous client cannot do here: call it in a thread of its own, "
            "as `await asyncio.to_thread(fg.gang, client, ...)`"
        )


def _prepare(client: Client, addresses: Sequence[str]) -> None:
    """Give workers a mailbox that have none.

    Not by a plugin: a worker that cannot import flowgrad could not even start then.
    """
    ready = _prepared.setdefault(client, set())
    new = [address for address in addresses if address not in ready]
    if not new:
        return

    def make_mailbox(dask_worker: Any) -> None:
        import_module("flowgrad.scheduler.collective.mailbox").Mailbox.of(dask_worker)

    check_versions(client, [])
    try:
        answers = client.run(asking(make_mailbox), workers=new, on_error="return", callback_timeout=PREPARING)
    except TimeoutError:
        raise GangBroken(f"a worker has not answered for {PREPARING:g} s") from None
    for address, answer in answers.items():
        if isinstance(answer, Exception):
            raise GangBroken(f"worker {address} went away ({answer})")
        if told := disagreement(f"worker {address}", answer):
            raise ClusterError(told)
    ready.update(new)


@contextmanager
def _order(client: Client, members: Mapping[str, str], end: float | None) -> Iterator[None]:
    """Hold a thread of each worker, so that no other gang waits on one of them for half of its members.

    Leases are asked for in one order, so that two gangs never wait for each other. Those of a client that died end by themselves.
    """
    threads = {address: int(w["nthreads"]) for address, w in known_workers(client).items()}
    with ExitStack() as held:
        for address in sorted(members):
            limit = threads.get(address, 1)
            # A worker that is started again at its address may have more threads; a semaphore's limit never changes.
            name = f"flowgrad-gang-{address}-{limit}"
            lease = Semaphore(limit, name, scheduler_rpc=client.scheduler, loop=client.loop)
            # It would go on looking after its leases for ever; there is none where they do not end.
            if callback := getattr(lease, "refresh_callback", None):
                held.callback(client.loop.add_callback, callback.stop)
            began = time.monotonic()
            while not answered(client, partial(lease.acquire, timeout=LOOK)):
                if gone := _check(client, members, end):
                    raise GangBroken(f"{gone} went away")
                if inside_a_gang() and time.monotonic() - began > NESTED:
                    raise ClusterError(
                        f"this gang is formed by a member of another one, and {address} has no thread beside those of gangs: "
                        f"form it before or after, or give it other workers"
                    )
            held.callback(client.loop.add_callback, lease.release)
        yield


def _check(client: Client, members: Mapping[str, str], end: float | None) -> str:
    """Return the member whose worker is gone, if one is; raise if time is over."""
    if end is not None and time.monotonic() > end:
        raise ClusterError(
            "the gang has not ended in the time that it was given: give it more, or look at what workers do"
        )
    there = known_workers(client)
    return next((name for address, name in members.items() if address not in there), "")


def _outcome(client: Client, futures: list[Future], members: Mapping[str, str], end: float | None) -> list[Any]:
    """Wait for all members and return their values; raise what the first to fail raised, and let go of them all."""
    try:
        gone_since = failed_since = math.inf
        while pending := [f for f in futures if f.status == "pending"]:
            try:
                with suppress(CancelledError):  # its status tells
                    pending[-1].exception(timeout=LOOK)
                continue
            except TimeoutError:
                now = time.monotonic()
            if any(f.status == "error" for f in futures):
                failed_since = min(failed_since, now)
            if now - failed_since > GONE:  # the others, who notice as fast as they can, may be stopped
                break
            gone_since = min(gone_since, now) if (gone := _check(client, members, end)) else math.inf
            if now - gone_since > GONE:
                raise GangBroken(f"{gone} went away")
        errors = [error for error in (f.exception() for f in futures if f.status == "error") if error is not None]
        for error in errors:
            if told := unreadable(error, client):
                raise told
        if errors:
            # What broke the gang was raised by one member; the others only noticed that it was gone.
            raise next((e for e in errors if not isinstance(e, GangBroken)), errors[0])
        for future, name in zip(futures, members.values()):
            if future.status != "finished":
                raise GangBroken(f"{name} was lost with its worker")
        return _gathered(client, futures, members, end)
    except BaseException:
        client.cancel(futures)
        _release(futures)
        raise


def _gathered(client: Client, futures: list[Future], members: Mapping[str, str], end: float | None) -> list[Any]:
    """Bring values here; those of a worker that has just gone, and alone could make them again, dask would wait for for ever."""
    coming = asyncio.run_coroutine_threadsafe(client.gather(futures, asynchronous=True), client.loop.asyncio_loop)
    gone_since = math.inf
    try:
        while True:
            try:
                return list(coming.result(LOOK))
            except (CancelledError, OSError, TimeoutError) as error:
                if coming.done():
                    raise GangBroken(f"what a member returned was lost on its way ({type(error).__name__})") from None
            except Exception as error:  # dask does not say of which one
                if len(futures) > 1:
                    for future, (address, name) in zip(futures, members.items()):
                        _gathered(client, [future], {address: name}, end)
                names = " or ".join(members.values())
                raise ClusterError(f"what {names} returned cannot be brought here: {_line(error)}") from None
            gone_since = min(gone_since, time.monotonic()) if (gone := _check(client, members, end)) else math.inf
            if time.monotonic() - gone_since > GONE:
                raise GangBroken(f"{gone} went away before what it returned was here")
    finally:
        coming.cancel()


def _release(futures: list[Future]) -> None:
    for future in futures:  # a frame that waited may be held by what it waited for, until garbage is collected
        future.release()


def _wait_for_threads(client: Client, members: Mapping[str, str], end: float | None) -> None:
    """Wait until each of these workers has a thread for us: something of its own may keep it for as long as it likes."""
    asked = [
        client.submit(
            _nothing, key=f"gang-thread-{uuid.uuid4().hex}", workers=[a], allow_other_workers=False, pure=False
        )
        for a in members
    ]
    _outcome(client, asked, members, end)
    _release(asked)


def _nothing() -> None:
    pass

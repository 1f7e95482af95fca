"""Places in which an engine is used, and calls made there; a script of its own, for what goes wrong there hangs.

``python tests/places.py PLACE CALL...`` makes these calls in that place and compares them with calls made here.
"""

import asyncio
import atexit
import faulthandler
import gc
import multiprocessing
import multiprocessing.pool
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

import dask
import joblib
import numpy as np
import pytest
from distributed import Client, LocalCluster, get_client, worker_client

import flowgrad as fg
from flowgrad.errors import ClusterError
from flowgrad.scheduler.machine import blas, forks, one_thread, without_collection

SAMPLES = 240
# Seconds after which a place is given up.
PATIENCE = 100


def net():
    with fg.Graph(seed=0) as graph:
        x, t = fg.Variable(3, trainable=False), fg.Variable(1, trainable=False)
        hidden = fg.Vectorize(*(fg.Tanh(fg.Dot(fg.Variable(3, True), x)) for _ in range(4)))
        loss = fg.MeanSquaredError(fg.Dot(fg.Variable(4, True), hidden), t)
    X = np.random.default_rng(0).normal(size=(SAMPLES, 3))
    return graph, hidden, loss, {x: X, t: X[:, 0]}


def trained(engine):
    graph, _, loss, feeds = net()
    trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=16), engine)
    trainer.fit(feeds, epochs=2)
    return [v.value for v in trainer.optimizer.variables()]


def evaluated(engine):
    graph, _, loss, feeds = net()
    return [np.array(fg.Trainer(fg.Adam(graph, loss), engine).evaluate(feeds)["loss"])]


def forward(engine):
    _, _, loss, feeds = net()
    return [engine.forward(loss, feeds)]


def gradient(engine):
    _, _, loss, feeds = net()
    return list(engine.gradient(loss, feeds).values())


def jacobian(engine):
    _, hidden, _, feeds = net()
    return [engine.jacobian(hidden, next(iter(feeds)), feeds)]


def per_sample(engine):
    _, _, loss, feeds = net()
    return [engine.per_sample_gradients(loss, feeds).norms()]


CALLS = {
    "forward": forward,
    "gradient": gradient,
    "jacobian": jacobian,
    "per_sample": per_sample,
    "fit": trained,
    "evaluate": evaluated,
}
EXACT = ("forward", "gradient", "fit", "evaluate")  # of derivatives bits are not promised


def make(call, where=None):
    """Make a call on an engine made here; shards let an engine on threads use its pool."""
    return CALLS[call](fg.Engine(where, shards=4))


def check(call, *several):
    expected = make(call, "sync")
    for arrays in several:
        for mine, theirs in zip(arrays, expected, strict=True):
            close = np.array_equal if call in EXACT else np.allclose
            assert close(mine, theirs), (call, mine, theirs)


@contextmanager
def client_of(workers=2, **settings):
    """Yield the client of a cluster of processes with a thread each, that is not dask's default."""
    settings = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": 0, **settings}
    with (
        LocalCluster(host="127.0.0.1", dashboard_address="127.0.0.1:0", **settings) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


# -- tasks --


def on_the_cluster(call):
    return make(call, get_client())


def by_a_worker_client(call):
    with worker_client() as client:
        return make(call, client)


def by_an_address(call):
    return make(call, get_client().scheduler.address)


def by_another_task(call, inner):
    client = get_client()
    futures = [client.submit(inner, call, pure=False) for _ in range(2)]
    with worker_client() as client:
        values = [future.result() for future in futures]
    return [*values, inner(call)]


async def in_a_coroutine(call):
    return make(call)


def in_tasks(work):
    def place(calls):
        with client_of() as client:
            for call in calls:
                futures = [client.submit(work, call, pure=False) for _ in range(4)]
                check(call, *client.gather(futures))

    return place


def in_tasks_of_tasks(inner):
    def place(calls):
        with client_of() as client:
            for call in calls:
                futures = [client.submit(by_another_task, call, inner, pure=False) for _ in range(2)]
                check(call, *(value for values in client.gather(futures) for value in values))

    return place


def by_one_engine_for_all_tasks(call):
    import builtins

    engine = builtins.__dict__.setdefault("_engine_of_this_worker", None)
    if engine is None:
        engine = builtins._engine_of_this_worker = fg.Engine(get_client(), shards=4)
    return CALLS[call](engine)


def plan_of(where=None):
    """Return the plan of a training, without the threads that there are for it."""
    graph, _, loss, feeds = net()
    history = fg.Trainer(fg.Adam(graph, loss, batch_size=16), fg.Engine(where)).fit(feeds, epochs=1)
    return {name: history.plan[name] for name in ("grain", "shards", "kernel")}


def the_same_plan(calls):
    with client_of() as client:
        assert client.submit(plan_of).result() == plan_of("threads")


# -- forks and processes --


def pool(calls):
    for call in calls:
        check(call, make(call, "threads"))
        with multiprocessing.get_context("fork").Pool(2) as workers:
            check(call, *workers.map(make, [call] * 4))
        check(call, make(call, "threads"))


def spawned(calls):
    with multiprocessing.get_context("spawn").Pool(2) as workers:
        for call in calls:
            check(call, *workers.map(make, [call] * 2))


def executor_of_processes(calls):
    for call in calls:
        check(call, make(call, "threads"))
        with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as workers:
            check(call, *workers.map(make, [call] * 4))


def in_child(work, *args):
    """Fork, call a function in the child, and wait for it to end well."""
    if not (child := os.fork()):
        try:
            work(*args)
            os._exit(0)
        except BaseException as error:
            print(f"in the child: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
    end = time.monotonic() + PATIENCE / 2
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGABRT)  # it tells where its threads are
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0


def with_engine(engine, *calls):
    for call in calls:
        check(call, CALLS[call](engine))


def preforked(calls):
    """As web servers do it: the engine is loaded, and used, before the fork, and goes on on both sides."""
    engine = fg.Engine("threads", shards=4)
    for call in calls:
        check(call, CALLS[call](engine))
        for _ in range(2):
            in_child(with_engine, engine, call)
        check(call, CALLS[call](engine))


def grandchild(call):
    check(call, make(call))
    in_child(with_engine, fg.Engine("threads", shards=4), call)


def forked_twice(calls):
    for call in calls:
        check(call, make(call, "threads"))
        in_child(grandchild, call)


def forked_in_a_thread(calls):
    failed = []

    def run(call):
        try:
            check(call, make(call, "threads"))
            in_child(with_engine, fg.Engine("threads", shards=4), call)
        except BaseException as error:
            failed.append(error)

    for call in calls:
        thread = threading.Thread(target=run, args=(call,))
        thread.start()
        thread.join()
    assert not failed, failed


def forked_in_a_callback(calls):
    """While its graph is being trained; the child trains it too."""
    graph, _, loss, feeds = net()
    trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=16), fg.Engine("threads", shards=4))

    def child():
        trainer.optimizer.variables()[0].set_value(np.zeros(3))
        fg.Trainer(fg.Adam(graph, loss, batch_size=16), fg.Engine("threads", shards=4)).fit(feeds, epochs=1)
        for call in calls:
            check(call, make(call))

    class Forking(fg.Callback):
        def on_epoch(self, record):
            in_child(child)

    fg.Trainer(trainer.optimizer, trainer.engine, callbacks=[Forking()]).fit(feeds, epochs=1)


def as_if_nobody_else_were_there(engine, *calls):
    assert gc.isenabled()
    assert blas._limit.users == 0
    with_engine(engine, *calls)
    assert gc.isenabled()


def forked_while_others_hold_locks(calls):
    engine, held, go_on = fg.Engine("threads", shards=4), threading.Event(), threading.Event()
    for call in calls:
        check(call, CALLS[call](engine))

    @without_collection
    def hold():
        with one_thread():
            hold_locks()

    def hold_locks():
        locks = list(forks._locks)
        for lock in locks:
            lock.acquire()
        held.set()
        go_on.wait()
        for lock in locks:
            lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        in_child(as_if_nobody_else_were_there, engine, *calls)
    finally:
        go_on.set()
        thread.join()


def forked_from_a_client(calls):
    """What belongs to the parent is refused; a connection of the child's own works, for large values too."""
    with client_of(1) as client, client.as_current():
        engine = fg.Engine(client, shards=4)
        for call in calls:
            check(call, CALLS[call](engine))

        def child():
            again = (lambda call=call: CALLS[call](engine) for call in calls)
            for attempt in (lambda: fg.Engine(client), fg.Engine, lambda: fg.Engine(client.cluster), *again):
                with pytest.raises(ClusterError, match="the process that this one was forked from"):
                    attempt()
            for call in calls:
                check(call, make(call, "threads"), make(call, client.scheduler.address))
            with fg.Graph():
                x = fg.Variable(1000, trainable=False)
                y = x * x
            ones = np.ones((4000, 1000))
            assert np.array_equal(fg.Engine(client.scheduler.address).forward(y, {x: ones}), ones)

        in_child(child)
        for call in calls:
            check(call, CALLS[call](engine))


# -- loops and threads --


def in_a_loop(calls):
    """As in a notebook, whose cells run within a loop."""

    async def main():
        with client_of() as client:
            for call in calls:
                for where in ("sync", "threads", None, client, client.cluster, client.scheduler.address):
                    check(call, make(call, where))
                check(call, await asyncio.to_thread(make, call, client))

    asyncio.run(main())


def asynchronous(calls):
    """Clients and clusters that cannot be waited for are refused at once, whoever finds them; those in a thread need not be."""

    async def main():
        settings = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
        async with (
            LocalCluster(asynchronous=True, **settings) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            for call in calls:
                for where in (client, cluster, None):
                    with pytest.raises(ClusterError, match="is asynchronous: give an address or a synchronous client"):
                        make(call, where)
                check(call, make(call, "threads"))
                check(call, await asyncio.to_thread(make, call, client))

    asyncio.run(main())


def adaptive(calls):
    with client_of(0) as client:
        client.cluster.adapt(minimum=0, maximum=1, interval="100ms", wait_count=2)
        for call in calls:
            check(call, make(call, client))
            while client.scheduler_info(n_workers=-1)["workers"]:
                gc.collect()  # an engine that is gone keeps its values until then
                time.sleep(0.05)


def threads(calls):
    engine = fg.Engine("threads", shards=4)
    with ThreadPoolExecutor(4) as workers:
        for call in calls:
            check(call, *workers.map(CALLS[call], [engine] * 4))
            check(call, *workers.map(make, [call] * 4))


def by_joblib(backend):
    def place(calls):
        for call in calls:
            check(call, *joblib.Parallel(2, backend)(joblib.delayed(make)(call) for _ in range(4)))

    return place


def by_dask(scheduler):
    """In a task of dask's own schedulers, whose threads then wait for an engine on threads."""

    def place(calls):
        for call in calls:
            tasks = [dask.delayed(make, pure=False)(call, "threads") for _ in range(4)]
            check(call, *dask.compute(*tasks, scheduler=scheduler))

    return place


def by_dask_in(make_pool):
    """In a pool that dask is set to take, smaller than there are tasks; engines on threads would take it too."""

    def place(calls):
        with make_pool(2) as workers, dask.config.set(pool=workers):
            by_dask("threads")(calls)

    return place


def at_exit(calls):
    """Threads cannot be started any more then."""

    def last():
        for call in calls:
            check(call, make(call, "threads"), make(call, "sync"))
        print("done", flush=True)

    atexit.register(last)


PLACES = {
    "task": in_tasks(make),
    "task, get_client": in_tasks(on_the_cluster),
    "task, worker_client": in_tasks(by_a_worker_client),
    "task, address": in_tasks(by_an_address),
    "task, shared engine": in_tasks(by_one_engine_for_all_tasks),
    "task, coroutine": in_tasks(in_a_coroutine),
    "task, plan": the_same_plan,
    "task of a task": in_tasks_of_tasks(make),
    "task of a task, get_client": in_tasks_of_tasks(on_the_cluster),
    "pool": pool,
    "spawned pool": spawned,
    "executor of processes": executor_of_processes,
    "preforked": preforked,
    "forked twice": forked_twice,
    "forked in a thread": forked_in_a_thread,
    "forked in a callback": forked_in_a_callback,
    "forked while others hold locks": forked_while_others_hold_locks,
    "forked from a client": forked_from_a_client,
    "loop": in_a_loop,
    "asynchronous": asynchronous,
    "adaptive": adaptive,
    "threads": threads,
    "joblib, threading": by_joblib("threading"),
    "joblib, loky": by_joblib("loky"),
    "dask, threads": by_dask("threads"),
    "dask, processes": by_dask("processes"),
    "dask, pool": by_dask_in(ThreadPoolExecutor),
    "dask, pool of multiprocessing": by_dask_in(multiprocessing.pool.ThreadPool),
    "at exit": at_exit,
}

if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    place, *calls = sys.argv[1:]
    PLACES[place](calls or list(CALLS))
    if place != "at exit":
        print("done")

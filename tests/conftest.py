"""Fixtures for all tests: executors, the shared folder with the reference data, hypothesis profiles."""

import gc
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

import dask
import faults
import pytest
from distributed import Client, LocalCluster
from distributed import client as client_module
from hypothesis import settings

from flowgrad.scheduler.collective import mailbox
from flowgrad.scheduler.executors.distributed import MARK, DistributedExecutor

ROOT = Path(__file__).parents[1]
SHARED = Path(__file__).parents[2] / "shared"

settings.register_profile("default", deadline=None, max_examples=40)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(config, items):
    """Leave slow tests out unless the person's own ``-m`` decides."""
    if config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in set(slow)]


@pytest.fixture(autouse=True)
def no_default_scheduler_is_left():
    """A client that stays the default of dask would run, or block, the tests that follow."""
    before = dask.config.get("scheduler", None)
    yield
    left = dask.config.get("scheduler", None)
    if left != before:  # only the test that left it fails
        dask.config.set(scheduler=before)
        client_module._set_global_client(None)
    assert left == before


@pytest.fixture(scope="module", autouse=True)
def what_is_there_already_is_not_collected():
    """Half a million objects of libraries and other tests make each collection 0.4 s, and some tests ask for dozens."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared():
    """Folder with the reference data and the data sets, beside the repository."""
    if not (SHARED / "reference_exact" / "reference.json").is_file():
        pytest.skip(f"the reference data is not there: {SHARED / 'reference_exact'}")
    return SHARED


def local_cluster(workers, threads=1, **settings):
    """Return a cluster of processes, on this machine only, without a dashboard."""
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=threads,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard": False},
        **{"memory_limit": 0, **settings},
    )


@pytest.fixture(scope="session")
def cluster():
    """Two workers; tests never change it."""
    with local_cluster(2) as cluster:
        yield cluster


@pytest.fixture(scope="session", autouse=True)
def what_tasks_cost_is_measured_once_on_a_cluster():
    """Not anew by each engine: that takes a second, and most tests make an engine."""
    measured = WeakKeyDictionary()
    with pytest.MonkeyPatch.context() as patch:
        by_client = property(lambda executor: measured.setdefault(executor.client, {}))
        patch.setattr(DistributedExecutor, "measured", by_client)
        yield


@pytest.fixture(scope="session")
def client(cluster):
    # Not the default client: the tests on threads must stay on threads.
    with Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def network(monkeypatch):
    """A function that makes a `Network` for the length of a block; `rates` are bits per second by name."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.network import Network

    if sys.platform != "linux" or shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("network namespaces need Linux and iproute2")

    @contextmanager
    def made(names, delay=0.0, **rates):
        try:
            net = Network(names, delay).__enter__()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
        try:
            for name, rate in rates.items():
                try:
                    net.limit(name, rate)
                except subprocess.CalledProcessError as error:
                    pytest.skip(f"links cannot be made slow here: {error.stderr.decode().strip()}")
            yield net
        finally:
            net.__exit__()

    return made


@pytest.fixture(scope="session")
def client_to_hurt():
    with local_cluster(2) as cluster, Client(cluster, set_as_default=False) as client:
        client.set_metadata(MARK, True)  # what comes back too late for its nanny is started again
        yield client


@pytest.fixture
def hurt(client_to_hurt):
    """A cluster for hurting: two workers, more than one of which may die during one task; ours, as `flowgrad train` has it."""
    # For as long as the test: a cluster that is not ours gives a worker up for good that is not back by then.
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}):
        faults.wait_for_two(client_to_hurt)
        faults.silence(client_to_hurt, mailbox.SILENCE)
        yield client_to_hurt


@pytest.fixture(scope="session", params=["sync", "threads", pytest.param("distributed", marks=pytest.mark.distributed)])
def executor(request):
    """Something that `fg.Engine` takes: each executor in turn."""
    return request.getfixturevalue("client") if request.param == "distributed" else request.param


# -- pages in a browser --


@pytest.fixture(scope="module")
def chromium():
    """A browser, for as long as a file's tests: its event loop would be in the way of others."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as started:
        try:
            browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"chromium does not start: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark", "narrow"])
def look(request):
    """How a page is looked at: light or dark, 1280 or 700 pixels wide."""
    return {"color_scheme": "dark" if request.param == "dark" else "light"} | {
        "viewport": {"width": 700 if request.param == "narrow" else 1280, "height": 860}
    }


@pytest.fixture
def visit(chromium, look):
    """Open a file without any network; at the end nothing may have been complained about."""
    context = chromium.new_context(**look, offline=True)
    errors = []

    def opened(path):
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield opened
    context.close()
    assert not errors

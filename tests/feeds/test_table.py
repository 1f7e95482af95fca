"""Every kind of feed in every call: right, or refused by the same line."""

import numpy as np
import pytest
from conftest import ROOT
from feed_table import CALLS, KINDS, Net, call, made

from flowgrad.errors import FeedError
from flowgrad.scheduler.feeds import Chunked, check_feeds


def test_the_page_is_current(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    script = __import__("list_feeds")
    assert script.page() == script.PAGE.read_text(encoding="utf-8"), "run `python docs/list_feeds.py`"
    rows = [line for line in script.page().splitlines() if line.startswith("| ") and not line.startswith("| kind")]
    assert len(rows) == len(KINDS) + 2


@pytest.fixture(scope="module")
def expected():
    net = Net("sync")
    return {name: call(name, net, net.feeds()) for name in CALLS}


@pytest.fixture(scope="module")
def nets(request):
    made = {}

    def net(where):
        if where not in made:
            made[where] = Net(request.getfixturevalue("client") if where == "cluster" else where)
        return made[where]

    return net


def check(name, calls, net, expected, folder, client):
    """Try a kind in some calls."""
    kind = KINDS[name]
    wrong, messages = {}, set()
    for what in calls:
        (folder / what).mkdir()
        feeds = net.feeds(**{kind.variable: made(name, folder / what, client)})
        try:
            found = call(what, net, feeds)
        except FeedError as error:
            messages.add(str(error))
            if kind.refusal is None or kind.refusal not in str(error) or "\n" in str(error):
                wrong[what] = str(error)
        except Exception as error:
            wrong[what] = f"{type(error).__name__}: {error}"
        else:
            if kind.refusal is not None:
                wrong[what] = "accepted"
            elif not np.allclose(found, expected[what], rtol=1e-12, atol=1e-12):
                wrong[what] = "other numbers"
    assert not wrong
    assert len(messages) <= 1


@pytest.mark.parametrize("name", KINDS)
def test_here(name, nets, expected, tmp_path, request):
    check(name, CALLS, nets("sync"), expected, tmp_path, lambda: request.getfixturevalue("client"))


@pytest.mark.parametrize("name", [name for name in KINDS if "dask" in name or "delayed" in name or "map" in name])
def test_chunks_on_threads(name, nets, expected, tmp_path, request):
    calls = ["fit", "forward", "per_sample_gradients"]
    check(name, calls, nets("threads"), expected, tmp_path, lambda: request.getfixturevalue("client"))


LEFT = (
    "dask array, cut along both axes",
    "dask array of unknown length",
    "dask frame",
    "delayed pandas frame",
    "future of scatter",
    "dask array that is persisted",
    "dask array made of a persisted one",
    "memory map, part of it",
)


@pytest.mark.distributed
@pytest.mark.parametrize("name", LEFT)
def test_nothing_is_brought_to_the_client(name, nets, tmp_path, client):
    net = nets("cluster")
    feeds = net.feeds(x=made(name, tmp_path, lambda: client))
    checked = check_feeds(net.graph, feeds, lazy=True, executor=net.engine.executor)
    found = checked.arrays[net.x]
    assert isinstance(found, Chunked)
    assert not any(isinstance(chunk, np.ndarray) for chunk in found.chunks)
    assert len(found) == checked.samples == 12


@pytest.mark.distributed
@pytest.mark.parametrize("name", KINDS)
def test_a_training_on_a_cluster(name, nets, expected, tmp_path, client):
    check(name, ["fit"], nets("cluster"), expected, tmp_path, lambda: client)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", KINDS)
def test_all_on_a_cluster(name, nets, expected, tmp_path, client):
    check(name, CALLS, nets("cluster"), expected, tmp_path, lambda: client)

"""Clusters that are not on this machine's loopback: encrypted, or on a network of their own with delays and a link that breaks."""

import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import local_cluster
from distributed import Client
from distributed.security import Security
from faults import train

from flowgrad.scheduler.executors.cluster import local_cluster as own_cluster


@pytest.mark.slow
@pytest.mark.distributed
def test_an_encrypted_cluster():
    pytest.importorskip("cryptography")
    security = Security.temporary()
    with (
        local_cluster(2, security=security, protocol="tls") as cluster,
        Client(cluster, security=security, set_as_default=False) as client,
    ):
        assert client.scheduler.address.startswith("tls://")
        assert train(client, 2, validation=True)[:2] == train("sync", 2, validation=True)[:2]


@pytest.mark.distributed
def test_own_clusters_are_reached_from_this_machine_only():
    if not Path("/proc/net/tcp").exists():
        pytest.skip("listening sockets are read from /proc/net/tcp, which this system lacks")
    with own_cluster(2, 1, dashboard=True) as client:
        processes = [os.getpid(), *client.run(os.getpid).values()]
        listening = sockets(processes)
        assert len(listening) >= 4  # scheduler, dashboard, workers
        assert {address for address, _ in listening} == {"127.0.0.1"}
        assert client.dashboard_link.startswith("http://127.0.0.1:")


def sockets(processes):
    """Return address and port of every TCP socket on which one of these processes listens."""
    inodes = set()
    for pid in processes:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link) if link.is_symlink() else ""
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net") / table
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                octets = [str(b) for b in reversed(bytes.fromhex(address))] if table == "tcp" else [address]
                found.add((".".join(octets), int(port, 16)))
    return found


# -- a network of its own --


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("cut", [False, True])
def test_a_link_is_cut(network, cut):
    with network(["scheduler", "one", "two", "client"], delay=1e-3) as net, ExitStack() as stack:
        address = net.cluster(stack, "scheduler", ["one", "two"])
        command = net.cut("one") if cut else []
        client = net.start(stack, "client", "netns", address, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, errors = client.communicate(timeout=180)
    assert client.returncode == 0, errors[-3000:]
    found = json.loads(out.splitlines()[-1])
    assert (found["fingerprint"], found["steps"]) == (train("sync", 10)[0], 150)
    assert bool(found["recoveries"]) == cut

"""Clusters that are not on this machine's loopback: encrypted, or on a network of their own with delays and a link that breaks."""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import local_cluster
from distributed import Client
from distributed.security import Security
from faults import train

from flowgrad.scheduler.executors.cluster import local_cluster as own_cluster

TESTS = Path(__file__).parents[1]


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

NET = "10.213.77"


class Network:
    """Network namespaces on one bridge; nothing in them reaches anything outside."""

    def __init__(self, names):
        self.tag = uuid.uuid4().hex[:4]
        self.names = names

    def __enter__(self):
        with ExitStack() as stack:
            self.bridge = self.space("net")
            run("ip", "netns", "add", self.bridge)
            stack.callback(run, "ip", "netns", "del", self.bridge)
            inside(self.bridge, "ip", "link", "add", "br0", "type", "bridge")
            inside(self.bridge, "ip", "link", "set", "br0", "up")
            for k, name in enumerate(self.names, 1):
                space, here, there = self.space(name), f"v{self.tag}{k}", f"p{self.tag}{k}"
                run("ip", "netns", "add", space)
                stack.callback(run, "ip", "netns", "del", space)
                run(
                    "ip",
                    "link",
                    "add",
                    here,
                    "netns",
                    space,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    there,
                    "netns",
                    self.bridge,
                )
                inside(self.bridge, "ip", "link", "set", there, "master", "br0", "up")
                inside(space, "ip", "addr", "add", f"{NET}.{k}/24", "dev", here)
                inside(space, "ip", "link", "set", here, "up")
                inside(space, "ip", "link", "set", "lo", "up")
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *exc):
        self.stack.close()

    def space(self, name):
        return f"fg-{self.tag}-{name}"

    def delay(self):
        """Delay every packet by a millisecond; return whether the kernel allows it."""
        try:
            for k, name in enumerate(self.names, 1):
                inside(
                    self.space(name), "tc", "qdisc", "add", "dev", f"v{self.tag}{k}", "root", "netem", "delay", "1ms"
                )
        except (subprocess.CalledProcessError, FileNotFoundError):
            return False
        return True

    def cut(self, name):
        """Return the command that breaks the link of a namespace."""
        k = self.names.index(name) + 1
        return ["ip", "netns", "exec", self.bridge, "ip", "link", "set", f"p{self.tag}{k}", "down"]

    def start(self, stack, name, *command, **settings):
        """Start a command in a namespace, for as long as `stack` lasts."""
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
        # A link that is cut closes no connection: they are given up after so long.
        env["DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP"] = "12s"
        command = ["ip", "netns", "exec", self.space(name), sys.executable, "-m", *command]
        process = stack.enter_context(subprocess.Popen(command, env=env, cwd=TESTS, text=True, **settings))
        stack.callback(process.kill)
        return process


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


def inside(space, *command):
    run("ip", "netns", "exec", space, *command)


@pytest.fixture
def network():
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need iproute2, which is not installed")
    try:
        with Network(["scheduler", "one", "two", "client"]) as found:
            yield found
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("cut", [False, True])
def test_a_link_is_cut(network, cut):
    delayed = network.delay()
    address = f"tcp://{NET}.1:8786"
    with ExitStack() as stack:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        scheduler = ("distributed.cli.dask_scheduler", "--host", f"{NET}.1", "--no-dashboard")
        network.start(stack, "scheduler", *scheduler, **quiet)
        time.sleep(2)
        for k, name in enumerate(("one", "two"), 2):
            worker = (
                "distributed.cli.dask_worker",
                address,
                "--host",
                f"{NET}.{k}",
                "--nthreads",
                "1",
                "--no-dashboard",
            )
            network.start(stack, name, *worker, **quiet)
        command = network.cut("one") if cut else []
        client = network.start(
            stack, "client", "netns", address, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, errors = client.communicate(timeout=180)
    assert client.returncode == 0, errors[-3000:]
    found = json.loads(out.splitlines()[-1])
    assert (found["fingerprint"], found["steps"]) == (train("sync", 10)[0], 150)
    assert bool(found["recoveries"]) == cut
    print("delayed by 1 ms" if delayed else "no delay: the kernel lacks netem")

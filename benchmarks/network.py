"""A network of its own on this machine: namespaces joined by a switch, links of some bandwidth and delay, links that are cut.

Linux, as root, with iproute2. Run as a module it is a switch that delays: not every kernel has netem.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Where processes in namespaces look for modules.
PATHS = (ROOT, ROOT / "tests", ROOT / "tests" / "collective")
NET = "10.213.77"
# What our own switch takes by itself for a packet, seconds.
OWN_DELAY = 1e-4
# Seconds of a link's bandwidth that it lets pass at once: so much comes early.
BURST = 6e-4


def run(*command: str) -> None:
    """Run a command."""
    subprocess.run(command, check=True, capture_output=True)


def inside(space: str, *command: str) -> None:
    """Run a command in a namespace."""
    run("ip", "netns", "exec", space, *command)


class Network:
    """Network namespaces on one switch; nothing in them reaches anything outside.

    Parameters
    ----------
    names : sequence of str
        The namespace ``names[k]`` has the address ``address(names[k])``.
    delay : float
        Seconds that every packet takes from one to another beside what it takes by itself.

    Raises
    ------
    CalledProcessError, FileNotFoundError
        Where there are no namespaces.
    """

    def __init__(self, names: Sequence[str], delay: float = 0.0):
        self.tag, self.names, self.delay = uuid.uuid4().hex[:4], list(names), delay

    def __enter__(self) -> Network:
        with ExitStack() as stack:
            self.switch = self.space("net")
            run("ip", "netns", "add", self.switch)
            stack.callback(run, "ip", "netns", "del", self.switch)
            for name in self.names:
                self._join(name, stack)
            if self.delay:
                ports = [self._there(name) for name in self.names]
                own = max(0.0, self.delay - OWN_DELAY)
                command = ["ip", "netns", "exec", self.switch, sys.executable, __file__, str(own), *ports]
                process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                stack.callback(process.kill)
                assert process.stdout is not None
                process.stdout.readline()
            else:
                inside(self.switch, "ip", "link", "add", "br0", "type", "bridge")
                inside(self.switch, "ip", "link", "set", "br0", "up")
                for name in self.names:
                    inside(self.switch, "ip", "link", "set", self._there(name), "master", "br0")
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stack.close()

    def _join(self, name: str, stack: ExitStack) -> None:
        space, here, there = self.space(name), self._here(name), self._there(name)
        run("ip", "netns", "add", space)
        stack.callback(run, "ip", "netns", "del", space)
        ends = ("link", "add", here, "netns", space, "type", "veth", "peer", "name", there, "netns", self.switch)
        run("ip", *ends)
        inside(self.switch, "ip", "link", "set", there, "up")
        inside(space, "ip", "addr", "add", f"{self.address(name)}/24", "dev", here)
        inside(space, "ip", "link", "set", here, "up")
        inside(space, "ip", "link", "set", "lo", "up")
        # As Linux has it unless it is told otherwise.
        inside(space, "ip", "route", "replace", f"{NET}.0/24", "dev", here, "congctl", "cubic")

    def space(self, name: str) -> str:
        """Return the namespace of a name."""
        return f"fg-{self.tag}-{name}"

    def address(self, name: str) -> str:
        """Return the address of a name."""
        return f"{NET}.{self.names.index(name) + 1}"

    def _here(self, name: str) -> str:
        return f"v{self.tag}{self.names.index(name)}"

    def _there(self, name: str) -> str:
        return f"p{self.tag}{self.names.index(name)}"

    def limit(self, name: str, rate: float) -> None:
        """Let so many bits per second pass, each way."""
        burst = max(3000, int(BURST * rate / 8))
        shape = ("root", "tbf", "rate", f"{rate:.0f}bit", "burst", str(burst), "latency", "400ms")
        inside(
            self.space(name), "ip", "link", "set", self._here(name), "gso_max_size", str(min(65_000, burst * 4 // 5))
        )
        inside(self.space(name), "tc", "qdisc", "replace", "dev", self._here(name), *shape)
        inside(self.switch, "tc", "qdisc", "replace", "dev", self._there(name), *shape)

    def cut(self, name: str) -> list[str]:
        """Return the command that breaks the link of a name."""
        return ["ip", "netns", "exec", self.switch, "ip", "link", "set", self._there(name), "down"]

    def part(self, one: str, other: str) -> list[str]:
        """Return the command after which nothing comes from one name to another; what it waits for is never told."""
        return ["ip", "netns", "exec", self.space(one), "ip", "route", "add", "blackhole", f"{self.address(other)}/32"]

    def start(self, stack: ExitStack, name: str, *command: str, **settings: Any) -> Any:
        """Start a Python module in a namespace, for as long as `stack` lasts."""
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS))}
        # A link that is cut closes no connection: they are given up after so long.
        env["DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP"] = "12s"
        full = ["ip", "netns", "exec", self.space(name), sys.executable, "-m", *command]
        process = stack.enter_context(subprocess.Popen(full, env=env, cwd=ROOT, text=True, **settings))
        stack.callback(process.kill)
        return process

    def cluster(self, stack: ExitStack, scheduler: str, workers: Sequence[str]) -> str:
        """Start a scheduler and workers of one thread; return its address."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        address, host = f"tcp://{self.address(scheduler)}:8786", ("--host", self.address(scheduler))
        self.start(stack, scheduler, "distributed.cli.dask_scheduler", *host, "--no-dashboard", **quiet)
        for name in workers:
            more = ("--host", self.address(name), "--nthreads", "1", "--no-nanny", "--no-dashboard")
            self.start(stack, name, "distributed.cli.dask_worker", address, *more, **quiet)
        return address


def switch(delay: float, ports: Sequence[str]) -> None:
    """Hand frames from port to port, `delay` seconds after they came."""
    # Numbers of linux/if_packet.h and asm/socket.h that Python does not name.
    ETH_P_ALL, SOL_PACKET, VNET_HDR, IGNORE_OUTGOING, SNDBUFFORCE, RCVBUFFORCE = 3, 263, 15, 23, 32, 33
    sockets = []
    for port in ports:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        raw.setsockopt(
            SOL_PACKET, VNET_HDR, 1
        )  # several segments of a connection at once, as they are handed on within a kernel
        raw.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
        for force in (SNDBUFFORCE, RCVBUFFORCE):  # a port whose queue is long must not hold up the others
            raw.setsockopt(socket.SOL_SOCKET, force, 1 << 28)
        raw.setblocking(False)
        raw.bind((port, ETH_P_ALL))
        sockets.append(raw)
    header, known = 10, {}
    waiting: deque[tuple[float, bytes, list[socket.socket]]] = deque()
    print("ready", flush=True)
    while True:
        left = max(0.0, waiting[0][0] - time.perf_counter()) if waiting else None
        for raw in select.select(sockets, [], [], left)[0]:
            try:
                frame = raw.recv(1 << 17)
            except OSError:  # the port has gone down
                continue
            target, source = frame[header : header + 6], frame[header + 6 : header + 12]
            known[source] = raw
            to = known.get(target)
            others = [other for other in sockets if other is not raw] if to is None else [to]
            waiting.append((time.perf_counter() + delay, frame, others))
        now = time.perf_counter()
        while waiting and waiting[0][0] <= now:
            _, frame, targets = waiting.popleft()
            for out in targets:
                try:
                    out.send(frame)
                except OSError:  # a port is down, or its queue is full
                    continue


if __name__ == "__main__":
    switch(float(sys.argv[1]), sys.argv[2:])

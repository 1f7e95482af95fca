"""What the live page costs: trainings on a cluster whose page is open, against one that has none, in turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import numpy as np
from bokeh.client import pull_session
from bokeh.protocol import Protocol

import flowgrad as fg
from benchmarks.cluster import net
from benchmarks.collective import stock
from benchmarks.turns import clean_environment
from flowgrad.scheduler.dashboard.page import Page
from flowgrad.scheduler.dashboard.plugin import Dashboard
from flowgrad.scheduler.telling import page_address, untold
from flowgrad.scheduler.telling.tell import Teller

# Grain, batch, samples of an epoch, epochs of a training.
SETTINGS = (("round", 32, 49_152, 24), ("shard", 32, 3_200, 40), ("collective", 256, 49_152, 12))
TURNS = 5
# Where the page's time goes: in the thread of `fit`, and in the scheduler's.
PARTS = {
    "telling, in `fit`'s thread": [(Teller, "take")],
    "plugin": [(Dashboard, name) for name in ("tell", "update_graph", "transition", "log_event")],
    "page": [(Page, "update"), (Protocol, "create")],
}


def look(url: str) -> None:
    """Hold a session of a page open, take all that it sends, and paint nothing."""
    sys.setrecursionlimit(50_000)  # bokeh's client goes deeper with each message
    session = pull_session(url=url)
    print("open", flush=True)
    session._connection.loop_until_closed()


@contextmanager
def watched(url: str) -> Iterator[None]:
    """Have a process that looks at a page, for the length of a block."""
    command = [sys.executable, "-c", f"from benchmarks.dashboard import look; look({url!r})"]
    with subprocess.Popen(command, env=clean_environment(1), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "open\n":
            raise RuntimeError(f"no page at {url}")
        try:
            yield
        finally:
            process.kill()


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Add up the processor's seconds of each part, for the length of a block; not what the clock takes itself."""
    seconds, within = dict.fromkeys(PARTS, 0.0), [0]
    start = time.thread_time()
    for _ in range(10_000):
        time.thread_time()
    clock = (time.thread_time() - start) / 10_000
    with ExitStack() as stack:
        for part, methods in PARTS.items():
            for cls, name in methods:
                method = getattr(cls, name)

                def clocked(self: Any, *args: Any, _run: Any = method, _part: str = part, **more: Any) -> Any:
                    if within[0] == threading.get_ident():  # by another of them
                        return _run(self, *args, **more)
                    within[0], start = threading.get_ident(), time.thread_time()
                    try:
                        return _run(self, *args, **more)
                    finally:
                        seconds[_part] += time.thread_time() - start - clock
                        within[0] = 0

                setattr(cls, name, wraps(method)(clocked))
                stack.callback(setattr, cls, name, method)
        yield seconds


def train(client: Any, grain: str, batch: int, samples: int, epochs: int) -> tuple[float, float, str]:
    """Return the median of an epoch's samples per second, the seconds of `fit`, and the fingerprint."""
    optimizer, feeds = net(90, batch, samples)
    trainer = fg.Trainer(optimizer, fg.Engine(client, dtype=np.float32, grain=grain))
    start = time.perf_counter()
    history = trainer.fit(feeds, epochs=epochs)
    rate = statistics.median(record["samples_per_second"] for record in history.epochs[1:])
    return rate, time.perf_counter() - start, trainer.fingerprint()


def dashboard_report(tell: Callable[[str], None], turns: int = TURNS) -> str:
    """Return what the page costs, and that it changes no bit."""
    lines = [
        "784-90-10, Adam, stock clusters of two processes; medians over turns. Shares are processor time by that of `fit`.",
        "",
        f"| grain, batch | samples/s without | page open | quotient of medians | of pairs | {' | '.join(PARTS)} | same bits |",
        "|---|---:|---:|---:|---:|" + "---:|" * len(PARTS) + "---|",
    ]
    with stock(2, ":0") as plain, stock(2, ":0") as shown:
        address = page_address(shown)
        assert address is not None
        with watched(address):
            for setting in SETTINGS:
                for client in (plain, shown):  # kernels, connections
                    with untold():
                        train(client, *setting[:3], 2)
                without, with_page, fingerprints = [], [], set()
                for turn in range(turns):
                    for client in (plain, shown) if turn % 2 else (shown, plain):
                        if client is plain:
                            with untold():
                                rate, _, bits = train(client, *setting)
                            without.append(rate)
                        else:
                            rate, _, bits = train(client, *setting)
                            with_page.append(rate)
                        fingerprints.add(bits)
                    tell(f"{setting[0]}, batch {setting[1]}: turn {turn + 1} of {turns}")
                with timed() as seconds:  # by itself, for the clocks slow it down
                    _, whole, _ = train(shown, *setting)
                a, b = statistics.median(without), statistics.median(with_page)
                pairs = statistics.median(y / x for x, y in zip(without, with_page))
                shares = " | ".join(f"{100 * s / whole:.2f} %" for s in seconds.values())
                same_bits = "yes" if len(fingerprints) == 1 else "NO"
                head = f"{setting[0]}, {setting[1]}"
                lines.append(f"| {head} | {a:,.0f} | {b:,.0f} | {b / a:.3f} | {pairs:.3f} | {shares} | {same_bits} |")
    return "\n".join(lines)

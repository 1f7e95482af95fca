"""Steps that many workers share: predicted from a measured step and a link, and predicted exchanges beside real ones.

Run as a module it measures exchanges of workers on a scheduler, and answers in JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

import flowgrad as fg
from benchmarks.cluster import net
from benchmarks.network import Network
from flowgrad.scheduler.collective import slices, traffic, worth_slices
from flowgrad.scheduler.costs import Links
from flowgrad.scheduler.costs.forecast import Wire, gang_seconds, sum_seconds
from flowgrad.scheduler.costs.work import letters
from flowgrad.scheduler.machine.facts import read_facts

Tell = Callable[[str], None]
# Of the simulation: workers, numbers, links, samples of a step; seconds from worker to worker.
LANES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PARAMETERS = (100_000, 1_000_000, 10_000_000, 100_000_000)
RATES, DELAY, BATCH = (1e9, 1e10), 1e-4, 8192
# Of the check: workers, numbers, bits per second, seconds.
CHECKED_LANES, CHECKED, CHECKED_RATES, CHECKED_DELAYS = (
    (2, 3, 4),
    (100_000, 1_000_000, 10_000_000),
    (1e8, 1e9),
    (1e-4, 2e-3),
)
WORKERS = tuple(f"w{k}" for k in range(max(CHECKED_LANES)))
# Seconds for which an exchange is repeated, and the fewest and most times.
LONG, FEWEST, MOST = 1.0, 2, 40
SIZES = (1 << 12, 1 << 22)


PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
# In the page: what follows is written by the command.
MARK = "## Tables"


# -- what runs on workers --


def exchanges(group: Any, numbers: int, times: int) -> list[float]:
    """Exchange what a step exchanges, some times, and nothing else; return the seconds of each."""
    both = [np.ones(numbers, np.float32) for _ in range(2)]
    cuts = slices(numbers, group.size)
    lo, hi = cuts[group.rank]
    whole, seconds = not worth_slices(both[0], group.size), []
    for k in range(times):
        mine, start = both[k % 2], time.perf_counter()
        group.exchange(("gradients",), [[mine if whole else mine[slice(*cut)]] for cut in cuts], [0.0])
        if not whole:
            group.exchange(("weights",), [mine[lo:hi]] * group.size)
        seconds.append(time.perf_counter() - start)
    return seconds


def answer(address: str, what: str) -> Any:
    """Be the client of some workers: seconds of letters between two, or of exchanges by numbers and workers."""
    with Client(address, set_as_default=False, timeout=60) as client:
        client.wait_for_workers(len(WORKERS), timeout=60)
        places = sorted(client.scheduler_info(n_workers=-1)["workers"])

        def gang(function: Callable[..., Any], lanes: int, *args: Any) -> list[Any]:
            return fg.gang(client, function, [args] * lanes, workers=places[:lanes], timeout=300)

        if what == "letters":
            return [max(each) for each in zip(*gang(letters, 2, SIZES))]
        found: dict[str, float] = {}
        for _ in range(2):  # apart: what others do on the machine comes and goes
            for numbers in CHECKED:
                for lanes in CHECKED_LANES:
                    cell = f"{numbers} {lanes}"
                    if found.get(cell, 0.0) > LONG:
                        continue
                    once = max(took[-1] for took in gang(exchanges, lanes, numbers, 2))
                    taken = gang(exchanges, lanes, numbers, 1 + int(min(max(LONG / once, FEWEST), MOST)))
                    seconds = max(statistics.median(took[1:]) for took in taken)
                    found[cell] = min(seconds, found.get(cell, seconds))
        return found


# -- the check --


def ask(network: Network, address: str, what: str) -> Any:
    """Run `answer` in the scheduler's namespace."""
    with ExitStack() as stack:
        child = network.start(stack, "scheduler", "benchmarks.scaling", address, what, stdout=subprocess.PIPE)
        out, _ = child.communicate(timeout=600)
    return json.loads(out.splitlines()[-1])


def letter_links(looks: Sequence[Sequence[float]], delay: float = 0.0, update: float = 0.0) -> Links:
    """Return links from what letters of two sizes took, several times, over a wire of some delay, which they are without."""
    small, large = map(min, zip(*looks))
    byte = max(large - small, 0.0) / (SIZES[1] - SIZES[0])
    return Links(2, 1, 2, 0.0, 0.0, update=update, letter=max(small - delay, 1e-4), letter_byte=byte)


def check(tell: Tell) -> list[str]:
    """Return lines of a table: exchanges as measured, as predicted, and their ratio."""
    lines = [
        "| link | delay, ms | numbers | workers | measured, ms | predicted, ms | ratio | within 20 % |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    cores, hits, cells, unlimited = read_facts().usable_cores, 0, 0, []
    for delay in CHECKED_DELAYS:
        with Network(["scheduler", *WORKERS], delay) as network, ExitStack() as stack:
            address = network.cluster(stack, "scheduler", WORKERS)
            looks = [ask(network, address, "letters") for _ in range(3)]
            for rate in CHECKED_RATES:
                for name in WORKERS:
                    network.limit(name, rate)
                found = ask(network, address, "exchanges")
                for name in WORKERS:
                    network.limit(name, 1e11)
                looks.append(ask(network, address, "letters"))
                links = letter_links(looks, delay)
                for numbers in CHECKED:
                    for lanes in CHECKED_LANES:
                        measured = found[f"{numbers} {lanes}"]
                        crowd = max(1.0, lanes / cores)
                        predicted = gang_seconds(4 * numbers, lanes, links, Wire(rate, delay), crowd)
                        ratio, cells = predicted / measured, cells + 1
                        near = abs(ratio - 1) <= 0.2
                        hits += near
                        lines.append(
                            f"| {rate / 1e6:,.0f} Mbit/s | {delay * 1e3:g} | {numbers:.0e} | {lanes} | {measured * 1e3:.1f} "
                            f"| {predicted * 1e3:.1f} | {ratio:.2f} | {'yes' if near else 'no'} |"
                        )
                        tell(lines[-1])
            unlimited.append(
                f"{links.letter * 1e3:.2f} ms and {1e-6 / links.letter_byte:.0f} MB/s where the delay is {delay * 1e3:g} ms"
            )
            tell(unlimited[-1])
    about = (
        f"{hits} of {cells} cells are within 20 %; {cores} cores. Between two workers, without a limit and the delay: "
    )
    return [*lines, "", about + "; ".join(unlimited) + "."]


# -- the simulation --


def step_times(hidden: int) -> tuple[float, float]:
    """Return the seconds of a step for each sample, and beside them, of a 784-`hidden`-10 net; one thread."""
    small, large = 16, 128
    seconds = []
    for batch in (small, large):
        optimizer, feeds = net(hidden, batch, 512)
        history = fg.Trainer(optimizer, fg.Engine("sync", np.float32, "round", shards=1)).fit(feeds, epochs=7)
        seconds.append(batch / statistics.median(record["samples_per_second"] for record in history.epochs[1:]))
    slope = (seconds[1] - seconds[0]) / (large - small)
    return slope, max(seconds[0] - small * slope, 0.0)


def adding() -> float:
    """Return the seconds per byte read or written of adding two gradients."""
    a, b, out = (np.ones(1 << 20, np.float32) for _ in range(3))
    times = []
    for _ in range(50):
        start = time.perf_counter()
        np.add(a, b, out=out)
        times.append(time.perf_counter() - start)
    return statistics.median(times) / (3 * a.nbytes)


def here() -> Links:
    """Return what letters take between two processes of this machine, each of which has a core."""
    cluster = LocalCluster(2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0")
    with cluster, Client(cluster, set_as_default=False) as client:
        looks = [[max(each) for each in zip(*fg.gang(client, letters, [(SIZES,)] * 2))] for _ in range(5)]
    return letter_links(looks, update=adding())


def simulated(steps: dict[int, tuple[float, float]], links: Links, rate: float) -> list[str]:
    """Return lines of a table: milliseconds per step by numbers and workers."""
    lines = [
        "| numbers | " + " | ".join(f"{lanes}" for lanes in LANES) + " | fastest, against one |",
        "|---:|" + "---:|" * (len(LANES) + 1),
    ]
    for numbers, (sample, rest) in steps.items():
        size, times = 4 * numbers, {}
        for lanes in LANES:
            sliced = lanes > 1 and traffic(size, lanes)[0] > 1
            seconds = sample * BATCH / lanes + rest / (lanes if sliced else 1)
            if lanes > 1:
                seconds += gang_seconds(size, lanes, links, Wire(rate, DELAY)) + sum_seconds(size, lanes, links)
            times[lanes] = seconds
        best = min(times, key=times.__getitem__)
        cells = [f"{s * 1e3:,.1f}" if s < 0.1 else f"{s * 1e3:,.0f}" for s in times.values()]
        lines.append(f"| {numbers:.0e} | {' | '.join(cells)} | {best} workers: {times[1] / times[best]:.1f}x |")
    return lines


def with_tables(page: str, tables: str) -> str:
    """Return the text of a page in docs/ with other tables."""
    return page[: page.index(MARK) + len(MARK)] + f"\n\n{tables}\n"


def scaling_report(tell: Tell = print) -> str:
    """Return the tables of docs/scaling.md."""
    links = here()
    tell(f"{links}")
    steps = {}
    for numbers in PARAMETERS[:-1]:
        steps[numbers] = step_times(round((numbers - 10) / 795))
        tell(f"{numbers}: {steps[numbers]}")
    steps[PARAMETERS[-1]] = tuple(10 * seconds for seconds in steps[PARAMETERS[-2]])  # type: ignore[assignment]
    lines = [
        f"Between two processes of this machine: a letter {links.letter * 1e3:.2f} ms, {1e-6 / links.letter_byte:,.0f} MB/s each "
        f"way; adding {1e-9 / links.update:.1f} GB/s. Steps of one thread, a sample and the rest of a step: "
        + "; ".join(f"{n:.0e} numbers {a * 1e3:.3g} ms and {b * 1e3:.3g} ms" for n, (a, b) in steps.items())
        + " (the last is ten times the one before).",
    ]
    for rate in RATES:
        lines += ["", f"### {rate / 1e9:g} Gbit/s", "", *simulated(steps, links, rate)]
    lines += ["", "### Exchanges, measured and predicted", ""]
    try:
        lines += check(tell)
    except (OSError, subprocess.CalledProcessError) as error:
        why = error.stderr.decode().strip() if isinstance(error, subprocess.CalledProcessError) else error
        lines.append(f"Not checked: this machine makes no such network ({why}).")
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(answer(*sys.argv[1:])))

"""What is known of trainings that tell of themselves: messages in, what a page shows out. Pure, and bounded."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Runs that are remembered, and points of a curve.
RUNS, POINTS = 6, 400
# Seconds for which times of tasks are added up to one point, and after which a run that is not heard of counts as silent.
BIN, SILENT = 2.0, 10.0
# Seconds that a rate is of, at the least: losses come in bursts.
RATED = 1.0
# Tasks of nodes and edges that are told apart.
TASKS = 20_000
# Layers that are told apart.
LAYERS = 12
# Failures that are told, the latest.
RECOVERIES = 50
# What a task spends its time on, by the beginning of its key; anything else of a training computes.
SPENT_ON = {"update": "update", "weights": "update", "evaluate": "evaluation"}
KINDS = ("compute", "exchange", "update", "evaluation", "waiting")
# Tasks that compute steps, by the beginning of their keys.
STEPS = {"round", "collective", "gradient", "step"}


def seat_name(seat: Mapping[str, Any]) -> str:
    """Return what a worker is called: its name, if it has one of its own, and its address."""
    name, address = str(seat.get("name", "")), str(seat["address"])
    return address if name in ("", address) else f"{name} · {address}"


class Losses:
    """A curve over steps that keeps its length: buckets of steps, which become twice as wide when there are too many."""

    def __init__(self) -> None:
        self.width = 1
        self.buckets: dict[int, list[float]] = {}  # sum, least, most, steps

    def add(self, first: int, steps: int, mean: float, least: float, most: float) -> None:
        """Take some steps that follow each other."""
        self._put(first // self.width, [mean * steps, least, most, steps])
        while len(self.buckets) > POINTS:
            self.width *= 2
            old, self.buckets = self.buckets, {}
            for place, bucket in old.items():
                self._put(place // 2, bucket)

    def _put(self, place: int, bucket: list[float]) -> None:
        there = self.buckets.get(place)
        if there is None:
            self.buckets[place] = bucket
        else:
            there[:] = [
                there[0] + bucket[0],
                min(there[1], bucket[1]),
                max(there[2], bucket[2]),
                there[3] + bucket[3],
            ]

    def columns(self) -> dict[str, list[float]]:
        """Return steps, means, and the least and largest."""
        rows = sorted(self.buckets.items())
        return {
            "step": [(place + 0.5) * self.width for place, _ in rows],
            "mean": [b[0] / b[3] for _, b in rows],
            "least": [b[1] for _, b in rows],
            "most": [b[2] for _, b in rows],
        }


class Series:
    """Rows in their order; when there are too many, every other one is dropped, and from then on taken."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []
        self._every = self._count = 1

    def add(self, *row: float) -> None:
        """Take a row; the latest one is always there."""
        if self._count % self._every and len(self.rows) > 1:
            self.rows[-1] = row
        else:
            self.rows.append(row)
        self._count += 1
        if len(self.rows) > POINTS:
            self.rows = self.rows[::2]
            self._every *= 2

    def columns(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Return the rows as columns."""
        return {name: [row[k] for row in self.rows] for k, name in enumerate(names)}


@dataclass
class Shown:
    """A run, as far as it told.

    Attributes
    ----------
    status : str
        ``training``, ``done``, ``stopped`` or ``gone``.
    about : dict
        What it told when it began: name, plan, samples, epochs, steps, batch, dtype, optimizer.
    nodes : list
        The graph, see `graph.rows_of`; empty while nobody looks.
    values : dict
        By index of a node: norm of its value, norm of its cotangent, microseconds; of one sample, at `values_step`.
    layers : list of str
        What `norms` are of: a row has the seconds, norms of the gradient, and ratios of update to weight.
    recent : deque of (int, float)
        The latest steps, an epoch of them if there are not too many rows: how many, and the sum of their losses.
    seats : list of dict
        The workers: address, name, threads, first and last shard, none for one that has no lane.
    gone : list of str
        Workers that had a part in steps, and went away since the last failure.
    key : str
        Of the latest task that computed steps.
    tasks : dict
        By group and name of a node's or an edge's tasks: the latest key, how many were seen, and seconds that all took.
    """

    run: str
    client: str
    number: int
    about: dict[str, Any] = field(default_factory=dict)
    status: str = "training"
    cause: str = ""
    heard: float = 0.0
    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    first_loss: float = math.nan
    grain: str = ""
    losses: Losses = field(default_factory=Losses)
    recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=POINTS))
    epochs: list[dict[str, Any]] = field(default_factory=list)
    rates: Series = field(default_factory=Series)
    times: Series = field(default_factory=Series)
    layers: list[str] = field(default_factory=list)
    norms: Series = field(default_factory=Series)
    nodes: list[Any] = field(default_factory=list)
    counted: str = ""
    values: dict[int, Any] = field(default_factory=dict)
    values_step: int = 0
    seats: list[dict[str, Any]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    recoveries: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=RECOVERIES))
    key: str = ""
    tasks: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    _rated: tuple[float, int] = (0.0, 0)
    _bin: dict[str, float] = field(default_factory=dict)
    _busy: dict[str, float] = field(default_factory=dict)
    _from: tuple[float, int] | None = None

    @property
    def name(self) -> str:
        """How the run is called on the page."""
        return f"run {self.number}"

    @property
    def rate(self) -> float:
        """Samples per second, lately."""
        return self.rates.rows[-1][1] if self.rates.rows else math.nan

    @property
    def loss(self) -> tuple[float, int]:
        """Mean of the latest steps, and how many they are."""
        steps = sum(n for n, _ in self.recent)
        return (math.fsum(total for _, total in self.recent) / steps if steps else math.nan), steps

    @property
    def free(self) -> bool:
        """Whether dask places tasks wherever it likes: there are no lanes."""
        return self.grain == "node"

    def works(self, seat: Mapping[str, Any]) -> bool:
        """Whether a worker has a part in steps."""
        return self.free or seat["first"] is not None

    @property
    def at_work(self) -> int:
        """How many workers have."""
        return sum(map(self.works, self.seats))

    def silent(self, now: float) -> float:
        """Return for how many seconds nothing was heard of a run that trains; 0 if that is not long."""
        quiet = now - self.heard
        return quiet if self.status == "training" and quiet > SILENT else 0.0

    def take(self, kind: str, told: Mapping[str, Any], now: float) -> None:
        """Take one message."""
        self.heard = now
        self.status = "training" if self.status == "gone" else self.status  # its connection was
        getattr(self, f"_take_{kind}")(told, now)

    def _take_begin(self, told: Mapping[str, Any], now: float) -> None:
        self.about = dict(told)
        self.grain = str(told.get("plan", {}).get("grain", ""))
        for record in told.get("past", ()):
            self._take_epoch(record, now)

    def _take_steps(self, told: Mapping[str, Any], now: float) -> None:
        self.step, self.epoch, self.seconds = told["step"], told["epoch"], told["seconds"]
        self.first_loss, self.grain = told["first"], told.get("grain", self.grain)
        for row in told["losses"]:
            self.losses.add(*row)
            self.recent.append((row[1], row[1] * row[2]))
        epoch = self.about.get("steps", 0) / max(1, self.about.get("epochs", 1))
        more = self.loss[1] - epoch
        while self.recent and self.recent[0][0] <= more:
            more -= self.recent.popleft()[0]
        self.seats = list(told.get("seats", self.seats))
        seconds, samples = self._rated
        if told["seconds"] > seconds + RATED:
            rate = (told["samples"] - samples) / (told["seconds"] - seconds)
            self.rates.add(told["seconds"], rate)
            self._rated = told["seconds"], told["samples"]
        self._close_bin(now)

    def _take_epoch(self, told: Mapping[str, Any], now: float) -> None:
        self.epochs.append(dict(told))
        if len(self.epochs) > POINTS:  # the first ones are told best by fewer, and the best one
            known = [r for r in self.epochs if r.get("validation_loss") is not None]
            best = min(known, key=lambda r: r["validation_loss"], default=None)
            half = enumerate(self.epochs[1 : POINTS // 2])
            self.epochs[1 : POINTS // 2] = [r for k, r in half if k % 2 or r is best]

    def _take_recovery(self, told: Mapping[str, Any], now: float) -> None:
        self.recoveries.append({**told, "workers": self.gone})
        self.gone = []

    def _take_graph(self, told: Mapping[str, Any], now: float) -> None:
        self.nodes, self.counted = told["nodes"], told["counted"]

    def _take_norms(self, told: Mapping[str, Any], now: float) -> None:
        self.layers = list(told["layers"])
        self.norms.add(told["seconds"], *told["gradient"], *told["ratio"])

    def _take_values(self, told: Mapping[str, Any], now: float) -> None:
        self.values, self.values_step = {int(k): v for k, v in told["nodes"].items()}, told["step"]

    def _take_end(self, told: Mapping[str, Any], now: float) -> None:
        self.status, self.cause = told["status"], told.get("cause", "")

    # -- tasks --------------------------------------------------------------------------------------------------

    def ran(self, key: Any, prefix: str, worker: str, spent: Mapping[str, float]) -> None:
        """Note a task that is done: its key, where it ran, and for how long it computed and moved data."""
        if prefix in STEPS:
            self.key = str(key)
        kind = SPENT_ON.get(prefix, "compute")
        exchange = spent.get("exchange", 0.0)
        compute = max(0.0, spent.get("compute", 0.0) - exchange)
        self._bin[kind] = self._bin.get(kind, 0.0) + compute
        self._bin["exchange"] = self._bin.get("exchange", 0.0) + exchange + spent.get("transfer", 0.0)
        self._busy[worker] = self._busy.get(worker, 0.0) + compute

    def ran_node(self, key: tuple[str, str, str], seconds: float) -> None:
        """Note a task of a node or an edge."""
        seen = self.tasks.get(key[:2])
        if seen is not None:
            seen[:] = key, seen[1] + 1, seen[2] + seconds
        elif len(self.tasks) < TASKS:
            self.tasks[key[:2]] = [key, 1, seconds]

    def _close_bin(self, now: float) -> None:
        """Make a point of the time that tasks took: milliseconds of a step, on average over the workers at work."""
        if self._from is None:
            self._from = now, self.step
            self._bin, self._busy = {}, {}
            return
        since, step = self._from
        steps, wall = self.step - step, now - since
        if wall < BIN or not steps or not self._bin:
            return
        workers = max(1, self.at_work)
        spent = {kind: self._bin.get(kind, 0.0) / workers for kind in KINDS[:-1]}
        spent["waiting"] = max(0.0, wall - sum(spent.values()))
        self.times.add(self.seconds, *(1e3 * spent[kind] / steps for kind in KINDS))
        self.busy = {worker: min(1.0, seconds / wall) for worker, seconds in self._busy.items()}
        self._from, self._bin, self._busy = (now, self.step), {}, {}


class Board:
    """All runs that are shown; those that are over are forgotten first, the oldest of them before others."""

    def __init__(self) -> None:
        self.runs: OrderedDict[str, Shown] = OrderedDict()
        self.version = 0
        self._count = 0

    def take(self, run: str, client: str, messages: Iterable[Sequence[Any]], now: float) -> None:
        """Take messages of a run, pairs of a kind and what is told; it begins once, and before that nothing is taken."""
        self.version += 1
        for kind, told in messages:
            if kind == "begin" and run in self.runs:
                continue
            if kind == "begin":
                self._count += 1
                self.runs[run] = Shown(run, client, self._count)
                self._forget()
            if run in self.runs:
                self.runs[run].take(kind, told, now)

    def left(self, client: str) -> None:
        """Note that a client is gone: what it trained ends with it, if it had not ended."""
        for shown in self.runs.values():
            if shown.client == client and shown.status == "training":
                done = shown.step and shown.step >= shown.about.get("steps", math.inf)
                shown.status = "done" if done else "gone"
                self.version += 1

    def worker_left(self, address: str) -> None:
        """Note that a worker is gone."""
        for shown in self.runs.values():
            if shown.status == "training":
                shown.gone += [seat_name(s) for s in shown.seats if s["address"] == address and shown.works(s)]

    def of(self, client: str) -> Shown | None:
        """Return the latest run of a client that is training."""
        mine = (shown for shown in reversed(self.runs.values()) if shown.client == client)
        return next((shown for shown in mine if shown.status == "training"), None)

    def latest(self) -> Shown | None:
        """Return the run to show: the latest that trains, or the latest."""
        runs = list(self.runs.values())
        return next((shown for shown in reversed(runs) if shown.status == "training"), runs[-1] if runs else None)

    def _forget(self) -> None:
        while len(self.runs) > RUNS:
            over = [run for run, shown in self.runs.items() if shown.status != "training"]
            del self.runs[over[0] if over else next(iter(self.runs))]

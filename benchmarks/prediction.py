"""What `explain` says against what `fit` then takes, and `auto` against each fixed grain.

Where tasks run is a process of its own: threads, or a cluster of one or two worker processes.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from benchmarks.turns import answer_of

FEATURES, CLASSES = 784, 10
SAMPLES = 49_152
TURNS, EPOCHS = 3, 4
# An epoch is cut to about this length, by prediction; one has some steps at least.
EPOCH_SECONDS, LEAST_STEPS = 0.8, 3
# Prediction over measurement, and `auto` over the best fixed grain, that are wanted.
WITHIN, SLOWER = 0.15, 1.15


class Setting(NamedTuple):
    """A training: batch size, hidden units, kernel, and the grains that are measured."""

    batch: int
    hidden: int
    kernel: str = "numba"
    grains: tuple[str, ...] = ("round", "shard")


PLACES: dict[str, tuple[Setting, ...]] = {
    "threads": (
        Setting(32, 30, grains=("round", "shard", "sample", "node")),
        Setting(32, 90),
        Setting(256, 90),
        Setting(4096, 90),
        Setting(4096, 90, "numpy"),
        Setting(1024, 512),
        Setting(4096, 1024, "numpy"),
    ),
    "1 worker": (Setting(32, 90), Setting(256, 30), Setting(4096, 512)),
    "2 workers": (Setting(32, 90), Setting(4096, 90), Setting(4096, 1024), Setting(16384, 1024)),
}


@contextmanager
def _place(name: str) -> Iterator[Any]:
    from flowgrad.scheduler.executors.cluster import local_cluster

    if name == "threads":
        yield name
        return
    with local_cluster(int(name.split()[0]), 1, dashboard=False) as client:
        yield client


def measure_place(name: str) -> list[dict[str, Any]]:
    """Predict and measure the settings of one place, in this process."""
    rows = []
    with _place(name) as where:
        for setting in PLACES[name]:
            rows.append(_measure(where, setting))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _measure(where: Any, setting: Setting) -> dict[str, Any]:
    """Explain, then train in turns at each grain: medians of epochs after the first, and over turns."""
    import flowgrad as fg
    from flowgrad.cli.models import multilayer_perceptron
    from flowgrad.scheduler.training.estimate import estimate
    from flowgrad.scheduler.training.job import TrainingJob

    model = multilayer_perceptron(FEATURES, (setting.hidden,), CLASSES)
    optimizer = fg.Adam(model.graph, model.loss, batch_size=setting.batch)
    random = np.random.default_rng(0)
    x, y = random.random((SAMPLES, FEATURES), np.float32), random.integers(0, CLASSES, SAMPLES)

    def trainer(grain: str) -> fg.Trainer:
        engine = fg.Engine(where, np.float32, grain, kernel=setting.kernel)
        engine.executor.measured.update(known)
        return fg.Trainer(optimizer, engine, callbacks=[fg.Callback()])

    known: dict[Any, Any] = {}
    asked = trainer("auto")
    expected = estimate(TrainingJob(asked.settings, {model.x: x, model.label: y}, EPOCHS))
    known.update(asked.engine.executor.measured)
    grains = ("auto", *setting.grains)
    forecast = {grain: expected.seconds(None if grain == "auto" else grain) for grain in grains}
    times: dict[str, list[float]] = {grain: [] for grain in grains}
    for _ in range(TURNS):
        for grain in grains:
            steps = max(LEAST_STEPS, min(SAMPLES // setting.batch, int(EPOCH_SECONDS / forecast[grain])))
            n = steps * setting.batch
            history = trainer(grain).fit({model.x: x[:n], model.label: y[:n]}, epochs=EPOCHS)
            rates = [record["samples_per_second"] for record in history.epochs[1:]]
            times[grain].append(setting.batch / statistics.median(rates))
    plan = expected.plan
    measured = {grain: statistics.median(each) for grain, each in times.items()}
    return {**setting._asdict(), "plan": plan.grain, "shards": plan.shards, "expected": forecast, "measured": measured}


def prediction_report(tell: Callable[[str], None] = print) -> str:
    """Measure all places, each in its own process, and return a Markdown table."""
    lines = [
        "| where | batch | hidden units | kernel | plan | explained, ms | trained, ms | explained / trained | round, ms "
        "| shard, ms | others, ms | auto / best grain |",
        "|---|---:|---:|---|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    ratios, against = [], []
    for place in PLACES:
        tell(f"prediction: {place}")
        answer = answer_of("prediction", place)
        assert answer is not None
        for a in answer["settings"]:
            seen, expected = a["measured"], a["expected"]
            ratios.append(expected["auto"] / seen["auto"])
            against.append(seen["auto"] / min(seen[grain] for grain in a["grains"]))
            both = {grain: f"{1e3 * seen[grain]:.2f} ({1e3 * expected[grain]:.2f})" for grain in a["grains"]}
            others = ", ".join(f"{grain} {text}" for grain, text in both.items() if grain not in ("round", "shard"))
            lines.append(
                f"| {place} | {a['batch']} | {a['hidden']} | {a['kernel']} | {a['plan']} | {1e3 * expected['auto']:.2f} "
                f"| {1e3 * seen['auto']:.2f} | {ratios[-1]:.2f} | {both['round']} | {both['shard']} | {others} "
                f"| {against[-1]:.2f} |"
            )
    near = sum(abs(ratio - 1) <= WITHIN for ratio in ratios)
    fast = sum(ratio <= SLOWER for ratio in against)
    lines += [
        "",
        f"Medians; in brackets what `explain` said. Within {100 * WITHIN:.0f} % for the chosen plan: {near} of {len(ratios)} "
        f"settings. `auto` at most {SLOWER}x as long as the best grain: {fast} of {len(against)}, at worst {max(against):.2f}x.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps({"settings": measure_place(sys.argv[1])}))

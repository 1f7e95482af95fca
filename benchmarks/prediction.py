"""What the cost model predicts against what is then measured, and `auto` against each fixed grain.

Where tasks run is a process of its own: threads, or a cluster of one or two worker processes. There the machine is measured once,
then each setting is predicted before anything of it runs, and trained at each grain in turn.
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
WITHIN, SLOWER = 0.3, 1.15


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
    found = []
    with _place(name) as where:
        known: dict[Any, Any] = {}
        for setting in PLACES[name]:
            found.append(_measure(where, setting, known))
            print(found[-1], file=sys.stderr, flush=True)
    return found


def _measure(where: Any, setting: Setting, known: dict[Any, Any]) -> dict[str, Any]:
    import flowgrad as fg
    from flowgrad.cli.models import multilayer_perceptron
    from flowgrad.scheduler.training.estimate import estimate
    from flowgrad.scheduler.training.trainer import shortest_epoch

    model = multilayer_perceptron(FEATURES, (setting.hidden,), CLASSES)
    optimizer = fg.Adam(model.graph, model.loss, batch_size=setting.batch)
    random = np.random.default_rng(0)
    x = random.random((SAMPLES, FEATURES), np.float32)
    y = random.integers(0, CLASSES, SAMPLES)

    def engine(grain: str = "auto") -> fg.Engine:
        made = fg.Engine(where, np.float32, grain, kernel=setting.kernel)
        made.executor.measured.update(known)
        return made

    asked = engine()
    told = estimate(optimizer, asked, {model.x: x, model.label: y}, EPOCHS, shortest_epoch, again=not known)
    known.update(asked.executor.measured)
    grains = ("auto", *setting.grains)
    predicted = {grain: told.seconds(None if grain == "auto" else grain) for grain in grains}
    times: dict[str, list[float]] = {grain: [] for grain in grains}
    plans = set()
    for _ in range(TURNS):
        for grain in grains:
            steps = max(LEAST_STEPS, min(SAMPLES // setting.batch, int(EPOCH_SECONDS / predicted[grain])))
            n = steps * setting.batch
            history = fg.Trainer(optimizer, engine(grain)).fit({model.x: x[:n], model.label: y[:n]}, epochs=EPOCHS)
            times[grain].append(min(setting.batch / r["samples_per_second"] for r in history.epochs[1:]))
            if grain == "auto":
                plans.add(history.plan["grain"])
    return {
        **setting._asdict(),
        "plan": told.plan.grain,
        "chosen": sorted(plans),
        "shards": told.plan.shards,
        "predicted": predicted,
        "measured": {grain: min(each) for grain, each in times.items()},
        "spread": {grain: statistics.median(each) / min(each) for grain, each in times.items()},
    }


def prediction_report(tell: Callable[[str], None] = print) -> str:
    """Measure all places, each in its own process, and return a Markdown table."""
    lines = [
        "| where | batch | hidden units | kernel | plan (explained; trained) | predicted, ms | measured, ms | predicted / measured "
        "| round, ms | shard, ms | others, ms | auto / best grain |",
        "|---|---:|---:|---|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    ratios, against = [], []
    for place in PLACES:
        tell(f"prediction: {place}")
        answer = answer_of("prediction", place)
        assert answer is not None
        for a in answer["settings"]:
            seen, guessed = a["measured"], a["predicted"]
            best = min(seen[grain] for grain in a["grains"])
            ratios.append(guessed["auto"] / seen["auto"])
            against.append(seen["auto"] / best)
            others = ", ".join(
                f"{grain} {1e3 * seen[grain]:.2f} ({1e3 * guessed[grain]:.2f})"
                for grain in a["grains"]
                if grain not in ("round", "shard")
            )
            lines.append(
                f"| {place} | {a['batch']} | {a['hidden']} | {a['kernel']} | {a['plan']}; {'/'.join(a['chosen'])} "
                f"| {1e3 * guessed['auto']:.2f} | {1e3 * seen['auto']:.2f} | {ratios[-1]:.2f} "
                f"| {1e3 * seen['round']:.2f} ({1e3 * guessed['round']:.2f}) "
                f"| {1e3 * seen['shard']:.2f} ({1e3 * guessed['shard']:.2f}) | {others} | {against[-1]:.2f} |"
            )
    told = f"Within {100 * WITHIN:.0f} %"
    near = sum(abs(ratio - 1) <= WITHIN for ratio in ratios)
    fast = sum(ratio <= SLOWER for ratio in against)
    lines += [
        "",
        f"In brackets: predicted. {told}: {near} of {len(ratios)} settings. `auto` at most {SLOWER}x as long as "
        f"the best grain: {fast} of {len(against)}, at worst {max(against):.2f}x.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps({"settings": measure_place(sys.argv[1])}))

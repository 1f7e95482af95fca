"""Samples per second of training, flowgrad beside its peers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from benchmarks.own import OWN
from benchmarks.peers import PEERS
from benchmarks.setting import BATCHES
from benchmarks.turns import Contender, take_turns

LABELS = {name: label for name, (label, _) in {**PEERS, **OWN}.items()}
# Rates that flowgrad wants to reach as a share of a peer's, by batch size.
WANTED = {
    "torch": {32: 1.5, 256: 1.5, 4096: 1.3},
    "jax": {32: 1.3, 256: 1.3, 4096: 1.3},
    "jax-scan": {32: 0.95, 256: 1.1, 4096: 1.3},
}


def contenders(names: Sequence[str], clock: str) -> list[Contender]:
    """Return the contenders of one run: peers with one and with two threads, flowgrad with its own choice.

    Only one thread is compared by processor time: it adds up the threads, and those that wait.
    """
    entries = []
    for name in names:
        counts = (1,) if clock == "cpu" else (0,) if name in OWN else (1, 2)
        entries += [Contender(name, threads, clock) for threads in counts]
    return entries


def measure_training(
    names: Sequence[str] = (),
    batches: Sequence[int] = BATCHES,
    turns: int = 7,
    clock: str = "wall",
    tell: Callable[[str], None] = print,
) -> dict[int, list[Contender]]:
    """Measure everybody in turn, a batch size after the other.

    Returns
    -------
    dict
        By batch size, the better of each peer's numbers of threads, in the order of `names`.
    """
    results = {}
    for batch in batches:
        everybody = contenders(names or [*PEERS, *OWN], clock)
        take_turns(everybody, batch, turns, tell)
        best: dict[str, Contender] = {}
        for contender in everybody:
            if contender.name not in best or contender.median > best[contender.name].median:
                best[contender.name] = contender
        results[batch] = list(best.values())
    return results


def training_table(results: dict[int, list[Contender]]) -> str:
    """Return the rates as a Markdown table: the median of all turns (the best epoch), and flowgrad's share of medians."""
    batches = list(results)
    head = "| thousand samples/s: median (best) |" + "".join(f" batch {b} | flowgrad / peer |" for b in batches)
    lines = [head, "|---|" + "---:|---|" * len(batches)]
    for k, contender in enumerate(results[batches[0]]):
        cells = [LABELS[contender.name]]
        for batch in batches:
            cells += _cells(results[batch][k], results[batch], batch)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(contender: Contender, everybody: list[Contender], batch: int) -> list[str]:
    if not contender.rates:
        return [f"missing: {contender.problem}", ""]
    used = f", {contender.threads} thread{'s' * (contender.threads > 1)}" if contender.threads else ""
    rate = f"{contender.median / 1e3:.1f} ({contender.best / 1e3:.1f}){used}"
    own = next((c for c in everybody if c.name == "flowgrad" and c.rates), None)
    if own is None or own is contender:
        return [rate, ""]
    ratio = own.median / contender.median
    # Neighbouring turns see the same disturbance, so their ratio is steadier than that of the medians.
    paired = statistics.median(a / b for a, b in zip(own.rates, contender.rates))
    wanted = WANTED.get(contender.name, {}).get(batch)
    verdict = "" if wanted is None else f", wanted {wanted}: {'yes' if ratio >= wanted else 'no'}"
    return [rate, f"{ratio:.2f} ({paired:.2f}){verdict}"]


# Rates that the NumPy kernel wants to reach as a share of PyTorch's, by batch size; how far two ways to write a net may differ.
WANTED_NUMPY = {32: 1.3}
WANTED_ALIKE = 0.05


def own_ratios(results: dict[int, list[Contender]]) -> str:
    """Say how the NumPy kernel does beside PyTorch, and the net written neuron by neuron beside two matrices."""
    lines = []
    for batch, everybody in results.items():
        rate = {c.name: c.median for c in everybody if c.rates}
        if {"flowgrad-numpy", "torch"} <= rate.keys():
            ratio, wanted = rate["flowgrad-numpy"] / rate["torch"], WANTED_NUMPY.get(batch)
            verdict = "" if wanted is None else f", wanted {wanted}: {'yes' if ratio >= wanted else 'no'}"
            lines.append(f"* batch {batch}: without numba / PyTorch {ratio:.2f}{verdict}")
        if {"flowgrad", "flowgrad-matvec"} <= rate.keys():
            ratio = rate["flowgrad"] / rate["flowgrad-matvec"]
            verdict = "yes" if abs(ratio - 1) <= WANTED_ALIKE else "no"
            lines.append(f"* batch {batch}: neuron by neuron / two MatVec {ratio:.2f}, wanted 1 within 5 %: {verdict}")
    return "\n".join(lines)


def same_weights(results: dict[int, list[Contender]]) -> str:
    """Say whether the two ways to write the net end at the same weights."""
    lines = []
    for batch, everybody in results.items():
        weights = {c.name: c.about.get("weights") for c in everybody if c.name in ("flowgrad", "flowgrad-matvec")}
        if len(weights) == 2 and all(weights.values()):
            same = len(set(weights.values())) == 1
            lines.append(f"* batch {batch}: weights {'bit for bit the same' if same else 'differ'} ({weights})")
    return "\n".join(lines)

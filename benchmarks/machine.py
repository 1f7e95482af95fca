"""What the numbers were measured on."""

from __future__ import annotations

import os
import time

from flowgrad.scheduler.machine.doctor import level_of_cpu
from flowgrad.scheduler.machine.facts import Facts, read_facts, read_versions

PEERS = ("torch", "jax", "jaxlib")
FLAGS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_bf16", "amx_tile")


def load_of_others(seconds: float = 1.0) -> float:
    """Return how many cores other processes use right now."""
    before, start = _busy(), time.perf_counter()
    time.sleep(seconds)
    return max(0.0, (_busy() - before) / (time.perf_counter() - start))


def _busy() -> float:
    """Return the seconds that all cores together have worked since the machine started."""
    try:
        with open("/proc/stat") as file:
            spent = [int(word) for word in file.readline().split()[1:9]]
    except OSError:
        return 0.0
    return (sum(spent) - spent[3] - spent[4]) / os.sysconf("SC_CLK_TCK")  # without idle and waiting


def machine_report(facts: Facts | None = None) -> str:
    """Return machine, instruction sets, BLAS and versions as Markdown."""
    facts = facts or read_facts()
    flags = " ".join(flag for flag in FLAGS if flag in facts.flags)
    versions = read_versions((*facts.versions, *PEERS))
    blas = ", ".join(
        f"{pool['internal_api']} {pool.get('version')} with kernels for {pool.get('architecture')}"
        for pool in facts.blas
    )
    lines = [
        f"* processor: {facts.cpu}, {facts.usable_cores} cores, {level_of_cpu(facts.flags)} ({flags})",
        f"* memory: {facts.memory / 2**30:.0f} GiB; system: {facts.system}; Python {facts.python}",
        f"* BLAS: {blas}",
        "* versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    return "\n".join(lines)

"""Judging what a machine and its libraries offer against what is in use; pure functions of `Facts`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flowgrad.inputs import count

from .facts import Facts

Verdict = Literal["ok", "note", "change"]

# Instruction sets from the widest to the narrowest, by what a processor must offer; wider ones do more multiplications at once.
LEVELS = {
    "AVX-512": {"avx512f", "avx512dq", "avx512bw", "avx512vl"},
    "AVX2": {"avx2", "fma"},
    "AVX": {"avx"},
    "SSE": {"sse2"},
}
# What OpenBLAS and BLIS call their kernels, by the instruction set that these use.
KERNELS = {
    "AVX-512": ("skylakex", "cooperlake", "sapphirerapids", "skx", "zen4", "zen5"),
    "AVX2": ("haswell", "zen", "zen2", "zen3", "excavator"),
    "AVX": ("sandybridge", "bulldozer", "piledriver", "steamroller"),
    "SSE": ("prescott", "core2", "penryn", "dunnington", "nehalem", "athlon", "opteron", "barcelona", "bobcat", "atom"),
}
# Measured on a 784-90-10 net: what kernels of the first cost on a processor that offers the second.
COSTS = {("AVX2", "AVX-512"): "steps take 1.2x (batch 32) to 1.5x (batch 4096) as long"}
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Packages for reports and pictures, and the extra of flowgrad that brings them.
EXTRAS = {"scikit-learn": "ml", "rich": "ml", "matplotlib": "viz", "networkx": "viz"}
LEAST_MEMORY = 2 << 30
KEEP_MEMORY = 1 << 28


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    Attributes
    ----------
    subject : str
        What was looked at.
    verdict : str
        ``"ok"``; ``"note"``: good to know; ``"change"``: costs time or fails as it is.
    text : str
        What is there.
    advice : str
        What to do; may be empty.
    """

    subject: str
    verdict: Verdict
    text: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return the finding as plain values."""
        return asdict(self)


def examine(facts: Facts) -> list[Finding]:
    """Judge all facts, subject by subject."""
    return [finding for look in (_system, _blas, _numba, _dask, _extras) for finding in look(facts)]


def level_of_cpu(flags: frozenset[str]) -> str:
    """Return the widest instruction set that a processor offers; empty if unknown or not an x86."""
    return next((level for level, needed in LEVELS.items() if needed <= flags), "")


def level_of_kernel(architecture: str) -> str:
    """Return the instruction set of a BLAS kernel; empty if unknown."""
    return next((level for level, names in KERNELS.items() if architecture.lower() in names), "")


def _unless(wrong: bool, subject: str, verdict: Verdict, text: str, advice: str) -> Finding:
    """Return a finding that is ok unless something is wrong, which has a verdict and advice."""
    return Finding(subject, verdict, text, advice) if wrong else Finding(subject, "ok", text)


def _system(facts: Facts) -> Iterator[Finding]:
    level = level_of_cpu(facts.flags)
    yield Finding("python", "ok", f"{facts.python} on {facts.system}")
    yield Finding("processor", "ok", (facts.cpu or "unknown") + (f", {level}" if level else ""))
    few = facts.usable_cores < facts.cores
    text = f"{facts.usable_cores} of {facts.cores} may be used here" if few else f"{facts.cores}"
    advice = "an affinity or a container's limit; dask starts that many threads"
    yield _unless(few, "cores", "note", text, advice)
    text = f"{facts.free_memory / 2**30:.1f} of {facts.memory / 2**30:.1f} GiB free"
    advice = "two workers on MNIST need about 1 GiB: use --workers 1 or free some"
    yield _unless(facts.free_memory < LEAST_MEMORY, "memory", "note", text, advice)


def _blas(facts: Facts) -> Iterator[Finding]:
    if not facts.blas:
        yield Finding("BLAS", "note", "threadpoolctl knows none in this process: its threads cannot be limited")
    for pool in facts.blas:
        yield _kernel(pool, facts)
    forced = {name: facts.environment[name] for name in THREAD_VARIABLES if name in facts.environment}
    threads = sorted({int(pool["num_threads"] or 1) for pool in facts.blas})
    if forced:
        said = ", ".join(f"{name}={value}" for name, value in forced.items())
        yield Finding("BLAS threads", "note", said, "not needed: flowgrad gives each task one BLAS thread by itself")
    elif threads:
        text = f"{' and '.join(map(str, threads))} outside flowgrad, 1 in each of its tasks"
        yield Finding("BLAS threads", "ok", text)


def _kernel(pool: dict[str, Any], facts: Facts) -> Finding:
    """Judge one BLAS: which kernels does it run, and which could it."""
    architecture = pool.get("architecture") or ""
    owner = _owner(str(pool.get("filepath", "")))
    subject = f"BLAS of {owner}" if owner else "BLAS"
    text = f"{pool['internal_api']} {pool.get('version') or ''}".strip()
    if not architecture:
        return Finding(subject, "ok", f"{text}; it does not tell its kernels")
    kernel, offered = level_of_kernel(architecture), level_of_cpu(facts.flags)
    text += f", kernels for {architecture}" + (f" ({kernel})" if kernel else "")
    coretype = facts.environment.get("OPENBLAS_CORETYPE")
    if kernel and offered and list(LEVELS).index(kernel) > list(LEVELS).index(offered):
        text += f", but the processor offers {offered}: {COSTS.get((kernel, offered), 'steps take longer')}"
        if coretype:
            return Finding(subject, "change", text, f"unset OPENBLAS_CORETYPE (now {coretype}) before Python starts")
        return Finding(subject, "change", text, "pip install -U numpy scipy: a newer OpenBLAS may know this processor")
    if coretype:
        return Finding(subject, "note", text, f"OPENBLAS_CORETYPE={coretype} decides; unset, OpenBLAS chooses itself")
    return Finding(subject, "ok", text)


def _owner(path: str) -> str:
    parts = path.replace("\\", "/").split("/")
    return next((part.removesuffix(".libs") for part in parts if part.endswith(".libs")), "")


def _numba(facts: Facts) -> Iterator[Finding]:
    missing = [name for name in ("numba", "scipy") if name not in facts.versions]
    if missing:
        text = f"{' and '.join(missing)} not installed: rounds run with NumPy"
        yield Finding("numba", "change", text, "pip install 'flowgrad[fast]' for compiled rounds")
        return
    off = not facts.numba.get("jit", True)
    does = "but it does not compile" if off else f"compiles for {facts.numba.get('cpu', 'this processor')}"
    text = f"{facts.versions['numba']}, llvmlite {facts.versions.get('llvmlite', 'unknown')}, {does}"
    yield _unless(off, "numba", "change", text, "unset NUMBA_DISABLE_JIT")
    layer, threads = facts.numba.get("threading_layer", "default"), facts.numba.get("threads", 1)
    yield Finding(
        "numba threads", "ok", f"threading layer {layer}, {threads} threads; flowgrad's kernels use neither of them"
    )
    kept = f"{count(facts.cache_files, 'set')} of kernels in {facts.cache}"
    advice = "set FLOWGRAD_CACHE_DIR to a folder of yours; without one every start compiles anew or fails"
    yield _unless(bool(facts.cache_problem), "kernel cache", "change", facts.cache_problem or kept, advice)


def _dask(facts: Facts) -> Iterator[Finding]:
    dask, distributed = (facts.versions.get(name, "missing") for name in ("dask", "distributed"))
    text = f"dask {dask}, distributed {distributed}"
    advice = "pip install -U dask distributed: they belong together"
    yield _unless(dask != distributed, "dask", "change", text, advice)
    saturation = facts.settings.get("distributed.scheduler.worker-saturation")
    text = f"distributed.scheduler.worker-saturation is {saturation}"
    advice = "grains node and sample wait less with inf: set DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION=inf"
    yield _unless(str(saturation) not in ("inf", ".inf"), "small tasks", "note", text, advice)
    yield from _workers(facts)
    loop = facts.settings.get("distributed.admin.event-loop")
    missing = loop == "uvloop" and "uvloop" not in facts.versions
    text = "uvloop is asked for but not installed" if missing else f"{loop}"
    yield _unless(missing, "event loop", "change", text, "pip install uvloop, or unset distributed.admin.event-loop")


def _workers(facts: Facts) -> Iterator[Finding]:
    """Judge the environment that nannies give to workers; the system's own variables win over it."""
    environ = facts.settings.get("distributed.nanny.pre-spawn-environ") or {}
    name = "MALLOC_TRIM_THRESHOLD_"
    trim = facts.environment.get(name, environ.get(name))
    verdict: Verdict
    if name in facts.environment:
        where, verdict, advice = "set for this shell", "change", f"unset it, or export {name}={KEEP_MEMORY}"
    else:
        where, verdict = "given by dask", "note"
        advice = f"workers of your own: export {name}={KEEP_MEMORY}; `flowgrad train` does so by itself"
    little = trim is not None and not (str(trim).isdigit() and int(trim) >= KEEP_MEMORY)
    text = f"{name} is not set" if trim is None else f"{name}={trim}, {where}"
    text += ": workers fetch fresh pages at every step" if little else ""
    yield _unless(little, "workers' memory", verdict, text, advice)
    threads = facts.environment.get("OMP_NUM_THREADS", environ.get("OMP_NUM_THREADS"))
    yield Finding("workers' threads", "ok", f"OMP_NUM_THREADS={threads} in workers that dask starts")


def _extras(facts: Facts) -> Iterator[Finding]:
    missing = [name for name in EXTRAS if name not in facts.versions]
    wanted = ",".join(dict.fromkeys(EXTRAS[name] for name in missing))
    text = f"not installed: {', '.join(missing)}" if missing else "reports and pictures can be made"
    yield _unless(bool(missing), "extras", "note", text, f"pip install 'flowgrad[{wanted}]' for reports and pictures")

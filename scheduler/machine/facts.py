"""Facts about this machine, this process and its settings, for the doctor; nothing is judged here."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import dask.config
import psutil
from dask.system import CPU_COUNT
from threadpoolctl import threadpool_info

PACKAGES = (
    "flowgrad", "numpy", "scipy", "numba", "llvmlite", "dask", "distributed", "bokeh", "safetensors", "threadpoolctl",
    "scikit-learn", "rich", "matplotlib", "networkx", "uvloop",
)  # fmt: skip
VARIABLES = (
    "OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_",
    "NUMBA_DISABLE_JIT", "NUMBA_CPU_NAME", "NUMBA_THREADING_LAYER", "NUMBA_NUM_THREADS", "FLOWGRAD_CACHE_DIR",
)  # fmt: skip
SETTINGS = (
    "distributed.scheduler.worker-saturation",
    "distributed.scheduler.work-stealing",
    "distributed.admin.event-loop",
    "distributed.worker.memory.terminate",
    "distributed.nanny.pre-spawn-environ",
)


@dataclass(frozen=True)
class Facts:
    """What was read from this process, this machine and its settings; plain values."""

    python: str = ""
    system: str = ""
    cpu: str = ""
    flags: frozenset[str] = frozenset()
    cores: int = 1
    usable_cores: int = 1
    memory: int = 0
    free_memory: int = 0
    blas: tuple[dict[str, Any], ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    numba: dict[str, Any] = field(default_factory=dict)
    cache: str = ""
    cache_problem: str = ""
    cache_files: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as values for JSON."""
        return {**self.__dict__, "flags": sorted(self.flags), "blas": list(self.blas)}


def read_facts() -> Facts:
    """Read all facts; loads numba if it is installed.

    dask knows distributed's settings only once that is imported.
    """
    numba = importlib.util.find_spec("numba") is not None
    memory = psutil.virtual_memory()
    model, flags = read_cpu()
    folder = cache_folder()
    return Facts(
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cpu=model,
        flags=flags,
        cores=os.cpu_count() or 1,
        usable_cores=CPU_COUNT,
        memory=memory.total,
        free_memory=memory.available,
        blas=tuple(pool for pool in threadpool_info() if pool["user_api"] == "blas"),
        versions=read_versions(),
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
        settings={name: dask.config.get(name, None) for name in SETTINGS},
        numba=_read_numba() if numba else {},
        cache=str(folder),
        cache_problem=cache_problem(folder),
        cache_files=len(list(folder.glob("flowgrad_*.o"))),
    )


def read_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def read_cpu(path: Path = Path("/proc/cpuinfo")) -> tuple[str, frozenset[str]]:
    """Return the processor's name and its instruction sets; both may be empty where the system does not tell."""
    try:
        lines = path.read_text(errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor(), frozenset()
    table = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = table.get("flags") or table.get("Features") or ""
    return table.get("model name") or platform.processor() or platform.machine(), frozenset(flags.split())


def _read_numba() -> dict[str, Any]:
    import numba

    return {
        "threading_layer": numba.config.THREADING_LAYER,
        "threads": numba.config.NUMBA_NUM_THREADS,
        "jit": not numba.config.DISABLE_JIT,
        "cpu": importlib.import_module("llvmlite.binding").get_host_cpu_name(),
    }


def cache_problem(folder: Path) -> str:
    """Return why kernels cannot be kept in `folder`, which may not exist yet; or an empty string."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        return f"{nearest} is not a folder"
    try:  # what a folder's mode allows is not all that may forbid it
        with tempfile.TemporaryFile(dir=nearest):
            return ""
    except OSError as error:
        return f"{nearest} cannot be written to: {error.strerror or error}"


def cache_folder() -> Path:
    """Return where kernels are kept: ``$FLOWGRAD_CACHE_DIR``, else ``flowgrad`` in the user's cache folder."""
    folder = os.environ.get("FLOWGRAD_CACHE_DIR")
    if folder:
        return _where_first_asked(folder)
    try:
        home = Path.home()
    except RuntimeError:  # nobody's, as with any uid in a container
        home = Path("/")
    return _where_first_asked(os.environ.get("XDG_CACHE_HOME") or str(home / ".cache")) / "flowgrad"


@cache
def _where_first_asked(folder: str) -> Path:
    """Return a folder that stays the same when the process goes to another one."""
    return Path(folder).absolute()

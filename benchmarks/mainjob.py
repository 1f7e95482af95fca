"""The main job as a user types it: ``flowgrad train mnist``, from start to end."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.turns import clean_environment

# Seconds for the first run after installation, with an empty kernel cache, and for the second.
WANTED = (15.0, 10.0)


def run_once(folder: Path, out: str) -> tuple[float, str]:
    """Train once with the kernel cache in `folder`; return the seconds and what was printed."""
    env = clean_environment() | {"FLOWGRAD_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-m", "flowgrad", "train", "mnist", "--out", str(folder / out)]
    start = time.perf_counter()
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"flowgrad train mnist failed:\n{done.stderr[-2000:]}")
    return seconds, done.stdout


def mainjob_report(tell: Callable[[str], None] = print) -> str:
    """Run the job twice and return a Markdown table."""
    lines = ["| run | seconds | test accuracy | wanted |", "|---|---:|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        for label, limit in zip(("first, kernels compiled", "second"), WANTED):
            tell(f"main job: {label}")
            seconds, printed = run_once(Path(name), label[:5])
            accuracy = re.search(r"test accuracy ([\d.]+ %)", printed)
            lines.append(
                f"| {label} | {seconds:.1f} | {accuracy[1] if accuracy else '?'} "
                f"| ≤ {limit:.0f} s: {'yes' if seconds <= limit else 'no'} |"
            )
    return "\n".join(lines)

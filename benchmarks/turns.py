"""Contenders in turn, A B C A B C, each in its own process: what disturbs the machine for a while disturbs all of them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Would make OpenBLAS use kernels for another CPU than this one.
FORCED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC")


def clean_environment(threads: int = 0) -> dict[str, str]:
    """Return the environment of a measurement.

    Parameters
    ----------
    threads : int
        For every library that reads a number of threads; 0 leaves the choice to the library.
    """
    env = {key: value for key, value in os.environ.items() if key not in (*FORCED, *THREADS)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
    if threads:
        env |= dict.fromkeys(THREADS, str(threads))
        if threads == 1:
            env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return env


def answer_of(
    module: str, *args: str, env: dict[str, str] | None = None, timeout: float | None = None
) -> dict[str, Any] | None:
    """Run a module of this package in a new process and return what it answers: its last line, JSON.

    None if it took longer than `timeout` seconds.
    """
    command = [sys.executable, "-m", f"{__package__}.{module}", *args]
    env = env or clean_environment()
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(args)} failed:\n{done.stderr[-2000:]}")
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


@dataclass
class Contender:
    """A contender and what it reached.

    Attributes
    ----------
    name : str
        As `child` knows it.
    threads : int
        Threads it may use; 0: its own choice.
    clock : str
        ``"wall"``, or ``"cpu"``: time of the processor, which others on a busy machine do not stretch.
    rates : list of float
        Samples per second, the median epoch of each turn.
    problem : str
        Why it has no rates.
    about : dict
        What it told at its end.
    """

    name: str
    threads: int
    clock: str = "wall"
    rates: list[float] = field(default_factory=list)
    problem: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """The best rate."""
        return max(self.rates, default=0.0)

    @property
    def median(self) -> float:
        """The rate of a typical turn."""
        return statistics.median(self.rates) if self.rates else 0.0


class _Process:
    def __init__(self, of: Contender, batch: int):
        self.of = of
        command = [sys.executable, "-m", f"{__package__}.child", of.name, str(batch), str(of.threads)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=clean_environment(of.threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer; a process that died has a problem."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        values: dict[str, Any] = json.loads(line) if line else {"missing": f"ended with {self.process.wait()}"}
        if "missing" in values:
            self.of.problem = values["missing"]
        return values

    def turn(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it died: the answer tells
            self.process.stdin.write("turn\n")
            self.process.stdin.flush()
        rates = self.answer().get("rates")
        if rates:
            self.of.rates.append(statistics.median(rates[self.of.clock]))

    def end(self) -> None:
        """Ask how it was, and wait until it is gone."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        if not self.of.problem:
            self.of.about |= self.answer()
        self.process.wait()


def take_turns(
    contenders: Sequence[Contender], batch: int, turns: int, tell: Callable[[str], None] = lambda text: None
) -> None:
    """Let every contender train in turn; their rates are filled in.

    Parameters
    ----------
    contenders : sequence of Contender
    batch : int
        Size of a mini-batch.
    turns : int
        How often each trains.
    tell : callable, optional
        Receives a line now and then.
    """
    running: list[_Process] = []
    try:
        for contender in contenders:  # one after the other: two that compile at once disturb each other
            process = _Process(contender, batch)
            running.append(process)
            contender.about |= process.answer()
            tell(
                f"batch {batch}: {contender.name} {(contender.problem and 'missing: ' + contender.problem) or 'ready'}"
            )
        for turn in range(turns):
            for process in running:
                if not process.of.problem:
                    process.turn()
            tell(f"batch {batch}: turn {turn + 1} of {turns}")
        for process in running:
            process.end()
    finally:
        for process in running:
            process.process.kill()
            process.process.wait()

"""Every call in every place where an engine may be used, each in a process of its own, for what goes wrong there hangs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import CALLS, PATIENCE, PLACES

SCRIPT = Path(__file__).parents[1] / "places.py"


def run(place, *calls):
    done = subprocess.run(
        [sys.executable, SCRIPT, place, *calls],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE + 10,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert (done.returncode, done.stdout.split("\n")[-2:]) == (0, ["done", ""]), f"{done.stdout}\n{done.stderr}"
    return done.stderr


@pytest.mark.parametrize(
    ("place", "call"), [(place, list(CALLS)[k % len(CALLS)]) for k, place in enumerate(PLACES)]
)  # fmt: skip
def test_an_engine_works_anywhere(place, call):
    run(place, call)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_every_call_in_every_place(place):
    run(place)

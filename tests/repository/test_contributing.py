"""CONTRIBUTING.md keeps its promises: its examples run, what it names is there, and CI does what it says."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PRINTED = {
    "Cube": "[ 1. -8.] True\n",
    "SignDescent": "1.0 [0.75]\n",
    "Telling": "3 records\n[[1.         2.71828183]]\n",
    "Until": "5\n",
}


@pytest.mark.parametrize("name", PRINTED)
def test_examples_run(tmp_path, name):
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if f"class {name}(" in c)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == PRINTED[name]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_every_example_is_one_of_these():
    assert len(re.findall("```python", PAGE)) == len(PRINTED)


def test_what_is_named_exists():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert len(links) > 6
    for path in [*links, *re.findall(r"`(tests/[\w./]+)`", PAGE)]:
        assert (ROOT / path).exists(), path


def test_ci_and_hooks_run_the_same_stages():
    stages = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    called = re.search(r"^make (.+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)[1].split()
    assert set(called) == {"lint", "types", "mainjob"} <= set(stages)
    assert set(re.findall(r"`make ([\w ]+)`", PAGE)) <= {*stages, "lint types"}
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert all(f".venv/bin/{tool}" in hooks for tool in ("ruff check", "ruff format", "mypy"))

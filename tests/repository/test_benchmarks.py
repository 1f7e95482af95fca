"""The benchmarks can be started, with no peer installed; their numbers are nobody's test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def run(*args):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_the_command_tells_its_options():
    done = run("benchmarks", "--help")
    assert done.returncode == 0, done.stderr
    assert "--write" in done.stdout


@pytest.mark.parametrize("kind", ["wide", "chain", "dag"])
def test_graphs_for_lowering(kind):
    done = run("benchmarks.lowering", kind, "200")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 200 <= found["nodes"] < 210
    assert found["lower"] > 0


def test_a_peer_that_is_not_installed_is_told():
    code = "import sys; sys.modules['sklearn'] = None; sys.argv[1:] = ['sklearn', '32', '1']; "
    code += "from benchmarks import child; child.main()"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "sklearn" in json.loads(done.stdout)["missing"]


@pytest.mark.parametrize("name", ["flowgrad", "numpy"])
def test_contenders_for_derivatives_agree(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.derivatives import CONTENDERS, timed

    calls, reference = CONTENDERS[name][1](), CONTENDERS["numpy"][1]()
    np.testing.assert_allclose(calls["norms"](), reference["norms"](), rtol=1e-3)
    np.testing.assert_allclose(calls["jacobian"](), reference["jacobian"](), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(calls["array"](), axis=1), reference["norms"](), rtol=1e-3)
    assert len(timed(calls["norms"], 3)) == 3


def test_parts_that_were_not_measured_again_are_kept(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.__main__ import results

    before = results({"training": "old table\n\n| a |", "cluster": "### A\n\nold"}, "")
    after = results({"fusion": "new", "cluster": "### A\n\nnew"}, before)
    heads = [line for line in after.splitlines() if line.startswith("## ")]
    assert heads == ["## Training", "## Fusion", "## On a cluster"]
    assert "old table\n\n| a |" in after
    assert "### A\n\nnew" in after
    assert after.count("old") == 1

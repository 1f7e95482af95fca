"""The benchmarks can be started, with no peer installed; their numbers are nobody's test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flowgrad as fg

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


def compared(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import ops

    return ops


def test_every_op_is_compared_with_pytorch_or_a_reason_says_why_not(monkeypatch):
    ops = compared(monkeypatch)
    public = {name: getattr(fg, name) for name in fg.__all__}
    kinds = {name for name, thing in public.items() if isinstance(thing, type) and issubclass(thing, fg.Op)}
    functions = {
        name
        for name, thing in public.items()
        if getattr(thing, "__module__", "").startswith("flowgrad.ops.") and name[0].isupper()
    }
    optimizers = {name for name, thing in public.items() if isinstance(thing, type) and issubclass(thing, fg.Optimizer)}
    losses = {
        f"losses.{name}"
        for name, thing in vars(fg.losses).items()
        if getattr(thing, "__module__", "") == "flowgrad.losses" and not name.startswith("_")
    }
    wanted = (kinds | functions | optimizers | losses) - {"Op", "Elementwise", "Optimizer"}
    there = {*ops.CASES} | {name.partition(",")[0] for name in ops.OPTIMIZERS}
    assert {"GELU", "GroupNorm", "losses.hinge", "Lion"} <= wanted
    assert wanted == there | {*ops.ABSENT}, "benchmarks/ops.py: CASES, OPTIMIZERS, or ABSENT with a reason"
    assert not there & {*ops.ABSENT}
    assert all(ops.ABSENT.values())
    assert {name for name, *_ in ops.TIES} <= {*ops.CASES}


def test_what_is_compared_can_be_drawn_and_run_without_pytorch(monkeypatch):
    ops = compared(monkeypatch)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "not installed" in ops.ops_report()
    engine = pytest.importorskip("numba") and fg.Engine("sync", kernel="numba")
    for name, case in ops.CASES.items():
        for trial in ops.trials(case, tries=2):
            values, _ = ops.interpreted(name, case, trial, None)
            seed = np.ones((ops.SAMPLES, len(values[0])))
            _, gradients = ops.interpreted(name, case, trial, seed)
            together, sums = ops.compiled(name, case, trial, seed)
            np.testing.assert_allclose(together, values, rtol=1e-12, atol=1e-14, err_msg=name)
            for found, each in zip(sums, zip(*gradients)):
                np.testing.assert_allclose(found, np.sum(each, axis=0), rtol=1e-9, atol=1e-9, err_msg=name)
    for name, case in ops.OPTIMIZERS.items():
        found, expected = (ops.updated(name, case, where) for where in (engine, None))
        np.testing.assert_allclose(found, expected, rtol=1e-10, err_msg=name)


def test_lines_are_counted_alike_and_the_page_is_current(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import lines

    code = '"""Doc."""\n\nimport os\nA = 1\nB = 2\n\n\ndef f():\n    """Doc."""\n    # why\n    return [\n        1,\n    ]\n'
    guarded = code + 'if __name__ == "__main__":\n    f()\n'
    assert lines.count(guarded, set()) == (6, 16)
    assert lines.count(guarded, {"A", "f"}) == (1, 3)
    assert lines.lent("attention") == {"BATCH", "EPOCHS", "draw"}
    page = lines.PAGE.read_text(encoding="utf-8")
    assert lines.counts_table() in page, "run `python -m benchmarks.lines`"
    for net in lines.NETS:
        found = lines.counts(net)
        assert found["flowgrad"][0] <= found["torch"][0], net

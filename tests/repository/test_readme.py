"""The README keeps its promises: the quick start runs, the commands are there, what it links to exists."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

DRAWING = ("influence", "kernel", "saliency")
SHOTS = ("dashboard", "report")  # pages in a browser
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_quick_start_runs(tmp_path):
    code, derivatives, own_op = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) > 0.9
    more = code + derivatives + own_op + "print(norms.shape, kernel.shape, len(curved), jacobian[x].shape)"
    run = subprocess.run(
        [sys.executable, "-c", more], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert run.stdout.endswith("(600,) (600, 600) 1 (600, 3, 10)\n"), run.stderr
    assert not list(tmp_path.iterdir())


def test_commands():
    assert "python3 -m venv .venv && .venv/bin/pip install -e '.[all]' && .venv/bin/flowgrad train mnist\n" in README
    tests = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest\n"
    assert tests in README
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_what_is_named_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    folders = re.findall(r"`([\w./]+/)`", README)
    scripts = [f"examples/{name}" for name in re.findall(r"`(\w+\.py)`", README)]
    for path in links + [folder for folder in folders if folder != "runs/"] + scripts:
        assert (ROOT / path).exists(), path


def test_pictures_are_drawn_by_the_script(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "docs")
    script = __import__("draw_pictures")
    monkeypatch.setattr(script, "IMAGES", tmp_path)
    script.main()
    drawn = sorted(path.name for path in tmp_path.iterdir())
    of_examples = [f"{name}.png" for name in DRAWING]
    shots = [f"{name}.png" for name in SHOTS]
    assert sorted([*drawn, *of_examples, *shots]) == sorted(
        path.name for path in (ROOT / "docs" / "images").glob("*.png")
    )
    pages = README + (ROOT / "docs" / "derivatives.md").read_text(encoding="utf-8")
    assert all(f"images/{name}" in pages for name in of_examples + shots)
    for name in drawn:
        assert f"docs/images/{name}" in README


@pytest.mark.parametrize("name", ["mnist", "node_grain", "softmax_regression", *DRAWING])
def test_examples_compile(name):
    source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    compile(source, name, "exec")
    assert '__name__ == "__main__"' in source


def test_softmax_regression_runs(tmp_path):
    pytest.importorskip("matplotlib")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = [sys.executable, str(ROOT / "examples" / "softmax_regression.py")]
    run = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "epoch 5" in run.stdout
    assert (tmp_path / "computing_graph.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.distributed
def test_node_grain_shows_every_neuron(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = [sys.executable, str(ROOT / "examples" / "node_grain.py")]
    run = subprocess.run(
        script, cwd=tmp_path, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=180
    )
    assert run.returncode == 0, run.stderr
    counts = {line.split()[1]: line.split()[0] for line in run.stdout.splitlines() if re.match(r" +\d+ [\w-]+$", line)}
    assert counts["dot"] == "100"
    assert counts["pull-dot"] == "110"
    assert counts["update"] == "1"

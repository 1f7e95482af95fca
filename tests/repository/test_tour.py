"""The notebook of the tour: it runs from top to bottom, and is kept without outputs."""

import os

import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
for package in ("matplotlib", "sklearn", "rich"):
    pytest.importorskip(package)


@pytest.fixture
def tour():
    return nbformat.read(ROOT / "examples" / "tour.ipynb", as_version=4)


def test_it_is_kept_without_outputs(tour):
    nbformat.validate(tour)
    code = [cell for cell in tour.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert sum(cell.cell_type == "markdown" for cell in tour.cells) >= 8


@pytest.mark.distributed
def test_it_runs_from_top_to_bottom(tour, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    nbclient.NotebookClient(
        tour, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in tour.cells for output in cell.get("outputs", ())]
    told = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    assert "% of the test digits are right" in told
    assert not [output for output in outputs if output.get("name") == "stderr"]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert [shown.count(kind) for kind in ("image/svg+xml", "image/png", "text/html")] == [2, 2, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"tour_watch.html", "tour_log.csv", "tour_report.html"}

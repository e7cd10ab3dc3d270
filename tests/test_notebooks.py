"""The notebooks run from top to bottom on the shipped models, draw pictures, and are kept without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
# Pictures that each draws at least.
PICTURES = {"1_try_it": 3, "2_fine_tune_on_your_data": 2, "3_inside_the_cascade": 2}


def test_all_are_known() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(PICTURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_not_kept(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws into the notebook
    notebook = nbformat.read(path, as_version=4)
    # Raises where a cell does.
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= PICTURES[path.stem]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    if path.stem == "2_fine_tune_on_your_data":
        scores = [line for line in printed.splitlines() if line.startswith(("before:", "after:"))]
        before, after = (float(line.partition("mIoU ")[2].partition(",")[0]) for line in scores)
        assert after > before + 0.05

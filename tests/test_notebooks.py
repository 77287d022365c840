"""The notebooks: their two forms are the same, and they run from the first cell to the last."""

import os
import pathlib
import re

import pytest

from tests.tables import for_each

jupytext = pytest.importorskip("jupytext")
ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
SHORT = {  # values of the parameters with which a notebook takes a minute
    "1_tour": {"STEPS": 30},
    "2_train": {"STAGE1_STEPS": 6, "STAGE2_STEPS": 6},
    "3_own_data": {"FIRST_STEPS": 12, "STEPS": 6},
    "4_mine_and_judge": {"FIRST_STEPS": 12, "STEPS": 6},
    "5_plan": {"SLICES": '("v5e:1x1",)'},
    "6_export": {"STEPS": 12},
}


@for_each("script", SCRIPTS)
def test_both_forms_have_the_same_cells_and_no_outputs(script):
    """`jupytext --sync notebooks/*.py` sees to it."""
    text, stored = jupytext.read(script), jupytext.read(script.with_suffix(".ipynb"))
    assert [(c.cell_type, c.source) for c in text.cells] == [
        (c.cell_type, c.source) for c in stored.cells
    ]
    assert not any(c.get("outputs") or c.get("execution_count") for c in stored.cells)
    assert [c.metadata.get("tags") for c in stored.cells].count(["parameters"]) == 1


def with_parameters(notebook, values):
    """The notebook with other values in its cell of parameters."""
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    for name, value in values.items():
        line = f"{name} = {value!r}"
        cell.source, count = re.subn(rf"^{name} = .*$", line, cell.source, flags=re.MULTILINE)
        assert count == 1, f"{name} is no parameter"
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_runs(script, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    site = tmp_path / "site"
    site.mkdir()
    path = [ROOT, os.environ.get("PYTHONPATH", "")]
    if script.stem == "6_export":  # PyTorch's own import of torchvision, see `torchvision_ops`
        call = "from tests import torchvision_ops\ntorchvision_ops.install()\n"
        (site / "sitecustomize.py").write_text(call)
        path = [site, *path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, path)))
    monkeypatch.chdir(tmp_path)
    notebook = with_parameters(jupytext.read(script), SHORT[script.stem])
    client = nbclient.NotebookClient(notebook, timeout=3000, kernel_name="python3")
    client.execute()

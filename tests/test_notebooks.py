"""The notebooks run from beginning to end, on a small model, and show what they say."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests import goldens
from tests.saved import golden_config, save_checkpoint
from xtra_jax.config import model_spec

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def kernel(monkeypatch):
    """What a notebook's own process starts with."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for name, value in {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "STEPS": "20"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def executed(folder, weights=""):
    """What the notebook of features puts out, started in a folder."""
    notebook = nbformat.read(ROOT / "notebooks" / "features.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert 'WEIGHTS = ""\n' in first.source
    first.source = first.source.replace('WEIGHTS = ""\n', f'WEIGHTS = "{weights}"\n')
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_the_notebook_takes_a_run_that_was_trained_on_other_images(kernel, tmp_path):
    config = golden_config(**{"data.dataset": "imagenet2012", "data.eval_split": "validation"})
    run = save_checkpoint(
        tmp_path / "run", config, goldens.params_of("B_tiny_block_hot", model_spec(config))
    )
    printed = "".join(output.get("text", "") for output in executed(tmp_path, run))
    assert "over 355 images of digits (test)" in printed
    assert not (tmp_path / "runs" / "notebook" / "imported").exists()


def test_the_notebook_of_features_shows_pictures_and_numbers(kernel, tmp_path):
    outputs = executed(tmp_path)
    data = [output["data"] for output in outputs if "data" in output]
    assert sum("image/png" in shown for shown in data) == 2
    texts = [shown["text/plain"] for shown in data if "image/png" not in shown]
    assert any("(355, 64)" in text for text in texts)
    assert any("of 355 digits have neighbours of their own kind" in text for text in texts)
    printed = "".join(output.get("text", "") for output in outputs)
    assert "over 355 images of digits (test)" in printed

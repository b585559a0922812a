"""Exports of golden weights, and what a manifest says of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests import goldens
from tests.saved import golden_config, save_checkpoint
from xtra_jax.config import model_spec
from xtra_jax.export.job import export

# 8-bit images are normalised by these as by nothing else: a mistake in them shows.
NORMALISED = {"data.mean": (0.5, 0.4, 0.3), "data.std": (0.2, 0.3, 0.4)}


def golden_run(folder: Path, name: str = "B_tiny_block_hot", **changes) -> Path:
    """A run's working directory with golden weights."""
    config = golden_config(**NORMALISED, **changes)
    return save_checkpoint(folder, config, goldens.params_of(name, model_spec(config)))


def exported(run: Path, out: Path, format: str, **how) -> Path:
    """An export whose manifest is right, by its files' own digests."""
    export(run, str(out), format, **how)
    check_manifest(out)
    return out


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def check_manifest(folder: Path) -> None:
    files = manifest_of(folder)["files"]
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *files}
    for name, said in files.items():
        content = (folder / name).read_bytes()
        assert said == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def code_in(folder: Path) -> list[str]:
    """The Python in a model card."""
    parts = (folder / "README.md").read_text().split("```python\n")[1:]
    return [part.split("```")[0] for part in parts]

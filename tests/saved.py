"""Small checkpoints for the tests: one of ours, a file as published, and configs for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from tests import goldens
from xtra_jax.config import load
from xtra_jax.training.checkpoint import Checkpointer, checkpoint_directory

# The golden model (tests/goldens.py) on top of configs/demo.py.
GOLDEN = {
    "model.width": 48,
    "model.depth": 3,
    "model.num_heads": 3,
    "model.image_size": 64,
    "model.patch_size": 8,
    "model.block_size": 2,
    "predictor.hidden": 64,
    "predictor.width": 40,
    "predictor.depth": 2,
    "predictor.num_heads": 2,
    "head.hidden": 96,
    "data.eval_resize": 80,
}


def golden_config(**changes) -> ConfigDict:
    return load("configs/demo.py", GOLDEN | changes)


def golden_config_file(folder: Path, **changes) -> Path:
    """The same as a file that a command line can name."""
    lines = ["from configs import demo", "", "def get_config():", "    config = demo.get_config()"]
    lines += [f"    config.{key} = {value!r}" for key, value in (GOLDEN | changes).items()]
    path = folder / "golden.py"
    path.write_text("\n".join([*lines, "    return config", ""]))
    return path


def save_checkpoint(workdir: Path, config: ConfigDict, params: dict) -> Path:
    """A run's working directory with one checkpoint in it."""
    with Checkpointer(checkpoint_directory(workdir), save_every=1, keep=1) as checkpointer:
        state = {"params": params}
        checkpointer.save(1, state, position={}, config=config.to_dict(), force=True)
    return workdir


def save_golden_run(workdir: Path, **changes) -> Path:
    """A run's working directory with the golden weights."""
    params = goldens.params_of("B_tiny_block_hot", goldens.tiny_spec())
    return save_checkpoint(workdir, golden_config(**changes), params)


def save_golden_file(path: Path, name: str = "B_tiny_block_hot") -> Path:
    """Golden weights as a file under their published names."""
    tensors = goldens.subset(goldens.load(name), "param/")
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    return path


def save_golden_images(path: Path, name: str = "B_tiny_block_hot", key: str = "images") -> Path:
    """Golden images, which are normalised floats, as an array [images, size, size, 3]."""
    np.save(path, goldens.images_of(goldens.load(name), key))
    return path


def save_golden_probe(path: Path, head: str) -> Path:
    """The golden encoder and a trained golden head (F_probe_heads) in one file, as published."""
    golden = goldens.load("F_probe_heads_uses_B_hot_weights")
    model = goldens.subset(goldens.load("B_tiny_block_hot"), "param/")
    tensors = {name: tensor for name, tensor in model.items() if name.startswith("enc.")}
    for part in ("param", "eval_buffers"):
        for name, tensor in goldens.subset(golden, f"{head}/{part}/").items():
            tensors[f"classifier.{name}"] = tensor
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    return path

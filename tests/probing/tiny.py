"""A tiny untrained encoder, and probes of the digits that it takes seconds to train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from tests.saved import save_checkpoint
from xtra_jax.config import load, model_spec
from xtra_jax.model.xtra import init_params
from xtra_jax.probing.job import Encoder

PRETRAINING = {
    "model.width": 16,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.image_size": 16,
    "model.patch_size": 4,
    "predictor.width": 12,
    "predictor.depth": 1,
    "predictor.num_heads": 3,
    "head.hidden": 8,
    "data.eval_resize": 16,
}
PROBE = {
    "epochs": 0.0,
    "batch_size": 48,
    "log_every": 1,
    "rates": (1e-3, 1e-2),
    "probe.attentive_layers": (1,),
    "probe.num_heads": 4,
    "data.num_workers": 0,
}


def encoder_config() -> ConfigDict:
    return load("configs/demo.py", PRETRAINING)


def encoder(seed: int = 1) -> Encoder:
    config = encoder_config()
    return Encoder.of(init_params(model_spec(config), jax.random.key(seed)), config, "tiny")


def save_encoder(workdir: Path, seed: int = 1) -> Path:
    """A run's working directory with that encoder in it."""
    config = encoder_config()
    return save_checkpoint(workdir, config, init_params(model_spec(config), jax.random.key(seed)))


def digits(data_dir: Path | str, **overrides: Any) -> ConfigDict:
    return load("configs/probe.py:digits", PROBE | {"data.data_dir": str(data_dir)} | overrides)


def found(folder: Path) -> dict:
    """All that a probe found out: its results but for what measures time, and every other file."""
    results = json.loads((folder / "results.json").read_text())
    del results["provenance"]["seconds"]
    heads = {
        path.name: {**json.loads(path.read_text()), "provenance": None}
        for path in (folder / "heads").iterdir()
    }
    return {"results": results, "heads": heads, "table": (folder / "table.md").read_text()}

"""The exporting job: from a checkpoint to a folder that other programs can use."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import xtra_jax
from xtra_jax.config_overrides import closest
from xtra_jax.data.images import without_paths
from xtra_jax.errors import UserError
from xtra_jax.export.card import model_card
from xtra_jax.export.folder import Folder, check_out, new_export
from xtra_jax.export.history import History, read_history
from xtra_jax.export.program import COMPUTES_IN, write_program
from xtra_jax.interop.open_checkpoint import OpenCheckpoint, open_checkpoint, weights_sha256
from xtra_jax.interop.published import to_published
from xtra_jax.interop.timm_vit import timm_config, timm_mask, timm_tensors
from xtra_jax.interop.writers import DTYPES, write_safetensors, write_torch
from xtra_jax.model.positions import resize_positions
from xtra_jax.probing.features import LINEAR, FeatureSpec

FORMATS = {
    "safetensors": "the whole model with the names of this package",
    "published": "the whole model as the published PyTorch code has it, model.safetensors and .pt",
    "timm": "the encoder alone as timm's VisionTransformer, and the block causal mask",
    "stablehlo": "a program from images to features, which needs jax and not this package",
}
CONTAINERS = ("safetensors", "pt")


def export(
    checkpoint: os.PathLike | str,
    out: str,
    format: str,
    *,
    dtype: str = "float32",
    containers: tuple[str, ...] = (),
    features: FeatureSpec | None = None,
    config: str | ConfigDict = "",
    overrides: Mapping[str, Any] | None = None,
    step: int | None = None,
    overwrite: bool = False,
) -> str:
    """Exports a checkpoint.

    Args:
        checkpoint, config, overrides, step: as for `open_checkpoint`.
        out: the folder to write; it has a model card, README.md, and a manifest.json with the
            config and every file's SHA-256.
        format: one of `FORMATS`.
        dtype: "float32", "bfloat16" or "float16", of the weights, and of a program's computations.
        containers: of the published format, one or both of `CONTAINERS`; both by default.
        features: which ones a program gives; by default what linear probes are trained on.
        overwrite: replace an export that is there.

    Returns:
        What was written, for people.

    Raises:
        UserError: no such checkpoint, it lacks what the format needs, a value is too large for the
            dtype, or `out` cannot be written. Then nothing is.
    """
    _check_choices(format, dtype, containers, features)
    containers, features = containers or CONTAINERS, features or LINEAR
    target = check_out(out, overwrite=overwrite)
    opened = open_checkpoint(checkpoint, config=config, overrides=overrides, step=step)
    if format == "published":
        opened.need_predictor("the published layout")
    if format == "stablehlo":
        features.check(opened.spec.encoder.depth)
    opened = _without_paths(_on_own_grid(opened))
    history = read_history(opened)
    provenance = _provenance(opened, history, format, dtype)
    with new_export(target, provenance | {"config": opened.config.to_dict()}) as folder:
        write = _WRITERS.get(format)
        if write is None:
            write_program(folder, opened, features, dtype)
        else:
            write(folder, opened, dtype, containers, _metadata(opened, provenance))
        asked = features if format == "stablehlo" else None
        folder.write("README.md", model_card(opened, provenance, history, folder.files, asked))
    return _said(out, folder, provenance, history)


def _write_ours(folder: Folder, opened: OpenCheckpoint, dtype, containers, about) -> None:
    del containers
    tensors = _flat(opened.params)
    with folder.open("model.safetensors") as file:
        write_safetensors(file, tensors, dtype=dtype, metadata=about | {"format": "np"})


def _write_published(folder: Folder, opened: OpenCheckpoint, dtype, containers, about) -> None:
    tensors = to_published(opened.params, opened.spec)
    if "safetensors" in containers:
        with folder.open("model.safetensors") as file:
            write_safetensors(file, tensors, dtype=dtype, metadata=about | {"format": "pt"})
    if "pt" in containers:
        with folder.open("model.pt") as file:
            write_torch(file, tensors, dtype=dtype, beside=_beside(opened, about))


def _beside(opened: OpenCheckpoint, about: Mapping[str, str]) -> dict[str, Any]:
    """What Lightning looks for beside the weights, and what a safetensors file says of itself."""
    step = opened.path.name
    return {
        "hyper_parameters": opened.config.to_dict(),
        "global_step": int(step) if step.isdigit() else 0,
        "pytorch-lightning_version": "2.0.0",  # whose layout this is
        "about": about,
    }


def _write_timm(folder: Folder, opened: OpenCheckpoint, dtype, containers, about) -> None:
    del containers
    spec, data = opened.spec, opened.config.data
    with folder.open("model.safetensors") as file:
        tensors = timm_tensors(opened.params["encoder"], spec)
        write_safetensors(file, tensors, dtype=dtype, metadata=about | {"format": "pt"})
    # Not in the same file: timm would not know what to do with it there, and refuse the file.
    with folder.open("mask.safetensors") as file:
        write_safetensors(file, timm_mask(spec.grid), dtype=dtype, metadata={"format": "pt"})
    described = timm_config(spec, mean=data.mean, std=data.std, resize=data.eval_resize)
    folder.write("config.json", json.dumps(described, indent=2) + "\n")


_WRITERS: dict[str, Callable] = {
    "safetensors": _write_ours,
    "published": _write_published,
    "timm": _write_timm,
}


def _on_own_grid(opened: OpenCheckpoint) -> OpenCheckpoint:
    """With position tables of the grid that the config says, resized where it is another one."""
    side, params = opened.spec.grid.tokens_per_side, dict(opened.params)
    for part in ("encoder", "predictor"):
        if part in params:
            table = np.asarray(resize_positions(params[part]["position"], side))
            params[part] = params[part] | {"position": table}
    return dataclasses.replace(opened, params=params)


def _without_paths(opened: OpenCheckpoint) -> OpenCheckpoint:
    """With a config that tells nobody where things lie on this machine."""
    config = opened.config.copy_and_resolve_references()
    data = config.data
    config.init_from = data.data_dir = ""
    data.dataset, data.eval_dataset = map(without_paths, (data.dataset, data.eval_dataset))
    if data.subset.startswith("list:"):
        data.subset = f"list:{os.path.basename(data.subset)}"
    return dataclasses.replace(opened, config=config)


def _flat(params: dict) -> dict[str, np.ndarray]:
    return flatten_dict(params, sep="/")


def _provenance(
    opened: OpenCheckpoint, history: History, format: str, dtype: str
) -> dict[str, Any]:
    """What the weights are and what wrote them: no times and no paths."""
    params = opened.params
    exported = params if format in ("safetensors", "published") else params["encoder"]
    return {
        "layout": format,
        "dtype": dtype,
        "name": opened.config.name,
        "checkpoint": opened.name,
        "origin": history.origin,
        "weights_sha256": weights_sha256(params),
        "parameters": sum(array.size for array in _flat(exported).values()),
        "written_by": f"xtra_jax {xtra_jax.__version__}, jax {jax.__version__}",
    }


def _metadata(opened: OpenCheckpoint, provenance: Mapping[str, Any]) -> dict[str, str]:
    """Provenance and config as texts, all that a safetensors file can hold."""
    texts = {key: str(value) for key, value in provenance.items()}
    return texts | {"config": json.dumps(opened.config.to_dict())}


def _check_choices(format: str, dtype: str, containers, features) -> None:
    _check_choice("--format", format, FORMATS)
    _check_choice("--dtype", dtype, COMPUTES_IN if format == "stablehlo" else DTYPES)
    for container in containers:
        _check_choice("--container", container, CONTAINERS)
    if containers and format != "published":
        raise UserError(f"--container is for --format=published, and would not change {format}")
    if features is not None and format != "stablehlo":
        raise UserError(
            "--last_layers, --norm and --tokens say what a program gives (--format=stablehlo), "
            f"and would not change {format}"
        )


def _check_choice(flag: str, value: str, choices) -> None:
    if value not in choices:
        near = closest(value, choices)
        meant = f"did you mean {near[0]}? There are" if near else "there are"
        raise UserError(f"{flag}={value} is not a choice: {meant} {', '.join(choices)}")


def _said(out: str, folder: Folder, provenance: Mapping[str, Any], history: History) -> str:
    width = max(map(len, folder.files))
    lines = [f"{name:{width}}  {file['bytes']:>14,} bytes" for name, file in folder.files.items()]
    if history.with_probe:
        lines.append("the probe that came with these weights is not exported")
    return "\n".join([f"{provenance['parameters']:,} parameters are in {out}:", *lines])

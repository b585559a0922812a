"""The pretraining loss of any checkpoint on any images, in float32, the same every time.

Where a published probe comes with an encoder, its accuracy too.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtra_jax.data.images import UnlessOfSize, key_of, none_readable
from xtra_jax.data.sources import Source
from xtra_jax.data.transforms import EvalTransform
from xtra_jax.errors import RunFailed, UserError
from xtra_jax.interop.open_checkpoint import OpenCheckpoint, weights_sha256
from xtra_jax.interop.probes import Probe
from xtra_jax.model.grid import Grid
from xtra_jax.model.variants import XTRASpec
from xtra_jax.model.xtra import bind, bind_encoder, xtra_losses
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.parallel.sharding import replicated, shardings
from xtra_jax.probing.features import model_input
from xtra_jax.probing.trained import trained_logits
from xtra_jax.training.one_pass import one_pass
from xtra_jax.training.recipe import execution_of, objective_of, orders_of
from xtra_jax.training.storage import absolute, explained, write_text

# Under a config's overrides: how a run was computed is no property of its weights.
SETTINGS = {
    "model.dtype": "float32",
    "predictor.dtype": "float32",
    "model.attention": "auto",
    "model.scan_layers": False,
    "model.remat": "none",
    "mesh.data": -1,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
}


def evaluate(
    checkpoint: OpenCheckpoint,
    source: Source,
    *,
    described_as: str = "",
    per_image: bool = False,
    batch_size: int = 0,
    image_size: int = 0,
    probe: Probe | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint on every image of a source, each exactly once on any mesh.

    Images come in as in validation, except that one of the model's size is not resampled. One
    that cannot be used counts for nothing, and is counted.

    Args:
        checkpoint: as `open_checkpoint` gives it, with `SETTINGS`.
        described_as: what the result says the images are.
        per_image: list every image with its own loss.
        batch_size: images at once, over all devices.
        image_size: pixels per side that the model sees, where that isn't the size it was trained
            on: its positions are resized bicubically. Images are then resized in proportion.
        probe: a head for the encoder's features; it needs labelled images.

    Returns:
        What JSON can hold: `loss`, the mean over `images` images, and what it was measured on.
        With a probe also `top1`, from 0 to 1. The loss is None of an encoder without predictor.

    Raises:
        UserError: there is no predictor and no probe, the probe needs labels that the images don't
            have, or none of the images can be read.
        RunFailed: a loss is not finite.
    """
    config, spec = checkpoint.config, checkpoint.spec
    if probe is None:
        checkpoint.need_predictor("the pretraining loss")
    else:
        _check_classes(probe, source, described_as)
    mesh = make_mesh(dict(config.mesh))
    grid = spec.grid.resized(image_size) if image_size else spec.grid
    if checkpoint.whole:
        _check_blocks(grid, spec, config.model.order)
    resize = round(config.data.eval_resize * grid.image_size / spec.grid.image_size)
    transform = UnlessOfSize(EvalTransform(resize, grid.image_size))
    orders = orders_of(config, spec) if checkpoint.whole else None
    function = partial(
        _measured,
        spec=spec,
        grid=grid,
        objective=objective_of(config),
        execution=execution_of(config, mesh),
        order=None if orders is None else orders[0],
        with_loss=checkpoint.whole,
        probe=probe,
    )
    params = {"model": jax.device_put(checkpoint.params, shardings(checkpoint.params, mesh))}
    if probe is not None:
        params["probe"] = jax.device_put((probe.params, probe.stats), replicated(mesh))
    batches = one_pass(
        function,
        params,
        source,
        transform,
        mesh,
        batch_size=batch_size,
        num_workers=config.data.num_workers,
        prefetch=config.data.prefetch,
    )
    with contextlib.closing(batches):
        parts = list(batches)
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    usable = found["weight"] > 0
    if not usable.any():
        raise UserError(none_readable(len(source)))
    return {
        "checkpoint": os.fspath(checkpoint.path),
        "weights_sha256": weights_sha256(checkpoint.params),
        "dataset": described_as,
        "image_size": grid.image_size,
        "images": int(usable.sum()),
        "unusable": [key_of(source, int(i)) for i in np.flatnonzero(~usable)],
        **_loss(found, usable, checkpoint),
        **_accuracy(found, usable, probe),
        **({"per_image": _per_image(found, usable, source)} if per_image else {}),
        "dtype": config.model.dtype,
        "config": config.to_dict(),
    }


def write(found: dict[str, Any], out: str) -> None:
    """Writes a result as JSON, as a whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with explained(f"cannot write {out}"):
        absolute(out).parent.mkdir(parents=True, exist_ok=True)
        write_text(absolute(out), json.dumps(found, indent=2, allow_nan=False) + "\n")


def describe(found: dict[str, Any]) -> str:
    """A line with the numbers of a result."""
    said = [] if found["loss"] is None else [f"loss {found['loss']:.7g} ({found['kind']})"]
    if "top1" in found:
        said.append(f"top-1 {found['top1']:.2%} ({found['correct']} of {found['images']})")
    more = f", and {len(found['unusable'])} that cannot be used" if found["unusable"] else ""
    return f"{', '.join(said)} over {found['images']} images of {found['dataset']}{more}"


def _measured(
    params, images, *, spec, grid: Grid, objective, execution, order, with_loss: bool, probe
) -> dict[str, jax.Array]:
    """The loss of every image, float32 [batch], and what the probe takes it for, int32 [batch]."""
    patches = model_input(images, grid, objective.mean, objective.std)
    found = {}
    if with_loss:
        found["loss"] = xtra_losses(
            bind(spec, params["model"]),
            patches,
            kind=objective.kind,
            norm_pix=objective.norm_pix,
            drop_last_block=objective.drop_last_block,
            order=order,
            grid=grid,
            execution=execution,
        )
    if probe is not None:
        encoder = bind_encoder(spec, params["model"]["encoder"])
        logits = trained_logits(
            probe, encoder, patches, weights=params["probe"], grid=grid, execution=execution
        )
        # What is not finite is no answer, and never right.
        answered = jnp.isfinite(logits).all(axis=-1)
        found["class"] = jnp.where(answered, jnp.argmax(logits, axis=-1), -1).astype(jnp.int32)
    return found


def _check_blocks(grid: Grid, spec: XTRASpec, order: str) -> None:
    """UserError where images of this size have other blocks than the objective can do with."""
    size, blocks, heads = grid.image_size, grid.num_blocks, spec.head.num_tokens
    if blocks <= heads:
        raise UserError(
            f"images of {size} pixels have {blocks} blocks, and the loss of {heads} heads needs at "
            f"least {heads + 1}: take a larger --image_size"
        )
    if order != "raster" and blocks != spec.grid.num_blocks:
        raise UserError(
            f"images of {size} pixels have {blocks} blocks, and model.order={order} is of "
            f"{spec.grid.num_blocks}: leave --image_size out"
        )


def _check_classes(probe: Probe, source: Source, described_as: str) -> None:
    if source.num_classes != probe.num_classes:
        has = "no labels" if source.num_classes is None else f"{source.num_classes} classes"
        raise UserError(
            f"{described_as or 'the set'} has {has}, and the probe tells {probe.num_classes} "
            "classes apart"
        )


def _loss(found: dict, usable: np.ndarray, checkpoint: OpenCheckpoint) -> dict[str, Any]:
    kind = checkpoint.config.loss.kind
    if "loss" not in found:
        return {"loss": None, "kind": kind}
    losses = found["loss"][usable].astype(np.float64)
    if not np.isfinite(losses).all():
        bad = int((~np.isfinite(losses)).sum())
        raise RunFailed(f"the loss of {bad} of {len(losses)} images is not finite")
    return {"loss": math.fsum(losses) / len(losses), "kind": kind}


def _accuracy(found: dict, usable: np.ndarray, probe: Probe | None) -> dict[str, Any]:
    if probe is None:
        return {}
    correct = int((found["class"] == found["label"])[usable].sum())
    told = {name: getattr(probe, name) for name in ("kind", "num_heads", "last_layers")}
    return {"top1": correct / int(usable.sum()), "correct": correct, "probe": told}


def _per_image(found: dict, usable: np.ndarray, source: Source) -> list[dict[str, Any]]:
    """One entry per image, in order; its loss is null where it could not be used."""
    listed = []
    for i, good in enumerate(usable):
        entry = {"key": key_of(source, i)}
        if "loss" in found:
            entry["loss"] = float(found["loss"][i]) if good else None
        if "class" in found:
            entry |= {"label": int(found["label"][i]), "class": int(found["class"][i])}
            entry["class"] = entry["class"] if good else None
        listed.append(entry)
    return listed

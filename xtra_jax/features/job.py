"""The features job: images in, a file of features out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from functools import partial

import jax
import numpy as np

import xtra_jax
from xtra_jax.data.images import UnlessOfSize, key_of, none_readable
from xtra_jax.data.sources import Source
from xtra_jax.data.transforms import EvalTransform
from xtra_jax.errors import RunFailed, UserError
from xtra_jax.features.files import check_name, feature_file
from xtra_jax.interop.open_checkpoint import OpenCheckpoint, weights_sha256
from xtra_jax.model.execution import Execution
from xtra_jax.model.grid import Grid
from xtra_jax.model.xtra import bind_encoder
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.parallel.sharding import activation_placement, shardings
from xtra_jax.probing.features import LINEAR, FeatureSpec, encoder_features, model_input
from xtra_jax.training.attention_choice import encoder_attention
from xtra_jax.training.one_pass import one_pass

# Under a config's overrides: how a run was computed is no property of its weights.
SETTINGS = {
    "model.dtype": "float32",
    "model.attention": "auto",
    "mesh.data": -1,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
}
DTYPES = ("float32", "float16")


@dataclasses.dataclass(frozen=True)
class Written:
    """What a file of features holds.

    Attributes:
        path: of the file.
        shape: of its features.
        unusable: keys of the images that could not be used.
    """

    path: str
    shape: tuple[int, ...]
    unusable: tuple[str, ...]

    def described(self) -> str:
        said = f"{self.path} holds features {list(self.shape)}"
        if not self.unusable:
            return said
        shown = ", ".join(self.unusable[:3]) + (", ..." if len(self.unusable) > 3 else "")
        return f"{said}; NaN for {len(self.unusable)} unusable images ({shown})"


def extract_features(
    checkpoint: OpenCheckpoint,
    source: Source,
    out: str,
    features: FeatureSpec = LINEAR,
    *,
    described_as: str = "",
    dtype: str = "float32",
    image_size: int = 0,
    batch_size: int = 0,
) -> Written:
    """Writes the features of every image, in order, each once.

    Images come in as in the encoder's validation, except that one of the model's size is not
    resampled. One that cannot be used has features of NaN. Memory is that of the model and of two
    batches, plus the images' names; the file may be of any size.

    Args:
        checkpoint: as `open_checkpoint` gives it; computed in its config's `model.dtype`.
        out: a .npz or a .safetensors file, see `xtra_jax.features.files`.
        features: which ones.
        described_as: what the file says the images are.
        dtype: of the features in the file, "float32" or "float16".
        image_size: pixels per side that the encoder sees, where that isn't the size it was trained
            on: its positions are resized bicubically. Images are then resized in proportion.
        batch_size: images at once, over all devices.

    Raises:
        UserError: checkpoint, features and images don't fit together, none of the images can be
            read, or the file cannot be written.
        RunFailed: a feature of an image that can be used is not finite, or too large for float16.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype} is not a choice: there are {' and '.join(DTYPES)}")
    check_name(out)
    config, spec = checkpoint.config, checkpoint.spec
    features.check(spec.encoder.depth)
    grid = spec.grid.resized(image_size) if image_size else spec.grid
    mesh = make_mesh(dict(config.mesh))
    resize = round(config.data.eval_resize * grid.image_size / spec.grid.image_size)
    transform = UnlessOfSize(EvalTransform(resize, grid.image_size))
    shape = features.shape(len(source), grid, spec.encoder.width)
    _check_space(out, shape, dtype)
    attention = encoder_attention(config.model.attention, spec, mesh, grid.num_tokens)
    execution = Execution(attention, place=activation_placement(mesh), num_devices=mesh.size)
    description = {
        "format": "xtra_jax features",
        "version": 1,
        "checkpoint": checkpoint.name,
        "encoder_sha256": weights_sha256({"encoder": checkpoint.params["encoder"]}),
        "images": described_as,
        "features": dataclasses.asdict(features),
        "image_size": grid.image_size,
        "resize": resize,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "computed_in": config.model.dtype,
        "attention": attention,
        "class_names": list(source.class_names),
        "written_by": f"xtra_jax {xtra_jax.__version__}, jax {jax.__version__}",
    }
    function = partial(
        _encoded, spec=spec, grid=grid, features=features, execution=execution, data=config.data
    )
    encoder = checkpoint.params["encoder"]
    batches = one_pass(
        function,
        jax.device_put(encoder, shardings(encoder, mesh)),
        source,
        transform,
        mesh,
        batch_size=batch_size,
        num_workers=config.data.num_workers,
        prefetch=config.data.prefetch,
    )
    first = jax.process_index() == 0
    target = feature_file(out, shape, dtype, description) if first else contextlib.nullcontext()
    valid, labels = [], []
    with contextlib.closing(batches), target as writer:
        for batch in batches:
            usable = batch["weight"] > 0
            _check_finite(batch["features"], usable, source, sum(map(len, valid)))
            rows = np.where(usable.reshape(-1, *[1] * (len(shape) - 1)), batch["features"], np.nan)
            valid.append(usable)
            labels.append(batch["label"])
            if first:
                writer.add(_narrowed(rows, usable, dtype))
        usable = np.concatenate(valid)
        if not usable.any():
            raise UserError(none_readable(len(source)))
        keys = [key_of(source, i) for i in range(len(source))] if first else []
        if first:
            writer.finish(
                valid=usable,
                keys=keys,
                labels=np.concatenate(labels) if source.num_classes else None,
            )
    unusable = tuple(keys[i] for i in np.flatnonzero(~usable)) if first else ()
    return Written(out, shape, unusable)


def _encoded(encoder_params, images, *, spec, grid: Grid, features: FeatureSpec, execution, data):
    """One batch of images to their features."""
    patches = model_input(images, grid, data.mean, data.std)
    encoder = bind_encoder(spec, encoder_params)
    found = encoder_features(encoder, patches, features, grid=grid, execution=execution)
    return {"features": found}


def _check_finite(rows: np.ndarray, usable: np.ndarray, source: Source, done: int) -> None:
    """RunFailed where the model fails on an image: NaN in the file means that there was none.

    Args:
        rows: of one batch, [batch, ...].
        done: images in the batches before.
    """
    finite = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
    failed = np.flatnonzero(usable & ~finite)
    if len(failed):
        key = key_of(source, done + int(failed[0]))
        raise RunFailed(f"the features of {key} are not finite, so nothing was written")


def _narrowed(rows: np.ndarray, usable: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float32":
        return rows.astype(np.float32, copy=False)
    limit = float(np.finfo(dtype).max)
    largest = float(np.max(np.abs(rows[usable]), initial=0))
    if largest > limit:
        raise RunFailed(
            f"a feature of {largest:.4g} is beyond {dtype}, which ends at {limit:g}: write float32"
        )
    return rows.astype(dtype)


def _check_space(out: str, shape: tuple[int, ...], dtype: str) -> None:
    """UserError now, where the disk would be full after hours."""
    needed = int(np.prod(shape, dtype=np.float64)) * np.dtype(dtype).itemsize
    folder = os.path.dirname(os.path.abspath(os.path.expanduser(out)))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the features {list(shape)} take {needed / 2**30:,.1f} GiB, and {folder} has "
            f"{free / 2**30:,.1f} GiB left: pool them, use float16, or another disk"
        )

"""A frozen encoder on its devices, and its features of a set of images, each image once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xtra_jax.config import model_spec
from xtra_jax.data.bad_images import BadImages
from xtra_jax.data.pipeline import eval_batches
from xtra_jax.data.record_index import where
from xtra_jax.data.sources import Source
from xtra_jax.errors import RunFailed
from xtra_jax.model.execution import Execution
from xtra_jax.model.variants import XTRASpec
from xtra_jax.model.xtra import bind_encoder
from xtra_jax.parallel.mesh import batch_shards, num_batch_shards
from xtra_jax.parallel.sharding import shardings
from xtra_jax.probing.features import FeatureSpec, features_by_spec, model_input
from xtra_jax.training.attention_choice import encoder_attention
from xtra_jax.training.one_pass import PER_DEVICE, WORTH_WORKERS, compiled, outputs


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """What features are computed with.

    Attributes:
        params: of the encoder, on the mesh.
        sha256: of its weights, as `xtra_jax.interop.open_checkpoint.weights_sha256` tells it.
        spec: of the whole model.
        image_size: pixels per side of the images that it sees.
        mean, std: of the RGB channels, for images in [0, 1].
        mesh: shares out the images.
    """

    params: dict
    sha256: str
    spec: XTRASpec
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mesh: Mesh

    @classmethod
    def of(
        cls, params: dict, sha256: str, config: ConfigDict, pretraining: ConfigDict, mesh: Mesh
    ) -> FrozenEncoder:
        """The encoder of a probe, which sees images as its config says.

        Args:
            params: on the host, or anywhere.
            config: the probe's, as `with_encoder_input` completes it.
            pretraining: describes the encoder.
        """
        data = config.data
        placed = jax.device_put(params, shardings(params, mesh))
        spec = model_spec(pretraining)
        return cls(placed, sha256, spec, data.image_size, tuple(data.mean), tuple(data.std), mesh)

    def shape(self, spec: FeatureSpec, images: int) -> tuple[int, ...]:
        """Of its features of so many images."""
        grid = self.spec.grid.resized(self.image_size)
        return spec.shape(images, grid, self.spec.encoder.width)

    @property
    def attention(self) -> str:
        """What computes it on these devices, whatever it was trained by."""
        tokens = self.spec.grid.resized(self.image_size).num_tokens
        return encoder_attention("auto", self.spec, self.mesh, tokens)

    def described(self) -> dict[str, Any]:
        """All that decides its features of given pixels, as JSON can hold it."""
        return {
            "encoder_sha256": self.sha256,
            "encoder": dataclasses.asdict(self.spec.encoder),
            "computed_in": self.spec.dtype,
            "attention": self.attention,
            "computed_on": self.mesh.devices.flat[0].device_kind,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def features(
        self,
        specs: Sequence[FeatureSpec],
        source: Source,
        transform,
        *,
        taken: Sequence[str] = (),
        num_workers: int = 0,
        prefetch: int = 2,
        bad_images: BadImages | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields features in the order of the source, in batches without padding.

        Args:
            transform: as `eval_batches` takes it.
            taken: what else of the transform's arrays to yield.

        Returns:
            An iterator, the same on every process, of dictionaries: for each spec its name with
            float32 features, `label` and `weight` (0 for an image that cannot be used).

        Raises:
            RunFailed: features of a usable image are not finite.
        """
        step = feature_step(
            self.spec,
            tuple(specs),
            self.mesh,
            image_size=self.image_size,
            mean=self.mean,
            std=self.std,
            execution=Execution(self.attention, num_devices=self.mesh.size),
        )
        batch_size = batch_for(len(source), self.mesh)
        batches = eval_batches(
            source,
            transform,
            batch_size=batch_size,
            num_workers=workers_for(source, num_workers),
            prefetch=prefetch,
            shards=batch_shards(self.mesh),
            num_shards=num_batch_shards(self.mesh),
            bad_images=bad_images,
        )
        taken = ("label", "weight", *taken)
        found = outputs(step, self.params, batches, self.mesh, len(source), batch_size, taken)
        with contextlib.closing(found):
            done = 0
            for rows in found:
                for spec in specs:
                    check_finite(rows[spec.name], rows["weight"], source, done)
                done += len(rows["weight"])
                yield rows


@functools.lru_cache(maxsize=8)  # compiled once for all sets of images
def feature_step(
    model: XTRASpec,
    specs: tuple[FeatureSpec, ...],
    mesh: Mesh,
    *,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    execution: Execution = Execution(),
):
    """A compiled step for `outputs`: an encoder's parameters and images to features by name."""
    grid = model.grid.resized(image_size)

    def function(encoder_params, images):
        patches = model_input(images, grid, mean, std)
        encoder = bind_encoder(model, encoder_params)
        found = features_by_spec(encoder, patches, specs, grid=grid, execution=execution)
        return {spec.name: features for spec, features in found.items()}

    return compiled(function, mesh, "default")


def batch_for(count: int, mesh: Mesh) -> int:
    """Images at once, over all devices, with no more padding than the mesh needs."""
    shards = num_batch_shards(mesh)
    return min(PER_DEVICE * shards, -(-count // shards) * shards)


def workers_for(source: Source, num_workers: int) -> int:
    """Processes that decode; none for a set that is done before they have started."""
    return num_workers if len(source) >= WORTH_WORKERS else 0


def check_finite(rows: np.ndarray, weight: np.ndarray, source: Source, done: int) -> None:
    """RunFailed where the encoder fails on a usable image.

    Args:
        rows: of one batch, [batch, ...].
        weight: 0 of an image that is unusable.
        done: images in the batches before.
    """
    failed = np.flatnonzero((weight > 0) & ~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
    if len(failed):
        name = where(source, done + int(failed[0]))
        raise RunFailed(f"the encoder's features of image {name} are not finite")

"""What comes into a probe: batches of images, or of features of theirs that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
from etils import epath
from ml_collections import ConfigDict

from xtra_jax.data.ahead import Batch
from xtra_jax.data.bad_images import BadImageLimit, BadImages
from xtra_jax.data.erasing import random_erasing
from xtra_jax.data.pipeline import eval_batches, train_batches
from xtra_jax.data.sources import Source
from xtra_jax.model.patches import normalise_patches, patchify, unpatchify
from xtra_jax.model.variants import XTRASpec
from xtra_jax.model.xtra import bind_encoder
from xtra_jax.parallel.mesh import batch_shards, num_batch_shards
from xtra_jax.probing.cache import cached_features
from xtra_jax.probing.features import FeatureSpec, features_by_spec
from xtra_jax.probing.frozen import FrozenEncoder
from xtra_jax.probing.kept import Kept
from xtra_jax.probing.selection import Images
from xtra_jax.training.recipe import evaluation_transform, training_transform


class Inputs:
    """This process's shares of all batches of a probe.

    Where images come out the same every time and their features are small enough, the encoder sees
    them once, and batches hold features in the place of images; see `xtra_jax.probing.cache`.

    Args:
        config: of the probe, with what it takes over from its encoder.
        specs: the features that heads look at.
        folder: of the results.
        kept: the folder that features lie with, where the config names none.

    Attributes:
        limit: ends the training when too many images are bad.
    """

    def __init__(
        self,
        config: ConfigDict,
        images: Images,
        encoder: FrozenEncoder,
        specs: Sequence[FeatureSpec],
        folder: epath.Path,
        kept: epath.Path,
    ):
        data = config.data
        self._config, self._source, self._folder = config, images.train, kept
        self._encoder, self._specs = encoder, specs
        self._work = dict(num_workers=data.num_workers, prefetch=data.prefetch)
        self._share = dict(
            batch_size=config.batch_size,
            shards=batch_shards(encoder.mesh),
            num_shards=num_batch_shards(encoder.mesh),
        )
        self._evaluated: dict[str, tuple[Kept | None, BadImages]] = {}
        process = f"-{jax.process_index()}" if jax.process_index() else ""
        self._bad = BadImages(f"{folder}/bad_images{process}.txt")
        self.limit = BadImageLimit.of(images.train, config.batch_size, data.bad_fraction, self._bad)

    def training(self, first_step: int) -> Iterator[Batch]:
        """The batches of all steps after so many, without end."""
        transform = training_transform(self._config, self._config.data.image_size)
        order = dict(seed=self._config.seed, start_step=first_step)
        # Erasing is left to chance, too, but is none of the transform's.
        erased = self._config.data.erasing
        kept = None if erased else self._kept(self._source, transform, self._bad)
        if kept is not None:
            return kept.train_batches(**order, **self._share)
        return train_batches(
            self._source, transform, bad_images=self._bad, **order, **self._work, **self._share
        )

    def evaluation(self, source: Source) -> Iterator[Batch]:
        """One pass over a set of images, each once."""
        transform = evaluation_transform(self._config, self._config.data.image_size)
        name = source.digest()
        if name not in self._evaluated:
            bad = BadImages()  # of all evaluations, so that each is named once
            self._evaluated[name] = self._kept(source, transform, bad), bad
        kept, bad = self._evaluated[name]
        if kept is not None:
            return kept.eval_batches(**self._share)
        return eval_batches(source, transform, bad_images=bad, **self._work, **self._share)

    def _kept(self, source: Source, transform, bad: BadImages) -> Kept | None:
        return cached_features(
            self._config,
            self._folder,
            self._encoder,
            self._specs,
            source,
            transform,
            bad_images=bad,
            **self._work,
        )


def features_of(
    encoder_params: dict,
    batch: dict[str, jax.Array],
    key: jax.Array | None,
    *,
    config: ConfigDict,
    model: XTRASpec,
    specs: Sequence[FeatureSpec],
) -> dict[FeatureSpec, jax.Array]:
    """The features of a batch on the devices; images are erased in part where a key is given."""
    if "image" not in batch:
        return {spec: batch[spec.name] for spec in specs}
    data = config.data
    grid = model.grid.resized(data.image_size)
    patches = normalise_patches(patchify(batch["image"], grid), data.mean, data.std)
    if key is not None and data.erasing:
        pixels = unpatchify(patches, grid)
        patches = patchify(random_erasing(key, pixels, probability=data.erasing), grid)
    encoder = bind_encoder(model, encoder_params)
    return features_by_spec(encoder, patches, specs, grid=grid)

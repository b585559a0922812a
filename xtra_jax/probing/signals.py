"""Few-shot and k-NN of the encoder during its pretraining, on a small set: cheap, and no training.

Both take the mean token of the encoder's last layer. The images are always the same and the
encoder never is, so what is kept from one measurement to the next is decoded pixels.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xtra_jax.data.bad_images import BadImages
from xtra_jax.data.pipeline import eval_batches
from xtra_jax.data.sources import Source, open_source
from xtra_jax.errors import UserError
from xtra_jax.model.variants import XTRASpec
from xtra_jax.parallel.consensus import text_from_the_first
from xtra_jax.parallel.mesh import batch_shards, num_batch_shards
from xtra_jax.probing.features import LINEAR
from xtra_jax.probing.few_shot import few_shot_accuracy
from xtra_jax.probing.frozen import batch_for, check_finite, feature_step, workers_for
from xtra_jax.probing.kept import usable_labels
from xtra_jax.probing.knn import knn_accuracy
from xtra_jax.probing.selection import check_same_classes
from xtra_jax.training.loop import Evaluation
from xtra_jax.training.one_pass import outputs
from xtra_jax.training.recipe import evaluation_transform, execution_of


def make_signals(config: ConfigDict, spec: XTRASpec, mesh: Mesh) -> dict[str, Evaluation]:
    """What a pretraining config wants to be measured of its encoder; nothing where it says so.

    The metrics are accuracies from 0 to 1: `few_shot_5` of 5 shots per class, the mean of several
    draws, `knn_20` of 20 neighbours; and `seconds`, the time that all of it took.

    Raises:
        UserError: the data set is not there, has no labels, or another process has another one.
            The evaluation raises it too, where no image can be read.
    """
    signals = config.signals
    if not signals.every:
        return {}
    train, test = (_open(config, split) for split in (signals.train_split, signals.eval_split))
    if train.num_classes is None or train.num_classes != test.num_classes:
        raise UserError(
            f"signals.dataset={signals.dataset} has {_classes(train)} in {signals.train_split} and "
            f"{_classes(test)} in {signals.eval_split}: few-shot and k-NN need the same classes in "
            "both"
        )
    check_same_classes((signals.train_split, train), (signals.eval_split, test))
    records = train.digest() + test.digest()
    if records != text_from_the_first(records):
        raise UserError(
            f"process {jax.process_index()} finds other images of signals.dataset="
            f"{signals.dataset} than process 0, or in another order: give all hosts the same copy"
        )
    pixels = 3 * spec.grid.image_size**2 * (len(train) + len(test))
    keep = pixels <= signals.max_gib * 2**30
    splits = [_Images(config, source, spec.grid.image_size, mesh, keep) for source in (train, test)]
    data = config.data
    step = feature_step(
        spec,
        (LINEAR,),
        mesh,
        image_size=spec.grid.image_size,
        mean=tuple(data.mean),
        std=tuple(data.std),
        execution=execution_of(config, mesh),
    )
    measure = partial(_measured, step, splits, train.num_classes, mesh)
    return {"signals": Evaluation(signals.every, measure)}


def _measured(step, splits: list[_Images], num_classes: int, mesh: Mesh, params: dict):
    begin = time.monotonic()
    train, test = (split.features(step, params["encoder"]) for split in splits)
    few_shot = few_shot_accuracy(train, test, num_classes)
    knn = knn_accuracy(train, test, num_classes, mesh=mesh)
    return {
        **{f"few_shot_{shots}": accuracies.mean() for shots, accuracies in few_shot.items()},
        **{f"knn_{k}": accuracy for k, accuracy in knn.items()},
        "seconds": time.monotonic() - begin,
    }


class _Images:
    """A split's images as they come into the model, decoded once where they may be kept."""

    def __init__(self, config: ConfigDict, source: Source, image_size: int, mesh: Mesh, keep: bool):
        self._source, self._mesh, self._keep = source, mesh, keep
        self._batch_size = batch_for(len(source), mesh)
        self._decode = partial(
            eval_batches,
            source,
            evaluation_transform(config, image_size),
            batch_size=self._batch_size,
            num_workers=workers_for(source, config.data.num_workers),
            prefetch=config.data.prefetch,
            shards=batch_shards(mesh),
            num_shards=num_batch_shards(mesh),
            bad_images=BadImages(),  # of all measurements, so that each is named once
        )
        self._decoded: list[dict[str, np.ndarray]] = []

    def features(self, step, encoder_params: dict) -> tuple[np.ndarray, np.ndarray]:
        """Float32 [images, width], and labels, int32 [images]: -1 of an unusable image.

        Raises:
            UserError: all of them are.
            RunFailed: features are not finite.
        """
        count = len(self._source)
        found = outputs(step, encoder_params, self._batches(), self._mesh, count, self._batch_size)
        parts, done = [], 0
        with contextlib.closing(found):
            for rows in found:
                check_finite(rows[LINEAR.name], rows["weight"], self._source, done)
                parts.append((rows[LINEAR.name], rows["label"], rows["weight"]))
                done += len(rows["weight"])
        features, label, weight = map(np.concatenate, zip(*parts, strict=True))
        return features, usable_labels(label, weight)

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        """This process's share."""
        if self._decoded:
            yield from self._decoded
            return
        decoded = []
        with contextlib.closing(self._decode()) as batches:
            for batch in batches:
                if self._keep:
                    # A worker's batch lies in memory that it uses again.
                    decoded.append({name: np.array(array) for name, array in batch.items()})
                yield batch
        self._decoded = decoded


def _open(config: ConfigDict, split: str) -> Source:
    # A folder of the run's own is not where another data set lies.
    data, dataset = config.data, config.signals.dataset
    elsewhere = data.dataset == "folder" and dataset != "folder"
    try:
        return open_source(dataset, split, "" if elsewhere else data.data_dir)
    except UserError as error:
        raise UserError(f"signals.dataset={dataset}: {error}") from error


def _classes(source: Source) -> str:
    return "no labels" if source.num_classes is None else f"{source.num_classes} classes"

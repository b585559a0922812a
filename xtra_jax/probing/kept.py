"""Features of a whole split, and batches of them in the orders of evaluation and of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from xtra_jax.data.pipeline import sample_order
from xtra_jax.data.sources import Source
from xtra_jax.errors import UserError
from xtra_jax.probing.features import FeatureSpec


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """Features of every image of a source, in its order.

    Attributes:
        source: which images.
        features: float32 [images, ...] by their spec; in memory, or mapped into it.
        label: int32 [images], -1 where unknown.
        weight: float32 [images], 0 of an image that cannot be used.
    """

    source: Source
    features: Mapping[FeatureSpec, np.ndarray]
    label: np.ndarray
    weight: np.ndarray

    @classmethod
    def collected(
        cls, source: Source, specs: Sequence[FeatureSpec], batches: Iterable[dict[str, np.ndarray]]
    ) -> Kept:
        """In memory: what `FrozenEncoder.features` yields."""
        parts = list(batches)
        names = ("label", "weight", *(spec.name for spec in specs))
        arrays = {name: np.concatenate([part.pop(name) for part in parts]) for name in names}
        features = {spec: arrays[spec.name] for spec in specs}
        return cls(source, features, arrays["label"], arrays["weight"])

    def labelled(self, spec: FeatureSpec) -> tuple[np.ndarray, np.ndarray]:
        """Features of one spec, and labels: -1 of images that cannot be used.

        Raises:
            UserError: none can.
        """
        return self.features[spec], usable_labels(self.label, self.weight)

    def eval_batches(
        self, batch_size: int, shards: Sequence[int] = (0,), num_shards: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        """The batches of `xtra_jax.data.pipeline.eval_batches`, of features by their spec's name.

        Instead of the image each has one entry per spec.
        """
        for start in range(0, len(self.label), batch_size):
            records = start + _rows(batch_size, shards, num_shards)
            yield self._batch(np.where(records < len(self.label), records, -1))

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        shards: Sequence[int] = (0,),
        num_shards: int = 1,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Those of `xtra_jax.data.pipeline.train_batches`, without end, and as in `eval_batches`.

        The same seed and step have the same images.
        """
        order, rows = sample_order(self.source, seed), _rows(batch_size, shards, num_shards)
        step = start_step
        while True:
            yield self._batch(np.array([int(order[int(p)]) for p in step * batch_size + rows]))
            step += 1

    def _batch(self, records: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of these records; -1 is padding."""
        there = records >= 0
        return {
            **{spec.name: _taken(array, records) for spec, array in self.features.items()},
            "label": np.where(there, self.label[records], -1),
            "weight": np.where(there, self.weight[records], 0),
            "index": records,
        }


def usable_labels(label: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Labels, with -1 in the place of those of weight 0.

    Raises:
        UserError: nothing else is left.
    """
    labels = np.where(weight > 0, label, -1)
    if not (labels >= 0).any():
        raise UserError(f"none of {len(labels)} images can be read and has a label")
    return labels


def _rows(batch_size: int, shards: Sequence[int], num_shards: int) -> np.ndarray:
    """The rows of each global batch that are in these shards, int64."""
    rows = batch_size // num_shards
    return np.concatenate([shard * rows + np.arange(rows) for shard in shards])


def _taken(array: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Rows of an array; zeros for -1."""
    rows = array[np.maximum(records, 0)]  # a copy, and no view
    rows[records < 0] = 0
    return rows

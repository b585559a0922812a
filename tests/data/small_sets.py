"""Small data sets for tests, prepared as ArrayRecord from images that are already encoded."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Small(tfds.core.GeneratorBasedBuilder):
    """A split "train" of the images that it is given; record `i` is named "image-i"."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def __init__(self, images: Sequence[bytes], labels: Sequence[int], **how):
        self._images, self._labels = images, labels
        super().__init__(**how)

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "file_name": tfds.features.Text(),
            "label": tfds.features.ClassLabel(num_classes=5),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, (image, label) in enumerate(zip(self._images, self._labels, strict=True)):
            yield i, {"image": image, "file_name": f"image-{i}", "label": label}


def prepare(data_dir: Path, images: Sequence[bytes], *, shards: int = 1) -> str:
    """Writes the images as the data set "small"; record `i` has label `i % 5`.

    Returns:
        `data_dir`, for `open_source("small", "train", data_dir)`.
    """
    labels = [i % 5 for i in range(len(images))]
    builder = Small(images, labels, data_dir=str(data_dir), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            download_dir=str(data_dir / "downloads"),
            download_config=tfds.download.DownloadConfig(try_download_gcs=False, num_shards=shards),
        )
    return str(data_dir)


def shard_files(data_dir: str) -> list[Path]:
    """The files of the prepared images, in order."""
    return sorted((Path(data_dir) / "small" / "1.0.0").glob("*array_record*"))


def noise(count: int, *, side: int = 12, seed: int = 0, bad: float = 0.0) -> list[bytes]:
    """PNGs of random pixels, of which a share is cut off within the pixels."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        pixels = rng.integers(0, 256, (side, side + number % 5, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        images.append(buffer.getvalue())
    for number in rng.choice(count, round(bad * count), replace=False):
        images[number] = images[number][: len(images[number]) // 2]
    return images

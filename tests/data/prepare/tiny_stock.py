"""A data set of eight images with a builder in TFDS's style that needs no TensorFlow."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from xtra_jax.data.prepare.catalogue import DataSet
from xtra_jax.data.prepare.stock import prepare_stock

ARCHIVE = "tiny.tar.gz"
TINY = DataSet("tiny_stock", {"train": 6, "test": 2}, 2, 1, "stock")


class TinyStock(tfds.core.GeneratorBasedBuilder):
    """Reads `SPLIT/LABEL_NUMBER.png` from one archive; what it meets on the way can be set."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None
    url = f"http://example.invalid/data/{ARCHIVE}"
    meets = staticmethod(lambda: None)  # called before the last test image

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        folder = dl_manager.download_and_extract({"all": self.url})["all"]
        return {split: self._generate_examples(folder / split) for split in ("train", "test")}

    def _generate_examples(self, folder):
        files = sorted(folder.iterdir())
        for path in files:
            if path == files[-1] and folder.name == "test":
                self.meets()
            yield path.name, {"image": os.fspath(path), "label": path.name.split("_")[0]}


def write_archive(folder: Path, images: int = 6) -> Path:
    """Writes the archive of the data set, with as many training images, and hostile entries."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = [f"train/{'cat' if i % 2 else 'dog'}_{i}.png" for i in range(images)]
    files = dict.fromkeys((*names, "test/cat_0.png", "test/dog_1.png"), b"")
    for name in files:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
        files[name] = buffer.getvalue()
    files |= {"../outside.png": b"x", "/absolute.png": b"x", "train/.hidden": b"x"}
    with tarfile.open(folder / ARCHIVE, "w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return folder / ARCHIVE


def prepare_and_wait(data_dir: str, archives: str) -> None:
    """Comes as far as the last image, says so on stdout, and waits there to be killed."""

    def wait():
        print("waiting", file=sys.__stdout__, flush=True)
        time.sleep(600)

    TinyStock.meets = staticmethod(wait)
    prepare_stock(TINY, data_dir, archives)


if __name__ == "__main__":
    prepare_and_wait(*sys.argv[1:])

"""scikit-learn's handwritten digits as a TFDS data set: 1,797 real scans that need no download.

The data set prepares itself the first time it is opened, so that a demonstration on real,
labelled images starts from nothing but an installation.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from xtra_jax.errors import UserError

TEST_EVERY = 5


class Digits(tfds.core.GeneratorBasedBuilder):
    """8 x 8 greyscale scans of the digits 0 to 9, in scikit-learn's order.

    Split, fixed and stratified: counting the scans of each digit separately in scikit-learn's
    order, every fifth one is a test scan. That gives 1,442 scans to train on and 355 to test on.

    Grey levels: scikit-learn's 0 to 16 become 0 to 255, rounded half up.
    """

    VERSION = tfds.core.Version("1.0.0")
    # TFDS looks beside the builder's source for checksums of downloads, through a package that
    # it does not declare as a dependency. There is nothing to download here.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits as scikit-learn ships them (UCI optdigits, test part).",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {"train": self._generate_examples("train"), "test": self._generate_examples("test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        images, labels = _load_scans()
        for number, (image, label, owner) in enumerate(
            zip(images, labels, split_of(labels), strict=True)
        ):
            if owner == split:
                yield number, {"image": Image.fromarray(image), "label": label}


def split_of(labels: list[int]) -> list[str]:
    """Says for each scan whether it is a "train" or a "test" one, from the labels in order."""
    seen: Counter[int] = Counter()
    splits = []
    for label in labels:
        seen[label] += 1
        splits.append("test" if seen[label] % TEST_EVERY == 0 else "train")
    return splits


def prepare_digits(data_dir: str = "") -> str:
    """Writes the digits as ArrayRecord where TFDS will look for them, unless they are there.

    The finished folder appears in one rename, so an interrupted preparation leaves nothing that
    looks finished, and of two processes preparing at once both succeed.

    Args:
        data_dir: root of the TFDS data sets; empty for TFDS's own default.

    Returns:
        The folder that holds the prepared data set.

    Raises:
        UserError: scikit-learn is not installed, or the folder cannot be written.
    """
    root = os.path.expanduser(data_dir) or None
    try:
        builder = Digits(data_dir=root, file_format="array_record")
        if not os.path.exists(builder.data_dir):
            _import_scikit_learn()
            _write(builder)
    except OSError as error:
        raise UserError(
            f"The digits data set could not be written to {data_dir or 'the TFDS data folder'} "
            f"({error}); set data.data_dir to a folder that can be written."
        ) from error
    return builder.data_dir


def _write(builder: Digits) -> None:
    """Generates the data set quietly, and accepts another process having finished first."""
    target = builder.data_dir
    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
        except OSError:
            if not os.path.exists(os.path.join(target, "dataset_info.json")):
                raise
    print(f"Prepared the digits data set in {target}.", file=sys.stderr)


def _import_scikit_learn():
    try:
        from sklearn import datasets
    except ImportError as error:
        raise UserError(
            "The digits data set comes with scikit-learn, which is not installed: "
            "pip install 'xtra_jax[demo]'."
        ) from error
    return datasets


def _load_scans() -> tuple[np.ndarray, list[int]]:
    """Returns all scans as uint8 `[1797, 8, 8]` and their labels, in scikit-learn's order."""
    digits = _import_scikit_learn().load_digits()
    levels = digits.images.astype(np.int64)
    return ((levels * 255 + 8) // 16).astype(np.uint8), digits.target.tolist()

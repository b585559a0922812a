"""The features of our records, and the files by which TFDS reads a data set."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_info, example_serializer

from xtra_jax.data.prepare.files import put
from xtra_jax.data.prepare.plan import Example, Plan


class Serializer:
    """From examples to the bytes of `tf.train.Example`, by TFDS's features."""

    def __init__(self, classes: tuple[str, ...], image_format: str, file_names: bool):
        self._features = features(classes, image_format, file_names)
        self._names = file_names
        self._serializer = example_serializer.ExampleSerializer(
            self._features.get_serialized_info()
        )

    def __call__(self, example: Example) -> bytes:
        values: dict[str, Any] = {"image": example.image, "label": example.label}
        if self._names:
            values["file_name"] = example.file_name
        proto = self._serializer.get_tf_example(self._features.encode_example(values))
        # Without it the order of the features differs from process to process.
        return proto.SerializeToString(deterministic=True)


def features(
    classes: tuple[str, ...], image_format: str, file_names: bool
) -> tfds.features.FeaturesDict:
    """Returns `image`, `label` and, if wanted, `file_name`; the format is empty for several."""
    parts = {
        "image": tfds.features.Image(encoding_format=image_format or None),
        "label": tfds.features.ClassLabel(names=classes),
    }
    if file_names:
        parts["file_name"] = tfds.features.Text()
    return tfds.features.FeaturesDict(parts)


def write_metadata(
    plan: Plan, directory: epath.Path, shards: dict[str, list[tuple[int, int]]], description: str
) -> None:
    """Writes a data set's metadata, `features.json` last: without it TFDS sees no data set.

    Args:
        plan: of the data set.
        directory: its folder.
        shards: for each split and shard, how many records and how many bytes of records.
        description: what a reader should know of it.
    """
    identity = dataset_info.DatasetIdentity(
        name=plan.name,
        version=tfds.core.Version(plan.version),
        data_dir=os.fspath(directory),
        module_name="",
        config_name=plan.config or None,
        config_description=description if plan.config else None,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=description,
        features=features(plan.class_names, plan.image_format, plan.file_names),
        supervised_keys=("image", "label"),
        disable_shuffling=True,
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(
        tfds.core.SplitDict([_split(plan, directory, *split) for split in shards.items()])
    )
    with tempfile.TemporaryDirectory() as folder:
        info.write_to_directory(folder)
        for name in sorted(os.listdir(folder), key=lambda name: (name == "features.json", name)):
            put(directory / name, (epath.Path(folder) / name).read_bytes())


def _split(plan: Plan, directory: epath.Path, name: str, shards: list[tuple[int, int]]):
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=plan.name, split=name, filetype_suffix="array_record"
    )
    return tfds.core.SplitInfo(
        name=name,
        shard_lengths=[records for records, _ in shards],
        num_bytes=sum(size for _, size in shards),
        filename_template=template,
    )

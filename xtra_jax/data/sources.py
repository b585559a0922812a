"""Opens a data set by name: a random-access sequence of encoded images with their labels."""

from __future__ import annotations

import os
from typing import Any, Protocol

from xtra_jax.data.folder import FolderSource
from xtra_jax.errors import UserError


class Source(Protocol):
    """A random-access sequence of records that can be pickled to worker processes.

    A record is a dict of `image` (encoded bytes), `label` (int, -1 where unknown) and `key` (a
    name for messages). Indexing raises `BadImage` where a single record cannot be read.
    """

    num_classes: int | None
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def open_source(dataset: str, split: str, data_dir: str = "") -> Source:
    """Opens one split of a data set.

    Args:
        dataset: the name of a TFDS data set ("imagenet2012", "imagenet_v2/matched-frequency",
            "cifar10:3.0.2"), which has to be prepared as ArrayRecord; "digits", which prepares
            itself when it is absent; or "folder:/path/to/images" (also "folder", with the path as
            `data_dir`).
        split: for TFDS data sets any split of theirs, a slice or a sum of such ("train",
            "train[:90%]", "train+validation"); for folders see `xtra_jax.data.folder`.
        data_dir: root of the TFDS data sets; empty for TFDS's own default, which is
            `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Raises:
        UserError: there is no such data set, split or folder, or it cannot be read record by
            record.
    """
    kind, _, path = dataset.partition(":")
    if kind == "folder":
        path = path or data_dir
        if not path:
            raise UserError("A folder of images needs its path, as in 'folder:/path/to/images'.")
        return FolderSource(path, split)
    if not dataset:
        raise UserError(
            "No data set was named; data.dataset takes a TFDS name or 'folder:/path/to/images'."
        )
    return TfdsSource(_find_prepared(dataset, data_dir), split)


class TfdsSource:
    """One split of a TFDS data set that was prepared as ArrayRecord; images stay encoded.

    Attributes:
        class_names: names of the classes, empty where the data set has no labels.
        num_classes: how many classes, None where the data set has no labels.
    """

    def __init__(self, directory: str, split: str):
        """Opens the data set whose `dataset_info.json` lies in `directory`.

        Raises:
            UserError: the data set has no such split or no images, or is not ArrayRecord.
        """
        import tensorflow_datasets as tfds

        self._directory = directory
        self._split = split
        builder = tfds.builder_from_directory(directory)
        available = dict(builder.info.features.items())
        if "image" not in available:
            raise UserError(
                f"The data set in {directory} has no feature named 'image'; "
                f"it has {', '.join(available)}."
            )
        wanted = [name for name in ("image", "label", "file_name") if name in available]
        self._features = tfds.features.FeaturesDict({name: available[name] for name in wanted})
        self._decoders = {"image": tfds.decode.SkipDecoding()}
        label = available.get("label")
        classes = isinstance(label, tfds.features.ClassLabel)
        self.num_classes = label.num_classes if classes else None
        self.class_names = tuple(label.names) if classes else ()
        self._records = _open_records(builder, split)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `image` (encoded bytes), `label` (-1 where unknown) and `key`."""
        example = self._features.deserialize_example_np(
            self._records[index], decoders=self._decoders
        )
        name = example.get("file_name", b"").decode(errors="replace")
        return {
            "image": example["image"],
            "label": int(example["label"]) if self.num_classes else -1,
            "key": name or f"{self._split} #{index}",
        }

    def __reduce__(self):
        # File handles do not travel; a worker opens the files itself.
        return TfdsSource, (self._directory, self._split)


def _find_prepared(dataset: str, data_dir: str) -> str:
    """Returns the folder of a prepared TFDS data set, preparing the digits where needed."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    root = os.path.expanduser(data_dir)
    try:
        return read_only_builder.builder_from_files(dataset, data_dir=root or None).data_dir
    except tfds.core.DatasetNotFoundError as error:
        if dataset == "digits":
            from xtra_jax.data.digits import prepare_digits

            return prepare_digits(data_dir)
        looked_in = root or tfds.core.constants.DATA_DIR
        raise UserError(
            f"The data set {dataset!r} was not found in {looked_in}: point data.data_dir at the "
            f"folder that holds it. A data set that TFDS knows is prepared, on any machine that "
            f"has TensorFlow, with `tfds build {dataset} --file_format=array_record "
            f"--data_dir={looked_in}`; images of your own need no preparation as "
            "data.dataset=folder:/path/to/images."
        ) from error
    except ValueError as error:
        raise UserError(
            f"{dataset!r} names no data set that can be opened; expected the name of a TFDS data "
            f"set, such as 'imagenet2012', or 'folder:/path/to/images' ({_first_line(error)})."
        ) from error


def _open_records(builder, split: str):
    """Returns the serialised records of a split, as a random-access sequence."""
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        records = builder.as_data_source(split, deserialize_method=raw)
        len(records)  # of a reversed slice, ValueError
        return records
    except NotImplementedError as error:
        raise UserError(
            f"The data set in {builder.data_dir} was prepared as "
            f"{builder.info.file_format.value}, which cannot be read record by record; convert it "
            "with `tfds convert_format` to array_record."
        ) from error
    except ValueError as error:
        raise UserError(
            f"The split {split!r} cannot be read from the data set in {builder.data_dir} "
            f"({_first_line(error)}); its splits are {', '.join(builder.info.splits)}, "
            "or slices and sums of them that hold at least one image."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")

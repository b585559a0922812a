"""Data sets that are prepared already: where they are, whether they are whole, made smaller."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.core import read_only_builder

from xtra_jax.data.prepare.files import from_a_remote_service
from xtra_jax.data.prepare.plan import Example, Plan, fingerprint
from xtra_jax.data.prepare.writer import UNFINISHED
from xtra_jax.data.shards import check_shards
from xtra_jax.data.sources import NAMES
from xtra_jax.errors import RunFailed, UserError


@dataclass(frozen=True)
class Prepared:
    """A whole data set: its folder, and how many images each split has."""

    directory: str
    images: dict[str, int]


def find_prepared(dataset: str, data_dir: epath.Path) -> Prepared | None:
    """Returns a data set that lies ready below `data_dir`, None where there is none or a part.

    Raises:
        UserError: it is there, but broken, or in another format than ArrayRecord.
    """
    try:
        builder = read_only_builder.builder_from_files(dataset, data_dir=os.fspath(data_dir))
    except tfds.core.DatasetNotFoundError:
        return None
    except ImportError:  # of what a remote folder needs
        raise
    except Exception as error:  # whatever damaged metadata make of TFDS's readers
        if from_a_remote_service(error):
            raise
        raise UserError(
            f"{data_dir / dataset} holds metadata that cannot be read "
            f"({_first_line(error)}): move that folder away, or delete it, to prepare it anew"
        ) from error
    directory = epath.Path(builder.data_dir)
    if (directory / UNFINISHED).exists():
        return None
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{directory} holds {dataset} as {builder.info.file_format.value}, which cannot be "
            "read record by record: convert it with `tfds convert_format` to array_record, or "
            "prepare it in another --data_dir"
        )
    for split in builder.info.splits:
        try:
            check_shards(os.fspath(directory), split)
        except UserError as error:
            raise UserError(
                f"{dataset} is there but broken: {str(error).rstrip('.')}; mend it, or delete "
                f"{directory} to prepare it anew"
            ) from error
    images = {name: split.num_examples for name, split in builder.info.splits.items()}
    return Prepared(os.fspath(directory), images)


def is_begun(dataset: str, data_dir: epath.Path) -> bool:
    """Whether a preparation of ours was interrupted there."""
    folder = data_dir.joinpath(*dataset.split("/"))
    with contextlib.suppress(OSError):
        return any((path / UNFINISHED).exists() for path in folder.iterdir() if path.is_dir())
    return False


@dataclass(frozen=True)
class PreparedRecords:
    """The records of one shard of a prepared data set; `file_name` is what names an image there."""

    directory: str
    file: str
    size: int

    @property
    def source(self) -> str:
        return fingerprint([self.file], [self.size])

    def __call__(self) -> Iterator[Example]:
        """Yields images, labels, and names where there are some.

        Raises:
            RunFailed: the shard is damaged.
        """
        available = dict(tfds.builder_from_directory(self.directory).info.features.items())
        named = _name_in(available)
        wanted = [name for name in ("image", "label", named) if name in available]
        features = tfds.features.FeaturesDict({name: available[name] for name in wanted})
        decoders = {"image": tfds.decode.SkipDecoding()}
        path = os.path.join(self.directory, self.file)
        try:
            with contextlib.closing(array_record_module.ArrayRecordReader(path)) as reader:
                for number in range(reader.num_records()):
                    record = features.deserialize_example_np(
                        reader.read([number])[0], decoders=decoders
                    )
                    name = record.get(named, b"").decode(errors="replace")
                    yield Example(record["image"], int(record["label"]), name)
        except (RuntimeError, ValueError) as error:
            raise RunFailed(f"{path} is damaged ({_first_line(error)}): prepare it anew") from error


def plan_smaller(prepared: Prepared, max_side: int) -> Plan:
    """Plans a copy of a prepared data set, shard by shard, whose images are made smaller.

    It keeps images, labels and the images' names, as `file_name`, and no other features: boxes and
    masks in pixels would be wrong.

    Raises:
        UserError: its images have no labels.
    """
    builder = tfds.builder_from_directory(prepared.directory)
    available = dict(builder.info.features.items())
    label = available.get("label")
    if "image" not in available or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"{prepared.directory} has no images with labels, so none to make smaller")
    splits = {}
    for name, split in builder.info.splits.items():
        paths = [epath.Path(path) for path in split.filepaths]
        splits[name] = [
            PreparedRecords(prepared.directory, path.name, path.stat().length) for path in paths
        ]
    form = available["image"].to_json_content().encoding_format
    plan = Plan(
        name=builder.name,
        version=str(builder.version),
        splits=splits,
        class_names=tuple(label.names),
        description=builder.info.description,
        config=builder.builder_config.name if builder.builder_config else "",
        image_format=form,
        file_names=bool(_name_in(available)),
        images=prepared.images,
    )
    return with_max_side(plan, max_side)


def with_max_side(plan: Plan, max_side: int) -> Plan:
    """The plan under the name of its smaller copy, so that nobody takes it for the original."""
    _, _, config = smaller_name(plan.dataset, max_side).partition("/")
    return dataclasses.replace(plan, config=config)


def smaller_name(dataset: str, max_side: int) -> str:
    """NAME/max_side_512 for NAME, NAME/CONFIG_max_side_512 for NAME/CONFIG."""
    return f"{dataset}{'_' if '/' in dataset else '/'}max_side_{max_side}"


def _name_in(available: Mapping[str, Any]) -> str:
    """Returns which of the features names an image, by the rule of training; "" where none does."""
    named = (name for name in NAMES if isinstance(available.get(name), tfds.features.Text))
    return next(named, "")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().split("\n")
    return lines[0].rstrip(".") or type(error).__name__

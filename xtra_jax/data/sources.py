"""Opens a data set by name: a random-access sequence of encoded images with their labels."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from etils import epath

from xtra_jax.data.decode import BadImage
from xtra_jax.data.folder import FolderSource
from xtra_jax.data.mixture import Mixture
from xtra_jax.data.shards import check_files, open_builder, reason, shards_of
from xtra_jax.data.subsets import choose_subset
from xtra_jax.errors import UserError

# The features by which TFDS's builders name an image.
NAMES = ("file_name", "filename", "id")


class NotPrepared(UserError):
    """There is no data set of that name in the folder; the message says how to prepare it."""


class Source(Protocol):
    """A random-access sequence of records that can be pickled to worker processes.

    A record is a dict of `image` (encoded bytes), `label` (int, -1 where unknown) and `key` (a
    name for messages). Indexing raises `BadImage` where a single record cannot be read.
    """

    num_classes: int | None
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def digest(self) -> str:
        """A text that changes when the records or their order do, so far as names tell."""
        ...

    def files(self) -> Iterator[str]:
        """Paths of all files that records are read from."""
        ...


def open_source(
    dataset: str,
    split: str,
    data_dir: str = "",
    *,
    mixture: Sequence[float] = (),
    subset: str = "",
    seed: int = 0,
) -> Source:
    """Opens one split of a data set, or of several.

    Args:
        dataset: the name of a TFDS data set ("imagenet2012", "imagenet_v2/matched-frequency",
            "cifar10:3.0.2"), which has to be prepared as ArrayRecord; "digits", which prepares
            itself when it is absent; or "folder:/path/to/images" (also "folder", with the path as
            `data_dir`). Several have commas between them and become one, see
            `xtra_jax.data.mixture`.
        split: for TFDS data sets any split of theirs, a slice or a sum of such ("train",
            "train[:90%]", "train+validation"); for folders see `xtra_jax.data.folder`. One for all
            data sets, or one for each with commas between them.
        data_dir: root of the TFDS data sets; empty for TFDS's own default, which is
            `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        mixture: of several data sets the share of training samples that come from each, above 0.
        subset: which of the records, see `xtra_jax.data.subsets`.
        seed: decides which records a subset draws.

    Raises:
        NotPrepared: there is no such data set.
        UserError: there is no such split or folder, it cannot be read record by record, or shares
            and subset don't fit it.
    """
    names = [name.strip() for name in dataset.split(",")]
    splits = [name.strip() for name in split.split(",")]
    if len(splits) not in (1, len(names)):
        raise UserError(
            f"{dataset!r} names {len(names)} data sets and {split!r} {len(splits)} splits: give "
            "one split for all of them, or one for each"
        )
    splits = splits * len(names) if len(splits) == 1 else splits
    try:
        opened = [_open_one(*which, data_dir) for which in zip(names, splits, strict=True)]
    except UserError as error:
        if len(names) == 1 or not any(name.startswith("folder:") for name in names):
            raise
        raise UserError(
            f"{str(error).rstrip('.')}; commas separate data sets, and {dataset!r} names "
            f"{len(names)} of them: a folder whose path has a comma goes in data.data_dir, with "
            "data.dataset=folder"
        ) from error
    source = Mixture(opened, mixture) if len(opened) > 1 or mixture else opened[0]
    if subset and mixture:
        raise UserError(
            "data.subset and data.mixture cannot be combined: a subset of several data sets is "
            "drawn from all of them together, so leave data.mixture empty"
        )
    return choose_subset(source, subset, seed)


def _open_one(dataset: str, split: str, data_dir: str) -> Source:
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

    def __init__(self, directory: str, split: str, *, check: bool = True):
        """Opens the data set whose `dataset_info.json` lies in `directory`.

        Args:
            check: see first that every file of the split is there and whole.

        Raises:
            UserError: the data set has no such split or no images, is not ArrayRecord, or is not
                whole.
        """
        import tensorflow_datasets as tfds

        self._directory = directory
        self._split = split
        builder = open_builder(directory)
        available = dict(builder.info.features.items())
        if "image" not in available:
            raise UserError(
                f"The data set in {directory} has no feature named 'image'; "
                f"it has {', '.join(available)}."
            )
        names = (name for name in NAMES if isinstance(available.get(name), tfds.features.Text))
        self._name = next(names, "")
        wanted = [name for name in ("image", "label", self._name) if name in available]
        self._features = tfds.features.FeaturesDict({name: available[name] for name in wanted})
        self._decoders = {"image": tfds.decode.SkipDecoding()}
        label = available.get("label")
        classes = isinstance(label, tfds.features.ClassLabel)
        self.num_classes = label.num_classes if classes else None
        self.class_names = tuple(label.names) if classes else ()
        self._records = _open_records(builder, split)
        self._shards = shards_of(builder, split)
        if check:
            check_files(directory, self._shards)
        shards = {name: part.shard_lengths for name, part in builder.info.splits.items()}
        state = [builder.info.full_name, split, sorted(shards.items())]
        self._digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `image` (encoded bytes), `label` (-1 where unknown) and `key`.

        Raises:
            BadImage: the record is damaged, or its file is gone.
        """
        try:
            example = self._features.deserialize_example_np(
                self._records[index], decoders=self._decoders
            )
        except Exception as error:  # nearly anything: the readers are C++
            raise BadImage(f"its record cannot be read ({reason(error)})") from error
        name = example.get(self._name, b"").decode(errors="replace")
        return {
            "image": example["image"],
            "label": int(example["label"]) if self.num_classes else -1,
            "key": name or f"{self._split} #{index}",
        }

    def index_file(self) -> str:
        """Where keys and labels of the records, once read, are kept."""
        return os.fspath(epath.Path(self._directory) / f".records-{self._digest[:16]}.npz")

    def files(self) -> Iterator[str]:
        """Those of the split."""
        return iter(dict.fromkeys(shard.file for shard in self._shards.shards))

    def digest(self) -> str:
        """A text that changes when the data set's version, its files or the split do."""
        return self._digest

    def where(self, index: int) -> str:
        """Says which record of which file it is."""
        return self._shards.where(index)

    def __reduce__(self):
        # File handles do not travel; a worker opens the files itself.
        return functools.partial(TfdsSource, check=False), (self._directory, self._split)


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
        raise NotPrepared(_not_found(dataset, looked_in)) from error
    except Exception as error:  # nearly anything, where the metadata is damaged
        folder = os.path.join(root or tfds.core.constants.DATA_DIR, dataset.partition(":")[0])
        if dataset and epath.Path(folder).exists():
            raise UserError(
                f"The data set in {folder} is not whole: its dataset_info.json or features.json "
                f"cannot be read ({reason(error)}); copy or prepare it anew."
            ) from error
        raise UserError(
            f"{dataset!r} names no data set that can be opened; expected the name of a TFDS data "
            f"set, such as 'imagenet2012', or 'folder:/path/to/images' ({_first_line(error)})."
        ) from error


def _not_found(dataset: str, looked_in: str) -> str:
    """What to tell of a name under which nothing is prepared."""
    from xtra_jax.data.prepare.catalogue import CATALOGUE

    folders = "images of your own need no preparation as data.dataset=folder:/path/to/images."
    name, _, side = dataset.partition(":")[0].partition("/max_side_")
    if name in CATALOGUE:
        smaller = f" --max_side {side}" if side else ""
        return (
            f"The data set {dataset!r} was not found in {looked_in}: point data.data_dir at the "
            f"folder that holds it, or prepare it with `xtra prepare --dataset {name}{smaller} "
            f"--data_dir {looked_in}`; {folders}"
        )
    like = difflib.get_close_matches(name, CATALOGUE, n=1)
    meant = f" (did you mean {like[0]}?)" if like else ""
    return (
        f"The data set {dataset!r} was not found in {looked_in}, and `xtra prepare` knows none of "
        f"that name{meant}: point data.data_dir at the folder that holds it, for any data set that "
        f"TFDS has prepared as array_record can be opened; {folders}"
    )


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

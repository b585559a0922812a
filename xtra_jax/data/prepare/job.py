"""`xtra prepare`: one data set as ArrayRecord, from its archives or from what TFDS downloads."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import tempfile

import tensorflow_datasets as tfds
from etils import epath

from xtra_jax.data.digits import prepare_digits
from xtra_jax.data.prepare.catalogue import CATALOGUE, DataSet
from xtra_jax.data.prepare.files import is_local, put, reached
from xtra_jax.data.prepare.imagenet21k import is_synset, plan_imagenet21k
from xtra_jax.data.prepare.plan import Plan
from xtra_jax.data.prepare.prepared import (
    Prepared,
    find_prepared,
    plan_smaller,
    smaller_name,
    with_max_side,
)
from xtra_jax.data.prepare.progress import size
from xtra_jax.data.prepare.stock import prepare_stock
from xtra_jax.data.prepare.wilds import WILDS, plan_wilds
from xtra_jax.data.prepare.writer import Written, write
from xtra_jax.errors import RunFailed, UserError

_ALSO_CALLED = {
    "imagenet": "imagenet2012",
    "imagenet1k": "imagenet2012",
    "inaturalist2018": "i_naturalist2018",
    "pets": "oxford_iiit_pet",
    "stanford_cars": "cars196",
    "pcam": "patch_camelyon",
}
MIN_SIDE = 32  # less is surely a slip of the keyboard


def prepare(
    name: str,
    data_dir: str = "",
    *,
    archives: str = "",
    max_side: int = 0,
    workers: int = 0,
    partial: bool = False,
) -> str:
    """Prepares a data set, unless it lies there already.

    Args:
        name: one of `CATALOGUE`.
        data_dir: root of the TFDS data sets, local or gs://; empty for TFDS's own default, which
            is `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        archives: the folder with what was fetched by hand; empty for `downloads/manual` in
            `data_dir`, as TFDS has it.
        max_side: shrink images whose longer side is more than this, in pixels, and call the result
            NAME/max_side_N; 0 keeps every image as it is.
        workers: processes, where the builder is ours; 0 for as many as there are cores.
        partial: take a source that is not whole, archives that are not the known ones, or a set
            that lies there already with other numbers of images than the known ones.

    Returns:
        The folder of the prepared set.

    Raises:
        UserError: there is no such data set, a file is missing or is not what it has to be, the
            folder cannot be written, or the set is there already, and not whole.
        RunFailed: something gave way on the way: the disk is full, an archive is damaged, the
            number of images is not the known one.
    """
    dataset = find(name)
    if max_side < 0 or 0 < max_side < MIN_SIDE or workers < 0:
        raise UserError(
            f"--max_side takes {MIN_SIDE} pixels or more and --workers 1 or more (0 for neither), "
            f"not {max_side} and {workers}"
        )
    root = root_of(data_dir)
    with reached(root):
        return _prepare(dataset, root, archives, max_side, workers, partial)


def _prepare(
    dataset: DataSet, root: epath.Path, archives: str, max_side: int, workers: int, partial: bool
) -> str:
    wanted = wanted_name(dataset.name, max_side)
    there = _usable(dataset, wanted, root, partial)
    if there:
        _tell(f"{wanted} is prepared already: {_counted(dataset, there)}")
        return there.directory
    if not max_side and not _ours(dataset):
        return _prepare_elsewhere(dataset, root, archives, partial)
    plan, expected = _plan(dataset, root, archives, max_side, workers, partial)
    written = write(
        plan, plan.directory(root), max_side=max_side, workers=workers, expected=expected
    )
    _tell(_summary(plan, max_side, written))
    there = find_prepared(wanted, root)
    if there is None:
        raise RunFailed(f"{wanted} was written, but cannot be found in {root} any more")
    return there.directory


def find(name: str) -> DataSet:
    """Looks a data set up.

    Raises:
        UserError: there is none of that name; the sentence has the nearest one.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    known = {part: key for key in CATALOGUE for part in (*key.split("/"), key)} | _ALSO_CALLED
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {known[near[0]]}? " if near else ""
    raise UserError(
        f"there is no data set {name!r} to prepare: {hint}`xtra prepare --list` shows them all, "
        "and a folder of images needs no preparation"
    )


def wanted_name(name: str, max_side: int = 0) -> str:
    """What `data.dataset` calls a set that was prepared with these options."""
    return smaller_name(name, max_side) if max_side else name


def root_of(data_dir: str) -> epath.Path:
    """The folder that data sets are prepared in."""
    root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    # Not root.absolute(): it takes gs:// for the start of a relative path.
    return root if "://" in os.fspath(root) else epath.Path(os.path.abspath(root))


def _usable(dataset: DataSet, name: str, root: epath.Path, partial: bool) -> Prepared | None:
    """Returns what lies ready of a data set: itself, or the copy of it that has this name.

    Raises:
        UserError: its numbers of images are not the known ones, and `partial` does not allow that.
    """
    there = find_prepared(name, root)
    difference = dataset.difference(there.images) if there else ""
    if difference and not partial:
        raise UserError(
            f"{name} is there already, but has {difference}: delete {there.directory} to prepare "
            "it anew, or use it as it is with --partial"
        )
    return there


def _ours(dataset: DataSet) -> bool:
    """Whether this package writes it shard by shard. The digits are too few for that."""
    return dataset.how == "ours" and dataset.name != "digits"


def _prepare_elsewhere(dataset: DataSet, root: epath.Path, archives: str, partial: bool) -> str:
    if dataset.name != "digits":
        return prepare_stock(dataset, str(root), archives=archives, verify=not partial)
    if partial:
        raise UserError("--partial is for sets made from archives, and the digits have none")
    return _prepare_digits(root)


def _prepare_digits(root: epath.Path) -> str:
    if is_local(root):
        return prepare_digits(str(root))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(None):
        made = epath.Path(prepare_digits(folder))
        target = root / made.relative_to(folder)
        for path in sorted(made.iterdir(), key=lambda path: (path.name == "features.json", path)):
            put(target / path.name, path.read_bytes())
    return str(target)


def _plan(
    dataset: DataSet, root: epath.Path, archives: str, max_side: int, workers: int, partial: bool
) -> tuple[Plan, dict[str, int] | None]:
    """What is to be written, and how many images each split has to have; None for any number."""
    if max_side:
        original = _usable(dataset, dataset.name, root, partial)
        if original is None and not _ours(dataset):
            _prepare_elsewhere(dataset, root, archives, partial)
            original = find_prepared(dataset.name, root)
        if original:
            _tell(f"shrinking the images of {original.directory}, which stays as it is")
            return plan_smaller(original, max_side), original.images
    plan = _plan_ours(dataset, root, archives, partial)
    if max_side:
        plan = with_max_side(plan, max_side)
    return plan, None if partial else dataset.images


def _plan_ours(dataset: DataSet, root: epath.Path, archives: str, partial: bool) -> Plan:
    place = root_of(archives) if archives else root / "downloads" / "manual"
    with reached(place):
        folder = _source_folder(dataset, place, named=bool(archives))
        if dataset.name in WILDS:
            return plan_wilds(dataset.name, folder, partial)
        return plan_imagenet21k(folder, None if partial else dataset.classes)


def _source_folder(dataset: DataSet, place: epath.Path, named: bool) -> epath.Path:
    """Finds the unpacked folder of a set in the folder of archives; if named, that may be it."""
    (archive,) = dataset.manual
    folder = place / archive.name.rstrip("/")
    if folder.is_dir():
        return folder
    if named and _looks_like(dataset, place):
        return place
    raise UserError(
        f"{dataset.name} is made from the folder {archive.name}, which is not in {place}: it comes "
        f"from {archive.source} ({archive.url}); put it there, or name the folder that it lies in "
        "with --archives"
    )


def _looks_like(dataset: DataSet, folder: epath.Path) -> bool:
    if not folder.is_dir():
        return False
    if dataset.name in WILDS:
        return (folder / WILDS[dataset.name].table).exists()
    return any(is_synset(path.name) for path in folder.iterdir())


def _counted(dataset: DataSet, there: Prepared) -> str:
    """How many images there are, and where; also of how many, if they are not all."""
    number = sum(there.images.get(split, 0) for split in dataset.images)
    published = sum(dataset.images.values())
    rest = f" of the {published:,} published" if number != published else ""
    return f"{number:,} images{rest} in {there.directory}"


def _summary(plan: Plan, max_side: int, total: Written) -> str:
    text = f"{plan.dataset}: {total.images:,} images, {size(total.size)}"
    if max_side:
        text += f", {total.shrunk:,} of them shrunk to {max_side} pixels"
    if total.broken:
        text += f", {total.broken:,} that cannot be decoded kept as they are"
    if plan.left_out:
        text += f", {plan.left_out:,} missing ones left out"
    return text


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

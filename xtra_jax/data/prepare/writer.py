"""Writes a planned data set as ArrayRecord, in the layout of TFDS and without TensorFlow.

The shards are written by several processes, each under a temporary name that becomes its own when
it is complete; on gs://, where a rename would be a copy, a shard is written to the local disk and
then sent up, and appears there as a whole. A finished shard is noted in the folder `unfinished`,
and a restart writes only the others. The metadata come last. What a shard holds depends on the
source and the options, never on the number of processes, so neither do the bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from array_record.python import array_record_module
from etils import epath

from xtra_jax.data.prepare import pool
from xtra_jax.data.prepare.files import (
    TEMPORARY,
    explained,
    is_local,
    locked,
    make_folder,
    put,
    reached,
)
from xtra_jax.data.prepare.metadata import Serializer, write_metadata
from xtra_jax.data.prepare.plan import Plan, Records
from xtra_jax.data.prepare.progress import Progress
from xtra_jax.data.prepare.shrink import QUALITY, shrink
from xtra_jax.data.workers import available_cores
from xtra_jax.errors import RunFailed, UserError

UNFINISHED = "unfinished"
_OPTIONS = "options.json"


@dataclass(frozen=True)
class Written:
    """What a shard, or several, came to.

    Attributes:
        images: how many.
        size: bytes of all records.
        shrunk: images that were made smaller.
        broken: images that ought to have been, but cannot be decoded, and are as they were.
    """

    images: int = 0
    size: int = 0
    shrunk: int = 0
    broken: int = 0

    def __add__(self, other: Written) -> Written:
        mine, theirs = asdict(self), asdict(other)
        return Written(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True)
class _Task:
    """One shard that is to be written."""

    split: str
    file: str
    records: Records


def write(
    plan: Plan,
    directory: epath.Path,
    *,
    max_side: int = 0,
    workers: int = 0,
    expected: dict[str, int] | None = None,
) -> Written:
    """Writes what is missing of a data set, and its metadata.

    Args:
        plan: what it holds.
        directory: its folder, local or remote.
        max_side: largest longer side of an image in pixels; 0 keeps every image as it is.
        workers: processes; 0 for as many as there are cores.
        expected: how many images each split has to have; None to take what there is.

    Raises:
        UserError: the folder cannot be written, or holds an unfinished set of another kind, or a
            split would hold no image.
        RunFailed: the disk is full, an image or archive cannot be read, or the numbers of images
            are not the expected ones. Finished shards are kept.
    """
    if expected is not None and plan.images:
        _check_counts(plan, plan.images, expected)
    if max_side and plan.image_format != "jpeg":
        plan = dataclasses.replace(plan, image_format="")  # shrunk images are JPEG
    tasks = _tasks(plan)
    unfinished = directory / UNFINISHED
    with explained(directory):
        make_folder(unfinished)
        busy = f"{directory} is being prepared by another command already: let it finish"
        with locked(unfinished / "lock", busy):
            _begin(plan, unfinished, max_side)
            written = _finished(directory, tasks)
            known = sum((expected or plan.images).values())
            progress = Progress(plan.dataset, known, sum(s.images for s in written.values()))
            with contextlib.closing(progress):
                missing = [task for task in tasks if task.file not in written]
                for task, shard in _write_shards(
                    plan, missing, directory, max_side, workers, progress.add
                ):
                    written[task.file] = shard
                    note = {"source": task.records.source, **asdict(shard)}
                    put(unfinished / f"{task.file}.json", json.dumps(note).encode())
            total = _finish(plan, directory, tasks, written, max_side, expected)
        unfinished.rmtree()
    return total


def _tasks(plan: Plan) -> list[_Task]:
    for split, shards in plan.splits.items():
        if not shards or plan.images.get(split) == 0:
            raise _empty(plan, split)
    return [
        _Task(split, f"{plan.name}-{split}.array_record-{i:05d}-of-{len(shards):05d}", records)
        for split, shards in plan.splits.items()
        for i, records in enumerate(shards)
    ]


def _empty(plan: Plan, split: str) -> UserError:
    return UserError(f"the split {split} of {plan.dataset} would hold no image at all")


def _begin(plan: Plan, unfinished: epath.Path, max_side: int) -> None:
    """Notes what is being prepared, or compares it with what was begun."""
    shards = {split: len(shards) for split, shards in plan.splits.items()}
    options = {"max_side": max_side, "shards": shards}
    note = unfinished / _OPTIONS
    if not note.exists():
        put(note, json.dumps(options).encode())
    elif json.loads(note.read_text()) != options:
        raise _another(unfinished.parent)
    for path in unfinished.iterdir():
        if path.name.startswith(TEMPORARY):
            path.unlink(missing_ok=True)


def _finished(directory: epath.Path, tasks: list[_Task]) -> dict[str, Written]:
    """Returns the shards that an earlier attempt completed.

    Raises:
        UserError: one was made from another source.
    """
    notes = {path.name for path in (directory / UNFINISHED).iterdir()}
    there = {path.name for path in directory.iterdir()}
    finished = {}
    for task in tasks:
        if f"{task.file}.json" in notes and task.file in there:
            note = json.loads((directory / UNFINISHED / f"{task.file}.json").read_text())
            if note.pop("source") != task.records.source:
                raise _another(directory)
            finished[task.file] = Written(**note)
    return finished


def _another(directory: epath.Path) -> UserError:
    return UserError(
        f"{directory} was begun with other options or from another source: repeat the command as "
        "it was, or delete that folder to start anew"
    )


def _write_shards(
    plan: Plan,
    tasks: list[_Task],
    directory: epath.Path,
    max_side: int,
    workers: int,
    report: pool.Report,
) -> Iterator[tuple[_Task, Written]]:
    """Yields the shards as they are written."""
    work = functools.partial(
        _write_shard,
        directory=os.fspath(directory),
        serializer=(plan.class_names, plan.image_format, plan.file_names),
        max_side=max_side,
    )
    return pool.run(tasks, work, workers or available_cores(), report)


def _write_shard(
    task: _Task, report: pool.Report, *, directory: str, serializer: tuple, max_side: int
) -> Written:
    """Writes one shard under a temporary name, then gives it its own."""
    serialize = Serializer(*serializer)
    target = epath.Path(directory) / task.file
    with reached(target), explained(target):
        if is_local(directory):
            name = f"{TEMPORARY}{os.getpid()}-{task.file}"
            temporary = os.path.join(directory, UNFINISHED, name)
            try:
                written = _write_records(task, temporary, serialize, max_side, report)
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
        else:
            with tempfile.TemporaryDirectory() as folder:
                temporary = os.path.join(folder, task.file)
                written = _write_records(task, temporary, serialize, max_side, report)
                with open(temporary, "rb") as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 24)
    return written


def _write_records(
    task: _Task, path: str, serialize: Serializer, max_side: int, report: pool.Report
) -> Written:
    images = size = shrunk = broken = 0
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")  # as TFDS does
    try:
        for example in task.records():
            image = shrink(example.image, max_side)
            record = serialize(dataclasses.replace(example, image=image.data))
            writer.write(record)
            images, size = images + 1, size + len(record)
            shrunk, broken = shrunk + image.shrunk, broken + image.broken
            report(1)
    finally:
        writer.close()
    return Written(images, size, shrunk, broken)


def _finish(
    plan: Plan,
    directory: epath.Path,
    tasks: list[_Task],
    written: dict[str, Written],
    max_side: int,
    expected: dict[str, int] | None,
) -> Written:
    """Compares the numbers and writes the metadata; returns what all shards came to."""
    shards: dict[str, list[Written]] = {split: [] for split in plan.splits}
    for task in tasks:
        shards[task.split].append(written[task.file])
    total = sum(written.values(), Written())
    found = {split: sum(part.images for part in parts) for split, parts in shards.items()}
    if expected is not None:
        _check_counts(plan, found, expected)
    for split, number in found.items():
        if not number:
            raise _empty(plan, split)
    lengths = {
        split: [(part.images, part.size) for part in parts] for split, parts in shards.items()
    }
    write_metadata(plan, directory, lengths, _description(plan, max_side, total))
    return total


def _check_counts(plan: Plan, found: dict[str, int], expected: dict[str, int]) -> None:
    different = [
        f"{found.get(split, 0):,} of {number:,} for {split}"
        for split, number in expected.items()
        if found.get(split, 0) != number
    ]
    if different:
        raise RunFailed(
            f"{plan.dataset} comes to another number of images than is known, "
            f"{', '.join(different)}: the source is not whole, or not the known one; complete it, "
            "or take it as it is with --partial"
        )


def _description(plan: Plan, max_side: int, total: Written) -> str:
    text = plan.description
    if plan.left_out:
        text += f" {plan.left_out:,} images that the metadata name were missing and are left out."
    if max_side:
        text += (
            f" Images with a side of more than {max_side} pixels ({total.shrunk:,} of "
            f"{total.images:,}) were shrunk to that, bicubic, and stored as JPEG of quality "
            f"{QUALITY}, 4:4:4."
        )
    return text

"""The files of a prepared data set: whether all are whole, and which record lies where."""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from etils import epath

from xtra_jax.errors import UserError

_AT_ONCE = 32  # files: on a network disk the waiting takes the time
_FOR_A_FOOTER = "readahead_buffer_size:0,max_parallelism:0"


class Shard(NamedTuple):
    """Some consecutive records of one file.

    Attributes:
        file: its path.
        first: the first of them in the file.
        take: how many.
        holds: how many records the file has, by the data set's metadata.
    """

    file: str
    first: int
    take: int
    holds: int


class Shards:
    """The shards of a split, in order."""

    def __init__(self, shards: Sequence[Shard]):
        self.shards = tuple(shards)
        self._ends = list(itertools.accumulate(shard.take for shard in self.shards))

    def where(self, index: int) -> str:
        """Says which record of which file the split's record of that number is."""
        number = bisect.bisect_right(self._ends, index)
        shard = self.shards[number]
        return f"record {index - self._ends[number] + shard.take + shard.first} of {shard.file}"


def open_builder(directory: str):
    """Returns the TFDS builder of a prepared data set.

    Raises:
        UserError: its metadata cannot be read.
    """
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # nearly anything, where the files are damaged
        raise UserError(
            f"The data set in {directory} is not whole: its dataset_info.json or features.json "
            f"cannot be read ({reason(error)}); copy or prepare it anew."
        ) from error


def shards_of(builder, split: str) -> Shards:
    """Returns the shards of a split of a TFDS builder, or of a slice or sum of splits."""
    return Shards(
        [
            Shard(os.fspath(part.filename), part.skip, part.take, part.examples_in_shard)
            for part in builder.info.splits[split].file_instructions
        ]
    )


def check_shards(directory: str, split: str) -> None:
    """Sees that every file of a split is there, ends as it should and holds what it should.

    It reads the ends of files only: what is damaged within shows when it is read, and then costs
    single images.

    Args:
        directory: of a data set that was prepared as ArrayRecord.
        split: of it, or a slice or sum of its splits.

    Raises:
        UserError: a file is missing or is not whole; it is named.
    """
    check_files(directory, shards_of(open_builder(directory), split))


def check_files(directory: str, shards: Shards) -> None:
    """Does what `check_shards` does for shards that are known."""
    expected = {shard.file: shard.holds for shard in shards.shards}
    present = {path.name for path in epath.Path(directory).iterdir()}
    missing = [file for file in expected if os.path.basename(file) not in present]
    if missing:
        raise UserError(
            f"The data set in {directory} lacks {len(missing)} of {len(expected)} files, the first "
            f"of them {os.path.basename(missing[0])}: copy or prepare it anew."
        )
    with ThreadPoolExecutor(min(_AT_ONCE, len(expected) or 1)) as executor:
        problems = [p for p in executor.map(_problem, expected, expected.values()) if p]
    if problems:
        others = f", and {len(problems) - 1} more files are not whole" if problems[1:] else ""
        raise UserError(
            f"The data set in {directory} is not whole: {problems[0]}{others}; copy or prepare it "
            "anew."
        )


def _problem(file: str, holds: int) -> str:
    """Says what is wrong with a file; "" if nothing shows at its end."""
    from array_record.python import array_record_module

    name = os.path.basename(file)
    try:
        reader = array_record_module.ArrayRecordReader(file, options=_FOR_A_FOOTER)
        try:
            if not reader.ok():
                reader.read([0])  # raises what is wrong
            found = reader.num_records()
        finally:
            reader.close()
    except Exception as error:
        return f"{name} cannot be read ({reason(error)})"
    return "" if found == holds else f"{name} holds {found} records instead of {holds}"


def reason(error: Exception) -> str:
    """Returns what a reader says: its first line, without the checksums that it computed."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.split(" (computed ")[0].split("; ")[0].rstrip(".")

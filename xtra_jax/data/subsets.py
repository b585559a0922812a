"""A part of a source's records: a share of all, a share of each class, or those that a file lists.

Drawn parts depend on the seed alone and are nested: with one seed the 1 % are among the 10 %.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from xtra_jax.data.record_index import index_of, where
from xtra_jax.errors import UserError

_SHARE = re.compile(r"(stratified:)?(\d+(?:\.\d*)?|\.\d+)%")


class Subset:
    """Some records of a source, in its order.

    Attributes:
        indices: int64 [records], of the source.
        class_names, num_classes: those of the source.
    """

    def __init__(self, source, indices: np.ndarray):
        self._source = source
        self.indices = np.asarray(indices, np.int64)
        self.num_classes = source.num_classes
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self.indices[index])]

    def where(self, index: int) -> str:
        """Says where a record lies."""
        return where(self._source, int(self.indices[index]))

    def files(self) -> Iterator[str]:
        """The files of the whole source."""
        return self._source.files()

    def digest(self) -> str:
        """A text that two subsets share only if they hold the same records."""
        return f"{self._source.digest()} {hashlib.sha256(self.indices.tobytes()).hexdigest()}"


def choose_subset(source, subset: str, seed: int):
    """The records that `data.subset` names.

    Args:
        subset: "10%" of the records; "stratified:10%" of the records of each class, and one at
            least; "list:FILE", a text file with a key in each line, which is the name of an image's
            file (of one in a folder, its path below the folder), and which may lie in a bucket
            (gs://...); or "" for all.
        seed: at least 0; decides which are drawn.

    Raises:
        UserError: the subset cannot be understood, is empty, needs labels that the source doesn't
            have, or lists keys that it doesn't have.
    """
    if not subset:
        return source
    if subset.startswith("list:"):
        return Subset(source, _listed(source, subset.removeprefix("list:")))
    match = _SHARE.fullmatch(subset)
    share = float(match[2]) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise UserError(
            f"data.subset={subset!r} cannot be understood: it takes a share above 0 and up to 100 "
            "such as 10%, stratified:10% for that share of each class, or list:FILE"
        )
    drawn = np.random.default_rng(seed).permutation(len(source))
    if match[1]:
        return Subset(source, _of_each_class(source, drawn, share))
    count = round(share * len(source))
    if not count:
        raise UserError(f"data.subset={subset} of {len(source)} records leaves none: take more")
    return Subset(source, np.sort(drawn[:count]))


def _of_each_class(source, drawn: np.ndarray, share: float) -> np.ndarray:
    """The first of each class's records in the order that was drawn, [records]."""
    if not source.num_classes:
        raise UserError(
            "data.subset=stratified:... takes a share of each class, and this data set has no "
            "labels: take a share of all its records, as in data.subset=10%"
        )
    labels = index_of(source).labels[drawn]
    chosen = []
    for label in range(source.num_classes):
        members = drawn[labels == label]
        chosen.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(chosen))


def _listed(source, path: str) -> np.ndarray:
    """The records whose keys a file lists, in the source's order."""
    try:
        text = epath.Path(os.path.expanduser(path)).read_bytes().decode("utf-8-sig")
    except Exception as error:  # nearly anything, from a bucket
        raise UserError(
            f"The list data.subset=list:{path} cannot be read ({error}): it has to be a text file "
            "with the name of an image in each line"
        ) from error
    names = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    wanted = np.unique(np.array([name.encode() for name in names if name], np.bytes_))
    if not len(wanted):
        raise UserError(f"The list data.subset=list:{path} names no image: it is empty.")
    keys = index_of(source).keys
    unknown = wanted[~np.isin(wanted, keys)]
    if len(unknown):
        examples = keys[keys != b""][:1]
        like = f", whose keys look like {examples[0].decode()!r}" if len(examples) else ""
        raise UserError(
            f"{len(unknown)} of the {len(wanted)} names in {path} are not among the {len(keys)} "
            f"images of this split{like}; the first is {unknown[0].decode()!r}"
        )
    return np.flatnonzero(np.isin(keys, wanted))

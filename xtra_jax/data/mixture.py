"""Several sources as one, in proportion to their sizes or in given shares.

Without shares the records of all sources are shuffled together, so that each is seen once per
epoch. With shares every stretch of samples holds each source in its share, as evenly as whole
numbers allow; each source is shuffled by itself and begins anew when it is through, so a small one
is seen more often. An epoch is then as many samples as all sources have records.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from xtra_jax.data.record_index import RecordIndex, index_of, where
from xtra_jax.errors import UserError

if TYPE_CHECKING:
    import grain

_FINEST = 10**6  # shares are taken to one part in a million


class Mixture:
    """The records of several sources, one source after another.

    Attributes:
        class_names, num_classes: those of the sources if they agree; else none, and every label
            is -1, for the same number would mean different things.
    """

    def __init__(self, sources: Sequence[Any], shares: Sequence[float] = ()):
        """Joins sources.

        Args:
            sources: at least one, none of them empty.
            shares: above 0, one for each source; only their ratios count. Empty for the sizes'.

        Raises:
            UserError: the number of shares is not that of the sources, or one is not above 0.
        """
        if shares and len(shares) != len(sources):
            raise UserError(
                f"data.mixture has {len(shares)} shares and data.dataset names {len(sources)} data "
                "sets: give a share for each, or none to mix them in proportion to their sizes"
            )
        if any(share <= 0 for share in shares):
            raise UserError(f"data.mixture={','.join(map(str, shares))}: shares must be above 0")
        self._sources = tuple(sources)
        self._starts = (0, *itertools.accumulate(len(source) for source in sources))
        self._shares = tuple(shares)
        first = sources[0]
        agree = all(
            (source.num_classes, source.class_names) == (first.num_classes, first.class_names)
            for source in sources
        )
        self.num_classes = first.num_classes if agree else None
        self.class_names = first.class_names if agree else ()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, index = self._place(index)
        return source[index] if self.num_classes else source[index] | {"label": -1}

    def where(self, index: int) -> str:
        """Says where a record lies."""
        return where(*self._place(index))

    def _place(self, index: int) -> tuple[Any, int]:
        """The source of a record, and its place there."""
        part = bisect.bisect_right(self._starts, index) - 1
        return self._sources[part], index - self._starts[part]

    def index(self) -> RecordIndex:
        """Keys and labels of all records, in order."""
        parts = [index_of(source) for source in self._sources]
        labels = np.concatenate([part.labels for part in parts])
        known = labels if self.num_classes else np.full_like(labels, -1)
        return RecordIndex(np.concatenate([part.keys for part in parts]), known)

    def files(self) -> Iterator[str]:
        """The files of all sources."""
        return itertools.chain.from_iterable(source.files() for source in self._sources)

    def digest(self) -> str:
        """A text that changes when the records of a source, or their order, do."""
        return " ".join(source.digest() for source in self._sources)

    def repeats(self) -> int:
        """How often one record may come in an epoch; 1 where each comes once."""
        if not self._shares or len(self._sources) == 1:
            return 1
        total = sum(self._shares)
        passes = (
            share / total * len(self) / len(source)
            for share, source in zip(self._shares, self._sources, strict=True)
        )
        # Once more, for an epoch may begin and end within a pass.
        return max(map(math.ceil, passes)) + 1

    def order(self, seed: int) -> MixedOrder | None:
        """The endless order of training samples; None to shuffle all records together."""
        if not self._shares:
            return None
        sizes = np.diff(self._starts).tolist()
        return MixedOrder(sizes, self._shares, seed)


class MixedOrder:
    """The record that each position of an endless sequence of samples holds, in given shares.

    Indexing takes a position from 0 up and costs the same everywhere.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], seed: int):
        exact = [Fraction(share).limit_denominator(_FINEST) for share in shares]
        # Of what the sources before leave, the part that each takes: the last one takes all.
        self._takes = [share / sum(exact[i:]) for i, share in enumerate(exact)]
        self._starts = (0, *itertools.accumulate(sizes[:-1]))
        seeds = np.random.SeedSequence(seed).generate_state(len(sizes)).tolist()
        self._orders = [shuffled(*parts) for parts in zip(sizes, seeds, strict=True)]

    def __getitem__(self, position: int) -> int:
        for take, start, order in zip(self._takes, self._starts, self._orders, strict=True):
            taken = position * take.numerator // take.denominator
            if (position + 1) * take.numerator // take.denominator > taken:
                return start + int(order[taken])
            position -= taken
        raise AssertionError("the last source takes every position")


def repeats(source) -> int:
    """How often one record of any source may come in an epoch of training samples."""
    return source.repeats() if isinstance(source, Mixture) else 1


def shuffled(size: int, seed: int) -> grain.MapDataset:
    """An endless order of `size` records: all of them, in another order in every epoch."""
    import grain  # with it comes jax, which a job that only looks at data does without

    return grain.MapDataset.range(size).seed(seed).shuffle().repeat()

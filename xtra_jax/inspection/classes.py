"""How many images each class has, counted or estimated from a stated sample."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
from PIL import Image

from xtra_jax.data.decode import BadImage
from xtra_jax.data.folder import FolderSource
from xtra_jax.data.sources import Source
from xtra_jax.inspection.canvas import BAR, FAINT, INK, LINE, MARGIN, SMALL, fitted, font, sheet
from xtra_jax.inspection.views import label_of

MOST_RECORDS = 20_000  # read for their labels; of ImageNet-1k about 2 GB
_NAMED_BARS = 50  # classes that still have a bar with a name each
_WIDTH = 900


@dataclasses.dataclass(frozen=True)
class ClassCounts:
    """Labels of the records that were looked at.

    Attributes:
        names: of the classes, in the order of their numbers.
        counts: int64 [classes].
        unlabelled: records without a label.
        looked_at: records whose label was asked for.
        records: of the whole source.
        unreadable: records that could not be read.
    """

    names: tuple[str, ...]
    counts: np.ndarray
    unlabelled: int
    looked_at: int
    records: int
    unreadable: int

    @property
    def complete(self) -> bool:
        return self.looked_at == self.records

    @property
    def absent(self) -> int:
        """Classes of which no record was seen."""
        return int((self.counts == 0).sum())

    def ranked(self) -> list[tuple[str, int]]:
        """Names and counts, the largest first."""
        order = np.argsort(-self.counts, kind="stable")
        return [(self.names[i], int(self.counts[i])) for i in order]


def count_classes(source: Source, seconds: float, most: int = MOST_RECORDS) -> ClassCounts:
    """Counts labels of all records, or of as many as the time and `most` allow, drawn at random.

    A folder of images knows all its labels; records of other sources have to be read.
    """
    size = len(source)
    if isinstance(source, FolderSource) and hasattr(source, "index"):
        labels, unreadable = source.index().labels, 0
    else:
        labels, unreadable = _read_labels(source, seconds, min(size, most))
    labels = np.asarray(labels, np.int64)
    known = labels[labels >= 0]
    classes = source.num_classes or 0
    return ClassCounts(
        tuple(label_of(source, label) for label in range(classes)),
        np.bincount(known, minlength=classes)[:classes],
        len(labels) - len(known),
        len(labels) + unreadable,
        size,
        unreadable,
    )


def _read_labels(source: Source, seconds: float, most: int) -> tuple[list[int], int]:
    """The labels of some records, and how many could not be read."""
    labels, unreadable = [], 0
    end = time.monotonic() + seconds
    for index in np.random.default_rng(0).choice(len(source), most, replace=False).tolist():
        try:
            labels.append(source[index]["label"])
        except BadImage:
            unreadable += 1
        if time.monotonic() > end:
            break
    return labels, unreadable


def draw_histogram(counts: ClassCounts, title: str, lines: list[str]) -> Image.Image:
    """A named bar for each class, or the classes by size where there are too many."""
    if len(counts.names) <= _NAMED_BARS:
        return _named_bars(counts, title, lines)
    return _by_size(counts, title, lines)


def _named_bars(counts: ClassCounts, title: str, lines: list[str]) -> Image.Image:
    step = SMALL + 10
    names = [fitted(name, SMALL, 260) for name in counts.names]
    left = MARGIN + 12 + max([round(font(SMALL).getlength(name)) for name in names], default=0)
    room = _WIDTH - left - MARGIN - 70
    page, pen, top = sheet(_WIDTH, len(names) * step + MARGIN, title, lines)
    largest = max(1, counts.counts.max(initial=0))
    for i, (name, count) in enumerate(zip(names, counts.counts.tolist(), strict=True)):
        y = top + i * step
        pen.text((left - 12, y + 2), name, fill=INK, font=font(SMALL), anchor="ra")
        length = round(room * count / largest)
        if length:
            pen.rectangle([left, y, left + length - 1, y + step - 6], fill=BAR)
        pen.text((left + length + 8, y + 2), f"{count:,}", fill=FAINT, font=font(SMALL))
    return page


def _by_size(counts: ClassCounts, title: str, lines: list[str]) -> Image.Image:
    """Columns from the largest class to the smallest; every column of pixels is some class."""
    height, left = 320, MARGIN + 60
    room = _WIDTH - left - MARGIN
    page, pen, top = sheet(_WIDTH, height + 90, title, lines)
    ranked = counts.ranked()
    largest = max(1, ranked[0][1])
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = top + round(height * (1 - share))
        pen.line([left, y, _WIDTH - MARGIN, y], fill=LINE)
        text = f"{largest * share:,.0f}" if largest >= 4 or share in (0, 1) else ""
        pen.text((left - 8, y), text, fill=FAINT, font=font(SMALL), anchor="rm")
    for x in range(room):
        count = ranked[x * len(ranked) // room][1]
        if count:
            y = top + height - max(1, round(height * count / largest))
            pen.line([left + x, y, left + x, top + height], fill=BAR)
    y = top + height + 10
    for at, (name, count), anchor in ((left, ranked[0], "la"), (_WIDTH - MARGIN, ranked[-1], "ra")):
        text = fitted(name, SMALL, room // 2 - 90)
        pen.text((at, y), f"{text}: {count:,}", fill=INK, font=font(SMALL), anchor=anchor)
    middle = f"{len(ranked):,} classes, the largest first"
    pen.text((left + room // 2, y + 26), middle, fill=FAINT, font=font(SMALL), anchor="ma")
    return page

"""`xtra prepare --list`: what can be prepared, and what of it lies ready."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from etils import epath

from xtra_jax.data.prepare.catalogue import CATALOGUE, DataSet
from xtra_jax.data.prepare.files import reached
from xtra_jax.data.prepare.job import root_of
from xtra_jax.data.prepare.prepared import find_prepared, is_begun
from xtra_jax.data.prepare.progress import size
from xtra_jax.errors import UserError

_HEAD = ("NAME", "IMAGES", "CLASSES", "SIZE", "FILES", "TENSORFLOW", "READY", "SPLITS")
_NUMBERS = {1, 2, 3}  # columns that are set flush right


def listing(data_dir: str = "") -> str:
    """Returns the table of all data sets, and whether they are ready in `data_dir`."""
    root = root_of(data_dir)
    with reached(root):
        table = [_HEAD, *(_row(dataset, root) for dataset in CATALOGUE.values())]
    widths = [max(len(row[i]) for row in table) for i in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.rjust(width) if i in _NUMBERS else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"READY is about {root}; SIZE is what a prepared set takes there, roughly.",
            "FILES fetched by hand: `xtra prepare --dataset NAME` says which, and where from.",
            "A folder of images needs no preparation: data.dataset=folder:/path/to/images.",
        ]
    )


def _row(dataset: DataSet, root: epath.Path) -> tuple[str, ...]:
    return (
        dataset.name,
        f"{sum(dataset.images.values()):,}",
        f"{dataset.classes:,}",
        size(dataset.size),
        "by hand" if dataset.manual else "automatic",
        "needed" if dataset.how == "stock+tensorflow" else "-",
        ", ".join(_ready(dataset, root)),
        ", ".join(f"{split} {number:,}" for split, number in dataset.images.items()),
    )


def _ready(dataset: DataSet, root: epath.Path) -> Iterable[str]:
    """Yields what there is of a set: itself, and copies with smaller images."""
    yield _state(dataset.name, root, dataset)
    first, _, config = dataset.name.partition("/")
    prefix = f"{config}_max_side_" if config else "max_side_"
    with contextlib.suppress(OSError):
        for path in sorted((root / first).iterdir()):
            if path.name.startswith(prefix):
                state = _state(f"{first}/{path.name}", root, dataset)
                if state in ("yes", "partial"):
                    yield path.name if state == "yes" else f"{path.name} (partial)"


def _state(name: str, root: epath.Path, dataset: DataSet) -> str:
    try:
        if there := find_prepared(name, root):
            return "partial" if dataset.difference(there.images) else "yes"
    except UserError:
        return "broken"
    return "begun" if is_begun(name, root) else "no"

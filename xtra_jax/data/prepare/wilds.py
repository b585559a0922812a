"""iWildCam, Camelyon17, RxRx1 and fMoW as WILDS 2.0 releases, splits and labels them.

Each set is a folder NAME_vVERSION with a table of metadata and the images that it names; the splits
are WILDS's "official" ones (arXiv 2012.07421). Records are in the order of the table, so WILDS's
own index order within each split.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from etils import epath

from xtra_jax.data.prepare.plan import Plan, Rows
from xtra_jax.errors import UserError

Row = dict[str, str]

# In the order of their labels.
_FMOW = """
airport airport_hangar airport_terminal amusement_park aquaculture archaeological_site barn
border_checkpoint burial_site car_dealership construction_site crop_field dam debris_or_rubble
educational_institution electric_substation factory_or_powerplant fire_station flooded_road
fountain gas_station golf_course ground_transportation_station helipad hospital
impoverished_settlement interchange lake_or_pond lighthouse military_facility
multi-unit_residential nuclear_powerplant office_building oil_or_gas_facility park
parking_lot_or_garage place_of_worship police_station port prison race_track railway_bridge
recreational_facility road_bridge runway shipyard shopping_mall single-unit_residential smokestack
solar_farm space_facility stadium storage_tank surface_mine swimming_pool toll_booth tower
tunnel_opening waste_disposal water_treatment_facility wind_farm zoo
"""
FMOW_CATEGORIES = tuple(_FMOW.split())
_FMOW_LABELS = {name: label for label, name in enumerate(FMOW_CATEGORIES)}
_FMOW_VAL_FROM, _FMOW_TEST_FROM = 2013, 2016  # years in UTC; before them, in distribution


@dataclass(frozen=True)
class WildsSet:
    """How one of the sets is read.

    Attributes:
        name: of the data set.
        version: WILDS's, "major.minor".
        table: the metadata's file name.
        columns: the columns that are read.
        splits: names of the splits, in the order they are written.
        classes: how many.
        place: from a row and its number to the image's path, its label, and its split, "" where
            the row belongs to none. Raises `ValueError` or `KeyError` where the row makes no sense.
        names: from the set's folder and the rows to the names of classes; labels lack names in
            the source where it gives none.
        image_format: of all images.
        description: in a sentence.
    """

    name: str
    version: str
    table: str
    columns: tuple[str, ...]
    splits: tuple[str, ...]
    classes: int
    place: Callable[[Row, int], tuple[str, int, str]]
    names: Callable[[epath.Path, list[Row]], dict[int, str]]
    image_format: str
    description: str

    @property
    def folder(self) -> str:
        return f"{self.name}_v{self.version}"


def _place_iwildcam(row: Row, number: int) -> tuple[str, int, str]:
    return f"train/{row['filename']}", int(row["y"]), row["split"]


def _place_camelyon17(row: Row, number: int) -> tuple[str, int, str]:
    slide = f"patient_{row['patient']}_node_{row['node']}"
    file = f"patches/{slide}/patch_{slide}_x_{row['x_coord']}_y_{row['y_coord']}.png"
    # The table divides the patches of the training hospitals only; the other two are splits.
    split = {1: "val", 2: "test"}.get(int(row["center"]))
    split = split or {0: "train", 1: "id_val"}[int(row["split"])]
    return file, int(row["tumor"]), split


def _place_rxrx1(row: Row, number: int) -> tuple[str, int, str]:
    file = f"images/{row['experiment']}/Plate{row['plate']}/{row['well']}_s{row['site']}.png"
    # Of every well of the training experiments the second site is held out.
    held_out = row["dataset"] == "train" and int(row["site"]) == 2
    return file, int(row["sirna_id"]), "id_test" if held_out else row["dataset"]


def _place_fmow(row: Row, number: int) -> tuple[str, int, str]:
    # Images are numbered by the row of the whole table, with the rows that no split has.
    file, label = f"images/rgb_img_{number}.png", _FMOW_LABELS[row["category"]]
    if row["split"] == "seq":
        return file, label, ""
    if row["split"] not in ("train", "val", "test"):
        raise ValueError(f"the split {row['split']!r} is unknown")
    taken = datetime.fromisoformat(row["timestamp"])
    year = (taken if taken.tzinfo is None else taken.astimezone(UTC)).year
    if year < _FMOW_VAL_FROM:
        return file, label, {"train": "train", "val": "id_val", "test": "id_test"}[row["split"]]
    later = "val" if year < _FMOW_TEST_FROM else "test"
    return file, label, later if row["split"] == later else ""


def _iwildcam_names(folder: epath.Path, rows: list[Row]) -> dict[int, str]:
    path = folder / "categories.csv"
    if not path.exists():
        return {}
    return {int(row["y"]): row["name"] for row in _read(path, ("y", "name"))}


def _rxrx1_names(folder: epath.Path, rows: list[Row]) -> dict[int, str]:
    return {int(row["sirna_id"]): row["sirna"] for row in rows if row.get("sirna")}


WILDS = {
    wilds.name: wilds
    for wilds in (
        WildsSet(
            "iwildcam",
            "2.0",
            "metadata.csv",
            ("filename", "y", "split"),
            ("train", "val", "test", "id_val", "id_test"),
            182,
            _place_iwildcam,
            _iwildcam_names,
            "jpeg",
            "Animals at camera traps (iWildCam 2020); val and test are other cameras than train.",
        ),
        WildsSet(
            "camelyon17",
            "1.0",
            "metadata.csv",
            ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split"),
            ("train", "val", "test", "id_val"),
            2,
            _place_camelyon17,
            lambda folder, rows: {0: "normal", 1: "tumor"},
            "png",
            "Patches of lymph nodes, tumor or not in the centre; val and test are one hospital "
            "each that train has not.",
        ),
        WildsSet(
            "rxrx1",
            "1.0",
            "metadata.csv",
            ("experiment", "plate", "well", "site", "dataset", "sirna_id"),
            ("train", "val", "test", "id_test"),
            1139,
            _place_rxrx1,
            _rxrx1_names,
            "png",
            "Fluorescent cells by the siRNA they were given; val and test are other experiments "
            "than train.",
        ),
        WildsSet(
            "fmow",
            "1.1",
            "rgb_metadata.csv",
            ("split", "category", "timestamp"),
            ("train", "val", "test", "id_val", "id_test"),
            62,
            _place_fmow,
            lambda folder, rows: dict(enumerate(FMOW_CATEGORIES)),
            "png",
            "Satellite pictures by the use of the land: train before 2013, val from 2013 to 2015, "
            "test from 2016 on.",
        ),
    )
}


def plan_wilds(name: str, folder: epath.Path, partial: bool = False) -> Plan:
    """Plans one of the sets from its unpacked folder.

    Args:
        name: a key of `WILDS`.
        folder: the folder that holds the table of metadata.
        partial: leave out images that the table names and the folder lacks.

    Raises:
        UserError: the table is missing, lacks a column or has a row that makes no sense, or an
            image is missing.
    """
    wilds = WILDS[name]
    path = folder / wilds.table
    splits = {split: Rows() for split in wilds.splits}
    present = _Present(folder)
    rows = list(_read(path, wilds.columns))
    left_out = 0
    for number, row in enumerate(rows):
        try:
            file, label, split = wilds.place(row, number)
            if split and split not in splits:
                raise ValueError(f"the split {split!r} is unknown")
            if not 0 <= label < wilds.classes:
                raise ValueError(f"the label {label} is not one of {wilds.classes}")
        except (ValueError, KeyError) as error:
            reason = f"{error} is unknown" if isinstance(error, KeyError) else error
            raise UserError(
                f"{path} makes no sense in its data row {number + 1}: {reason}"
            ) from error
        if not split:
            continue
        if file in present:
            splits[split].add(file, label)
        elif partial:
            left_out += 1
        else:
            raise UserError(
                f"{folder / file} is missing, which row {number + 1} of {wilds.table} names: "
                "unpack the archive again, or leave out what is missing with --partial"
            )
    kept = {split: found for split, found in splits.items() if found.files or not partial}
    return Plan(
        name=name,
        version=f"{wilds.version}.0",
        splits={split: found.shards(str(folder)) for split, found in kept.items()},
        class_names=_class_names(wilds.names(folder, rows), wilds.classes),
        description=f"{wilds.description} Version {wilds.version} of WILDS, its official splits.",
        image_format=wilds.image_format,
        images={split: len(found.files) for split, found in kept.items()},
        left_out=left_out,
    )


def _class_names(names: dict[int, str], classes: int) -> tuple[str, ...]:
    """Returns a name for every label: its number where the source has no name for each."""
    found = tuple(names.get(label, "") for label in range(classes))
    if all(found) and len(set(found)) == classes:
        return found
    return tuple(map(str, range(classes)))


def _read(path: epath.Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """Yields the rows of a table.

    Raises:
        UserError: it is missing, cannot be read, or lacks one of the columns.
    """
    try:
        with path.open("rb") as file:
            reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""))
            lacking = [name for name in columns if name not in (reader.fieldnames or ())]
            if lacking:
                raise UserError(
                    f"{path} has no column {', '.join(lacking)}; "
                    f"it has {', '.join(filter(None, reader.fieldnames or ())) or 'none'}"
                )
            for number, row in enumerate(reader):
                if any(row[name] is None for name in columns):
                    raise UserError(f"{path} ends within its data row {number + 1}: fetch it again")
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else error
        raise UserError(f"{path} cannot be read ({reason}): unpack the archive again") from error


class _Present:
    """The files below a folder, every subfolder listed once, when it is first asked for."""

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self._listed: dict[str, set[str]] = {}

    def __contains__(self, file: str) -> bool:
        parent, _, name = file.rpartition("/")
        if parent not in self._listed:
            path = self._folder / parent
            try:
                self._listed[parent] = {entry.name for entry in path.iterdir()}
            except FileNotFoundError:
                self._listed[parent] = set()
            except OSError as error:
                raise UserError(f"{path} cannot be listed ({error.strerror or error})") from error
        return name in self._listed[parent]

"""Splits, labels and paths against the WILDS package itself, where it is installed."""

from __future__ import annotations

import csv
import importlib

import numpy as np
import pytest
from etils import epath

from xtra_jax.data.prepare.wilds import FMOW_CATEGORIES, WILDS, plan_wilds

ROWS = 3000


def choose(rng, *options):
    return rng.choice(options, ROWS).tolist()


def labels(rng, classes):
    """Every class at least once: WILDS counts them."""
    return rng.permutation(np.arange(ROWS) % classes).tolist()


def iwildcam(rng):
    return {
        "split": choose(rng, "train", "val", "test", "id_val", "id_test"),
        "location_remapped": labels(rng, 30),
        "sequence_remapped": labels(rng, 100),
        "y": labels(rng, 182),
        "datetime": ["2013-05-28 19:21:57.000"] * ROWS,
        "filename": [f"{number:08x}.jpg" for number in range(ROWS)],
    }


def camelyon17(rng):
    return {
        "": list(range(ROWS)),
        "patient": [f"{number:03d}" for number in choose(rng, *range(100))],
        "node": choose(rng, *range(5)),
        "x_coord": [32 * number for number in range(ROWS)],
        "y_coord": choose(rng, *range(0, 9600, 32)),
        "tumor": choose(rng, 0, 1),
        "slide": choose(rng, *range(50)),
        "center": choose(rng, *range(5)),
        "split": choose(rng, 0, 1),
    }


def rxrx1(rng):
    return {
        "cell_type": ["HUVEC"] * ROWS,
        "dataset": choose(rng, "train", "val", "test"),
        "experiment": [f"HUVEC-{number:02d}" for number in choose(rng, *range(1, 25))],
        "plate": choose(rng, 1, 2, 3, 4),
        "well": [f"W{number:04d}" for number in range(ROWS)],
        "site": choose(rng, 1, 2),
        "sirna_id": labels(rng, 1139),
    }


def fmow(rng):
    stamps = [
        f"{year}-{month:02d}-{day:02d}T{hour:02d}:00:00Z"
        for year, month, day, hour in zip(
            choose(rng, *range(2002, 2018)),
            choose(rng, 1, 12),
            choose(rng, 1, 31),
            choose(rng, 0, 23),
            strict=True,
        )
    ]
    return {
        "split": choose(rng, "train", "val", "test", "seq"),
        "category": [FMOW_CATEGORIES[label] for label in labels(rng, 62)],
        "timestamp": stamps,
        "country_code": ["USA"] * ROWS,
    }


CASES = {
    "iwildcam": (iwildcam, "IWildCamDataset", lambda data, i: f"train/{data._input_array[i]}"),
    "camelyon17": (camelyon17, "Camelyon17Dataset", lambda data, i: data._input_array[i]),
    "rxrx1": (rxrx1, "RxRx1Dataset", lambda data, i: data._input_array[i]),
    "fmow": (fmow, "FMoWDataset", lambda data, i: f"images/rgb_img_{data.full_idxs[i]}.png"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_random_table_is_divided_and_labelled_as_wilds_does_it(name, tmp_path):
    for package in ("wilds", "torch", "pandas", "pytz", "torchvision"):
        pytest.importorskip(package)
    if name == "rxrx1" and int(importlib.import_module("pandas").__version__.split(".")[0]) > 2:
        pytest.skip("WILDS 2.0.0 reads RxRx1 with pandas before 3 only")
    make, kind, path_of = CASES[name]
    table = make(np.random.default_rng(7))
    folder = tmp_path / WILDS[name].folder
    folder.mkdir()
    with open(folder / WILDS[name].table, "w", newline="") as file:
        csv.writer(file).writerows([list(table), *zip(*table.values(), strict=True)])
    (folder / f"RELEASE_v{WILDS[name].version}.txt").touch()
    (folder / "country_code_mapping.csv").write_text("alpha-3,region\nUSA,Americas\n")

    module = importlib.import_module(f"wilds.datasets.{name}_dataset")
    theirs = getattr(module, kind)(root_dir=str(tmp_path))
    expected = {}
    for split in theirs.split_dict:
        indices = theirs.get_subset(split).indices
        expected[split] = [(str(path_of(theirs, i)), int(theirs.y_array[i])) for i in indices]
    for rows in expected.values():
        for file, _ in rows:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()

    plan = plan_wilds(name, epath.Path(folder))
    found = {
        split: [row for shard in shards for row in zip(shard.files, shard.labels, strict=True)]
        for split, shards in plan.splits.items()
    }
    assert found == expected
    assert all(found.values())
    assert len(plan.class_names) == theirs.n_classes

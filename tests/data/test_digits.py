import hashlib
import multiprocessing
import os
import sys
from collections import Counter

import numpy as np
import pytest

from xtra_jax.data import digits
from xtra_jax.data.decode import decode
from xtra_jax.data.digits import prepare_digits, split_of
from xtra_jax.data.sources import open_source
from xtra_jax.errors import UserError


def grey_levels(source):
    return np.stack([decode(source[i]["image"])[..., 0] for i in range(len(source))])


@pytest.mark.parametrize(
    ("split", "count", "checksum"),
    [("train", 1442, "4ff069cb50eddcfd"), ("test", 355, "456fd9dc824d7276")],
)
def test_the_split_never_changes(digits_dir, split, count, checksum):
    source = open_source("digits", split, digits_dir)
    labels = np.array([source[i]["label"] for i in range(len(source))], np.uint8)
    content = hashlib.sha256(grey_levels(source).tobytes() + labels.tobytes())
    assert (len(source), content.hexdigest()[:16]) == (count, checksum)


def test_a_fifth_of_every_class_is_held_out(digits_dir):
    counts = {}
    for split in ("train", "test"):
        source = open_source("digits", split, digits_dir)
        counts[split] = Counter(source[i]["label"] for i in range(len(source)))
    for label in range(10):
        total = counts["train"][label] + counts["test"][label]
        assert counts["test"][label] == total // 5


def test_the_splits_together_are_scikit_learns_scans(digits_dir):
    from sklearn.datasets import load_digits

    expected = Counter(
        (scan.astype(int).tobytes(), int(label))
        for scan, label in zip(*load_digits(return_X_y=True), strict=True)
    )
    found = Counter()
    for split in ("train", "test"):
        source = open_source("digits", split, digits_dir)
        for i, levels in enumerate(grey_levels(source)):
            scan = np.rint(levels / 255 * 16).astype(int).reshape(64)
            found[scan.tobytes(), source[i]["label"]] += 1
    assert found == expected


def test_a_scan_is_an_eight_by_eight_greyscale_png(digits_dir):
    source = open_source("digits", "train", digits_dir)
    pixels = decode(source[0]["image"])
    assert source[0]["image"].startswith(b"\x89PNG")
    assert pixels.shape == (8, 8, 3)
    assert (pixels[..., 0] == pixels[..., 1]).all()


def test_grey_levels_reach_from_black_to_white(digits_dir):
    levels = grey_levels(open_source("digits", "test", digits_dir))
    assert (levels.min(), levels.max(), len(np.unique(levels))) == (0, 255, 17)


def test_the_rule_counts_each_class_separately():
    assert split_of([7, 7, 1, 7, 7, 7]) == ["train"] * 5 + ["test"]


def test_preparing_again_leaves_the_files_alone(digits_dir):
    folder = prepare_digits(digits_dir)
    before = {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}
    prepare_digits(digits_dir)
    after = {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}
    assert before == after


def test_an_interrupted_preparation_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_load_scans", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_digits(str(tmp_path))
    monkeypatch.undo()
    assert len(open_source("digits", "test", str(tmp_path))) == 355


def test_losing_the_race_to_prepare_is_no_error(tmp_path, monkeypatch):
    load = digits._load_scans

    def overtaken():
        monkeypatch.setattr(digits, "_load_scans", load)
        prepare_digits(str(tmp_path))
        return load()

    monkeypatch.setattr(digits, "_load_scans", overtaken)
    folder = prepare_digits(str(tmp_path))
    assert len(open_source("digits", "train", str(tmp_path))) == 1442
    assert os.listdir(os.path.dirname(folder)) == ["1.0.0"]


@pytest.mark.slow
def test_processes_that_prepare_at_once_all_succeed(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        folders = pool.map(prepare_digits, [str(tmp_path)] * 3)
    assert len(set(folders)) == 1
    assert len(open_source("digits", "train", str(tmp_path))) == 1442


def test_without_scikit_learn_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'xtra_jax\[demo\]'"):
        open_source("digits", "train", str(tmp_path))


def test_a_prepared_set_opens_without_scikit_learn(digits_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert len(open_source("digits", "test", digits_dir)) == 355


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"data\.data_dir"):
        prepare_digits(str(tmp_path / "file"))

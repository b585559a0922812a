"""TFDS's own builders, run on small replicas of the archives that they read."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.prepare import stock_replicas
from tests.data.prepare.tiny_stock import ARCHIVE, TINY, TinyStock, write_archive
from tests.test_gcs import bucket  # noqa: F401 (a fixture)
from xtra_jax.data.decode import decode
from xtra_jax.data.prepare import progress, stock
from xtra_jax.data.prepare.catalogue import CATALOGUE, Archive
from xtra_jax.data.prepare.stock import prepare_stock
from xtra_jax.data.sources import open_source
from xtra_jax.errors import RunFailed, UserError

ROOT = Path(__file__).parents[3]
STOCK = [name for name, dataset in CATALOGUE.items() if dataset.how.startswith("stock")]
PACKAGES = ("tensorflow", "importlib_resources", "h5py", "scipy")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
needs_tensorflow = pytest.mark.skipif(
    bool(MISSING), reason=f"TFDS's builders need {', '.join(MISSING)}, not installed here"
)
LOSSY = 8  # grey levels that a JPEG of a JPEG may be off on average


def assert_holds(root, name, replica):
    """Each split holds each expected image once, with its label, and nothing else."""
    for split, samples in replica.splits.items():
        source = open_source(name, split, str(root))
        left = list(samples)
        for index in range(len(source)):
            record = source[index]
            label = source.class_names[record["label"]] if record["label"] >= 0 else ""
            pixels = decode(record["image"])
            match = [sample for sample in left if sample.label == label and alike(sample, pixels)]
            assert len(match) == 1, f"{split}: a picture of {label!r} is not as it should be"
            left = [sample for sample in left if sample is not match[0]]
        assert not left


def alike(sample, pixels):
    if sample.exact or sample.pixels.shape != pixels.shape:
        return np.array_equal(sample.pixels, pixels)
    return np.abs(sample.pixels.astype(float) - pixels).mean() < LOSSY


@pytest.mark.slow
@needs_tensorflow
@pytest.mark.parametrize("name", STOCK)
def test_a_stock_set_is_prepared_from_its_archives_with_splits_labels_and_pixels(
    name, tmp_path, capfd
):
    replica = stock_replicas.make(name, tmp_path / "archives")
    root = tmp_path / "data"
    directory = prepare_stock(replica.dataset, str(root), archives=str(tmp_path / "archives"))

    info = json.loads(Path(directory, "dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"
    assert {part["name"] for part in info["splits"]} == set(replica.splits)
    assert_holds(root, name, replica)
    source = open_source(name, next(iter(replica.splits)), str(root))
    assert source.num_classes == CATALOGUE[name].classes
    assert left_behind(root) == []
    told = capfd.readouterr()
    assert told.out == ""
    assert all(line.startswith(f"{name}: ") for line in told.err.splitlines()), told.err


@pytest.mark.slow
@needs_tensorflow
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "as_on_kaggle"])
def test_the_cars_are_prepared_from_unpacked_folders_too(nested, tmp_path):
    archives = tmp_path / "archives"
    replica = stock_replicas.make("cars196", archives)
    for part in ("train", "test"):
        folder = archives / f"cars_{part}" if nested else archives
        folder.mkdir(exist_ok=True)
        archive = archives / f"cars_{part}.tgz"
        subprocess.run(["tar", "xzf", archive, "-C", folder], check=True)
        archive.unlink()
    prepare_stock(replica.dataset, str(tmp_path / "data"), archives=str(archives))
    assert_holds(tmp_path / "data", "cars196", replica)


def test_every_stock_set_has_a_replica():
    assert set(STOCK) == set(stock_replicas.MAKERS)


def left_behind(root):
    """What is left of the work, but for the lock, which a process takes and never removes."""
    work = root / "downloads" / "preparing"
    return [path.name for path in work.iterdir() if path.suffix != ".lock"]


def assert_nothing_is_prepared(root):
    with pytest.raises(UserError, match="was not found"):
        open_source("tiny_stock", "train", str(root))
    assert not (root / "tiny_stock").exists()
    assert left_behind(root) == []


@pytest.fixture
def archives(tmp_path):
    write_archive(tmp_path / "archives")
    return tmp_path / "archives"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def test_a_set_that_needs_no_tensorflow_is_prepared_without_it(root, archives, capsys):
    directory = prepare_stock(TINY, str(root), str(archives))
    assert Path(directory) == root / "tiny_stock" / "1.0.0"
    source = open_source("tiny_stock", "train", str(root))
    assert len(source) == 6
    assert sorted(source[i]["label"] for i in range(6)) == [0, 0, 0, 1, 1, 1]
    assert len(open_source("tiny_stock", "test", str(root))) == 2
    assert left_behind(root) == []
    assert capsys.readouterr().out == ""


def test_off_a_terminal_a_line_now_and_then_says_how_far_it_is(root, archives, monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    prepare_stock(TINY, str(root), str(archives))
    assert "tiny_stock: 3 of 8 images (37.5%)" in capsys.readouterr().err
    prepare_stock(TINY, str(root / "silent"), str(archives), progress=None)
    assert capsys.readouterr().err == ""


def test_a_folder_in_the_way_is_said_before_anything_is_built(root, archives):
    in_the_way = root / "tiny_stock" / "1.0.0" / "leftover"
    in_the_way.mkdir(parents=True)
    with pytest.raises(UserError, match="tiny_stock/1.0.0 is in the way"):
        prepare_stock(TINY, str(root), str(archives))
    assert in_the_way.exists()


def test_a_set_that_is_there_is_not_touched(root, archives):
    first = prepare_stock(TINY, str(root), str(archives))
    before = {path.name: path.stat().st_mtime_ns for path in Path(first).iterdir()}
    with pytest.raises(UserError, match=f"{first} is in the way"):
        prepare_stock(TINY, str(root), str(archives))
    assert {path.name: path.stat().st_mtime_ns for path in Path(first).iterdir()} == before


def test_without_tensorflow_the_extra_is_named(root, monkeypatch):
    monkeypatch.setattr(stock, "_installed", lambda package: package != "tensorflow")
    with pytest.raises(UserError, match=r"food101 needs TensorFlow .*'xtra_jax\[prepare\]'"):
        prepare_stock(CATALOGUE["food101"], str(root))
    assert not root.exists()


def test_packages_that_single_builders_need_are_named(root, monkeypatch):
    monkeypatch.setattr(stock, "_installed", lambda package: package == "tensorflow")
    with pytest.raises(UserError, match="needs importlib_resources and h5py"):
        prepare_stock(CATALOGUE["patch_camelyon"], str(root))


@pytest.mark.parametrize("name", ["imagenet2012", "cars196"])
def test_missing_files_are_named_with_where_they_are_and_where_they_go(name, root, monkeypatch):
    monkeypatch.setattr(stock, "_installed", lambda package: True)
    first, *others = CATALOGUE[name].manual
    manual = root / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / first.name).touch()
    with pytest.raises(UserError) as caught:
        prepare_stock(CATALOGUE[name], str(root))
    sentence = str(caught.value)
    assert str(manual) in sentence
    assert f"{first.name}, from" not in sentence
    for archive in others:
        assert f"{archive.name}, from {archive.source} ({archive.url})" in sentence


def test_missing_files_and_missing_tensorflow_are_said_at_once(root, monkeypatch):
    monkeypatch.setattr(stock, "_installed", lambda package: package != "tensorflow")
    with pytest.raises(UserError) as caught:
        prepare_stock(CATALOGUE["imagenet2012"], str(root))
    sentence = str(caught.value)
    assert f"put them into {root / 'downloads' / 'manual'}" in sentence
    for archive in CATALOGUE["imagenet2012"].manual:
        assert f"{archive.name}, from {archive.source} ({archive.url})" in sentence
    assert "needs TensorFlow" in sentence and "is not installed" in sentence
    assert "'xtra_jax[prepare]'" in sentence
    assert "\n" not in sentence and not root.exists()


def test_a_folder_of_archives_that_does_not_exist_is_said(root, monkeypatch):
    monkeypatch.setattr(stock, "_installed", lambda package: True)
    with pytest.raises(UserError, match="folder of archives /no/such/folder does not exist"):
        prepare_stock(CATALOGUE["cars196"], str(root), archives="/no/such/folder")


def test_an_archive_of_the_wrong_size_or_checksum_is_refused(root, archives):
    size = (archives / ARCHIVE).stat().st_size
    url = "http://example.org/page"
    for known, complaint in (
        (Archive(ARCHIVE, url=url, size=size + 1), f"has {size:,} bytes and should have"),
        (Archive(ARCHIVE, url=url, size=size, sha256="0" * 64), "its SHA-256 is .* should be 000"),
    ):
        with pytest.raises(
            UserError, match=f"{ARCHIVE} is not the known file: .*{complaint}.*{url}"
        ):
            prepare_stock(replace(TINY, recorded=(known,)), str(root), str(archives))
        assert_nothing_is_prepared(root)


def test_without_verification_any_archive_and_any_count_will_do(root, archives):
    unlike = replace(TINY, images={"train": 9}, recorded=(Archive(ARCHIVE, sha256="0" * 64),))
    prepare_stock(unlike, str(root), str(archives), verify=False)
    assert len(open_source("tiny_stock", "train", str(root))) == 6


def test_a_split_with_too_few_images_is_named_and_nothing_is_kept(root, tmp_path):
    write_archive(tmp_path / "archives", images=5)
    with pytest.raises(UserError, match="tiny_stock has 5 images for train where 6 are known"):
        prepare_stock(TINY, str(root), str(tmp_path / "archives"))
    assert_nothing_is_prepared(root)


def test_a_split_that_is_missing_altogether_is_named(root, archives):
    more = replace(TINY, images={**TINY.images, "validation": 3})
    with pytest.raises(UserError, match="0 images for validation where 3 are known"):
        prepare_stock(more, str(root), str(archives))
    assert_nothing_is_prepared(root)


def test_an_interrupted_preparation_leaves_nothing_and_can_be_repeated(root, archives, monkeypatch):
    monkeypatch.setattr(TinyStock, "meets", staticmethod(interrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare_stock(TINY, str(root), str(archives))
    assert_nothing_is_prepared(root)
    monkeypatch.undo()
    prepare_stock(TINY, str(root), str(archives))
    assert len(open_source("tiny_stock", "train", str(root))) == 6


def interrupt():
    raise KeyboardInterrupt


def test_a_killed_preparation_looks_unfinished_and_the_next_one_cleans_up(root, archives):
    command = [sys.executable, "-m", "tests.data.prepare.tiny_stock", root, archives]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    with pytest.raises(UserError, match="Another process is preparing tiny_stock"):
        prepare_stock(TINY, str(root), str(archives))
    process.kill()
    process.wait()
    process.stdout.close()
    with pytest.raises(UserError, match="was not found"):
        open_source("tiny_stock", "train", str(root))
    assert left_behind(root) == ["tiny_stock"]
    prepare_stock(TINY, str(root), str(archives))
    assert len(open_source("tiny_stock", "test", str(root))) == 2
    assert left_behind(root) == []


def test_a_full_disk_is_one_sentence(root, archives, monkeypatch):
    def fill():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TinyStock, "meets", staticmethod(fill))
    with pytest.raises(RunFailed, match=f"The disk that holds {root} is full"):
        prepare_stock(TINY, str(root), str(archives))
    assert_nothing_is_prepared(root)


def test_too_little_space_is_said_before_anything_is_done(root, archives):
    with pytest.raises(UserError, match=r"takes about 1000000\.0 GB .* GB left"):
        prepare_stock(replace(TINY, size=10**15), str(root), str(archives))
    assert_nothing_is_prepared(root)


def test_a_failing_builder_is_one_sentence(root, archives, monkeypatch):
    def fail():
        raise KeyError("a name that the annotations lack")

    monkeypatch.setattr(TinyStock, "meets", staticmethod(fail))
    with pytest.raises(RunFailed, match="tiny_stock failed with KeyError: .*annotations lack"):
        prepare_stock(TINY, str(root), str(archives))
    assert_nothing_is_prepared(root)


def test_a_folder_that_cannot_be_written_is_one_sentence(root, archives):
    root.write_text("a file in the place of the folder")
    with pytest.raises((UserError, RunFailed), match=str(root)):
        prepare_stock(TINY, str(root), str(archives))


def test_a_folder_that_cannot_be_made_is_said_to_be_the_wrong_one(archives):
    with pytest.raises(UserError, match="/proc/1.*cannot be written .*name another --data_dir"):
        prepare_stock(TINY, "/proc/1", str(archives))


@pytest.mark.slow
def test_a_set_is_built_here_and_sent_to_a_bucket_as_a_whole(bucket, archives, monkeypatch):  # noqa: F811
    monkeypatch.setattr(stock.tempfile, "gettempdir", lambda: str(archives.parent / "here"))
    directory = prepare_stock(TINY, str(bucket / "sets"), str(archives))
    assert directory == "gs://bucket/sets/tiny_stock/1.0.0"
    assert left_behind(archives.parent / "here" / "xtra_jax_prepare") == []
    # ArrayRecord's own reader of gs:// cannot be pointed at an emulator, so it is fetched.
    fetched = archives.parent / "fetched" / "tiny_stock" / "1.0.0"
    fetched.mkdir(parents=True)
    for path in (bucket / "sets" / "tiny_stock" / "1.0.0").iterdir():
        (fetched / path.name).write_bytes(path.read_bytes())
    assert len(open_source("tiny_stock", "train", str(fetched.parents[1]))) == 6

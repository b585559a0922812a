"""ImageNet-21k from a replica of its winter 2021 release."""

from __future__ import annotations

import tarfile

import pytest
import tensorflow_datasets as tfds

from tests.data.prepare.imagenet21k_replica import (
    SYNSETS,
    expected,
    files_of,
    image_of,
    write_folders,
    write_tars,
)
from xtra_jax.data.prepare import imagenet21k
from xtra_jax.data.prepare.catalogue import CATALOGUE
from xtra_jax.data.prepare.job import prepare
from xtra_jax.data.sources import open_source
from xtra_jax.errors import RunFailed, UserError

NUMBER = sum(len(files_of(synset)) for synset in SYNSETS)


@pytest.fixture
def known(known_counts):
    known_counts("imagenet21k", {"train": NUMBER}, classes=len(SYNSETS))


def prepared(data_dir, archives, **options):
    return prepare("imagenet21k", str(data_dir), archives=str(archives), workers=1, **options)


def records(data_dir):
    source = open_source("imagenet21k", "train", str(data_dir))
    return [source[i] for i in range(len(source))], source


@pytest.mark.parametrize("place", ["winter21_whole", "."])
@pytest.mark.parametrize("write", [write_tars, write_folders])
def test_tars_and_folders_of_synsets_give_the_same_records(write, place, known, archives, data_dir):
    write(archives / place)
    prepared(data_dir, archives)
    found, source = records(data_dir)
    assert [(record["key"], record["label"]) for record in found] == expected()
    assert all(record["image"] == image_of(record["key"]) for record in found)
    assert source.class_names == tuple(sorted(SYNSETS))


def test_there_is_a_single_split_for_training(known, archives, data_dir):
    write_tars(archives)
    info = tfds.builder_from_directory(prepared(data_dir, archives)).info
    assert {name: split.num_examples for name, split in info.splits.items()} == {"train": NUMBER}


def test_a_tar_counts_before_a_folder_and_other_files_are_passed_over(known, archives, data_dir):
    write_tars(archives)
    (archives / "n00004475").mkdir()
    (archives / "words.txt").write_text("n00004475 organism")
    (archives / "n1.tar").write_text("")
    prepared(data_dir, archives)
    assert [record["key"] for record in records(data_dir)[0]] == [file for file, _ in expected()]


def test_as_many_shards_as_synsets_but_no_more_than_open_files_allow(
    known, archives, data_dir, monkeypatch
):
    monkeypatch.setattr(imagenet21k, "MAX_SHARDS", 3)
    write_tars(archives)
    split = tfds.builder_from_directory(prepared(data_dir, archives)).info.splits["train"]
    assert split.shard_lengths == [4, 3, 6]
    assert [record["key"] for record in records(data_dir)[0]] == [file for file, _ in expected()]


def test_a_release_that_is_not_there_says_what_to_fetch_and_where_to_put_it(data_dir):
    with pytest.raises(UserError, match="image-net.org") as error:
        prepare("imagenet21k", str(data_dir))
    assert "winter21_whole" in str(error.value)
    assert str(data_dir / "downloads" / "manual") in str(error.value)


def test_an_archive_that_is_still_packed_says_to_unpack_it(archives, data_dir):
    (archives / "winter21_whole").mkdir()
    (archives / "winter21_whole" / "winter21_whole.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"no synsets.*unpack winter21_whole.tar.gz there first"):
        prepared(data_dir, archives)


def test_missing_synsets_are_counted_before_anything_is_written(known, archives, data_dir):
    write_tars(archives, sorted(SYNSETS)[:3])
    with pytest.raises(UserError, match="holds 3 synsets in the place of 4.*--partial"):
        prepared(data_dir, archives)
    assert not data_dir.exists()
    prepared(data_dir, archives, partial=True)
    found, source = records(data_dir)
    assert len(found) == NUMBER - 1 and source.num_classes == 3


def test_missing_images_are_found_at_the_end_and_partial_then_writes_no_shard_again(
    known_counts, archives, data_dir
):
    known_counts("imagenet21k", {"train": NUMBER + 1}, classes=len(SYNSETS))
    write_tars(archives)
    with pytest.raises(RunFailed, match=f"{NUMBER} of {NUMBER + 1} for train.*--partial"):
        prepared(data_dir, archives)
    with pytest.raises(UserError):
        open_source("imagenet21k", "train", str(data_dir))
    folder = data_dir / "imagenet21k" / imagenet21k.VERSION
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.array_record*")}
    prepared(data_dir, archives, partial=True)
    assert len(before) == 4
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.glob("*.array_record*")}
    assert len(records(data_dir)[0]) == NUMBER


@pytest.mark.parametrize("packed", [True, False], ids=["tar", "folder"])
def test_a_set_without_any_image_is_not_declared_ready(packed, archives, data_dir):
    if packed:
        tarfile.open(archives / "n00004475.tar", "w").close()
    else:
        (archives / "n00004475").mkdir()
    with pytest.raises(UserError, match="the split train of imagenet21k would hold no image"):
        prepared(data_dir, archives, partial=True)
    assert not list(data_dir.rglob("features.json"))


CUTS = {
    "to nothing": lambda end: 0,
    "within its first header": lambda end: 100,
    "before its first image": lambda end: 512,
    "within its first image": lambda end: 700,
    "within its last image": lambda end: end - 600,
    "before its end": lambda end: end,
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_tar_that_was_cut_short_is_named_and_costs_only_itself(cut, known, archives, data_dir):
    write_tars(archives)
    path = archives / "n01440764.tar"
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    end += -end % 512
    path.write_bytes(whole[: CUTS[cut](end)])
    with pytest.raises(RunFailed, match="cannot be read to its end") as error:
        prepared(data_dir, archives)
    assert str(path) in str(error.value) and "fetch it again" in str(error.value)
    first = next(data_dir.rglob("imagenet21k-train.array_record-00000-of-00004"))
    written = first.stat().st_mtime_ns
    path.write_bytes(whole)
    prepared(data_dir, archives)
    assert first.stat().st_mtime_ns == written
    assert [record["key"] for record in records(data_dir)[0]] == [file for file, _ in expected()]


def test_a_tar_with_a_damaged_header_is_named(known, archives, data_dir):
    write_tars(archives)
    path = archives / "n02084071.tar"
    data = bytearray(path.read_bytes())
    second = 512 + -(-len(image_of(files_of("n02084071")[0])) // 512) * 512
    data[second : second + 512] = b"\xa5" * 512
    path.write_bytes(data)
    with pytest.raises(RunFailed, match="n02084071.tar cannot be read to its end"):
        prepared(data_dir, archives)


def test_a_tar_that_is_something_else_is_named(known, archives, data_dir):
    write_tars(archives)
    (archives / "n02084071.tar").write_bytes(b"<html>" * 200)
    with pytest.raises(RunFailed, match="n02084071.tar cannot be read to its end"):
        prepared(data_dir, archives)


def test_the_catalogue_has_the_numbers_of_the_release():
    known = CATALOGUE["imagenet21k"]
    assert known.classes == 19_167
    assert known.images == {"train": 13_153_500}

"""A prepared data set that is not whole is refused before training, in one sentence."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.data.small_sets import noise, prepare, shard_files
from xtra_jax.data.decode import BadImage
from xtra_jax.data.shards import check_shards
from xtra_jax.data.sources import open_source
from xtra_jax.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("whole"), noise(40), shards=4)


@pytest.fixture
def data_dir(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def open_(data_dir, split="train"):
    return open_source("small", split, str(data_dir))


def refusal(data_dir, split="train"):
    with pytest.raises(UserError) as found:
        open_(data_dir, split)
    message = str(found.value)
    assert "\n" not in message and str(data_dir) in message
    assert message.endswith("copy or prepare it anew.")
    return message


def test_a_whole_data_set_passes(data_dir):
    check_shards(str(data_dir / "small" / "1.0.0"), "train")
    check_shards(str(data_dir / "small" / "1.0.0"), "train[:10%]+train[30:]")


def test_a_missing_shard_is_named_before_training(data_dir):
    file = shard_files(data_dir)[2]
    file.unlink()
    assert f"lacks 1 of 4 files, the first of them {file.name}" in refusal(data_dir)


@pytest.mark.parametrize("kept", [0, 100, 70_000])
def test_a_shard_that_was_cut_off_is_named_before_training(data_dir, kept):
    file = shard_files(data_dir)[1]
    file.write_bytes(file.read_bytes()[:kept])
    assert f"not whole: {file.name} cannot be read (" in refusal(data_dir)


def test_what_is_no_array_record_at_all_is_named(data_dir):
    file = shard_files(data_dir)[1]
    file.write_bytes(b"<html>404</html>" * 10_000)
    assert f"not whole: {file.name} cannot be read (" in refusal(data_dir)


def test_of_several_damaged_shards_one_is_named_and_all_are_counted(data_dir):
    for file in shard_files(data_dir)[1:]:
        file.write_bytes(b"")
    message = refusal(data_dir)
    assert shard_files(data_dir)[1].name in message and "and 2 more files" in message


def test_a_shard_that_holds_other_than_the_metadata_says_is_named(data_dir, tmp_path):
    other = prepare(tmp_path / "other", noise(52), shards=4)
    file = shard_files(data_dir)[3]
    shutil.copy(shard_files(other)[3], file)
    assert f"{file.name} holds 13 records instead of 10" in refusal(data_dir)


def test_only_the_files_that_a_slice_needs_are_looked_at(data_dir):
    shard_files(data_dir)[3].unlink()
    assert len(open_(data_dir, "train[:75%]")) == 30
    refusal(data_dir, "train[75%:]")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("left", ["half", "nothing", "a list"])
def test_metadata_that_cannot_be_read_is_one_sentence(data_dir, name, left):
    file = data_dir / "small" / "1.0.0" / name
    text = file.read_text()
    file.write_text({"half": text[: len(text) // 2], "a list": "[]"}.get(left, ""))
    assert "dataset_info.json or features.json cannot be read (" in refusal(data_dir)


def test_a_damaged_record_is_one_bad_image_and_the_others_are_read(data_dir):
    file = shard_files(data_dir)[1]
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    source = open_(data_dir)
    bad = []
    for index in range(40):
        try:
            assert source[index]["key"] == f"image-{index}"
        except BadImage as error:
            assert "its record cannot be read (Corrupted Riegeli/records file" in str(error)
            bad.append(index)
    assert len(bad) == 1 and 10 <= bad[0] < 20


def test_a_shard_that_vanishes_later_makes_bad_images(data_dir):
    source = open_(data_dir)
    shutil.rmtree(data_dir)
    with pytest.raises(BadImage, match="its record cannot be read"):
        source[3]


def test_a_record_says_where_it_lies_without_being_read(data_dir):
    source = open_(data_dir, "train[25:]")
    third = shard_files(data_dir)[2]
    shutil.rmtree(data_dir)
    assert source.where(0) == f"record 5 of {os.fspath(third)}"
    assert source.where(5) == f"record 0 of {os.fspath(third).replace('00002-of', '00003-of')}"

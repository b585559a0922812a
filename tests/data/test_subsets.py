from collections import Counter

import numpy as np
import pytest

from tests.test_gcs import bucket  # noqa: F401
from xtra_jax.data import record_index
from xtra_jax.data.decode import BadImage
from xtra_jax.data.sources import open_source
from xtra_jax.data.subsets import Subset
from xtra_jax.errors import UserError


@pytest.fixture
def folder(tmp_path, encode):
    for i in range(60):
        image = tmp_path / "images" / ("rare" if i % 10 == 0 else "common") / f"{i:02}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(encode(np.full((4, 4, 3), i, np.uint8)))
    return str(tmp_path / "images")


def keys(source):
    return [source[i]["key"] for i in range(len(source))]


def labels(source):
    return Counter(source[i]["label"] for i in range(len(source)))


def test_a_share_holds_that_many_distinct_records_and_keeps_the_classes(digits_dir):
    part = open_source("digits", "train", digits_dir, subset="10%")
    assert isinstance(part, Subset)
    assert len(part) == 144 == len(set(part.indices.tolist()))
    assert part.num_classes == 10


def test_a_stratified_share_holds_that_share_of_every_class(digits_dir):
    whole = labels(open_source("digits", "train", digits_dir))
    part = labels(open_source("digits", "train", digits_dir, subset="stratified:10%"))
    assert part == {label: round(count / 10) for label, count in whole.items()}


def test_a_stratified_share_holds_at_least_one_record_of_every_class(folder):
    assert labels(open_source(f"folder:{folder}", "all", subset="stratified:1%")) == {0: 1, 1: 1}


@pytest.mark.parametrize("kind", ["", "stratified:"])
def test_a_share_depends_on_the_seed_alone_and_lies_within_every_larger_share(folder, kind):
    def part(share, seed=0):
        source = open_source(f"folder:{folder}", "all", subset=f"{kind}{share}%", seed=seed)
        return set(keys(source))

    assert part(10) == part(10)
    assert part(10) != part(10, seed=1)
    assert part(10) < part(25) < part(50) < part(100)
    assert len(part(100)) == 60


def test_a_list_chooses_the_records_it_names_in_the_sources_order(folder, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("rare/30.png\n\ncommon/07.png\nrare/00.png\ncommon/07.png\n")
    source = open_source(f"folder:{folder}", "all", subset=f"list:{listed}")
    assert keys(source) == ["common/07.png", "rare/00.png", "rare/30.png"]


def test_a_list_may_begin_with_a_byte_order_mark_and_lie_at_home(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "list.txt").write_bytes("\ufeffrare/30.png\r\ncommon/07.png\r\n".encode())
    source = open_source(f"folder:{folder}", "all", subset="list:~/list.txt")
    assert keys(source) == ["common/07.png", "rare/30.png"]


@pytest.mark.slow
def test_a_list_may_lie_in_a_bucket(folder, bucket):  # noqa: F811
    (bucket / "list.txt").write_text("rare/30.png\n")
    source = open_source(f"folder:{folder}", "all", subset="list:gs://bucket/list.txt")
    assert keys(source) == ["rare/30.png"]
    with pytest.raises(UserError, match="list:gs://bucket/none.txt cannot be read"):
        open_source(f"folder:{folder}", "all", subset="list:gs://bucket/none.txt")


@pytest.mark.parametrize(
    "subset, message",
    [
        ("tenth", "cannot be understood"),
        ("0%", "cannot be understood"),
        ("101%", "cannot be understood"),
        ("0.5%", "leaves none"),
        ("list:/nowhere.txt", "cannot be read"),
    ],
)
def test_a_subset_that_means_nothing_is_refused(folder, subset, message):
    with pytest.raises(UserError, match=message):
        open_source(f"folder:{folder}", "all", subset=subset)


def test_names_that_the_data_set_lacks_are_counted_and_the_first_one_named(folder, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("rare/30.png\nrare/99.png\nrare/98.png\n")
    told = "2 of the 3 names .* not among the 60 images of this split.*'common/.*'rare/98.png'"
    with pytest.raises(UserError, match=told):
        open_source(f"folder:{folder}", "all", subset=f"list:{listed}")


def test_a_share_of_each_class_needs_labels(tmp_path, encode):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encode(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(UserError, match="has no labels"):
        open_source(f"folder:{tmp_path}", "all", subset="stratified:10%")


def test_labels_of_a_prepared_set_are_read_once_and_kept_until_it_changes(tmp_path, monkeypatch):
    def part():
        return open_source("digits", "train", str(tmp_path), subset="stratified:10%").indices

    first = part()
    reads = []
    read_all = record_index._read_all
    monkeypatch.setattr(record_index, "_read_all", lambda s: reads.append(s) or read_all(s))
    np.testing.assert_array_equal(part(), first)
    assert not reads
    info = next(tmp_path.glob("digits/*/dataset_info.json"))
    info.write_text(info.read_text().replace('"1.0.0"', '"1.0.1"'))
    np.testing.assert_array_equal(part(), first)
    assert len(reads) == 1


def test_labels_are_not_kept_where_some_could_not_be_read(tmp_path, monkeypatch, capfd):
    source = open_source("digits", "train", str(tmp_path))
    read = type(source).__getitem__
    torn = {3, 5}

    def reads(self, index):
        if index in torn:
            raise BadImage("torn")
        return read(self, index)

    monkeypatch.setattr(type(source), "__getitem__", reads)
    assert (record_index.index_of(source).labels == -1).sum() == 2
    assert "2 of 1,442 records could not be read" in capfd.readouterr().err
    assert not list(tmp_path.glob("digits/*/.records-*"))
    torn.clear()
    assert (record_index.index_of(source).labels >= 0).all()
    assert list(tmp_path.glob("digits/*/.records-*"))


def test_labels_that_were_kept_with_some_unread_are_read_again(tmp_path):
    source = open_source("digits", "train", str(tmp_path))
    known = record_index.index_of(source)
    known.keys[3], known.labels[3] = b"", -1
    record_index._keep(record_index.epath.Path(source.index_file()), source.digest(), known)
    assert (record_index.index_of(source).labels >= 0).all()


def test_a_broken_file_of_kept_labels_is_made_anew(tmp_path):
    def part():
        return open_source("digits", "train", str(tmp_path), subset="stratified:10%").indices

    first = part()
    (kept,) = tmp_path.glob("digits/*/.records-*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_array_equal(part(), first)


def test_a_digest_tells_other_records_of_as_many_apart(folder, tmp_path, digits_dir):
    def digest(subset="", split="all"):
        return open_source(f"folder:{folder}", split, subset=subset).digest()

    first = [digest(), digest("10%"), digest("stratified:10%")]
    assert len(set(first)) == 3
    assert first == [digest(), digest("10%"), digest("stratified:10%")]
    (tmp_path / "images" / "rare" / "00.png").rename(tmp_path / "images" / "common" / "00.png")
    assert not set(first) & {digest(), digest("10%"), digest("stratified:10%")}
    splits = ["train", "test", "train[:50%]", "train[50%:]"]
    assert len({open_source("digits", split, digits_dir).digest() for split in splits}) == 4

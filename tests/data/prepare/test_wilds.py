"""iWildCam, Camelyon17, RxRx1 and fMoW, from replicas of their releases."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.prepare.wilds_replicas import MAKERS
from xtra_jax.data.decode import decode
from xtra_jax.data.pipeline import train_batches
from xtra_jax.data.prepare.catalogue import CATALOGUE
from xtra_jax.data.prepare.job import prepare
from xtra_jax.data.prepare.wilds import FMOW_CATEGORIES, WILDS
from xtra_jax.data.sources import open_source
from xtra_jax.data.transforms import EvalTransform
from xtra_jax.errors import RunFailed, UserError

VERSIONS = {"iwildcam": "2.0.0", "camelyon17": "1.0.0", "rxrx1": "1.0.0", "fmow": "1.1.0"}
TABLES = {name: wilds.table for name, wilds in WILDS.items()}


def table_of(name, archives):
    return next(archives.glob(f"{name}_v*")) / TABLES[name]


@pytest.mark.parametrize("name", MAKERS)
def test_splits_labels_and_bytes_are_those_of_the_release(name, replica, archives, data_dir):
    expected = replica(name)
    directory = prepare(name, str(data_dir), archives=str(archives), workers=1)
    assert directory == str(data_dir / name / VERSIONS[name])
    for split, rows in expected.items():
        source = open_source(name, split, str(data_dir))
        records = [source[i] for i in range(len(source))]
        assert [(record["key"], record["label"]) for record in records] == rows
        folder = table_of(name, archives).parent
        for record in records:
            assert record["image"] == (folder / record["key"]).read_bytes()
        assert source.num_classes == CATALOGUE[name].classes


@pytest.mark.parametrize("name", MAKERS)
def test_the_splits_are_the_catalogue_s_and_nothing_else_is_left_over(
    name, replica, archives, data_dir
):
    splits = set(CATALOGUE[name].images)
    assert set(replica(name)) == splits == set(WILDS[name].splits)
    directory = prepare(name, str(data_dir), archives=str(archives), workers=1)
    files = {path.name for path in (data_dir / name / VERSIONS[name]).iterdir()}
    shards = {f"{name}-{split}.array_record-00000-of-00001" for split in splits}
    assert files == shards | {"dataset_info.json", "features.json", "label.labels.txt"}, directory


def test_classes_have_the_names_that_the_release_gives(replica, archives, data_dir):
    for name in MAKERS:
        replica(name)
        prepare(name, str(data_dir), archives=str(archives), workers=1)
    names = {name: open_source(name, "train", str(data_dir)).class_names for name in MAKERS}
    assert names["iwildcam"][24] == "animal 24"
    assert names["camelyon17"] == ("normal", "tumor")
    assert names["fmow"] == FMOW_CATEGORIES
    # The replica has rows of few siRNAs, so not every label has a name.
    assert names["rxrx1"] == tuple(str(label) for label in range(1139))


def test_every_sirna_in_the_table_gives_rxrx1_its_class_names(replica, archives, data_dir):
    replica("rxrx1")
    table = table_of("rxrx1", archives)
    lines = table.read_text().splitlines()
    row = lines[-1].rsplit(",", 2)[0]
    seen = {int(line.rsplit(",", 1)[1]): line.split(",")[-2] for line in lines[1:]}
    more = [f"{row},s{label},{label}" for label in range(1139) if label not in seen]
    table.write_text("\n".join([*lines, *more]) + "\n")
    prepare("rxrx1", str(data_dir), archives=str(archives), workers=1, partial=True)
    names = open_source("rxrx1", "val", str(data_dir)).class_names
    assert (names[0], names[1], names[7], names[1138]) == ("s20894", "s1", "s21721", "EMPTY")


@pytest.mark.parametrize("name", MAKERS)
def test_training_batches_of_a_prepared_set_have_its_labels_and_pixels(
    name, replica, archives, data_dir
):
    expected = replica(name)["train"]
    prepare(name, str(data_dir), archives=str(archives), workers=1)
    source = open_source(name, "train", str(data_dir))
    transform = EvalTransform(16, 16)
    batches = train_batches(source, transform, batch_size=2, seed=3)
    batch = next(batches)
    batches.close()
    assert sorted(batch["index"].tolist()) == [0, 1]
    assert batch["weight"].tolist() == [1, 1]
    folder = table_of(name, archives).parent
    for row, index in enumerate(batch["index"]):
        file, label = expected[index]
        assert batch["label"][row] == label
        pixels = transform(decode((folder / file).read_bytes()))
        np.testing.assert_array_equal(batch["image"][row], pixels)


def test_the_folder_itself_may_be_named_as_the_archives(replica, archives, data_dir):
    replica("fmow")
    prepare("fmow", str(data_dir), archives=str(archives / "fmow_v1.1"), workers=1)
    assert len(open_source("fmow", "test", str(data_dir))) == 2


def test_archives_are_looked_for_where_tfds_has_them(data_dir, known_counts):
    expected = MAKERS["rxrx1"](data_dir / "downloads" / "manual")
    known_counts("rxrx1", {split: len(rows) for split, rows in expected.items()})
    prepare("rxrx1", str(data_dir), workers=1)
    assert len(open_source("rxrx1", "val", str(data_dir))) == 2


@pytest.mark.parametrize("name", MAKERS)
def test_a_release_that_is_not_there_says_what_to_fetch_and_where_to_put_it(name, data_dir):
    with pytest.raises(UserError) as error:
        prepare(name, str(data_dir))
    message = str(error.value)
    assert next(iter(CATALOGUE[name].manual)).name in message
    assert str(data_dir / "downloads" / "manual") in message
    assert "wilds.stanford.edu" in message and "--archives" in message
    assert not data_dir.exists()


@pytest.mark.parametrize("name", MAKERS)
def test_a_missing_table_is_named(name, replica, archives, data_dir):
    replica(name)
    table = table_of(name, archives)
    table.unlink()
    with pytest.raises(UserError, match="it is missing") as error:
        prepare(name, str(data_dir), archives=str(archives))
    assert str(table) in str(error.value)


@pytest.mark.parametrize(
    ("name", "column"), [(name, column) for name in MAKERS for column in WILDS[name].columns]
)
def test_a_table_without_a_column_says_which_and_what_it_has(
    name, column, replica, archives, data_dir
):
    replica(name)
    table = table_of(name, archives)
    header, rest = table.read_text().split("\n", 1)
    names = ["other" if field == column else field for field in header.split(",")]
    table.write_text(",".join(names) + "\n" + rest)
    with pytest.raises(UserError, match=f"has no column {column}; it has .*other"):
        prepare(name, str(data_dir), archives=str(archives))


def test_a_table_that_was_cut_short_is_a_sentence(replica, archives, data_dir):
    replica("rxrx1")
    table = table_of("rxrx1", archives)
    table.write_text(table.read_text()[:-12])
    with pytest.raises(UserError, match="ends within its data row 7"):
        prepare("rxrx1", str(data_dir), archives=str(archives))


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b""])
def test_a_table_that_is_no_text_is_a_sentence(damage, replica, archives, data_dir):
    replica("rxrx1")
    table_of("rxrx1", archives).write_bytes(damage)
    with pytest.raises(UserError, match="metadata.csv"):
        prepare("rxrx1", str(data_dir), archives=str(archives))


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("iwildcam", ",24,101,", ",182,101,", "the label 182 is not one of 182"),
        ("iwildcam", "0,train,", "0,trian,", "the split 'trian' is unknown"),
        ("iwildcam", ",24,101,", ",fox,101,", "invalid literal"),
        ("camelyon17", "1,0,0,0", "1,0,0,2", "2 is unknown"),
        ("rxrx1", "RPE,val,", "RPE,vla,", "the split 'vla' is unknown"),
        ("fmow", ",airport,USA,2012", ",airprot,USA,2012", "'airprot' is unknown"),
        ("fmow", "2012-12-31T", "31.12.2012 ", "Invalid isoformat"),
        ("fmow", "train,airport_0", "trian,airport_0", "the split 'trian' is unknown"),
    ],
)
def test_a_row_that_makes_no_sense_is_named(name, old, new, reason, replica, archives, data_dir):
    replica(name)
    table = table_of(name, archives)
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=rf"makes no sense in its data row \d: .*{reason}"):
        prepare(name, str(data_dir), archives=str(archives))


@pytest.mark.parametrize("name", MAKERS)
def test_a_missing_image_is_named_before_anything_is_written(name, replica, archives, data_dir):
    file, _ = replica(name)["test"][1]
    (table_of(name, archives).parent / file).unlink()
    with pytest.raises(UserError, match="is missing, which row") as error:
        prepare(name, str(data_dir), archives=str(archives))
    assert file in str(error.value)
    assert not data_dir.exists()


def test_with_partial_missing_images_and_splits_are_left_out_and_counted(
    replica, archives, data_dir, capsys
):
    expected = replica("camelyon17")
    folder = table_of("camelyon17", archives).parent
    for file, _ in [expected["train"][0], *expected["val"]]:
        (folder / file).unlink()
    prepare("camelyon17", str(data_dir), archives=str(archives), partial=True, workers=1)
    assert "3 missing ones left out" in capsys.readouterr().err
    source = open_source("camelyon17", "train", str(data_dir))
    assert [source[i]["key"] for i in range(len(source))] == [expected["train"][1][0]]
    with pytest.raises(UserError, match="'val'"):
        open_source("camelyon17", "val", str(data_dir))


def test_counts_that_differ_from_the_known_ones_end_it_unless_partial(
    replica, archives, data_dir, known_counts
):
    replica("fmow")
    known_counts("fmow", {"train": 2, "val": 3, "test": 2, "id_val": 1, "id_test": 4})
    with pytest.raises(RunFailed, match=r"2 of 3 for val, 1 of 4 for id_test.*--partial"):
        prepare("fmow", str(data_dir), archives=str(archives), workers=1)
    assert not data_dir.exists()
    prepare("fmow", str(data_dir), archives=str(archives), workers=1, partial=True)
    assert len(open_source("fmow", "val", str(data_dir))) == 2

"""`xtra prepare` as a command: what it says, reuses and refuses."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tests.data.prepare.tiny_stock import TINY, write_archive
from tests.data.prepare.wilds_replicas import MAKERS
from xtra_jax.cli import main
from xtra_jax.data.prepare import job
from xtra_jax.data.prepare.catalogue import CATALOGUE
from xtra_jax.data.sources import open_source
from xtra_jax.errors import UserError


def files(directory):
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in Path(directory).iterdir()
        if path.is_file()
    }


@pytest.mark.parametrize("flag", ["--data_dir", "--data-dir"])
def test_the_command_prepares_and_says_where_and_how_to_use_it(
    flag, replica, archives, data_dir, capsys
):
    replica("camelyon17")
    arguments = ["--dataset", "camelyon17", flag, str(data_dir), "--archives", str(archives)]
    assert main(["prepare", *arguments, "--workers", "1"]) == 0
    out, err = capsys.readouterr()
    directory = data_dir / "camelyon17" / "1.0.0"
    assert out == f"camelyon17 is ready in {directory}; --config.data.dataset=camelyon17 reads it\n"
    assert err.startswith("camelyon17: 8 images, ")
    assert len(open_source("camelyon17", "train", str(data_dir))) == 2


@pytest.mark.parametrize("flag", ["--max_side", "--max-side"])
def test_a_smaller_copy_is_named_as_the_config_has_to_name_it(
    flag, replica, archives, data_dir, capsys
):
    replica("camelyon17")
    arguments = ["--dataset=camelyon17", f"--data_dir={data_dir}", f"--archives={archives}"]
    assert main(["prepare", *arguments, "--workers=1", flag, "64"]) == 0
    assert "--config.data.dataset=camelyon17/max_side_64 reads it" in capsys.readouterr().out


def test_the_digits_are_prepared_by_the_same_command(data_dir, capsys):
    pytest.importorskip("sklearn")
    for said in ("Prepared the digits", "digits is prepared already: 1,797 images"):
        assert main(["prepare", "--dataset", "digits", "--data_dir", str(data_dir)]) == 0
        assert said in capsys.readouterr().err
    found = {split: len(open_source("digits", split, str(data_dir))) for split in ("train", "test")}
    assert found == CATALOGUE["digits"].images


def test_a_set_that_is_whole_is_reused_without_its_archives(replica, archives, data_dir, capsys):
    replica("rxrx1")
    directory = job.prepare("rxrx1", str(data_dir), archives=str(archives), workers=1)
    before = files(directory)
    assert main(["prepare", "--dataset", "rxrx1", "--data_dir", str(data_dir)]) == 0
    assert f"rxrx1 is prepared already: 7 images in {directory}" in capsys.readouterr().err
    assert files(directory) == before


def test_a_partial_copy_that_is_reused_says_how_much_it_lacks(
    replica, archives, data_dir, capsys, known_counts
):
    replica("rxrx1")
    job.prepare("rxrx1", str(data_dir), archives=str(archives), workers=1)
    known_counts("rxrx1", {"train": 40_612, "val": 9_854, "test": 34_432, "id_test": 40_612})
    job.prepare("rxrx1", str(data_dir), partial=True)
    assert "7 images of the 125,510 published" in capsys.readouterr().err


@pytest.mark.parametrize("max_side", [0, 64])
def test_a_set_with_other_counts_than_the_known_ones_is_used_with_partial_only(
    max_side, replica, archives, data_dir, capsys, known_counts
):
    replica("rxrx1")
    directory = job.prepare("rxrx1", str(data_dir), archives=str(archives), workers=1)
    known_counts("rxrx1", {**CATALOGUE["rxrx1"].images, "train": 3})
    before = files(directory)
    arguments = ["--dataset", "rxrx1", "--data_dir", str(data_dir), f"--max_side={max_side}"]
    capsys.readouterr()
    assert main(["prepare", *arguments]) == 2
    message = capsys.readouterr().err
    assert "2 images for train where 3 are known" in message and message.count("\n") == 1
    assert f"delete {directory}" in message and "--partial" in message
    assert main(["prepare", *arguments, "--partial"]) == 0
    assert files(directory) == before


@pytest.fixture
def tiny(monkeypatch, archives, data_dir):
    """A set that TFDS's builder prepared, of six and two images."""
    monkeypatch.setitem(CATALOGUE, TINY.name, TINY)
    write_archive(archives)
    return job.prepare(TINY.name, str(data_dir), archives=str(archives))


def test_a_set_of_tfds_that_is_there_is_used_as_it_is(tiny, data_dir):
    before = files(tiny)
    assert job.prepare(TINY.name, str(data_dir), archives="/no/archives/any/more") == tiny
    assert files(tiny) == before


def test_a_set_of_tfds_with_other_counts_is_used_with_partial_only(tiny, data_dir, monkeypatch):
    more = dataclasses.replace(TINY, images={"train": 7, "test": 2})
    monkeypatch.setitem(CATALOGUE, TINY.name, more)
    with pytest.raises(UserError, match=f"6 images for train where 7 .*delete {tiny} .*--partial"):
        job.prepare(TINY.name, str(data_dir))
    assert job.prepare(TINY.name, str(data_dir), partial=True) == tiny


def shard_of(directory):
    return next(Path(directory).glob("rxrx1-val.array_record-*"))


DAMAGES = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "missing": os.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_set_that_is_broken_says_so_and_loses_nothing(
    damage, replica, archives, data_dir, capsys
):
    replica("rxrx1")
    directory = job.prepare("rxrx1", str(data_dir), archives=str(archives), workers=1)
    DAMAGES[damage](shard_of(directory))
    before = files(directory)
    arguments = ["--dataset", "rxrx1", "--data_dir", str(data_dir), "--archives", str(archives)]
    capsys.readouterr()
    assert main(["prepare", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("xtra: rxrx1 is there but broken: ")
    assert message.count("\n") == 1
    assert directory in message and "delete" in message
    assert files(directory) == before


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (file, content)
        for file in ("dataset_info.json", "features.json")
        for content in ("", "{", "[]")
    ]
    + [("dataset_info.json", None)],
)
def test_metadata_that_are_broken_are_a_sentence(
    file, content, replica, archives, data_dir, capsys
):
    replica("rxrx1")
    directory = job.prepare("rxrx1", str(data_dir), archives=str(archives), workers=1)
    if content is None:
        os.unlink(f"{directory}/{file}")
    else:
        Path(directory, file).write_text(content)
    capsys.readouterr()
    assert main(["prepare", "--dataset", "rxrx1", "--data_dir", str(data_dir)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(data_dir / "rxrx1") in message


def test_a_set_in_another_format_is_not_taken_for_one(replica, archives, data_dir, capsys):
    replica("rxrx1")
    directory = job.prepare("rxrx1", str(data_dir), archives=str(archives), workers=1)
    info = Path(directory, "dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert main(["prepare", "--dataset", "rxrx1", "--data_dir", str(data_dir)]) == 2
    assert "as tfrecord, which cannot be read record by record" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("iwildcam2", "iwildcam"),
        ("imagenet", "imagenet2012"),
        ("ImageNet-21k", "imagenet21k"),
        ("eurosat", "eurosat/rgb"),
        ("infograph", "domainnet/infograph"),
        ("fmoww", "fmow"),
        ("imagenet-1k", "imagenet2012"),
        ("inaturalist18", "i_naturalist2018"),
        ("stanford-cars", "cars196"),
    ],
)
def test_a_name_that_is_unknown_gets_the_nearest_one(name, near, capsys):
    assert main(["prepare", "--dataset", name]) == 2
    message = capsys.readouterr().err
    assert f"no data set {name!r}" in message and f"did you mean {near}?" in message
    assert "xtra prepare --list" in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name a data set with --dataset"),
        (["--dataset", "x y z"], "no data set 'x y z'"),
        (["--dataset", "fmow", "--max_side", "7"], "32 pixels or more"),
        (["--dataset", "fmow", "--workers", "-1"], "--workers 1 or more"),
        (["--dataset", "digits", "--partial"], "the digits have none"),
        (["--dataset", "fmow", "--config.batch_size=3"], "takes no config"),
        (["--dataset", "fmow", "--workers", "many"], "invalid int value"),
    ],
)
def test_mistakes_in_the_command_are_one_sentence(arguments, sentence, data_dir, capsys):
    assert main(["prepare", "--data_dir", str(data_dir), *arguments]) == 2
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1
    assert not data_dir.exists()


def test_a_run_that_fails_on_the_way_has_another_exit_code(
    replica, archives, data_dir, capsys, known_counts
):
    replica("rxrx1")
    known_counts("rxrx1", {"train": 3})
    arguments = ["--data_dir", str(data_dir), "--archives", str(archives), "--workers", "1"]
    assert main(["prepare", "--dataset", "rxrx1", *arguments]) == 1
    message = capsys.readouterr().err
    assert "2 of 3 for train" in message and message.count("\n") == 1


def test_stock_sets_go_to_tfds_s_own_builder(data_dir, monkeypatch):
    asked = []
    monkeypatch.setattr(
        job, "prepare_stock", lambda *args, **kwargs: asked.append((args, kwargs)) or "folder"
    )
    assert job.prepare("cifar10", str(data_dir), archives="/archives") == "folder"
    (((dataset, root), options),) = asked
    assert (dataset.name, root) == ("cifar10", str(data_dir))
    assert options["archives"] == "/archives"


def test_ctrl_c_says_that_the_same_command_continues(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "prepare", interrupted)
    assert main(["prepare", "--dataset", "fmow"]) == 130
    assert capsys.readouterr().err == "\nxtra: interrupted; the same command continues\n"


def test_a_folder_that_cannot_be_made_is_said_to_be_the_wrong_one(replica, archives, capsys):
    replica("rxrx1")
    arguments = ["--dataset", "rxrx1", "--data_dir", "/proc/1", "--archives", str(archives)]
    assert main(["prepare", *arguments, "--workers", "1"]) == 2
    message = capsys.readouterr().err
    assert "cannot be written" in message and "name another --data_dir" in message
    assert "continues" not in message and message.count("\n") == 1


def table(capsys, data_dir):
    assert main(["prepare", "--list", "--data_dir", str(data_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[1 : lines.index("")]}
    return lines, rows


def test_the_list_has_every_set_with_its_facts(data_dir, capsys):
    lines, rows = table(capsys, data_dir)
    assert list(rows) == list(CATALOGUE)
    for name, dataset in CATALOGUE.items():
        assert f" {sum(dataset.images.values()):,} " in rows[name]
        assert f" {dataset.classes:,} " in rows[name]
        for split, number in dataset.images.items():
            assert f"{split} {number:,}" in rows[name]
        assert ("by hand" in rows[name]) == bool(dataset.manual)
        assert ("needed" in rows[name]) == (dataset.how == "stock+tensorflow")
    assert str(data_dir) in "\n".join(lines)
    assert not data_dir.exists()
    ready = lines[0].index("READY")
    assert all(row[ready:].startswith("no ") for row in rows.values())


def test_the_list_knows_ready_partial_begun_and_broken_sets(
    replica, archives, data_dir, capsys, known_counts
):
    for name in MAKERS:
        replica(name)
        job.prepare(name, str(data_dir), archives=str(archives), workers=1)
    for name in ("camelyon17", "fmow"):
        job.prepare(name, str(data_dir), max_side=64, workers=1)
    known_counts("fmow", {**CATALOGUE["fmow"].images, "train": 3})
    os.unlink(shard_of(data_dir / "rxrx1" / "1.0.0"))
    (data_dir / "iwildcam" / "2.0.0" / "unfinished").mkdir()
    capsys.readouterr()
    lines, rows = table(capsys, data_dir)
    ready = lines[0].index("READY")
    states = {name: rows[name][ready:].split("  ")[0] for name in MAKERS}
    assert states == {
        "iwildcam": "begun",
        "camelyon17": "yes, max_side_64",
        "rxrx1": "broken",
        "fmow": "partial, max_side_64 (partial)",
    }


@pytest.mark.parametrize(
    ("number", "text"),
    [(600_000, "600 kB"), (9_400_000, "9.4 MB"), (155e9, "155 GB"), (1.2e12, "1.2 TB")],
)
def test_sizes_are_told_in_the_unit_that_suits_them(number, text):
    from xtra_jax.data.prepare.progress import size

    assert size(number) == text


def test_partial_takes_archives_of_a_tfds_set_that_are_not_the_known_ones(data_dir, monkeypatch):
    asked = {}
    monkeypatch.setattr(job, "prepare_stock", lambda *args, **options: asked.update(options) or "")
    job.prepare("cifar10", str(data_dir), partial=True)
    assert asked["verify"] is False
    job.prepare("cifar10", str(data_dir))
    assert asked["verify"] is True

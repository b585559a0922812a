"""Shards, written by several processes, interrupted, resumed and refused."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from tests.data.prepare.wilds_replicas import MAKERS, picture
from xtra_jax.data.prepare import plan as planning
from xtra_jax.data.prepare.files import locked
from xtra_jax.data.prepare.job import prepare
from xtra_jax.data.prepare.plan import Plan, Rows
from xtra_jax.data.prepare.writer import UNFINISHED, write
from xtra_jax.data.sources import TfdsSource, open_source
from xtra_jax.errors import RunFailed, UserError

ROOT = Path(__file__).parents[3]
SHARDS = 8

# Prepares the images of a folder in shards of three, as a command of its own.
COMMAND = """
import sys
from etils import epath
from tests.data.prepare.test_writer import planned
from xtra_jax.data.prepare.writer import write
if __name__ == "__main__":
    write(planned(sys.argv[1]), epath.Path(sys.argv[2]), workers=int(sys.argv[3]))
"""


def planned(folder, images=3 * SHARDS) -> Plan:
    """The images of a folder as a data set of two splits, in shards of three."""
    planning.RECORDS_PER_SHARD = 3
    splits = {"train": Rows(), "val": Rows()}
    for number in range(images):
        splits["val" if number % 4 == 3 else "train"].add(f"{number}.png", number % 5)
    return Plan(
        name="numbers",
        version="1.0.0",
        splits={split: rows.shards(str(folder)) for split, rows in splits.items()},
        class_names=tuple("abcde"),
        description="Made by the test.",
        image_format="png",
    )


@pytest.fixture(autouse=True)
def usual_shards(monkeypatch):
    monkeypatch.setattr(planning, "RECORDS_PER_SHARD", planning.RECORDS_PER_SHARD)


@pytest.fixture
def images(archives):
    for number in range(3 * SHARDS):
        (archives / f"{number}.png").write_bytes(picture(number))
    return archives


def as_directory(path) -> epath.Path:
    return epath.Path(path) / "numbers" / "1.0.0"


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()
    }


def notes(folder: Path) -> list[Path]:
    return sorted((Path(folder) / UNFINISHED).glob("numbers-*.json"))


def start(images, directory, workers):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(images), str(directory), str(workers)],
        env=environment,
        cwd=ROOT,
    )


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_bytes_do_not_depend_on_the_number_of_workers(images, tmp_path):
    for workers in (1, 3):
        write(planned(images), as_directory(tmp_path / str(workers)), workers=workers)
    one, three = (digests(as_directory(tmp_path / workers)) for workers in "13")
    assert one == three
    assert len([name for name in one if "array_record" in name]) == SHARDS


def test_killed_in_the_midst_it_goes_on_to_the_same_bytes_and_leaves_no_process(images, tmp_path):
    """The reader waits at a pipe in an image's place, so it is in the midst when it is killed."""
    write(planned(images), as_directory(tmp_path / "whole"), workers=1)

    image = images / "13.png"
    content = image.read_bytes()
    image.unlink()
    os.mkfifo(image)
    directory = as_directory(tmp_path / "killed")
    run = start(images, directory, workers=2)
    try:
        # The shard of that image stays open in one worker; the other one does all others.
        until(lambda: len(notes(directory)) == SHARDS - 1)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        processes = [int(child) for child in children]
        assert len(processes) >= 2
        assert any((directory / UNFINISHED).glob("tmp-*"))
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    until(lambda: not any(map(alive, processes)), seconds=10)
    assert not (directory / "features.json").exists()

    finished = {note.name.removesuffix(".json") for note in notes(directory)}
    before = {name: os.stat(directory / name).st_mtime_ns for name in finished}
    image.unlink()
    image.write_bytes(content)
    assert start(images, directory, workers=3).wait() == 0
    assert before == {name: os.stat(directory / name).st_mtime_ns for name in finished}
    assert digests(directory) == digests(as_directory(tmp_path / "whole"))


def test_a_shard_without_its_note_is_written_again(images, tmp_path):
    """As after a kill between the two."""
    directory = as_directory(tmp_path)
    (images / "23.png").rename(tmp_path / "23.png")
    with pytest.raises(RunFailed, match="23.png cannot be read"):
        write(planned(images), directory, workers=1)
    first = notes(directory)[0]
    shard = directory / first.name.removesuffix(".json")
    shard.write_bytes(b"another content")
    first.unlink()
    (tmp_path / "23.png").rename(images / "23.png")
    write(planned(images), directory, workers=1)
    assert len(TfdsSource(str(directory), "train")) == 18


def test_tfds_and_the_source_read_what_was_written(images, tmp_path):
    directory = as_directory(tmp_path)
    write(planned(images), directory, workers=1)
    builder = tfds.builder_from_directory(directory)
    assert builder.info.splits["train"].shard_lengths == [3] * 6
    assert builder.info.splits["val"].num_examples == 6
    assert builder.info.features["label"].names == list("abcde")
    assert builder.info.description == "Made by the test."
    data = builder.as_data_source("val", decoders={"image": tfds.decode.SkipDecoding()})
    assert data[1]["file_name"] == b"7.png" and data[1]["label"] == 2
    record = open_source("numbers", "val", str(tmp_path))[1]
    assert record == {"image": picture(7), "label": 2, "key": "7.png"}


def test_the_metadata_come_last(images, tmp_path):
    directory = as_directory(tmp_path)
    (images / "22.png").unlink()
    with pytest.raises(RunFailed):
        write(planned(images), directory, workers=1)
    assert not [path for path in directory.iterdir() if path.suffix in (".json", ".txt")]
    with pytest.raises(UserError, match="was not found"):
        open_source("numbers", "train", str(tmp_path))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_cannot_be_read_ends_it_with_its_name(workers, images, tmp_path):
    (images / "5.png").unlink()
    (images / "5.png").mkdir()
    with pytest.raises(RunFailed, match=r"5\.png cannot be read \(Is a directory\).*continues"):
        write(planned(images), as_directory(tmp_path), workers=workers)


def test_images_that_are_none_are_kept_as_they_are(images, tmp_path):
    (images / "5.png").write_bytes(b"not an image")
    (images / "6.png").write_bytes(b"")
    directory = as_directory(tmp_path)
    write(planned(images), directory, workers=1)
    source = TfdsSource(str(directory), "train")
    stored = {record["key"]: record["image"] for record in map(source.__getitem__, range(18))}
    assert (stored["5.png"], stored["6.png"]) == (b"not an image", b"")


def test_a_full_disk_is_a_sentence_and_keeps_what_is_finished(images, tmp_path):
    """A limit on the size of files stands for the end of the disk."""
    large = np.random.default_rng(0).bytes(300_000)
    (images / "14.png").write_bytes(large)
    directory = as_directory(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(RunFailed, match=r"cannot be written \(File too large\)") as error:
            write(planned(images), directory, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "are kept, and the same command continues" in str(error.value)
    kept = {note.name.removesuffix(".json") for note in notes(directory)}
    before = {name: os.stat(directory / name).st_mtime_ns for name in kept}
    assert before
    write(planned(images), directory, workers=1)
    assert before == {name: os.stat(directory / name).st_mtime_ns for name in kept}
    assert not (directory / UNFINISHED).exists()


@pytest.mark.parametrize("change", ["max_side", "shards", "source"])
def test_a_restart_with_other_options_or_from_another_source_is_refused(change, images, tmp_path):
    directory = as_directory(tmp_path)
    (images / "22.png").rename(images / "away")
    with pytest.raises(RunFailed):
        write(planned(images), directory, workers=1)
    (images / "away").rename(images / "22.png")
    begun = digests(directory / UNFINISHED)

    plan, max_side = planned(images), 0
    if change == "max_side":
        max_side = 64
    elif change == "shards":
        plan = planned(images, images=12)
    else:
        records = plan.splits["train"][0]
        object.__setattr__(records, "labels", (4, *records.labels[1:]))
    with pytest.raises(UserError, match="begun with other options or from another source"):
        write(plan, directory, max_side=max_side, workers=1)
    assert digests(directory / UNFINISHED) == begun
    write(planned(images), directory, workers=1)


def test_a_second_command_for_the_same_folder_is_refused(images, tmp_path):
    directory = as_directory(tmp_path)
    (directory / UNFINISHED).mkdir(parents=True)
    with (
        locked(directory / UNFINISHED / "lock", "busy"),
        pytest.raises(UserError, match="is being prepared by another command already"),
    ):
        write(planned(images), directory, workers=1)
    write(planned(images), directory, workers=1)


def test_a_folder_that_cannot_be_written_is_a_sentence(images, tmp_path):
    (tmp_path / "numbers").write_text("a file where a folder has to be")
    with pytest.raises(UserError, match="cannot be written .*name another --data_dir"):
        write(planned(images), as_directory(tmp_path), workers=1)


def test_the_notes_hold_no_time_and_no_name_of_a_machine(images, tmp_path):
    (images / "22.png").unlink()
    with pytest.raises(RunFailed):
        write(planned(images), as_directory(tmp_path), workers=1)
    for note in notes(as_directory(tmp_path)):
        assert set(json.loads(note.read_text())) == {
            "source",
            "images",
            "size",
            "shrunk",
            "broken",
        }


def test_a_preparation_killed_after_the_metadata_is_finished_by_the_next(
    archives, data_dir, known_counts
):
    known_counts("rxrx1", {s: len(r) for s, r in MAKERS["rxrx1"](archives).items()})
    directory = Path(prepare("rxrx1", str(data_dir), archives=str(archives), workers=1))
    whole = digests(directory)
    (directory / UNFINISHED).mkdir()
    prepare("rxrx1", str(data_dir), archives=str(archives), workers=1)
    assert digests(directory) == whole

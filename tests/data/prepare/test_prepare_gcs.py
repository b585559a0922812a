"""Data sets prepared in gs://, against an emulator of the service.

It runs where gcp-storage-emulator is installed beside the extra [gcs].
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from tests.data.prepare.imagenet21k_replica import SYNSETS, files_of, write_tars
from tests.runs import ROOT
from tests.test_gcs import bucket  # noqa: F401
from xtra_jax.data.prepare.job import prepare
from xtra_jax.data.sources import open_source
from xtra_jax.errors import RunFailed


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.mark.slow
def test_a_set_in_a_bucket_has_the_bytes_of_one_on_a_disk(
    bucket,  # noqa: F811
    known_counts,
    archives,
    data_dir,
    monkeypatch,
):
    """Archives in the bucket too; it goes on after a damaged one."""
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", os.environ["STORAGE_EMULATOR_HOST"])
    write_tars(archives)
    number = sum(len(files_of(synset)) for synset in SYNSETS)
    known_counts("imagenet21k", {"train": number}, classes=len(SYNSETS))
    local = Path(prepare("imagenet21k", str(data_dir), archives=str(archives), workers=1))

    for path in archives.iterdir():
        (bucket / "archives" / path.name).write_bytes(path.read_bytes())
    damaged = bucket / "archives" / "n02084071.tar"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:1000])
    options = {"archives": "gs://bucket/archives", "workers": 1}
    with pytest.raises(RunFailed, match="gs://bucket/archives/n02084071.tar cannot be read"):
        prepare("imagenet21k", "gs://bucket/data", **options)
    remote = bucket / "data" / "imagenet21k" / "1.0.0"
    assert not (remote / "features.json").exists()
    notes = [path for path in (remote / "unfinished").iterdir() if path.name.startswith("im")]
    assert [json.loads(note.read_text())["images"] for note in sorted(notes)] == [4, 3]

    damaged.write_bytes(whole)
    found = prepare("imagenet21k", "gs://bucket/data", **options)
    assert found == str(remote)
    assert files(remote) == files(local)
    assert not (remote / "unfinished").exists()

    local = Path(prepare("imagenet21k", str(data_dir), max_side=50, workers=1))
    found = prepare("imagenet21k", "gs://bucket/data", max_side=50, workers=2)
    assert found == "gs://bucket/data/imagenet21k/max_side_50/1.0.0"
    assert files(epath.Path(found)) == files(local)


@pytest.mark.slow
def test_the_digits_go_into_a_bucket(bucket, monkeypatch):  # noqa: F811
    pytest.importorskip("sklearn")
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", os.environ["STORAGE_EMULATOR_HOST"])
    directory = prepare("digits", "gs://bucket/data")
    assert directory == "gs://bucket/data/digits/1.0.0"
    assert len(open_source("digits", "test", "gs://bucket/data")) == 355


def test_without_the_extra_a_gs_folder_is_one_sentence(tmp_path):
    (tmp_path / "gcsfs.py").write_text("raise ImportError('as where it is not installed')")
    command = [sys.executable, "-m", "xtra_jax", "prepare", "--list", "--data_dir", "gs://bucket/x"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "gs://bucket/x cannot be reached" in done.stderr
    assert (
        done.stderr.endswith("(pip install 'xtra_jax[gcs]')\n") and "Traceback" not in done.stderr
    )

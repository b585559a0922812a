"""Working directories on gs://, against an emulator of the service.

What needs it runs where gcp-storage-emulator is installed beside the extra [gcs].
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest
from etils import epath

from tests.export.exported import golden_run
from tests.runs import ROOT, assert_same_state, complete, free_port, saved_state, told
from xtra_jax.errors import UserError
from xtra_jax.export import job
from xtra_jax.export.job import export

SETTINGS = {"steps": 11, "save_every": 3}


def test_without_the_extra_a_gs_working_directory_is_one_sentence(runs, tmp_path):
    (tmp_path / "gcsfs.py").write_text("raise ImportError('as where it is not installed')")
    run = runs.start("gs://bucket/run", environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert run.wait() == 2
    assert "cannot keep checkpoints in gs://bucket/run/checkpoints" in run.sentence
    assert run.sentence.endswith("(pip install 'xtra_jax[gcs]')")


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket that this process, and what it starts, find in the place of all others."""
    for package in ("gcsfs", "google.cloud.storage", "gcp_storage_emulator"):
        pytest.importorskip(package)
    port = free_port()
    # The libraries that share the work each have their own name for the service.
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    emulator = subprocess.Popen(
        [sys.executable, "-m", "tests.gcs_emulator", str(port)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            assert emulator.poll() is None
            time.sleep(0.05)
    yield epath.Path("gs://bucket")
    emulator.kill()
    emulator.wait()


def files_in(folder: epath.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_a_run_on_gs_is_killed_and_goes_on_as_one_on_a_disk(runs, bucket, tmp_path):
    """Inside a save, of which the bucket then holds a part."""
    local, remote = tmp_path / "run", bucket / "run"
    runs.start(local, SETTINGS).succeed()

    second = remote / "checkpoints" / "6"
    killed = runs.start(remote, SETTINGS)
    assert killed.wait_until(lambda: second.exists())
    killed.kill()
    killed.wait()
    assert complete(remote) == [3] and not (second / "commit_success.txt").exists()

    after = runs.start(remote, SETTINGS).succeed()
    assert after.continued_from() == 3
    assert "Traceback" not in after.output
    assert_same_state(saved_state(remote), saved_state(local))
    assert told(remote) == told(local)
    assert files_in(remote) == {"config.json", "metrics.jsonl", "tensorboard", "checkpoints"}
    assert files_in(remote / "checkpoints") == {"9", "11"}
    assert len(files_in(remote / "tensorboard")) == 2


@pytest.mark.slow
def test_an_export_on_gs_is_that_on_a_disk_and_is_replaced_as_a_whole(
    bucket, tmp_path, monkeypatch
):
    run, remote = golden_run(tmp_path / "run"), bucket / "out"
    export(run, str(remote), "published")
    export(run, str(tmp_path / "out"), "published")
    assert files_in(remote) == {"model.safetensors", "model.pt", "README.md", "manifest.json"}
    for file in (tmp_path / "out").iterdir():
        assert (remote / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(UserError, match="holds an export already"):
        export(run, str(remote), "timm")
    export(run, str(remote), "timm", overwrite=True)
    assert "model.pt" not in files_in(remote) and "mask.safetensors" in files_in(remote)

    write_safetensors = job.write_safetensors

    def full(file, *arguments, **options):
        write_safetensors(file, *arguments, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job, "write_safetensors", full)
    with pytest.raises(UserError, match="No space left on device"):
        export(run, str(bucket / "none"), "timm")
    assert not (bucket / "none").exists()

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

from tests.runs import ROOT, assert_same_state, complete, free_port, saved_state, told

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

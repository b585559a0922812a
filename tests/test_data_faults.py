"""Real runs whose data or whose workers fail: one sentence each, and nothing saved is lost."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.processes import holders, marked, shared_memory, wait_until, workers_of
from tests.runs import complete

LONG = {"steps": 100_000, "save_every": 3, "log_every": 1, "data.eval_split": ""}


def start_and_save(runs, workdir, settings, **how):
    """A run that is at work and has saved something."""
    run = runs.start(workdir, settings, **how)
    assert run.wait_until(lambda: bool(complete(workdir)))
    return run


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 4])
def test_a_killed_worker_ends_a_run_with_a_sentence_and_the_same_command_continues(
    runs, tmp_path, num_workers
):
    workdir, settings = tmp_path / "run", LONG | {"data.num_workers": num_workers}
    run = start_and_save(runs, workdir, settings)
    alive = workers_of(run.process.pid)
    assert len(alive) == num_workers
    os.kill(alive[-1], signal.SIGKILL)
    assert run.wait(timeout=60) == 1
    assert f"worker {num_workers} of {num_workers} (process {alive[-1]})" in run.sentence
    assert "was killed by SIGKILL" in run.sentence
    saved = max(complete(workdir))
    again = runs.start(workdir, settings | {"steps": saved + 3})
    assert again.succeed().continued_from() == saved


@pytest.mark.slow
def test_a_killed_run_leaves_no_worker_and_no_shared_memory(runs, tmp_path):
    mark = f"run-{uuid.uuid4()}"
    settings = LONG | {"data.num_workers": 4}
    run = start_and_save(runs, tmp_path / "run", settings, environment={"XTRA_TEST": mark})
    pid = run.process.pid
    alive = workers_of(pid)
    memory = set().union(*map(shared_memory, [pid, *alive]))
    assert len(alive) == 4 and len(memory) == 5
    run.kill()
    run.wait()
    assert wait_until(lambda: not marked(mark) and not holders(memory), 10)


def test_too_many_bad_images_end_a_run_that_lists_them(runs, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        file = folder / f"{number:02}.png"
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
        if number % 3 == 0:
            file.write_bytes(file.read_bytes()[:200])
    settings = LONG | {"data.dataset": "folder", "data.data_dir": str(folder)}
    workdir = tmp_path / "run"
    run = runs.start(workdir, settings | {"data.train_split": "all"})
    assert run.wait() == 1
    assert "training images are unusable" in run.sentence
    assert "data.bad_fraction=0.001" in run.sentence
    assert f"{workdir}/bad_images.txt lists them" in run.sentence
    listed = (workdir / "bad_images.txt").read_text().splitlines()
    assert len(listed) > 10
    for line in listed:
        key, reason = line.split("\t")
        assert int(key.removesuffix(".png")) % 3 == 0 and reason


def test_a_missing_shard_ends_a_run_before_it_trains(runs, tmp_path):
    data_dir = shutil.copytree(runs.config().data.data_dir, tmp_path / "data")
    (file,) = Path(data_dir).glob("digits/*/*train*")
    file.unlink()
    run = runs.start(tmp_path / "run", LONG | {"data.data_dir": str(data_dir)})
    assert run.wait() == 2
    assert f"lacks 1 of 1 files, the first of them {file.name}" in run.sentence
    assert "compiled" not in run.output

"""Whatever ends a run, its last good checkpoint stays, and the same command goes on exactly."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.runs import (
    Run,
    Runs,
    assert_same_curve,
    assert_same_state,
    complete,
    on,
    saved_state,
    temporary,
    told,
)

STEPS, EVERY = 15, 3
SHORT = {"steps": STEPS, "data.eval_split": ""}


@pytest.fixture(scope="module")
def uninterrupted(runs, tmp_path_factory) -> Path:
    """What every run below has to end with; it keeps all its checkpoints."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    runs.start(workdir, SHORT | {"keep_checkpoints": STEPS}).succeed()
    return workdir


def assert_same_end(workdir: Path, uninterrupted: Path) -> None:
    assert_same_state(saved_state(workdir), saved_state(uninterrupted))
    assert told(workdir) == told(uninterrupted)


def assert_same_so_far(workdir: Path, uninterrupted: Path) -> None:
    """Every checkpoint there is, is whole: it reads, and is what it would have been."""
    for step in complete(workdir):
        assert_same_state(saved_state(workdir, step), saved_state(uninterrupted, step))


class Killer:
    """Kills runs at random moments, and counts where it hit."""

    def __init__(self, seed: int, moments: float):
        self._random = random.Random(seed)
        self._moments = moments
        self.kills = self.inside_saves = self.before_training = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.inside_saves} inside a save, {self.before_training} before "
            "the first step"
        )

    def strike(self, run: Run, workdir: Path, *, inside_save: bool) -> bool:
        """Kills the run; False where it was complete before."""
        if inside_save:
            wait_for_save(run, workdir, newest(workdir) + self._random.randrange(3) * EVERY)
            time.sleep(self._random.random() * 0.3)
        else:
            moment = run.began + self._random.random() * self._moments
            run.wait_until(lambda: time.monotonic() > moment)
        run.kill()
        if run.wait() == 0:
            return False
        assert run.process.returncode == -9, run.output
        self.kills += 1
        if run.step() == 0:
            self.before_training += 1
        else:
            self.inside_saves += max(temporary(workdir), default=0) > newest(workdir)
        return True


def newest(workdir: Path) -> int:
    """The last complete checkpoint; 0 where there is none."""
    return max(complete(workdir), default=0)


def wait_for_step(run: Run, step: int) -> bool:
    return run.wait_until(lambda: run.step() >= step)


def wait_for_save(run: Run, workdir: Path, after: int) -> bool:
    """Until a save has begun, of a step after this one.

    What an earlier kill left is gone by the first step. An old checkpoint on its way out has such a
    name too, and a lower number.
    """
    wait_for_step(run, 1)
    return run.wait_until(lambda: max(temporary(workdir), default=0) > after)


def kill_and_restart(
    runs: Runs, killer: Killer, kills: int, workdir: Path, uninterrupted: Path, settings: dict
) -> None:
    """Kills a run over and over, then lets it end; begins anew where it ends too early."""
    seen = last = 0
    while killer.kills < kills:
        workers = {"data.num_workers": int(killer.kills % 5 == 4)}  # they have to die as well
        run = runs.start(workdir, settings | workers)
        done = not killer.strike(run, workdir, inside_save=killer.kills % 3 != 2)
        began = run.continued_from()
        # What was complete is found, and what was lost is what came after it.
        assert began is None and (seen == 0 or run.step() == 0) or began == seen, run.output
        seen = newest(workdir)
        # A save goes on behind the steps up to the next one, which waits for it.
        assert seen >= last and (done or run.step() - seen <= 2 * EVERY), run.output
        last = seen
        assert_same_so_far(workdir, uninterrupted)
        if done:
            assert_same_end(workdir, uninterrupted)
            shutil.rmtree(workdir)
            seen = last = 0
    run = runs.start(workdir, settings).succeed()
    assert run.continued_from() == (seen or None)
    assert not temporary(workdir)
    assert_same_end(workdir, uninterrupted)


def test_a_run_killed_three_times_ends_as_if_it_had_not_been(runs, uninterrupted, tmp_path):
    killer = Killer(seed=0, moments=6)
    kill_and_restart(runs, killer, 3, tmp_path / "run", uninterrupted, SHORT)
    assert killer.inside_saves


@pytest.mark.slow
def test_a_run_killed_thirty_times_ends_as_if_it_had_not_been(runs, tmp_path):
    steps = SHORT | {"steps": 120}
    reference = tmp_path / "uninterrupted"
    runs.start(reference, steps | {"keep_checkpoints": 120}, cached=False).succeed()
    killer = Killer(seed=1, moments=10)
    kill_and_restart(runs, killer, 30, tmp_path / "run", reference, steps)
    print(killer)
    assert killer.inside_saves >= 10


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    refused = subprocess.run(mounting, capture_output=True, text=True) if may_mount() else None
    if refused is None or refused.returncode:
        pytest.skip("no file system can be mounted here, which needs root and a mount command")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def may_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


def size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def remount(disk: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("fitting", "saved"), [(0.5, []), (1.5, [EVERY]), (1.95, [EVERY])])
def test_a_run_that_fills_its_disk_ends_and_goes_on_when_there_is_space(
    runs, uninterrupted, small_disk, fitting, saved
):
    """The disk holds half a checkpoint, or one and ever more of the next."""
    workdir = small_disk / "run"
    one = size_on_disk(uninterrupted / "checkpoints" / str(EVERY))
    free = shutil.disk_usage(small_disk).free
    filler = small_disk / "filler"
    filler.write_bytes(bytes(free - int(fitting * one)))

    full = runs.start(workdir, SHORT)
    assert full.wait() == 2
    assert "No space left on device" in full.sentence and str(workdir) in full.sentence
    assert complete(workdir) == saved
    assert_same_so_far(workdir, uninterrupted)

    remount(small_disk, "ro")
    refused = runs.start(workdir, SHORT)
    assert refused.wait() == 2 and "Read-only file system" in refused.sentence
    remount(small_disk, "rw")
    assert complete(workdir) == saved
    assert_same_so_far(workdir, uninterrupted)

    filler.unlink()
    assert runs.start(workdir, SHORT).succeed().continued_from() == (saved[0] if saved else None)
    assert_same_end(workdir, uninterrupted)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_it_goes_on_later(
    runs, uninterrupted, tmp_path
):
    """As on a full disk, by a limit on the size of files, which needs no privilege."""
    workdir = tmp_path / "run"
    full = runs.start(workdir, SHORT)
    assert full.wait_until(lambda: complete(workdir))
    _, hard = resource.prlimit(full.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(full.process.pid, resource.RLIMIT_FSIZE, (20_000, hard))
    assert full.wait() == 2 and "File too large" in full.sentence
    assert complete(workdir)
    assert_same_so_far(workdir, uninterrupted)
    assert runs.start(workdir, SHORT).succeed().continued_from()
    assert_same_end(workdir, uninterrupted)


def test_a_working_directory_that_cannot_be_written_is_one_sentence(runs, tmp_path):
    (tmp_path / "file").write_text("")
    places = {tmp_path / "file" / "run": "Not a directory"}
    if os.geteuid():  # permissions don't bind root
        (tmp_path / "locked").mkdir(mode=0o555)
        places[tmp_path / "locked" / "run"] = "Permission denied"
    for workdir, reason in places.items():
        run = runs.start(workdir, SHORT)
        assert run.wait() == 2 and reason in run.sentence and str(workdir) in run.sentence
        assert not workdir.exists()


TWO = {"steps": STEPS} | on(1, 2, 1)


@pytest.fixture(scope="module")
def uninterrupted_two(runs, tmp_path_factory) -> Path:
    """What a run of two processes has to end with."""
    workdir = tmp_path_factory.mktemp("uninterrupted two") / "run"
    for process in runs.start_two(workdir, TWO | {"keep_checkpoints": STEPS}, devices=1):
        process.succeed()
    return workdir


@pytest.mark.slow
def test_when_one_of_two_processes_is_killed_the_other_ends_and_the_run_goes_on(
    runs, uninterrupted, tmp_path
):
    """It goes on in one process, on another mesh."""
    workdir = tmp_path / "run"
    first, second = runs.start_two(workdir, SHORT | on(1, 2, 1), devices=1)
    assert wait_for_step(first, 2 * EVERY + 1)  # for which a save had to complete
    second.kill()
    assert first.wait(timeout=60) == 1
    assert "process 1 of 2" in first.sentence
    known = re.search(r"continues from .*step (\d+)", first.sentence)
    assert int(known[1]) in complete(workdir)
    saved = max(complete(workdir))
    assert runs.start(workdir, SHORT | on(1, 1, 1)).succeed().continued_from() == saved
    assert_same_curve(workdir, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_two_processes_of_which_one_was_killed_end_as_if_it_had_not_been(
    runs, uninterrupted_two, killed, tmp_path
):
    workdir = tmp_path / "run"
    saved = 0
    for moment in ("starting", "training", "saving"):
        processes = first, _ = runs.start_two(workdir, TWO, devices=1)
        if moment == "starting":  # when both are there; before, it is a late start
            assert first.wait_until(lambda first=first: "XTRA with" in first.output)
        if moment == "training":
            assert wait_for_step(first, saved + 1)
        if moment == "saving":
            assert wait_for_save(first, workdir, saved)
        processes[killed].kill()
        survivor = processes[1 - killed]
        assert survivor.wait(timeout=60) == 1
        assert f"process {killed} of 2" in survivor.sentence
        saved = newest(workdir)
        assert_same_so_far(workdir, uninterrupted_two)
    for process in runs.start_two(workdir, TWO, devices=1):
        process.succeed()
    assert_same_end(workdir, uninterrupted_two)


@pytest.mark.slow
@pytest.mark.parametrize("told_to", [0, 1])
def test_sigterm_to_one_of_two_processes_saves_and_one_process_continues_on_another_mesh(
    runs, uninterrupted_two, told_to, tmp_path
):
    workdir = tmp_path / "run"
    processes = runs.start_two(workdir, TWO, devices=1)
    assert wait_for_step(processes[0], 5)
    processes[told_to].kill(signal.SIGTERM)
    for process in processes:
        process.succeed(timeout=60)
    saved = max(complete(workdir))
    assert f"stopped at step {saved} by SIGTERM" in processes[0].output
    assert_same_so_far(workdir, uninterrupted_two)
    after = runs.start(workdir, TWO | on(2, 2, 1), devices=4).succeed()
    assert after.continued_from() == saved
    assert_same_curve(workdir, uninterrupted_two)

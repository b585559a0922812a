"""Profiles of a few steps: what is written, and that nothing about them ends a run."""

import jax
import jax.numpy as jnp
import pytest

from xtra_jax.training import profile as module
from xtra_jax.training.profile import STEPS, StepProfile

double = jax.jit(lambda x: x * 2)


def run(profile, steps=8, after=0):
    x = jnp.ones(4)
    with profile:
        for step in range(after + 1, steps + 1):
            if profile.begins_with(step):
                profile.start()
            with profile.step(step):
                x = double(x)
            if profile.ends_with(step):
                profile.close(step)
    return float(x[0])


def test_a_trace_of_the_steps_asked_for_names_each_of_them(tmp_path):
    notes = []
    assert run(StepProfile(str(tmp_path), 3, notes.append)) == 2.0**8
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(trace))
    numbers = {
        dict(event.stats).get("step_num")
        for plane in data.planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    }
    assert numbers == set(range(3, 3 + STEPS))
    (note,) = notes
    assert note.startswith("profile of the steps 3 to 5: ") and "xprof --logdir=" in note


def test_a_run_that_ends_meanwhile_still_writes_what_there_is(tmp_path):
    notes = []
    run(StepProfile(str(tmp_path), 8, notes.append))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert notes[0].startswith("profile of the steps 8 on: ")


@pytest.mark.parametrize("first", [0, 100])
def test_without_a_step_to_begin_with_nothing_is_written(tmp_path, first):
    run(StepProfile(str(tmp_path), first, pytest.fail))
    run(StepProfile(str(tmp_path), 3, pytest.fail, active=False))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_after_the_steps_asked_for_says_so_once(tmp_path):
    notes = []
    run(StepProfile(str(tmp_path), 3, notes.append), after=3)
    assert notes == ["no profile: profile_at=3, and the run goes on with step 4"]
    run(StepProfile(str(tmp_path), 3, pytest.fail, active=False), after=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", ["start_trace", "stop_trace"])
def test_a_profiler_that_fails_is_told_of_and_ends_no_run(tmp_path, monkeypatch, fails):
    def refuse(*arguments, **options):
        raise RuntimeError("no profiler here\nand more")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda *arguments, **options: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    monkeypatch.setattr(jax.profiler, fails, refuse)
    notes = []
    assert run(StepProfile(str(tmp_path), 3, notes.append)) == 2.0**8
    assert notes == ["no profile: no profiler here"]


def test_a_workdir_that_cannot_be_written_is_told_of(tmp_path):
    (tmp_path / "profile").write_text("a file")
    notes = []
    run(StepProfile(str(tmp_path), 3, notes.append))
    assert len(notes) == 1 and notes[0].startswith("no profile: ")


def test_a_remote_workdir_gets_the_files_and_nothing_stays_here(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.setattr(module.tempfile, "mkdtemp", lambda prefix: str(here))
    monkeypatch.setattr(module, "is_local", lambda path: False)
    notes = []
    run(StepProfile(str(tmp_path / "remote"), 3, notes.append))
    assert list((tmp_path / "remote" / "profile").rglob("*.xplane.pb"))
    assert not here.exists()

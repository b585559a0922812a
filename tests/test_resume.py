"""A run that is stopped goes on exactly, on the same devices and on others."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.runs import (
    assert_same_curve,
    assert_same_state,
    on,
    saved_state,
    told,
)
from tests.seen import recording, rows_seen, state_seen
from xtra_jax.errors import UserError
from xtra_jax.training.pretrain import pretrain
from xtra_jax.training.progress import Progress
from xtra_jax.training.stopping import Stop

STEPS = 20
QUIET = Progress(STEPS, active=False)

# Every kind of mesh that eight devices allow: one axis, two, and all three.
MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 2, 1), (2, 1, 4), (1, 4, 2), (2, 2, 2), (1, 2, 4)]


class Stopping(Progress):
    """Ends a run after a step: as SIGTERM does, which saves, or at once."""

    def __init__(self, step: int, stop: Stop | None):
        super().__init__(STEPS, active=False)
        self._step, self._stop = step, stop

    def update(self, step, **fields):
        if step == self._step and self._stop is None:
            raise KeyboardInterrupt
        if step == self._step:
            self._stop.request("a test")


@pytest.fixture(scope="module")
def cached(runs):
    with runs.cache_here():
        yield


@pytest.fixture(scope="module")
def uninterrupted(runs, cached, tmp_path_factory) -> Path:
    """A run on eight devices, and what each of its steps saw."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with recording(folder / "seen"):
        pretrain(runs.config(on(2, 4, 1)), str(folder / "run"), progress=QUIET)
    return folder


def stop_saving(config, workdir: Path, step: int) -> None:
    stop = Stop()
    outcome = pretrain(config, str(workdir), progress=Stopping(step, stop), stop=stop)
    assert outcome.step == step and outcome.stopped_by == "a test"


def stop_and_resume(runs, workdir: Path, legs: list[tuple]) -> None:
    """Runs to the end in legs: each on its own mesh, to its own step, saving there or not."""
    for mesh, step, saving in legs:
        config = runs.config(on(*mesh))
        if step == STEPS:
            pretrain(config, str(workdir), progress=QUIET)
        elif saving:
            stop_saving(config, workdir, step)
        else:
            with pytest.raises(KeyboardInterrupt):
                pretrain(config, str(workdir), progress=Stopping(step, None))


def random_legs(seed: int, count: int, meshes: list[tuple]) -> list[tuple]:
    """Stops at random steps, about half of which save, each on the next of the meshes."""
    numbers = random.Random(seed)
    stops = sorted(numbers.sample(range(1, STEPS), count))
    return [
        (meshes[leg % len(meshes)], stop, numbers.random() < 0.5)
        for leg, stop in enumerate([*stops, STEPS])
    ]


def assert_same_examples(ours: Path, theirs: Path) -> None:
    """Every step saw the same images in the same order, down to the last bit of a crop."""
    seen, expected = rows_seen(ours), rows_seen(theirs)
    assert [len(expected[step]) for step in range(STEPS)] == [16] * STEPS
    assert seen == expected


def test_a_run_stopped_on_one_mesh_and_resumed_on_another_sees_the_same_examples(
    runs, uninterrupted, tmp_path
):
    legs = [((2, 4, 1), 7, False), ((1, 2, 4), STEPS, False)]
    with recording(tmp_path / "seen"):
        stop_and_resume(runs, tmp_path / "run", legs)
    assert_same_examples(tmp_path / "seen", uninterrupted / "seen")
    assert_same_curve(tmp_path / "run", uninterrupted / "run")


def test_a_run_from_other_weights_takes_nothing_else_and_goes_on_by_itself(
    runs, uninterrupted, tmp_path
):
    """Across meshes; and once it has checkpoints of its own, it needs the other run no more."""
    other = tmp_path / "other"
    shutil.copytree(uninterrupted / "run", other)
    theirs = saved_state(other)
    config = runs.config(on(1, 2, 4) | {"init_from": str(other)})
    with recording(tmp_path / "seen"):
        stop_saving(config, tmp_path / "run", 1)
        shutil.rmtree(other)
        stop_saving(config, tmp_path / "run", 2)
    began, resumed = (state_seen(tmp_path / "seen", f"first-{step}") for step in (0, 1))
    assert began.keys() == theirs.keys()
    for name, array in began.items():
        expected = theirs[name] if name[0] == "params" else np.zeros_like(theirs[name])
        np.testing.assert_array_equal(array, expected, err_msg="/".join(name))
    assert_same_state(resumed, saved_state(tmp_path / "run", 1))


def test_weights_of_another_model_are_refused_in_a_sentence(runs, uninterrupted, tmp_path):
    config = runs.config({"init_from": str(uninterrupted / "run"), "predictor.hidden": 24})
    sentence = "is a checkpoint of another model: .* there and .* here; use the config it was made"
    with pytest.raises(UserError, match=sentence):
        pretrain(config, str(tmp_path / "run"), progress=QUIET)


@pytest.mark.slow
def test_a_run_stopped_ten_times_ends_with_the_same_bits(runs, uninterrupted, tmp_path):
    with recording(tmp_path / "seen"):
        stop_and_resume(runs, tmp_path / "run", random_legs(0, 10, [(2, 4, 1)]))
    assert_same_examples(tmp_path / "seen", uninterrupted / "seen")
    assert_same_state(saved_state(tmp_path / "run"), saved_state(uninterrupted / "run"))
    assert told(tmp_path / "run") == told(uninterrupted / "run")


@pytest.mark.slow
def test_a_run_stopped_ten_times_on_ever_other_meshes_learns_the_same(
    runs, uninterrupted, tmp_path
):
    with recording(tmp_path / "seen"):
        stop_and_resume(runs, tmp_path / "run", random_legs(1, 10, MESHES))
    assert_same_examples(tmp_path / "seen", uninterrupted / "seen")
    assert_same_curve(tmp_path / "run", uninterrupted / "run")


@pytest.mark.slow
def test_a_run_stopped_ten_times_on_other_numbers_of_processes_learns_the_same(
    runs, uninterrupted, tmp_path
):
    """By signals that save, and by kills that do not."""
    numbers = random.Random(2)
    workdir, seen = tmp_path / "run", tmp_path / "seen"
    stops = sorted(numbers.sample(range(1, STEPS), 10))
    for leg, step in enumerate([*stops, None]):
        number = signal.SIGTERM if numbers.random() < 0.5 else signal.SIGKILL
        stop = {} if step is None else {"XTRA_STOP": f"{step}:{number}"}
        how = {"record": seen, "environment": stop}
        if leg % 2:
            fsdp = numbers.choice([1, 2])
            processes = [runs.start(workdir, on(2, fsdp, 1), devices=2 * fsdp, **how)]
        else:
            mesh = numbers.choice([(4, 1, 1), (1, 4, 1), (2, 2, 1), (1, 1, 4), (2, 1, 2)])
            processes = runs.start_two(workdir, on(*mesh), **how)
        for process in processes:
            process.wait()
        codes = {process.process.returncode for process in processes}
        if step is None or number == signal.SIGTERM:
            assert codes == {0}, [process.output for process in processes]
        else:
            assert codes <= {-signal.SIGKILL, 1} and -signal.SIGKILL in codes
    assert_same_examples(seen, uninterrupted / "seen")
    assert_same_curve(workdir, uninterrupted / "run")

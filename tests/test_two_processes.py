"""Two real processes, talking over gloo, train as one does, and write what one can read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.runs import assert_same_curve, assert_same_state, complete, on, saved_state, told
from tests.seen import rows_seen, state_seen
from xtra_jax.training.pretrain import pretrain
from xtra_jax.training.progress import Progress
from xtra_jax.training.restore import by_name

STEPS = 20
BETWEEN = 9  # a step that is saved on the way


def settings(*mesh: int) -> dict[str, object]:
    return on(*mesh) | {"keep_checkpoints": STEPS, "steps": STEPS}


def rewound(workdir: Path, copy: Path) -> Path:
    """A copy of a run as it was when its newest checkpoint was that of step `BETWEEN`."""
    shutil.copytree(workdir, copy)
    for step in complete(copy):
        if step > BETWEEN:
            shutil.rmtree(copy / "checkpoints" / str(step))
    return copy


def both(runs, folder: Path, mesh: tuple[int, int, int]) -> tuple[Path, Path]:
    """The same run twice: of one process with four devices, and of two with two each."""
    one, two = folder / "one", folder / "two"
    runs.start(one / "run", settings(*mesh), devices=4, record=one / "seen").succeed()
    processes = runs.start_two(two / "run", settings(*mesh), record=two / "seen")
    for process in processes:
        process.succeed()
    assert_only_the_first_told(*processes)
    return one, two


def assert_only_the_first_told(first, second) -> None:
    for told_once in ("step 20/20", "compiled", "attention/qkv/kernel", "per device"):
        assert told_once in first.output
    assert second.own_lines == []


def assert_same_run(one: Path, two: Path) -> None:
    assert len(told(one / "run")) == STEPS + 1  # with the validation
    assert_same_curve(two / "run", one / "run")
    assert rows_seen(two / "seen") == rows_seen(one / "seen")


@pytest.fixture(scope="module")
def mixed(runs, tmp_path_factory) -> tuple[Path, Path]:
    return both(runs, tmp_path_factory.mktemp("mixed"), (2, 2, 1))


def test_two_processes_train_as_one_with_as_many_devices(mixed):
    assert_same_run(*mixed)


def test_what_two_processes_save_one_restores_bit_for_bit(runs, mixed):
    """Onto eight devices, in this process: everything changes but the numbers."""
    _, two = mixed
    workdir = two / "run"
    assert_same_state(saved_state(workdir), state_seen(two / "seen", "last-20"))
    with runs.cache_here():
        outcome = pretrain(
            runs.config(settings(1, 4, 2)), str(workdir), progress=Progress(STEPS, active=False)
        )
    assert_same_state(
        {name: np.asarray(leaf) for name, leaf in by_name(outcome.state).items()},
        saved_state(workdir),
    )
    (validation,) = [line for line in told(workdir) if "validation/loss" in line]
    assert outcome.validation["loss"] == pytest.approx(validation["validation/loss"], rel=1e-5)


@pytest.mark.slow
def test_what_one_process_saves_two_restore_bit_for_bit_and_continue(runs, mixed, tmp_path):
    one, two = mixed
    workdir = rewound(one / "run", tmp_path / "run")
    for process in runs.start_two(workdir, settings(2, 2, 1), record=tmp_path / "seen"):
        process.succeed()
    held = state_seen(tmp_path / "seen", f"first-{BETWEEN}")
    assert_same_state(held, saved_state(one / "run", BETWEEN))
    assert_same_curve(workdir, two / "run")


@pytest.mark.slow
def test_a_working_directory_that_is_not_shared_is_one_sentence_before_the_first_save(
    runs, tmp_path
):
    """As where every host has a disk of its own."""
    here, there = tmp_path / "here", tmp_path / "there"
    first, second = runs.start_two(here, settings(4, 1, 1), second_workdir=there)
    assert first.wait(timeout=120) == second.wait(timeout=120) == 2
    assert f"process 1 of 2 does not see what process 0 writes to {here}" in first.sentence
    assert not complete(here) and not complete(there)


def test_processes_started_with_other_configs_are_told_the_key_that_differs(runs, tmp_path):
    first, second = runs.start_two(tmp_path, settings(4, 1, 1), second={"seed": 3})
    assert (first.wait(timeout=120), second.wait(timeout=120)) == (1, 2)
    sentence = "process 1 was started with seed=3, and process 0 with 0: start all processes with"
    assert sentence in second.sentence and sentence in first.sentence
    assert not complete(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(4, 1, 1), (1, 4, 1), (1, 1, 4), (1, 2, 2)])
def test_two_processes_train_as_one_on_every_kind_of_mesh(runs, mesh, tmp_path):
    """With "tensor" alone both processes read every image; with the others, halves."""
    one, two = both(runs, tmp_path, mesh)
    assert_same_run(one, two)
    assert_same_state(saved_state(two / "run"), state_seen(two / "seen", "last-20"))
    workdir = rewound(two / "run", tmp_path / "run")
    assert runs.start(workdir, settings(2, 1, 1), devices=2).succeed().continued_from() == BETWEEN
    assert_same_curve(workdir, one / "run")

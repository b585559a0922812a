"""Checkpoints: exact, complete or not there, and never in the way of what was there before."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.training.states import (
    CONFIG,
    State,
    abstract,
    advance,
    assert_same_bits,
    full_disk,
    make_state,
    names,
    one_device,
    save_all,
    state_at,
)
from xtra_jax.errors import UserError
from xtra_jax.training.checkpoint import (
    Checkpointer,
    find_checkpoint,
    read_config,
    restore_params,
    write_config,
)


def test_state_position_and_config_come_back_exactly(tmp_path):
    state = state_at(3)
    assert np.any(np.asarray(jax.tree.leaves(state.opt_state)[1]))  # moments that say something
    position = {"step": 3, "seed": 7, "samples": 2**40}
    with Checkpointer(tmp_path, save_every=3, keep=2) as checkpointer:
        assert checkpointer.latest_step() is None
        assert checkpointer.save(3, state, position=position, config=CONFIG)
        checkpointer.wait()
        assert checkpointer.latest_step() == 3
    with Checkpointer(tmp_path, save_every=3, keep=2) as checkpointer:
        assert checkpointer.latest_step() == 3
        restored = checkpointer.restore(abstract(state, one_device()))
    assert isinstance(restored[0], State)
    assert_same_bits(restored[0], state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored[0]))
    assert restored[1:] == (position, CONFIG)


def test_leaves_without_a_sharding_come_back_as_numpy_arrays(tmp_path):
    save_all(tmp_path, [1])
    with Checkpointer(tmp_path, save_every=1, keep=1) as checkpointer:
        state, _, _ = checkpointer.restore(abstract(state_at(1)))
    assert {type(leaf) for leaf in jax.tree.leaves(state)} == {np.ndarray}
    assert_same_bits(state, state_at(1))


def test_a_resumed_run_ends_with_the_same_bits_as_an_uninterrupted_one(tmp_path):
    save_all(tmp_path, [2, 4])
    with Checkpointer(tmp_path, save_every=2, keep=2) as checkpointer:
        state, position, _ = checkpointer.restore(abstract(make_state(), one_device()))
    assert position == {"step": 4}
    for _ in range(3):
        state = advance(state)
    assert_same_bits(state, state_at(7))


def test_state_restores_onto_other_meshes(tmp_path):
    def on(shape, spec):
        axes = ("data", "fsdp")
        mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 2)

        def place(leaf):
            divisible = leaf.ndim and leaf.shape[0] % shape[axes.index(spec[0])] == 0
            return NamedSharding(mesh, PartitionSpec(*spec) if divisible else PartitionSpec())

        return place

    state = state_at(2, width=16)
    saved_on, restored_on = on((2, 4), ("fsdp",)), on((8, 1), ("data",))
    placed = jax.tree.map(lambda leaf: jax.device_put(leaf, saved_on(leaf)), state)
    with Checkpointer(tmp_path, save_every=1, keep=1) as checkpointer:
        checkpointer.save(2, placed, position={}, config={})
        for target in (abstract(state, restored_on), abstract(state, one_device(5))):
            restored, _, _ = checkpointer.restore(target)
            assert_same_bits(restored, state)
            for leaf, wanted in zip(
                jax.tree.leaves(restored), jax.tree.leaves(target), strict=True
            ):
                assert leaf.sharding == wanted.sharding
    assert len(restored_on(state.params["position"]).device_set) == 8


def test_a_state_donated_right_after_save_is_stored_as_it_was(tmp_path):
    donating = jax.jit(advance, donate_argnums=0)
    state = state_at(0, width=256, depth=8)
    with Checkpointer(tmp_path, save_every=1, keep=9) as checkpointer:
        for step in range(1, 5):
            state = donating(state)
            checkpointer.save(step, state, position={}, config={})
            state = donating(donating(state))
            assert int(state.step) == 3 * step
        expected = state_at(0, width=256, depth=8)
        for step in range(1, 5):
            expected = advance(expected)
            restored, _, _ = checkpointer.restore(abstract(expected), step=step)
            assert_same_bits(restored, expected)
            expected = advance(advance(expected))


def test_save_decides_by_itself_when_it_is_time(tmp_path):
    state = make_state()
    with Checkpointer(tmp_path, save_every=3, keep=10) as checkpointer:
        assert [step for step in range(8) if checkpointer.due(step)] == [3, 6]
        begun = [
            step
            for step in range(8)
            if checkpointer.save(step, state, position={}, config={}, force=step == 7)
        ]
        assert begun == [3, 6, 7]
        checkpointer.save(9, state, position={}, config=CONFIG)
        assert not checkpointer.due(9) and checkpointer.due(12)
        assert checkpointer.read_config() == CONFIG
        assert not checkpointer.save(9, state, position={}, config={}, force=True)
        with pytest.raises(ValueError, match="step 6 comes before step 9"):
            checkpointer.save(6, state, position={}, config={}, force=True)
    assert names(tmp_path) == {"3", "6", "7", "9"}


def test_a_resumed_run_does_not_save_again_what_it_started_from(tmp_path):
    save_all(tmp_path, [4])
    before = os.stat(tmp_path / "4").st_mtime_ns
    with Checkpointer(tmp_path, save_every=2, keep=3) as checkpointer:
        assert not checkpointer.save(4, state_at(4), position={}, config={})
    assert os.stat(tmp_path / "4").st_mtime_ns == before


def test_the_newest_checkpoints_are_kept_and_the_others_removed(tmp_path):
    save_all(tmp_path, range(1, 6), keep=2)
    assert names(tmp_path) == {"4", "5"}
    save_all(tmp_path, [6], keep=1)
    assert names(tmp_path) == {"6"}


def test_incomplete_checkpoints_are_not_found_and_are_cleaned_up(tmp_path):
    save_all(tmp_path, [1])
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", unfinished)
    (unfinished / "state").rename(unfinished / "state.orbax-checkpoint-tmp")
    assert find_checkpoint(tmp_path).name == "1"
    with Checkpointer(tmp_path, save_every=1, keep=3) as checkpointer:
        assert checkpointer.latest_step() == 1
        checkpointer.save(2, state_at(2), position={}, config={})
    assert names(tmp_path) == {"1", "2"}


def test_position_and_config_are_those_of_the_moment_of_the_save(tmp_path):
    position, config = {"step": 1}, {"optim": {"lr": 1.0}}
    with Checkpointer(tmp_path, save_every=1, keep=1) as checkpointer:
        checkpointer.save(1, make_state(), position=position, config=config)
        position["step"] = config["optim"]["lr"] = 2
        _, *saved = checkpointer.restore(abstract(make_state()))
    assert saved == [{"step": 1}, {"optim": {"lr": 1.0}}]


@pytest.mark.parametrize("contents", [["0/cat.png", "1/dog.png"], ["notes.txt"], ["run/1/state/x"]])
def test_a_directory_with_other_contents_is_refused_and_left_alone(tmp_path, contents):
    for name in contents:
        path = tmp_path / "checkpoints" / name
        path.parent.mkdir(parents=True)
        path.write_text("precious")
    with pytest.raises(UserError, match="is not a directory of checkpoints: .* in it is none"):
        Checkpointer(tmp_path / "checkpoints", save_every=1, keep=1)
    with pytest.raises(UserError, match="holds no checkpoint|is not a checkpoint"):
        find_checkpoint(tmp_path)
    assert {
        str(path.relative_to(tmp_path / "checkpoints"))
        for path in tmp_path.rglob("*")
        if path.is_file()
    } == set(contents)


def test_a_file_in_the_place_of_the_directory_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep checkpoints in .*/file/checkpoints: Not a d"):
        Checkpointer(tmp_path / "file" / "checkpoints", save_every=1, keep=1)
    with pytest.raises(UserError, match="is a file, and a checkpoint is a folder"):
        read_config(tmp_path / "file")


def test_config_json_is_written_for_people(tmp_path):
    write_config(tmp_path / "run", {"name": "old"})
    write_config(tmp_path / "run", CONFIG)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == CONFIG
    assert names(tmp_path / "run") == {"config.json"}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*config.json: "):
        write_config(tmp_path / "file", CONFIG)


# Every kernel has 32 kB that do not compress.
LARGE = {"width": 1024, "depth": 4}


@pytest.mark.filterwarnings("error")
def test_a_save_that_does_not_fit_is_told_once_and_leaves_the_last_checkpoint(tmp_path, capfd):
    save_all(tmp_path, [1])
    large = make_state(**LARGE)
    sentence = (
        r"cannot write the checkpoint of step 2 to .*: File too large; "
        r"the last complete checkpoint \(step 1\) is as it was"
    )
    with (
        full_disk(),
        pytest.raises(UserError, match=sentence),
        Checkpointer(tmp_path, save_every=1, keep=1) as checkpointer,
    ):
        checkpointer.save(2, large, position={}, config={})
        checkpointer.wait()
    assert find_checkpoint(tmp_path).name == "1"
    assert_same_bits(restore_params(tmp_path), state_at(1).params)
    assert "Traceback" not in capfd.readouterr().err


def test_a_failed_save_is_told_at_the_next_step_and_not_at_the_next_save(tmp_path):
    large = make_state(**LARGE)
    checkpointer = Checkpointer(tmp_path, save_every=100, keep=1)
    with full_disk():
        checkpointer.save(100, large, position={}, config={})
        with pytest.raises(UserError, match=r"step 100 .*\(there is none\)"):
            for step in range(101, 200):
                time.sleep(0.1)
                checkpointer.due(step)
    with pytest.raises(UserError, match="step 100"):
        checkpointer.close()


def test_saving_says_nothing_of_its_own(tmp_path, capfd, caplog):
    caplog.set_level("DEBUG")
    save_all(tmp_path, [1, 2, 3], keep=1)
    restore_params(tmp_path)
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")
    assert not [record for record in caplog.records if "orbax" in record.pathname]


FAILING = """
    import resource, sys
    import jax
    jax.config.update("jax_platforms", "cpu")
    from tests.training.states import make_state
    from xtra_jax.errors import UserError
    from xtra_jax.training.checkpoint import Checkpointer

    state = make_state(width=1024, depth=60)
    try:
        with Checkpointer(sys.argv[1], save_every=1, keep=1) as checkpointer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
            checkpointer.save(1, state, position={}, config={})
    except UserError as error:
        print(error)
"""


def test_a_failed_save_of_many_arrays_says_its_one_sentence_and_nothing_else(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FAILING), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert finished.stderr == ""
    assert re.fullmatch("cannot write the checkpoint of step 1 to .*\n", finished.stdout)


SAVER_SIZES = {"width": 64, "depth": 8}

SAVER = """
    import sys
    import jax
    jax.config.update("jax_platforms", "cpu")
    from tests.training.states import abstract, advance, make_state, one_device
    from tests.training.test_checkpoint import SAVER_SIZES
    from xtra_jax.training.checkpoint import Checkpointer

    with Checkpointer(sys.argv[1], save_every=1, keep=2) as checkpointer:
        state = make_state(**SAVER_SIZES)
        if checkpointer.latest_step() is not None:
            state, _, _ = checkpointer.restore(abstract(state, one_device()))
        while True:
            state = advance(state)
            step = int(state.step)
            checkpointer.save(step, state, position={"step": step}, config={})
"""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_leaves_complete_and_exact_checkpoints(tmp_path):
    random = np.random.default_rng(0)
    save_all(tmp_path, [1], **SAVER_SIZES)
    expected, latest = state_at(1, **SAVER_SIZES), 1
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SAVER), str(tmp_path)])
        while int(find_checkpoint(tmp_path).name) == latest:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(random.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = int(find_checkpoint(tmp_path).name)
        for _ in range(latest, found):
            expected = advance(expected)
        latest = found
        assert_same_bits(restore_params(tmp_path), expected.params)

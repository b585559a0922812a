"""The folder of a probe: complete or not, and of one command at a time."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from etils import epath

from tests.probing import tiny
from tests.probing.studies import write_study
from tests.saved import save_checkpoint
from xtra_jax.config import with_encoder_input
from xtra_jax.data.prepare.files import locked
from xtra_jax.errors import UserError
from xtra_jax.probing.job import Encoder, probe_encoder
from xtra_jax.probing.saves import alone_in, clean_up, find_complete


@pytest.fixture(scope="module")
def encoder():
    """One that is never applied."""
    return Encoder({"scale": np.ones(2)}, tiny.encoder_config(), "tiny", "0123" * 16)


@pytest.fixture(scope="module")
def config(encoder):
    return with_encoder_input(tiny.digits("nowhere", steps=2), encoder.pretraining)


@pytest.fixture
def folder(config, encoder, tmp_path):
    """Of a probe that ended between its results and the removal of its checkpoints."""
    folder = epath.Path(tmp_path / "probe")
    save_checkpoint(folder, config, encoder.params)
    write_study(folder, config, encoder.sha256)
    return folder


def left(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_probe_killed_while_its_checkpoints_were_removed_is_complete(folder, config, encoder):
    shutil.rmtree(folder / "checkpoints" / "1" / "config")
    assert find_complete(folder, config, encoder.sha256) is not None
    assert probe_encoder(config, encoder, folder).results is not None


def test_what_was_left_of_a_complete_probe_is_removed_with_its_lock(folder, config, encoder):
    (folder / "lock").write_text("")
    shutil.copytree(folder / "checkpoints", folder / "checkpoints-removed")
    assert probe_encoder(config, encoder, folder).results is not None
    assert left(folder) == {"heads", "results.json"}


def test_checkpoints_are_gone_in_one_stroke(folder, monkeypatch):
    """Killed in the removal, the folder has none, and the next command removes the rest."""

    def killed(path, missing_ok=False):
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(folder), "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            clean_up(folder)
    assert not (folder / "checkpoints").exists()
    clean_up(folder)
    assert left(folder) == {"heads", "results.json"}


def test_checkpoints_of_a_pretraining_are_never_removed(encoder, tmp_path):
    folder = epath.Path(tmp_path)
    save_checkpoint(folder, encoder.pretraining, encoder.params)
    clean_up(folder)
    assert (folder / "checkpoints" / "1" / "config").exists()


def test_a_removal_that_is_refused_is_one_sentence(folder, monkeypatch):
    def refused(path, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(folder), "rmtree", refused)
    with pytest.raises(UserError, match="cannot remove the checkpoints of .*: Permission denied"):
        clean_up(folder)


def test_a_second_command_in_the_folder_of_a_probe_is_one_sentence(tmp_path):
    folder = epath.Path(tmp_path / "probe")
    with (
        alone_in(folder),
        pytest.raises(UserError, match=f"another command is already probing in {folder}: let it"),
        alone_in(folder),
    ):
        pass
    with alone_in(folder):  # when it has ended, however
        pass


def test_a_probe_that_another_command_trains_is_left_to_it(runs, encoder, tmp_path):
    config = tiny.digits(runs.overrides()["data.data_dir"], steps=2)
    with (
        locked(epath.Path(tmp_path / "lock"), ""),
        pytest.raises(UserError, match="another command is already probing in"),
    ):
        probe_encoder(config, encoder, epath.Path(tmp_path))
    assert left(epath.Path(tmp_path)) == {"lock"}


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"), alone_in(epath.Path(tmp_path / "file")):
        pass

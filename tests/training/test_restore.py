"""Reading checkpoints: found by any path, refused in a sentence when they don't fit."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.states import (
    CONFIG,
    abstract,
    assert_same_bits,
    make_state,
    names,
    one_device,
    save_all,
    state_at,
)
from xtra_jax.errors import UserError
from xtra_jax.training.checkpoint import Checkpointer, checkpoint_directory
from xtra_jax.training.restore import find_checkpoint, read_config, restore_params


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            {"width": 16},
            r"/1 is a checkpoint of another model: params/layers/0/kernel is float32 \[8, 2, 4\] "
            r"there and float32 \[16, 2, 4\] here; use the config",
        ),
        (
            {"depth": 3},
            r"params/layers/2/bias is absent there and float32 \[2, 4\] here",
        ),
        (
            {"depth": 1},
            r"params/layers/1/bias is float32 \[2, 4\] there and absent here",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_its_first_difference(
    tmp_path, other, sentence
):
    save_all(tmp_path, [1])
    with (
        Checkpointer(tmp_path, save_every=1, keep=1) as checkpointer,
        pytest.raises(UserError, match=sentence),
    ):
        checkpointer.restore(abstract(make_state(**other), one_device()))
    with pytest.raises(UserError, match=sentence):
        restore_params(tmp_path, abstract(make_state(**other).params))
    assert names(tmp_path) == {"1"}


def test_another_dtype_is_another_model_and_not_a_silent_cast(tmp_path):
    save_all(tmp_path, [1])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), make_state().params
    )
    with pytest.raises(UserError, match="is float32 .* there and bfloat16 .* here"):
        restore_params(tmp_path, wanted)


def test_every_path_that_leads_to_a_checkpoint_is_understood(tmp_path, monkeypatch):
    directory = checkpoint_directory(tmp_path / "run")
    save_all(directory, [1, 2])
    assert find_checkpoint(tmp_path / "run") == directory / "2"
    assert find_checkpoint(directory) == directory / "2"
    assert find_checkpoint(directory / "1") == directory / "1"
    assert find_checkpoint(str(tmp_path / "run"), step=1) == directory / "1"
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("run") == directory / "2"
    assert read_config("run") == CONFIG


def test_a_missing_step_is_told_with_those_there_are(tmp_path):
    save_all(tmp_path, [1, 2])
    for path in (tmp_path, tmp_path / "2"):
        with pytest.raises(UserError, match=r"holds no checkpoint of step 5, only of .*2$"):
            find_checkpoint(path, step=5)


def test_params_load_alone_and_without_knowing_the_model(tmp_path):
    save_all(tmp_path, [2])
    expected = state_at(2).params
    params = restore_params(tmp_path)
    assert {type(leaf) for leaf in jax.tree.leaves(params)} == {np.ndarray}
    assert_same_bits(params, expected)
    placed = restore_params(tmp_path, abstract(expected, one_device(3)))
    assert_same_bits(placed, expected)
    assert all(leaf.sharding == one_device(3) for leaf in jax.tree.leaves(placed))


def test_a_checkpoint_of_a_newer_format_asks_for_a_newer_version(tmp_path):
    save_all(tmp_path, [1])
    file = tmp_path / "1" / "metadata" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 2}))
    with pytest.raises(UserError, match="has checkpoint format 2, and this xtra_jax reads up to 1"):
        read_config(tmp_path)


@pytest.mark.parametrize("written", ['{"format": "other", "version": 1}', "{}", "not json", None])
def test_a_checkpoint_that_something_else_wrote_is_refused(tmp_path, written):
    save_all(tmp_path, [1])
    file = tmp_path / "1" / "metadata" / "metadata"
    if written is None:
        shutil.rmtree(file.parent)
    else:
        file.write_text(written)
    with pytest.raises(UserError, match="/1 is not a checkpoint that xtra_jax wrote"):
        restore_params(tmp_path)

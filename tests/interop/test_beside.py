"""What a file holds beside its weights is named, in few words."""

import numpy as np
import pytest

from tests.interop import torch_files
from xtra_jax.interop.containers import read_tensors

MATRIX = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)


@pytest.mark.parametrize("key", ["state_dict", None])
def test_whatever_holds_tensors_and_is_not_read_is_named(tmp_path, key):
    state = {
        "w": MATRIX,
        "optimizer": {"m": MATRIX * 2},
        "ema": [{"w": MATRIX * 3}, {"w": MATRIX * 4}],
        5: MATRIX * 5,
        "note": "no tensors",
    }
    content = {key: state, "epoch": 7} if key else state
    read = read_tensors(torch_files.save(tmp_path / "x.pt", content))
    assert list(read) == ["w"]
    inside = ("optimizer (1 tensor)", "ema (2 tensors)")
    if key:
        inside = tuple(f"state_dict.{name}" for name in inside)
        assert read.elsewhere == ("epoch", *inside, "state_dict[5] (1 tensor)")
    else:
        assert read.elsewhere == (*inside, "[5] (1 tensor)", "note")


def test_what_two_keys_share_is_named_for_both(tmp_path):
    shared = [MATRIX]
    content = {"state_dict": {"w": MATRIX, "a": shared, "b": shared}}
    read = read_tensors(torch_files.save(tmp_path / "x.pt", content))
    assert read.elsewhere == ("state_dict.a (1 tensor)", "state_dict.b")


def test_few_names_are_told_of_many_and_none_at_full_length(tmp_path):
    content = {"state_dict": {"w": MATRIX}} | {f"{i:03}{chr(10)}{'x' * 500}": i for i in range(100)}
    told = read_tensors(torch_files.save(tmp_path / "x.pt", content)).elsewhere
    assert len(told) == 25 and told[-1] == "and 76 more"
    assert told[0] == "000?" + "x" * 76

"""The published names and layouts: there and back is exact, and nothing goes missing unsaid."""

import jax
import numpy as np
import pytest

from tests import goldens
from xtra_jax.errors import UserError
from xtra_jax.interop.published import from_published, to_published

SPEC = goldens.tiny_spec(num_tokens=2)


@pytest.fixture
def tensors():
    return goldens.subset(goldens.load("C_tokens2_hot"), "param/")


def test_published_tensors_survive_the_way_to_ours_and_back(tensors):
    back = to_published(from_published(tensors, SPEC), SPEC)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_dtypes_are_kept(tensors):
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    ours = from_published(half, SPEC)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype(np.float16)}


def test_a_missing_tensor_is_named(tensors):
    del tensors["aim_proj.1.mlp.2.bias"]
    with pytest.raises(UserError, match=r"lacks aim_proj\.1\.mlp\.2\.bias"):
        from_published(tensors, SPEC)


def test_a_left_over_tensor_is_named(tensors):
    tensors["enc.cls_token"] = np.zeros((1, 1, 48), np.float32)
    with pytest.raises(UserError, match=r"unknown enc\.cls_token"):
        from_published(tensors, SPEC)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tensors):
    tensors["enc.blocks.1.attn.qkv.weight"] = np.zeros((96, 48), np.float32)
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.qkv\.weight .*\[96, 48\].*\[144, 48\]"):
        from_published(tensors, SPEC)

"""The published names and layouts: there and back is exact."""

import jax
import numpy as np
import pytest

from tests import goldens
from xtra_jax.interop.published import to_published

SPEC = goldens.tiny_spec(num_tokens=2)


@pytest.fixture
def tensors():
    return goldens.subset(goldens.load("C_tokens2_hot"), "param/")


def test_published_tensors_survive_the_way_to_ours_and_back(tensors):
    back = to_published(goldens.from_published(tensors, SPEC), SPEC)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_dtypes_are_kept(tensors):
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    ours = goldens.from_published(half, SPEC)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype(np.float16)}

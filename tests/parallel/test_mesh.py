"""Meshes that fit their devices, and the shardings of parameters on them."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests import goldens
from xtra_jax.errors import UserError
from xtra_jax.model.xtra import abstract_params
from xtra_jax.parallel.mesh import (
    batch_shards,
    check_batch,
    check_platform,
    make_mesh,
    mesh_sizes,
    put_batch,
)
from xtra_jax.parallel.sharding import left_whole, shardings


def test_one_axis_can_be_inferred():
    assert mesh_sizes({"data": -1, "fsdp": 2}, 8) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert mesh_sizes({}, 1) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"data": 3}, "mesh.data=3, mesh.fsdp=1, mesh.tensor=1 asks for 3 devices.*there are 8"),
        ({"data": -1, "fsdp": 3}, "asks for a multiple of 3 devices, and there are 8"),
        ({"data": -1, "fsdp": -1}, "at most one axis"),
        ({"data": 0}, "every axis is at least 1"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_one_sentence(sizes, sentence):
    with pytest.raises(UserError, match=sentence):
        mesh_sizes(sizes, 8)


def test_a_batch_that_the_mesh_does_not_divide_names_the_nearest_that_it_does():
    mesh = make_mesh({"data": 4, "fsdp": 2})
    check_batch(64, mesh, accumulate=8)
    with pytest.raises(UserError, match="the nearest sizes that do, are 16 and 24"):
        check_batch(20, mesh)


def test_a_batch_is_split_over_data_and_fsdp_in_order():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    batch = put_batch({"image": np.arange(8), "weight": np.ones(8)}, mesh)
    assert batch["image"].sharding.spec == PartitionSpec(("data", "fsdp"))
    np.testing.assert_array_equal(batch["image"], np.arange(8))
    assert {shard.data.shape for shard in batch["image"].addressable_shards} == {(2,)}


def test_every_parameter_is_named_by_a_rule(caplog):
    with caplog.at_level("INFO"):
        shardings(abstract_params(goldens.tiny_spec()), make_mesh({"data": -1}))
    assert not caplog.records
    with caplog.at_level("INFO"):
        stray = {"gamma": jax.ShapeDtypeStruct((3,), "float32")}
        shardings(stray, make_mesh({"data": -1}))
    assert "no sharding rule for gamma [3]" in caplog.text


def test_heads_and_hidden_units_are_split_over_tensor_and_widths_over_fsdp():
    mesh = make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    params = {
        "attention": {
            "qkv": {
                "kernel": jax.ShapeDtypeStruct((48, 3, 4, 12), "float32"),
                "bias": jax.ShapeDtypeStruct((3, 4, 12), "float32"),
            },
            "out": {"kernel": jax.ShapeDtypeStruct((4, 12, 48), "float32")},
        },
        "fc1": {"kernel": jax.ShapeDtypeStruct((48, 64), "float32")},
        "odd": {"position": jax.ShapeDtypeStruct((64, 43), "float32")},
    }
    placed = jax.tree.map(lambda s: s.spec, shardings(params, mesh))
    attention = placed["attention"]
    assert attention["qkv"]["kernel"] == PartitionSpec("fsdp", None, "tensor", None)
    assert attention["qkv"]["bias"] == PartitionSpec(None, "tensor", None)
    assert attention["out"]["kernel"] == PartitionSpec("tensor", None, "fsdp")
    assert placed["fc1"]["kernel"] == PartitionSpec("fsdp", "tensor")
    # 43 is not divisible by 4: what can't be split is replicated, and told.
    assert placed["odd"]["position"] == PartitionSpec(None, None)
    assert left_whole(params, mesh) == {"fsdp": ["odd/position"]}


def test_a_platform_that_was_asked_for_and_is_not_there_is_one_sentence():
    for asked, found in [("", "cpu"), ("cpu", "cpu"), ("cuda", "gpu"), ("tpu", "tpu")]:
        check_platform(asked, found)
    with pytest.raises(UserError, match="asks for cuda, and jax found cpu devices only"):
        check_platform("cuda", "cpu")


def test_one_process_holds_every_shard_of_a_batch():
    assert batch_shards(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})) == (0, 1, 2, 3)
    assert batch_shards(make_mesh({"data": 1, "tensor": 8})) == (0,)

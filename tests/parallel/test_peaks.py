"""What is known of the device that there is: of that very one, or nothing."""

import types

import pytest

from xtra_jax.parallel.peaks import accelerator_of, peak_flops
from xtra_jax.parallel.topologies import SHAPES, find_topology, gpu_description


@pytest.mark.parametrize(
    ("kind", "tera", "gigabytes_per_second"),
    [
        ("NVIDIA A100-SXM4-40GB", 312, 1555),
        ("NVIDIA A100-SXM4-80GB", 312, 2039),
        ("NVIDIA H100 80GB HBM3", 989, 3352),
        ("NVIDIA H100 PCIe", 756, 2000),
        ("NVIDIA H100 NVL", 835, 3900),
        ("NVIDIA H200", 989, 4800),
        ("NVIDIA H200 NVL", 835, 4800),
        ("TPU v5 lite", 197, 819),
        ("TPU v5", 459, 2765),
    ],
)
def test_names_that_begin_alike_are_told_apart(kind, tera, gigabytes_per_second):
    assert peak_flops(types.SimpleNamespace(device_kind=kind)) == tera * 1e12
    assert accelerator_of(kind).bandwidth == gigabytes_per_second * 1e9


@pytest.mark.parametrize(
    "kind", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H20", "TPU v4 lite", "cpu", ""]
)
def test_of_others_nothing_is_known(kind):
    assert peak_flops(types.SimpleNamespace(device_kind=kind)) is None


def test_of_this_process_s_cpu_neither():
    assert peak_flops() is None


@pytest.mark.parametrize("family", SHAPES)
def test_a_topology_s_chip_has_the_name_that_its_devices_have(family):
    topology = find_topology(f"{family}:{SHAPES[family][0]}")
    assert topology.accelerator is accelerator_of(topology.kind)
    if not topology.is_tpu:
        assert f'device_description_str: "{topology.kind}"' in gpu_description(family)

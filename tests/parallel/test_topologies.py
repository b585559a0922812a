"""Topologies by name: what there is, what there isn't, and what must be installed for it."""

from __future__ import annotations

import importlib.util

import pytest

from xtra_jax.errors import UserError
from xtra_jax.parallel import topologies
from xtra_jax.parallel.topologies import SHAPES, devices_of, find_topology, gpu_description


@pytest.mark.parametrize(
    ("name", "chips"),
    [("v5e:8x8", 64), ("v5p:2x2x4", 16), ("v4:4x4x4", 64), ("V6e:1x1", 1), ("h100:8", 8)],
)
def test_a_name_says_how_many_chips(name, chips):
    assert find_topology(name).num_chips == chips


def test_one_gpu_needs_no_number():
    assert find_topology("h100") == find_topology("h100:1")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("v5p-128", "v5p"), ("h100:3", "h100"), ("v5e:4x5", "v5e"), ("v6e", "v6e"), ("help", None)],
)
def test_a_made_up_name_lists_the_valid_ones_nearest_first(name, nearest):
    with pytest.raises(UserError) as error:
        find_topology(name)
    message = str(error.value)
    assert "\n" not in message
    for family, shapes in SHAPES.items():
        assert f"{family}:{', '.join(shapes)}" in message
    if nearest:
        assert f"as in {nearest}:" in message


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x2", "tpu"), ("h100:8", "cuda")])
def test_a_compiler_that_is_not_installed_is_named_with_its_extra(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=rf"pip install 'xtra_jax\[{extra}\]'"):
        devices_of(find_topology(name))


def test_a_compiler_that_fails_is_one_sentence(monkeypatch):
    def fail(topology):
        raise RuntimeError("the plugin is of another version\nand so on")

    monkeypatch.setattr(topologies, "_installed", lambda module: True)
    monkeypatch.setattr(topologies, "_tpu_slice", fail)
    with pytest.raises(UserError, match="the plugin is of another version") as error:
        devices_of(find_topology("v5e:2x2"))
    assert "and so on" not in str(error.value)


@pytest.mark.parametrize("family", topologies._GPUS)
def test_the_memory_of_a_described_gpu_is_that_of_the_table(family):
    chip = find_topology(f"{family}:1").accelerator
    size = int(gpu_description(family).split("device_memory_size: ")[1].split()[0])
    assert chip.memory == int(0.92 * size)


@pytest.mark.parametrize("name", ["v5e:1x1", "v5e:4x4", "v5p:2x2x4", "v4:2x2x2", "v6e:2x4"])
def test_a_slice_has_a_device_for_every_chip(name):
    pytest.importorskip("libtpu")
    topology = find_topology(name)
    assert len(devices_of(topology)) == topology.num_chips

"""model.attention=auto: by the devices that there are, and said; by name, refused where not."""

import types

import jax
import numpy as np
import pytest

from xtra_jax.config import load, model_spec
from xtra_jax.errors import UserError
from xtra_jax.training import attention_choice
from xtra_jax.training.attention_choice import (
    attention_by_tower,
    attention_on,
    described_attention,
    encoder_attention,
)

H14 = "configs/pretrain/xtra_h14_in21k.py"


@pytest.fixture(autouse=True)
def new_enough(monkeypatch):
    monkeypatch.setattr(attention_choice, "_NO_MASK_GRADIENT", (0, 0, 0))


def mesh(kind, **facts):
    device = types.SimpleNamespace(device_kind=kind, **facts)
    return types.SimpleNamespace(devices=np.array([[[device]]], object))


H100 = mesh("NVIDIA H100 80GB HBM3", platform="gpu", compute_capability="9.0")
A100 = mesh("NVIDIA A100-SXM4-80GB", platform="gpu", compute_capability="8.0")
OTHERS = [
    mesh("Tesla V100-SXM2-16GB", platform="gpu", compute_capability="7.0"),
    mesh("AMD Instinct MI250X", platform="gpu", compute_capability="gfx90a"),
    mesh("TPU v5", platform="tpu"),
    mesh("cpu", platform="cpu"),
]


def test_auto_is_cudnn_on_gpus_that_have_it_halves_on_cpus_and_xla_everywhere_else():
    assert attention_on("auto", H100) == attention_on("auto", A100) == "cudnn"
    assert [attention_on("auto", other) for other in OTHERS] == ["xla", "xla", "xla", "halves"]
    for choice in ("xla", "halves"):
        assert {attention_on(choice, other) for other in (H100, *OTHERS)} == {choice}


def test_auto_is_xla_where_jax_would_also_compute_the_gradient_of_the_mask(monkeypatch):
    monkeypatch.setattr(attention_choice, "_NO_MASK_GRADIENT", (99, 0, 0))
    assert attention_on("auto", H100) == "xla"
    assert attention_on("cudnn", H100) == "cudnn"


@pytest.mark.parametrize("other", OTHERS, ids=lambda mesh: mesh.devices.flat[0].device_kind)
def test_cudnn_by_name_is_refused_where_it_does_not_run(other):
    kind = other.devices.flat[0].device_kind
    with pytest.raises(UserError, match=f"these devices are {kind}: use auto or xla"):
        attention_on("cudnn", other)


@pytest.mark.parametrize("choice", ["auto", "cudnn"])
def test_the_published_recipe_has_cudnn_for_its_encoder_and_xla_for_its_predictor(choice):
    config = load(H14, {"model.attention": choice})
    towers = attention_by_tower(config, model_spec(config), H100)
    assert towers == {"encoder": "cudnn", "predictor": "xla"}
    assert (
        described_attention(towers) == "attention by cuDNN in the encoder, by XLA in the predictor"
    )
    config.predictor.dtype = "bfloat16"
    towers = attention_by_tower(config, model_spec(config), H100)
    assert described_attention(towers) == "attention by cuDNN"


def test_cudnn_by_name_is_refused_for_an_encoder_that_it_does_not_take():
    narrow = {"model.variant": "custom", "model.width": 40, "model.depth": 1, "model.num_heads": 2}
    config = load(H14, narrow)
    spec = model_spec(config)
    assert set(attention_by_tower(config, spec, H100).values()) == {"xla"}
    config.model.attention = "cudnn"
    with pytest.raises(UserError, match="and this one has bfloat16, 20 and 240: use auto or xla"):
        attention_by_tower(config, spec, H100)


def test_a_frozen_encoder_s_follows_its_dtype():
    for dtype, how in (("bfloat16", "cudnn"), ("float32", "xla")):
        spec = model_spec(load(H14, {"model.dtype": dtype}))
        assert encoder_attention("auto", spec, H100, 256) == how


def test_this_process_computes_the_demo_by_xla_and_what_has_more_tokens_in_halves():
    here = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    for name, said in (("configs/demo.py", "by XLA"), (H14, "by XLA in halves")):
        config = load(name)
        towers = attention_by_tower(config, model_spec(config), here)
        assert described_attention(towers) == f"attention {said}"

"""The encoder in timm's own VisionTransformer, with the mask, gives our features."""

import json

import numpy as np
import pytest

from tests.export.exported import code_in, exported, golden_run
from xtra_jax.interop.timm_vit import timm_config, timm_mask
from xtra_jax.model.grid import Grid
from xtra_jax.model.masks import raster_block_causal_mask
from xtra_jax.model.variants import VARIANTS, EncoderSpec, HeadSpec, PredictorSpec, XTRASpec
from xtra_jax.probing.features import FeatureSpec, load_encoder

RGB = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


def spec_of(variant, grid):
    sizes = VARIANTS[variant]
    encoder = EncoderSpec(grid, sizes.width, sizes.depth, sizes.num_heads, sizes.mlp_ratio)
    return XTRASpec(encoder, PredictorSpec(8, 8, 1, 1), HeadSpec(8))


@pytest.mark.parametrize("variant", VARIANTS)
def test_timm_rounds_down_to_our_mlp(variant):
    spec = spec_of(variant, Grid(224, 14, 4))
    args = timm_config(spec, **RGB, resize=256)["model_args"]
    assert int(args["embed_dim"] * args["mlp_ratio"]) == spec.encoder.mlp_hidden


@pytest.mark.parametrize(("size", "resize"), [(256, 300), (224, 256), (48, 48), (96, 110)])
def test_timm_rounds_down_to_our_resize(size, resize):
    described = timm_config(spec_of("tiny", Grid(size, 8, 2)), **RGB, resize=resize)
    assert int(size / described["pretrained_cfg"]["crop_pct"]) == resize


def test_the_mask_is_ours_in_raster_order_and_once_more_as_what_is_added():
    grid = Grid(48, 8, 2)
    mask = timm_mask(grid)
    np.testing.assert_array_equal(mask["attention_mask"], raster_block_causal_mask(grid))
    np.testing.assert_array_equal(
        mask["attention_bias"], np.where(raster_block_causal_mask(grid), 0, -np.inf)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return golden_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def folder(run):
    return exported(run, run.parent / "timm", "timm")


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)


@pytest.fixture
def found(folder, images, monkeypatch):
    """What the code of the model card computes, of our images."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    monkeypatch.chdir(folder)
    (code,) = code_in(folder)
    as_timm = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    monkeypatch.setattr(torch, "rand", lambda *shape: as_timm.reshape(shape))
    names = {}
    exec(code, names)
    return names


def test_the_code_of_the_model_card_gives_our_features(run, images, found):
    encode = load_encoder(run)
    for name, features in (
        ("tokens", FeatureSpec(norm=True, raster=True)),
        ("pooled", FeatureSpec(norm=True, pool=True)),
        ("last", FeatureSpec(raster=True)),
        ("linear", FeatureSpec(pool=True)),
    ):
        np.testing.assert_allclose(
            found[name], encode(images, features), rtol=0, atol=5e-5, err_msg=name
        )


def test_without_the_mask_timm_gives_other_features(found):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        unmasked = found["model"].forward_features(found["x"])
    assert (unmasked - found["tokens"]).abs().max() > 0.1


@pytest.mark.parametrize("fused", [True, False])
def test_the_bias_does_what_the_mask_does_in_either_attention_of_timm(folder, found, fused):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    bias = load_file(folder / "mask.safetensors")["attention_bias"]
    for block in found["model"].blocks:
        block.attn.fused_attn = fused
    with torch.no_grad():
        for mask in (bias, found["mask"]):
            tokens = found["model"].forward_features(found["x"], attn_mask=mask)
            np.testing.assert_allclose(tokens, found["tokens"], rtol=0, atol=5e-5)


def test_constructed_by_hand_it_loads_strictly(folder, found):
    timm = pytest.importorskip("timm")
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    described = json.loads((folder / "config.json").read_text())
    model = timm.models.VisionTransformer(num_classes=0, **described["model_args"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    with torch.no_grad():
        pooled = model.eval()(found["x"], attn_mask=found["mask"])
    np.testing.assert_allclose(pooled, found["pooled"], rtol=0, atol=1e-6)


def test_timm_reads_how_images_come_in(folder, found):
    timm = pytest.importorskip("timm")
    data = timm.data.resolve_model_data_config(found["model"])
    assert data["input_size"] == (3, 64, 64) and data["interpolation"] == "bicubic"
    assert tuple(data["mean"]) == (0.5, 0.4, 0.3) and tuple(data["std"]) == (0.2, 0.3, 0.4)
    assert int(64 / data["crop_pct"]) == 80


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_sixteen_bits_the_model_card_still_works(run, tmp_path, monkeypatch, dtype):
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    folder = exported(run, tmp_path / dtype, "timm", dtype=dtype)
    monkeypatch.chdir(folder)
    names = {}
    exec(code_in(folder)[0], names)
    assert names["pooled"].dtype == getattr(torch, dtype)
    assert torch.isfinite(names["pooled"]).all()

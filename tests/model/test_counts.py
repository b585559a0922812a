"""Parameters, names, FLOPs and stochastic depth of the published sizes, without their weights."""

import json

import jax
import numpy as np
import pytest

from tests import goldens
from xtra_jax.errors import UserError
from xtra_jax.interop.published import published_shapes
from xtra_jax.model.flops import forward_flops, train_flops
from xtra_jax.model.grid import Grid
from xtra_jax.model.stochastic_depth import drop_path_rates
from xtra_jax.model.variants import (
    VARIANTS,
    EncoderSpec,
    HeadSpec,
    PredictorSpec,
    XTRASpec,
    variant,
)
from xtra_jax.model.xtra import abstract_params
from xtra_jax.training.optimizer import decays

COUNTS = json.loads((goldens.FOLDER / "H_counts.json").read_text())


def published_spec(image_size, patch, name, predictor, head_hidden) -> XTRASpec:
    width, depth, heads, ratio = variant(name)
    encoder = EncoderSpec(Grid(image_size, patch, 4), width, depth, heads, ratio, drop_path=0.2)
    return XTRASpec(encoder, predictor, HeadSpec(head_hidden))


SPECS = {
    "B16_256": published_spec(256, 16, "base", PredictorSpec(4096, 768, 8, 6), 6144),
    "H14_224": published_spec(224, 14, "huge", PredictorSpec(5120, 640, 8, 8), 9408),
}


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", SPECS)
def test_parameter_counts_are_the_published_ones_part_by_part(name):
    expected = COUNTS[name]["params"]
    params = abstract_params(SPECS[name])
    ours = {
        "enc": count(params["encoder"]),
        "proj": count(params["projection"]),
        "predictor": count(params["predictor"]),
        "aim_proj": count(params["heads"]),
        "total": count(params),
        "enc_pos_embed": count(params["encoder"]["position"]),
        "predictor_pos_embed": count(params["predictor"]["position"]),
    }
    decayed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: count(leaf) if decays(path, leaf) else 0, params
    )
    ours["decayed"] = sum(jax.tree.leaves(decayed))
    ours["undecayed"] = ours["total"] - ours["decayed"]
    assert ours == expected


@pytest.mark.parametrize("name", SPECS)
def test_published_names_and_shapes_are_those_of_the_published_files(name):
    keys = json.loads((goldens.FOLDER / f"H_keys_{name}.json").read_text())
    ours = {key: list(shape) for key, shape in published_shapes(SPECS[name]).items()}
    assert ours == keys


@pytest.mark.parametrize("name", SPECS)
def test_flops_are_those_of_the_published_model(name):
    expected = COUNTS[name]["fwd_flops_per_image"]
    ours = forward_flops(SPECS[name])
    parts = {
        "patch_embed": "patch_embed",
        "enc_linear": "encoder_linear",
        "enc_attn_dense": "encoder_attention",
        "proj": "projection",
        "predictor_linear": "predictor_linear",
        "predictor_attn_dense": "predictor_attention",
        "aim_proj": "heads",
        "total": "total",
    }
    assert {k: ours[v] for k, v in parts.items()} == {k: expected[k] for k in parts}
    dropped = train_flops(SPECS[name]) / 3
    blocks = SPECS[name].grid.num_blocks
    linear = 1 - 1 / blocks
    attention = linear**2
    of_attention = ours["encoder_attention"] + ours["predictor_attention"]
    rest = ours["total"] - of_attention
    np.testing.assert_allclose(dropped, rest * linear + of_attention * attention, rtol=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_stochastic_depth_rates_are_the_published_ones(name):
    spec = SPECS[name].encoder
    np.testing.assert_allclose(
        drop_path_rates(spec.depth, spec.drop_path), COUNTS[name]["drop_path"], rtol=1e-5
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_builds(name):
    width, depth, heads, ratio = variant(name)
    encoder = EncoderSpec(Grid(224, 14, 4), width, depth, heads, ratio)
    params = abstract_params(XTRASpec(encoder, PredictorSpec(64, 32, 1, 2), HeadSpec(8)))
    assert len(params["encoder"]["layers"]) == depth
    hidden = params["encoder"]["layers"]["00"]["mlp"]["fc1"]["kernel"].shape
    assert hidden == (width, 6144 if name == "giant" else 4 * width)


def test_an_unknown_variant_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'small'"):
        variant("smal")


def test_fewer_blocks_than_the_heads_need_is_refused():
    encoder = EncoderSpec(Grid(32, 8, 2), 12, 1, 3)
    with pytest.raises(UserError, match="num_tokens=4 needs at least 5 blocks"):
        XTRASpec(encoder, PredictorSpec(8, 8, 1, 2), HeadSpec(8, num_tokens=4))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match=r"model\.num_heads=5 does not divide model\.width=12"):
        EncoderSpec(Grid(32, 8, 2), 12, 1, 5)

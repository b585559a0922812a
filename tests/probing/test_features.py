"""Features equal the published ones, with every option of layers, pooling and norm."""

import itertools
import re

import jax
import numpy as np
import pytest

from tests import goldens
from xtra_jax.errors import UserError
from xtra_jax.model.encoder import Encoder
from xtra_jax.model.masks import block_raster_order
from xtra_jax.model.xtra import bind
from xtra_jax.probing.features import LINEAR, FeatureSpec, encoder_features, features_by_spec

GOLDEN = "F_probe_features_uses_B_hot_weights"
HEADS = "F_probe_heads_uses_B_hot_weights"


@pytest.fixture(scope="module")
def encoder():
    spec = goldens.tiny_spec()
    return bind(spec, goldens.params_of("B_tiny_block_hot", spec)).encoder


@pytest.mark.parametrize("name", [k for k in goldens.load(GOLDEN) if k.startswith("features/")])
def test_features_equal_the_published_ones(encoder, name):
    golden = goldens.load(GOLDEN)
    options = re.fullmatch(r"features/n(\d)_layeravg(\d)_patchavg(\d)_norm(\d)", name)
    last, average, pool, norm = map(int, options.groups())
    features = FeatureSpec(last, bool(average), bool(pool), bool(norm))
    grid = encoder.spec.grid
    patches = goldens.patches_of(golden, grid, "images_eval")
    ours = jax.jit(lambda x: encoder_features(encoder, x, features))(patches)
    if not pool:
        ours = ours[:, np.argsort(block_raster_order(grid))]
    np.testing.assert_allclose(ours, golden[name], rtol=0, atol=5e-5)


@pytest.mark.parametrize("images", ["train", "eval"])
def test_the_heads_features_in_training_and_evaluation_equal_the_published_ones(encoder, images):
    golden = goldens.load(HEADS)
    patches = goldens.patches_of(golden, encoder.spec.grid, f"images_{images}")
    tokens = encoder_features(encoder, patches, FeatureSpec(last_layers=2))
    in_raster = tokens[:, np.argsort(block_raster_order(encoder.spec.grid))]
    np.testing.assert_allclose(in_raster, golden[f"att/{images}_features"], rtol=0, atol=5e-5)
    pooled = encoder_features(encoder, patches, LINEAR)
    np.testing.assert_allclose(pooled, golden[f"linear_bn/{images}_features"], rtol=0, atol=5e-5)


def test_more_layers_than_the_encoder_has_is_one_sentence(encoder):
    with pytest.raises(UserError, match="the encoder has 3 layers"):
        encoder_features(encoder, np.zeros((1, 64, 192), np.float32), FeatureSpec(6))


def test_several_features_of_one_pass_are_those_of_a_pass_each(encoder, monkeypatch):
    golden = goldens.load(GOLDEN)
    patches = goldens.patches_of(golden, encoder.spec.grid, "images_eval")
    specs = (FeatureSpec(3), FeatureSpec(2, norm=True), FeatureSpec(1, pool=True, norm=True))
    alone = [jax.jit(lambda x, s=spec: encoder_features(encoder, x, s))(patches) for spec in specs]
    passes, layer_outputs = [], Encoder.layer_outputs

    def counted(self, *args, **options):
        passes.append(options["last"])
        return layer_outputs(self, *args, **options)

    monkeypatch.setattr(Encoder, "layer_outputs", counted)
    together = jax.jit(lambda x: features_by_spec(encoder, x, specs))(patches)
    assert passes == [3]
    assert sorted(together) == sorted(specs)
    for spec, expected in zip(specs, alone, strict=True):
        np.testing.assert_allclose(together[spec], expected, rtol=1e-5, atol=1e-6)


def test_every_spec_has_a_name_of_its_own():
    specs = [
        FeatureSpec(n, *options)
        for n in (1, 6)
        for options in itertools.product((False, True), repeat=4)
    ]
    assert len({spec.name for spec in specs}) == len(specs) == 32
    assert FeatureSpec(6).name == "last6"
    assert FeatureSpec(1, pool=True, norm=True).name == "last1_norm_pooled"

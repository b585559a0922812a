"""Published probes come with their encoder and classify as published, without training."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests import goldens
from tests.interop.weights import (
    ENCODER,
    FLAGS,
    SPEC,
    bare,
    changed,
    encoder_only,
    equal,
    lightning,
    prefixed,
    tensors,
)
from xtra_jax.cli import main
from xtra_jax.errors import UserError
from xtra_jax.interop.importer import import_weights
from xtra_jax.interop.probes import read_probe
from xtra_jax.probing import heads
from xtra_jax.training.checkpoint import restore_params

PROBES = goldens.load("F_probe_heads_uses_B_hot_weights")


@pytest.mark.parametrize("head", ["att", "att_q3_bias", "att_outbn", "linear_bn", "linear_nobn"])
def test_a_published_probe_comes_with_its_encoder_and_gives_the_golden_logits(head, tmp_path):
    probe = goldens.subset(PROBES, f"{head}/param/") | goldens.subset(
        PROBES, f"{head}/eval_buffers/"
    )
    named = encoder_only(tensors()) | prefixed(probe, "classifier.")
    path, out = lightning(tmp_path / "x.ckpt", named), tmp_path / "imported"
    flags = ["--probe_heads=4", "--probe_layers=2", *FLAGS[:1], "--config.model.block_size=2"]
    assert main(["import", str(path), "--out", str(out), *flags]) == 0

    found = read_probe(out)
    kind = "attentive" if head.startswith("att") else "linear"
    assert (found.kind, found.num_classes) == (kind, 10)
    assert found.last_layers == (2 if kind == "attentive" else 1)
    features = PROBES[f"{'att' if kind == 'attentive' else 'linear_bn'}/eval_features"]
    ones = jnp.ones(len(features))
    if kind == "attentive":
        logits, _ = heads.attentive_logits(
            found.params, found.stats, features, ones, num_heads=found.num_heads, train=False
        )
    else:
        logits, _ = heads.linear_logits(found.params, found.stats, features, ones, train=False)
    np.testing.assert_allclose(logits, PROBES[f"{head}/eval_logits"], atol=5e-5)
    equal(restore_params(out)["encoder"], goldens.params_of("B_tiny_block_hot", SPEC)["encoder"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classifier__k__weight": np.ones((47, 48), np.float32)},
         r"classifier\.k\.weight has shape \[47, 48\], and \[width, width\] is expected"),
        ({"classifier__linear__bias": np.ones(9, np.float32)},
         r"classifier\.linear\.bias has shape \[9\], and \[classes\] is expected"),
        ({"classifier__bn__running_var": None}, "of no probe that is known here"),
        ({"classifier__extra": np.ones(9, np.float32)}, r"classifier\.extra of shape \[9\]"),
    ],
)  # fmt: skip
def test_a_probe_that_does_not_fit_is_named(tmp_path, changes, said):
    probe = prefixed(goldens.subset(PROBES, "att/param/"), "classifier.")
    named = changed(encoder_only(tensors()) | probe, **changes)
    with pytest.raises(UserError, match=said):
        import_weights(bare(tmp_path / "x.pt", named), None, ENCODER, probe_heads=4, probe_layers=2)


def test_a_number_of_probe_heads_that_does_not_divide_the_width_is_one_sentence(tmp_path):
    probe = prefixed(goldens.subset(PROBES, "att/param/"), "classifier.")
    path = bare(tmp_path / "x.pt", encoder_only(tensors()) | probe)
    with pytest.raises(UserError, match="--probe_heads=5 does not divide"):
        import_weights(path, None, ENCODER, probe_heads=5, probe_layers=2)
    with pytest.raises(UserError, match="--probe_layers=6, and the encoder has 3 layers"):
        import_weights(path, None, ENCODER)

"""Imported probes give the published logits, from images on."""

import numpy as np
import pytest

from tests import goldens
from tests.saved import golden_config, save_golden_probe
from xtra_jax.interop.imported import write_checkpoint
from xtra_jax.interop.importer import import_weights
from xtra_jax.interop.open_checkpoint import open_checkpoint, open_probe
from xtra_jax.model.xtra import bind_encoder
from xtra_jax.probing.trained import trained_logits

GOLDEN = "F_probe_heads_uses_B_hot_weights"


@pytest.mark.parametrize("head", ["att", "att_q3_bias", "att_outbn", "linear_bn", "linear_nobn"])
def test_an_imported_probe_gives_the_published_logits(head, tmp_path):
    golden = goldens.load(GOLDEN)
    file = save_golden_probe(tmp_path / "probe.safetensors", head)
    imported = import_weights(file, golden_config(), probe_heads=4, probe_layers=2)
    workdir = write_checkpoint(imported, tmp_path / "imported")

    opened = open_checkpoint(workdir)
    encoder = bind_encoder(opened.spec, opened.params["encoder"])
    patches = goldens.patches_of(golden, opened.spec.grid, "images_eval")
    ours = trained_logits(open_probe(opened), encoder, patches)
    np.testing.assert_allclose(ours, golden[f"{head}/eval_logits"], rtol=0, atol=5e-5)

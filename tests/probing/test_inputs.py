"""A probe of features that are kept is the probe of its images."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from tests.probing import tiny
from xtra_jax.config import model_spec, with_encoder_input
from xtra_jax.data.digits import prepare_digits
from xtra_jax.interop.open_checkpoint import OpenCheckpoint
from xtra_jax.model.xtra import init_params
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.probing import inputs
from xtra_jax.probing.features import LINEAR
from xtra_jax.probing.frozen import FrozenEncoder
from xtra_jax.probing.inputs import Inputs
from xtra_jax.probing.job import encoder_of, probe_encoder
from xtra_jax.probing.selection import open_images

QUICK = {"steps": 10, "eval_every": 5, "select": "heldout"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare_digits(str(folder))
    return folder


def histories(config, folder, kept=None):
    encoder = dataclasses.replace(tiny.encoder(), kept=kept)
    return probe_encoder(config, encoder, epath.Path(folder)).results.histories


def test_heads_are_those_trained_and_evaluated_on_images(data_dir, tmp_path, monkeypatch):
    config = tiny.digits(data_dir, **QUICK, **{"cache.max_gib": 0.0})
    of_images = histories(config, tmp_path / "images")
    assert not (tmp_path / "images" / "features").exists()

    config.cache.max_gib = 1.0
    with monkeypatch.context() as patched:
        patched.setattr(inputs, "train_batches", None)
        patched.setattr(inputs, "eval_batches", None)
        of_features = histories(config, tmp_path / "results", epath.Path(tmp_path / "run"))
    # Two kinds of features of three sets: training, held out, reported.
    assert len(list((tmp_path / "run" / "features").iterdir())) == 6
    assert not (tmp_path / "results" / "features").exists()

    assert len(of_images) == len(of_features) > 2
    for ours, theirs in zip(of_features, of_images, strict=True):
        assert (ours.group, ours.setting) == (theirs.group, theirs.setting)
        for one, other in zip(
            (*ours.evaluations, ours.test), (*theirs.evaluations, theirs.test), strict=True
        ):
            assert (one.step, one.total) == (other.step, other.total)
            assert one.correct == pytest.approx(other.correct, abs=1)
            np.testing.assert_allclose(one.loss, other.loss, rtol=1e-4)
            np.testing.assert_allclose(one.train_loss, other.train_loss, rtol=1e-4)


@pytest.mark.parametrize(
    "chance", [{"data.flip": 0.5}, {"data.erasing": 0.25}, {"data.crop_scale": (0.5, 1)}]
)
def test_training_images_that_differ_each_time_are_not_kept_and_evaluated_ones_are(
    data_dir, tmp_path, chance
):
    config = tiny.digits(data_dir, steps=1, **chance)
    mesh = make_mesh({"data": 8})
    encoder = tiny.encoder()
    config = with_encoder_input(config, encoder.pretraining)
    frozen = FrozenEncoder.of(encoder.params, encoder.sha256, config, encoder.pretraining, mesh)
    made = Inputs(config, open_images(config), frozen, (LINEAR,), tmp_path / "results", tmp_path)
    assert "image" in next(made.training(0))
    assert not (tmp_path / "features").exists()
    assert "image" not in next(made.evaluation(open_images(config).test))
    assert len(list((tmp_path / "features").iterdir())) == 1


@pytest.mark.parametrize(
    ("checkpoint", "kept"),
    [
        ("/runs/a/checkpoints/7", "/runs/a"),
        ("gs://bucket/a/checkpoints/7", "/out"),
        ("/weights/a.safetensors", "/out"),
    ],
)
def test_features_are_kept_with_the_run_of_the_encoder_or_else_with_the_results(checkpoint, kept):
    config = tiny.encoder_config()
    params = init_params(model_spec(config), jax.random.key(0))
    opened = OpenCheckpoint(epath.Path(checkpoint), config, params)
    assert encoder_of(opened, epath.Path("/out")).kept == epath.Path(kept)

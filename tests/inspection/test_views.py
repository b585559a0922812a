import jax
import numpy as np
import pytest
from PIL import Image

from tests.inspection.conftest import COLORS
from xtra_jax.config import load
from xtra_jax.data.erasing import random_erasing
from xtra_jax.data.pipeline import train_batches
from xtra_jax.errors import UserError
from xtra_jax.inspection.inputs import open_inputs
from xtra_jax.inspection.views import (
    crop_views,
    eval_samples,
    first_step_key,
    rectangle,
    seen_by_the_model,
    train_samples,
)
from xtra_jax.probing.features import LINEAR
from xtra_jax.probing.recipe import Recipe
from xtra_jax.probing.sweep import HeadGroup, Setting, init_state, make_train_step
from xtra_jax.training.pretrain import make_mesh, training_batches
from xtra_jax.training.recipe import training_transform

BRIGHTEST = {name: int(np.argmax(color)) for name, color in COLORS.items()}


def first_run_batch(inputs):
    """The first batch of the pretraining itself."""
    config = inputs.config
    spec = type("Spec", (), {"grid": inputs.grid})
    batches = training_batches(config, spec, inputs.train, make_mesh(dict(config.mesh)), 0)
    batch = next(batches)
    batches.close()
    return batch


def test_samples_are_those_that_the_run_begins_with(pictures, pretraining):
    inputs = open_inputs(pretraining(pictures, seed="3", batch_size="16"))
    samples, batch = train_samples(inputs, 5), first_run_batch(inputs)
    for sample, image in zip(samples, batch["image"], strict=False):
        np.testing.assert_array_equal(sample.pixels, image)


def test_labels_and_keys_belong_to_their_images(pictures, pretraining, probing):
    inputs = open_inputs(pretraining(pictures))
    samples = train_samples(inputs, 20) + eval_samples(inputs, 20)
    assert {sample.label for sample in samples} == set(COLORS)
    for sample in samples:
        assert sample.pixels.mean(axis=(0, 1)).argmax() == BRIGHTEST[sample.label]
        assert sample.key.split("/")[0] == sample.label
    assert len({sample.key for sample in samples[20:]}) == 20


def test_evaluation_samples_go_through_the_evaluation_transform_and_are_never_erased(
    pictures, probing
):
    inputs = open_inputs(probing(pictures, **{"data.erasing": "1.0"}))
    for sample in eval_samples(inputs, 6):
        pixels = np.asarray(Image.open(pictures / sample.key))
        np.testing.assert_array_equal(sample.pixels, inputs.eval_transform(pixels))
        assert sample.erased is None


def test_a_crop_is_what_its_rectangle_holds(pictures, pretraining):
    inputs = open_inputs(pretraining(pictures))
    views = crop_views(inputs, 4, 5)
    mirrored = 0
    for view in views:
        pixels = np.asarray(Image.open(pictures / view.key))
        assert view.shape == pixels.shape[:2]
        for crop in view.crops:
            top, left, height, width = crop.box
            cut = Image.fromarray(pixels[top : top + height, left : left + width])
            expected = np.asarray(cut.resize((48, 48), Image.Resampling.BICUBIC))
            expected = expected[:, ::-1] if crop.mirrored else expected
            np.testing.assert_array_equal(crop.pixels, expected)
            mirrored += crop.mirrored
    assert 0 < mirrored < 20


def test_the_first_crop_is_the_sample_of_the_run_and_the_next_that_of_the_next_epoch(
    pictures, pretraining
):
    inputs = open_inputs(pretraining(pictures))
    views, samples = crop_views(inputs, 3, 2), train_samples(inputs, 3)
    for view, sample in zip(views, samples, strict=True):
        assert view.key == sample.key
        np.testing.assert_array_equal(view.crops[0].pixels, sample.pixels)
        assert (view.crops[1].pixels != view.crops[0].pixels).any()


def test_what_goes_through_the_models_own_normalisation_comes_back(pictures, pretraining):
    inputs = open_inputs(pretraining(pictures))
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8)
    seen, erased = seen_by_the_model(images, inputs, key=None)
    np.testing.assert_array_equal(seen, images)
    assert not erased.any()


def test_rectangles_of_noise_are_those_of_the_probes_first_step(pictures, probing):
    inputs = open_inputs(probing(pictures, batch_size="20", **{"data.erasing": "0.5"}))
    batches = train_batches(
        inputs.train, inputs.train_transform, batch_size=20, seed=inputs.config.seed
    )
    images = next(batches)["image"]
    batches.close()
    # The probe erases its whole batch of 20; here only 6 images of it are shown.
    clean, _ = seen_by_the_model(images, inputs, key=None)
    noisy = jax.jit(random_erasing)(first_step_key(0), images.astype(np.float32), probability=0.5)
    masks = (np.asarray(noisy) != images).any(axis=-1)
    assert 0 < masks[:6].any(axis=(1, 2)).sum() < 6
    for row, sample in enumerate(train_samples(inputs, 6)):
        assert sample.erased == rectangle(masks[row])
        outside = ~masks[row]
        np.testing.assert_array_equal(sample.pixels[outside], clean[row][outside])


def test_the_key_is_the_one_that_a_probes_first_step_gets():
    groups = {"linear": HeadGroup("linear", LINEAR, 4, 2, (Setting(0.1, 0.0),))}
    recipe = Recipe(steps=3, steps_per_epoch=1)
    keys = []

    def features(batch, key):
        keys.append(key)
        return {LINEAR: np.zeros((2, 4), np.float32)}

    batch = {"label": np.zeros(2, np.int32), "weight": np.ones(2, np.float32)}
    make_train_step(groups, recipe, seed=7)(init_state(groups, recipe, 7), features, batch)
    assert jax.random.key_data(keys[0]).tolist() == jax.random.key_data(first_step_key(7)).tolist()


def test_a_probes_transform_is_the_one_that_the_probe_uses(pictures, probing):
    inputs = open_inputs(probing(pictures))
    size = inputs.config.data.image_size
    assert inputs.train_transform == training_transform(inputs.config, size)
    assert inputs.train_transform.randaugment.mean == inputs.mean


def test_crops_that_the_device_resizes_are_shown_resized(pictures, pretraining):
    samples = {
        how: train_samples(open_inputs(pretraining(pictures, **{"data.resize": how})), 6)
        for how in ("exact", "device")
    }
    for exact, device in zip(samples["exact"], samples["device"], strict=True):
        assert exact.key == device.key
        np.testing.assert_allclose(device.pixels, exact.pixels.astype(int), atol=1)


def test_a_study_of_several_sets_asks_for_one_of_them():
    with pytest.raises(UserError, match="inspect one of them, as configs/probe.py:imagenet2012"):
        open_inputs(load("configs/probe.py:all"))


def test_a_probe_does_not_leave_resizing_to_the_device(pictures, probing):
    with pytest.raises(UserError, match="for pretraining alone"):
        open_inputs(probing(pictures, **{"data.resize": "device"}))


def test_a_broken_image_keeps_its_place_and_says_why(pictures, pretraining, tmp_path):
    broken = tmp_path / "red" / "broken.jpg"
    broken.parent.mkdir()
    broken.write_bytes(b"\xff\xd8\xff and no more")
    (tmp_path / "red" / "whole.png").write_bytes((pictures / "red" / "0.png").read_bytes())
    inputs = open_inputs(pretraining(tmp_path))
    for samples in (train_samples(inputs, 2), eval_samples(inputs, 2)):
        by_key = {sample.key: sample for sample in samples}
        assert by_key["red/broken.jpg"].pixels is None
        assert by_key["red/broken.jpg"].label == "red"
        assert by_key["red/broken.jpg"].problem
        assert by_key["red/whole.png"].pixels is not None

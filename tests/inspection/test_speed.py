import numpy as np
import pytest

from xtra_jax.data import workers
from xtra_jax.inspection import speed
from xtra_jax.inspection.inputs import open_inputs
from xtra_jax.inspection.pixels import PixelMeter
from xtra_jax.inspection.speed import time_pipeline, time_stages


def test_the_shares_of_the_stages_are_the_whole(pictures, pretraining):
    stages = time_stages(open_inputs(pretraining(pictures)), seconds=60)
    assert list(stages.seconds) == ["read", "decode", "crop and resize", "batch"]
    assert sum(stages.shares.values()) == pytest.approx(1)
    assert all(spent > 0 for spent in stages.seconds.values())
    assert stages.images == stages.records == 20 and stages.images_per_s > 0


def test_randaugment_is_a_stage_of_its_own_where_there_is_one(pictures, probing):
    stages = time_stages(open_inputs(probing(pictures)), seconds=60)
    assert list(stages.seconds) == ["read", "decode", "crop and resize", "RandAugment", "batch"]
    assert stages.seconds["crop and resize"] > 0 and stages.seconds["RandAugment"] > 0


def test_what_the_device_resizes_is_only_cropped(pictures, pretraining):
    stages = time_stages(open_inputs(pretraining(pictures, **{"data.resize": "device"})), 60)
    assert list(stages.seconds) == ["read", "decode", "crop", "batch"]
    exact = time_stages(open_inputs(pretraining(pictures)), 60)
    np.testing.assert_allclose(stages.pixels.mean, exact.pixels.mean, atol=1e-3)


def test_images_that_cannot_be_used_are_named_with_a_reason_and_not_timed(
    pictures, pretraining, tmp_path
):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes((pictures / "red" / "0.png").read_bytes())
    (tmp_path / "empty.jpg").touch()
    stages = time_stages(open_inputs(pretraining(tmp_path)), seconds=60)
    assert stages.images == 4
    ((index, key, reason),) = stages.unusable
    assert (index, key) == (4, "empty.jpg") and "known format" in reason


def test_timing_stops_after_its_time_and_the_fewest_images(pictures, pretraining, monkeypatch):
    monkeypatch.setattr(speed, "FEWEST_IMAGES", 3)
    assert time_stages(open_inputs(pretraining(pictures)), seconds=0.0).images == 3


def test_the_pipelines_rate_is_of_whole_turns_of_its_workers(pictures, pretraining):
    inputs = open_inputs(pretraining(pictures, **{"data.num_workers": "0"}))
    pipeline = time_pipeline(inputs, seconds=0.2, one_process=100.0)
    assert (pipeline.workers, pipeline.batch_size) == (0, 25)
    assert pipeline.images % 25 == 0 and pipeline.images_per_s > 0


def test_the_pipeline_is_timed_with_the_configs_workers(pictures, pretraining):
    inputs = open_inputs(pretraining(pictures, **{"data.num_workers": "2"}))
    pipeline = time_pipeline(inputs, seconds=0.2, one_process=1.0)
    assert (pipeline.workers, pipeline.batch_size) == (2, 4)
    assert pipeline.images % 8 == 0 and pipeline.images_per_s > 0


def test_pixels_are_measured_before_and_after_normalisation():
    images = np.random.default_rng(0).integers(0, 256, (19, 8, 8, 3), np.uint8)
    images[..., 1] //= 2
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
    meter = PixelMeter(mean, std)
    meter.add(images[:11])
    meter.add(images[11:])
    found, pixels = meter.result(), images.reshape(-1, 3) / 255
    assert found.images == 19
    np.testing.assert_allclose(found.mean, pixels.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.spread, pixels.std(0), rtol=1e-9)
    np.testing.assert_allclose(found.normalised_mean, (pixels.mean(0) - mean) / std, atol=1e-6)
    np.testing.assert_allclose(found.normalised_spread, pixels.std(0) / std, rtol=1e-6)


def test_the_distance_is_that_of_the_worst_channel():
    images = np.zeros((1, 1, 2, 3), np.uint8)
    images[0, 0, 1] = 255
    fitting = PixelMeter((0.5,) * 3, (0.5,) * 3)
    shifted = PixelMeter((0.5, 0.5, 0.0), (0.5,) * 3)
    wide = PixelMeter((0.5,) * 3, (0.5, 0.125, 0.5))
    for meter, distance in ((fitting, 0.0), (shifted, 1.0), (wide, np.log(4))):
        meter.add(images)
        assert meter.result().distance == pytest.approx(distance, abs=1e-6)


def test_the_cores_are_those_that_the_default_number_of_workers_counts(
    pictures, pretraining, monkeypatch
):
    monkeypatch.setattr(workers, "_quota", lambda: 1.5)
    inputs = open_inputs(pretraining(pictures, **{"data.num_workers": "-1"}))
    pipeline = time_pipeline(inputs, seconds=0.1, one_process=100.0)
    assert (pipeline.cores, pipeline.workers) == (1, 0)

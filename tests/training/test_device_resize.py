"""A run whose crops the accelerator resizes is the run whose crops the host did."""

import jax
import numpy as np
import pytest
from PIL import Image

from tests.training import test_step
from tests.training.test_pretrain import tiny
from xtra_jax.config import load
from xtra_jax.data.transforms import DeviceResizeTransform, PretrainTransform
from xtra_jax.errors import UserError
from xtra_jax.parallel.mesh import make_mesh, put_batch
from xtra_jax.parallel.sharding import replicated, shardings
from xtra_jax.training.pretrain import pretrain
from xtra_jax.training.recipe import training_transform
from xtra_jax.training.step import init_state, make_train_step
from xtra_jax.training.telemetry import read_metrics
from xtra_jax.training.train_program import abstract_batch


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def photographs(rng, count, side):
    """Smooth crops of random sizes, and the boxes they take in canvases of a side."""
    canvases, boxes, exact = [], [], []
    transform = DeviceResizeTransform(PretrainTransform(16), side)
    for _ in range(count):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((50, 60), Image.Resampling.BICUBIC))
        seed = int(rng.integers(1 << 30))
        placed = transform(pixels, np.random.default_rng(seed))
        canvases.append(placed["image"])
        boxes.append(placed["box"])
        exact.append(transform.pretrain(pixels, np.random.default_rng(seed)))
    return np.array(canvases), np.array(boxes), np.array(exact)


def test_a_step_on_eight_devices_learns_the_same_from_canvases():
    canvases, boxes, exact = photographs(np.random.default_rng(0), 16, 64)
    weight = np.ones(16, np.float32)
    weight[3] = 0
    mesh = make_mesh({"data": 2, "fsdp": 4})
    outcomes = []
    for batch in (
        {"image": exact, "weight": weight},
        {"image": canvases, "box": boxes, "weight": weight},
    ):
        step = make_train_step(
            test_step.SPEC, test_step.SGD, schedule=test_step.schedule, accumulate=2
        )
        state = init_state(test_step.SPEC, test_step.SGD, jax.random.key(0))
        placement = shardings(state, mesh)
        step = jax.jit(step, out_shardings=(placement, replicated(mesh)))
        outcomes.append(step(jax.device_put(state, placement), put_batch(batch, mesh)))
    (exact_state, exact_metrics), (state, metrics) = outcomes
    assert metrics["images"] == 15
    np.testing.assert_allclose(metrics["loss"], exact_metrics["loss"], rtol=1e-4)
    for ours, theirs in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(exact_state.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_a_run_on_eight_devices_learns_the_same(data_dir, tmp_path):
    outcomes, told = [], []
    for resize in ("exact", "device"):
        config = tiny(
            data_dir,
            **{"data.resize": resize, "steps": 3, "accumulate": 2, "eval_every": 0},
        )
        workdir = tmp_path / resize
        outcomes.append(pretrain(config, str(workdir)))
        told.append([entry["loss"] for entry in read_metrics(workdir) if "loss" in entry])
    assert len(told[0]) >= 3
    # A few values of 800,000 are off by a grey level.
    np.testing.assert_allclose(told[0], told[1], rtol=1e-3)
    exact, device = (outcome.state.params for outcome in outcomes)
    for ours, theirs in zip(jax.tree.leaves(device), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_the_program_is_planned_with_the_canvas(data_dir):
    mesh = make_mesh({"data": 2, "fsdp": 4})
    planned = abstract_batch(tiny(data_dir, **{"data.resize": "device"}), mesh)
    assert planned["image"].shape == (16, 512, 512, 3)
    assert planned["box"].shape == (16, 3)
    assert "box" not in abstract_batch(tiny(data_dir), mesh)


def test_a_probe_refuses_to_resize_on_the_device():
    config = load("configs/probe.py:cifar10", {"data.resize": "device", "data.randaugment": ""})
    with pytest.raises(UserError, match=r"data\.resize=device is for pretraining"):
        training_transform(config, 32)

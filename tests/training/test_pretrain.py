"""A run goes on by itself, exactly where it stopped."""

import jax
import numpy as np
import pytest
from PIL import Image

from xtra_jax.config import load, model_spec
from xtra_jax.errors import UserError
from xtra_jax.model.xtra import init_params
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.training.checkpoint import restore_params
from xtra_jax.training.pretrain import check_same_run, make_evaluation, pretrain
from xtra_jax.training.progress import Progress
from xtra_jax.training.telemetry import read_metrics


def tiny(data_dir, **overrides):
    """Seconds of the demo, with stochastic depth so that randomness must resume too."""
    settings = {
        "steps": 7,
        "optim.warmup_steps": 2,
        "batch_size": 16,
        "log_every": 1,
        "eval_every": 4,
        "save_every": 2,
        "model.width": 12,
        "model.depth": 2,
        "model.image_size": 16,
        "model.patch_size": 4,
        "model.drop_path": 0.3,
        "predictor.width": 12,
        "predictor.hidden": 8,
        "predictor.depth": 1,
        "head.hidden": 8,
        "data.eval_resize": 16,
        "data.eval_split": "test[:20]",
        "data.data_dir": str(data_dir),
        "mesh.data": 2,
        "mesh.fsdp": 4,
    }
    return load("configs/demo.py", settings | overrides)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def uninterrupted(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return workdir, pretrain(tiny(data_dir), str(workdir))


class Interrupting(Progress):
    """Ctrl-C after a number of steps."""

    def __init__(self, step):
        super().__init__(7, active=False)
        self._stop = step

    def update(self, step, **fields):
        if step == self._stop:
            raise KeyboardInterrupt


def assert_same_bits(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_an_interrupted_run_ends_with_the_same_state_bit_for_bit(data_dir, uninterrupted, tmp_path):
    for step in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny(data_dir), str(tmp_path), progress=Interrupting(step))
    outcome = pretrain(tiny(data_dir), str(tmp_path))
    workdir, expected = uninterrupted
    assert_same_bits(jax.device_get(outcome.state), jax.device_get(expected.state))
    assert_same_bits(restore_params(tmp_path), restore_params(workdir))
    assert outcome.validation == expected.validation

    def told(folder):
        timing = {"time", "images_per_s", "step_ms", "compute", "input_wait", "host"}
        return [{k: v for k, v in m.items() if k not in timing} for m in read_metrics(folder)]

    assert told(tmp_path) == told(workdir)


def test_a_complete_run_takes_no_step_more_and_tells_its_validation(data_dir, uninterrupted):
    workdir, expected = uninterrupted
    again = pretrain(tiny(data_dir), str(workdir))
    assert again.step == 7 and again.validation == expected.validation
    assert_same_bits(jax.device_get(again.state), jax.device_get(expected.state))


def test_training_lowers_the_loss_on_held_out_images(uninterrupted):
    _, outcome = uninterrupted
    assert outcome.validation["images"] == 20
    metrics = read_metrics(uninterrupted[0])
    losses = [m["validation/loss"] for m in metrics if "validation/loss" in m]
    assert len(losses) == 2 and losses[1] < losses[0]


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(data_dir, tmp_path):
    first, again, other = (
        pretrain(tiny(data_dir, steps=3, seed=seed), str(tmp_path / name)).validation
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert first == again and first != other


def test_what_fixes_model_and_batches_cannot_change_and_the_rest_is_told(data_dir):
    saved = tiny(data_dir).to_dict()
    changes = check_same_run(tiny(data_dir, steps=9, **{"model.remat": "full"}), saved, "run")
    assert changes == ["model.remat none -> full", "steps 7 -> 9"]
    for key, value in (("batch_size", 32), ("predictor.depth", 2), ("data.dataset", "folder:x")):
        with pytest.raises(UserError, match=f"run holds a run with {key}="):
            check_same_run(tiny(data_dir, **{key: value}), saved, "run")


def test_a_run_of_an_earlier_version_continues_without_keys_that_came_later(data_dir):
    saved = tiny(data_dir).to_dict()
    del saved["data"]["mixture"], saved["data"]["subset"]
    assert check_same_run(tiny(data_dir), saved, "run") == []
    with pytest.raises(UserError, match="run holds a run with data.subset="):
        check_same_run(tiny(data_dir, **{"data.subset": "10%"}), saved, "run")


def test_keys_that_came_later_and_fix_nothing_are_not_told(data_dir):
    saved = tiny(data_dir).to_dict()
    del saved["data"]["resize"], saved["data"]["bad_fraction"]
    assert check_same_run(tiny(data_dir), saved, "run") == []


def test_a_profile_beyond_the_last_step_is_refused_before_anything_is_done(data_dir, tmp_path):
    with pytest.raises(UserError, match="profile_at=7 is not below the 7 steps of the run"):
        pretrain(tiny(data_dir, profile_at=7), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_broken_validation_images_are_named_in_the_first_evaluation_alone(tmp_path, capfd):
    for i in range(20):
        file = tmp_path / f"{i:02}.png"
        Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:40])
    config = tiny(tmp_path, **{"data.dataset": "folder", "data.eval_split": "all"})
    spec = model_spec(config)
    evaluate = make_evaluation(config, spec, make_mesh(dict(config.mesh)))
    params = init_params(spec, jax.random.key(0))
    assert evaluate(params) == evaluate(params)
    assert capfd.readouterr().err.count("Image 19.png is unusable") == 1


def test_a_run_does_not_continue_on_other_images_than_it_began_with(data_dir, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(f"train #{i}" for i in range(32)))
    subset = {"data.subset": f"list:{listed}", "data.eval_split": "", "optim.warmup_steps": 0}
    pretrain(tiny(data_dir, **subset, steps=1), str(tmp_path / "run"))
    listed.write_text("\n".join(f"train #{i}" for i in range(1, 33)))
    with pytest.raises(UserError, match="images of digits that the run in .* are no longer the"):
        pretrain(tiny(data_dir, **subset, steps=2), str(tmp_path / "run"))

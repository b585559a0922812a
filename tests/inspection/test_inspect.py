import json

import numpy as np
import pytest
from PIL import Image

from xtra_jax.cli import main
from xtra_jax.config import load
from xtra_jax.data.transforms import EvalTransform
from xtra_jax.inspection.captions import about_samples
from xtra_jax.inspection.job import inspect
from xtra_jax.inspection.report import describe
from xtra_jax.model.grid import Grid
from xtra_jax.training.checkpoint import Checkpointer, checkpoint_directory

PICTURES = ["training.png", "evaluation.png", "crops.png", "classes.png"]


def look(config, out, **how):
    return inspect(config, str(out), seconds=0.2, count=6, **how)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    """Makes a working directory whose metrics tell a rate and a share of waiting."""

    def make(rate, wait):
        workdir = tmp_path_factory.mktemp("run")
        lines = [{"step": step, "images_per_s": rate, "input_wait": wait} for step in (1, 2)]
        lines.append({"step": 2, "validation/loss": 0.5})
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(workdir)

    return make


def test_everything_promised_is_written(pictures, pretraining, tmp_path):
    found = look(pretraining(pictures), tmp_path / "out")
    assert found.files == [*PICTURES, "inspect.json"]
    for name in PICTURES:
        assert min(Image.open(tmp_path / "out" / name).size) > 100
    figures = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert figures["files"] == found.files
    assert figures["training"]["images"] == figures["evaluation"]["images"] == 20
    assert figures["classes"]["counts"] == {"blue": 4, "green": 6, "red": 10}
    assert figures["image"] == {"size": 48, "patch_size": 8, "block_size": 2}
    assert figures["unusable"] == {"looked_at": 20, "found": 0, "images": []}
    assert len(figures["pixels"]["mean"]) == 3
    assert sum(figures["one_process"]["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert figures["pipeline"]["images_per_s"] > 0


def test_the_table_says_what_the_figures_say(pictures, pretraining, tmp_path):
    said = describe(look(pretraining(pictures), tmp_path))
    table, *remarks = said.split("\n\n")
    rows = dict(line.split(maxsplit=1) for line in table.splitlines())
    assert rows["training"].endswith("all: 20 images")
    assert rows["classes"] == "3: 10 images of red down to 4 of blue"
    assert rows["unusable"] == "none of all 20 images"
    assert rows["written"] == f"{tmp_path}: {', '.join([*PICTURES, 'inspect.json'])}"
    assert any("this machine feeds" in remark for remark in remarks)
    # Red pictures, and the mean and the spread of white digits on black.
    assert any("far from data.mean and data.std" in remark for remark in remarks)


@pytest.mark.parametrize(
    ("changes", "images", "words", "figures"),
    [
        ({"data.subset": "stratified:50%"}, 10, "subset stratified:50%", ("stratified:50%", None)),
        ({"data.mixture": "3,1"}, 40, "mixed 3:1", (None, [3, 1])),
        ({}, 20, "", (None, None)),
    ],
)
def test_which_part_or_mixture_is_trained_on_is_told(
    changes, images, words, figures, pictures, pretraining, tmp_path
):
    if "data.mixture" in changes:
        changes |= {"data.dataset": f"folder:{pictures},folder:{pictures}"}
    found = look(pretraining(pictures, **changes), tmp_path)
    (line,) = (line for line in describe(found).splitlines() if line.startswith("training"))
    assert line.endswith(f"all, {words}: {images} images" if words else f"all: {images} images")
    assert f"{words}) that seed" in about_samples(found.inputs)[0]
    told = json.loads((tmp_path / "inspect.json").read_text())["training"]
    assert (told["subset"], told["mixture"]) == figures


def test_pixels_with_the_configs_mean_and_spread_are_not_remarked(pictures, pretraining, tmp_path):
    first = look(pretraining(pictures), tmp_path)
    pixels = first.stages.pixels
    fitting = {
        "data.mean": ",".join(map(str, pixels.mean)),
        "data.std": ",".join(map(str, pixels.spread)),
    }
    said = describe(look(pretraining(pictures, **fitting), tmp_path))
    assert "far from" not in said


def test_a_broken_image_is_named_with_its_reason(pictures, pretraining, tmp_path):
    folder = tmp_path / "images"
    (folder / "red").mkdir(parents=True)
    for number in range(3):
        data = (pictures / "red" / f"{number}.png").read_bytes()
        (folder / "red" / f"{number}.png").write_bytes(data)
    (folder / "red" / "empty.png").touch()
    found = look(pretraining(folder), tmp_path / "out")
    assert "unusable     1 of all 4 images" in describe(found)
    assert "\n  red/empty.png: not an image of a known format" in describe(found)
    (unusable,) = json.loads((tmp_path / "out" / "inspect.json").read_text())["unusable"]["images"]
    assert unusable["key"] == "red/empty.png"


def test_a_set_of_nothing_but_broken_images_ends_in_a_sentence(pretraining, tmp_path, capsys):
    for number in range(3):
        (tmp_path / f"{number}.png").touch()
    command = ["inspect", "--config=configs/demo.py", f"--out={tmp_path / 'out'}"]
    settings = ["dataset=folder", "train_split=all", "eval_split="]
    command += [f"--config.data.{setting}" for setting in settings]
    assert main([*command, f"--config.data.data_dir={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "none of the 3 images looked at can be used" in line and "known format" in line
    assert (tmp_path / "out" / "inspect.json").exists()


def test_a_set_without_labels_and_without_held_out_images_is_shown(pictures, pretraining, tmp_path):
    settings = {"data.dataset": f"folder:{pictures / 'red'}", "data.eval_split": ""}
    found = look(pretraining(pictures, **settings), tmp_path)
    assert found.files == ["training.png", "crops.png", "inspect.json"]
    said = describe(found)
    assert "classes      no labels" in said and "none: data.eval_split is empty" in said


def test_a_probe_is_shown_for_the_base_encoder_until_a_checkpoint_is_named(
    pictures, probing, tmp_path
):
    found = look(probing(pictures), tmp_path)
    assert "No checkpoint is named" in describe(found)
    assert found.inputs.grid.image_size == 64 and found.inputs.grid.patch_size == 16
    np.testing.assert_allclose(found.inputs.mean, (0.485, 0.456, 0.406))
    figures = json.loads((tmp_path / "inspect.json").read_text())
    assert "RandAugment" in figures["one_process"]["shares"]


def test_a_probe_is_shown_as_its_encoder_will_see_it(pictures, probing, tmp_path):
    changes = {"model.image_size": 32, "model.patch_size": 4, "data.eval_resize": 40}
    encoder = load("configs/demo.py", changes | {"data.mean": (0.1, 0.2, 0.3)})
    with Checkpointer(checkpoint_directory(tmp_path / "run"), save_every=1, keep=1) as saving:
        state = {"params": {"weight": np.zeros(1, np.float32)}}
        saving.save(1, state, position={}, config=encoder.to_dict(), force=True)
    left_open = {"data.image_size": "0", "data.eval_resize": "0"}
    config = probing(pictures, **left_open, checkpoint=str(tmp_path / "run"))
    found = look(config, tmp_path / "out")
    assert found.inputs.grid == Grid(32, 4, 2) and found.inputs.mean == (0.1, 0.2, 0.3)
    assert found.inputs.eval_transform == EvalTransform(40, 32)
    assert "No checkpoint" not in describe(found)


def test_a_probe_that_would_be_refused_for_its_classes_is_told_so(pictures, probing, tmp_path):
    said = describe(look(probing(pictures, **{"data.num_classes": "10"}), tmp_path))
    assert "has 3 classes, and data.num_classes=10: xtra probe refuses that" in said


def test_a_run_that_does_not_wait_is_not_bound_by_input(pictures, pretraining, tmp_path, metrics):
    workdir = metrics(0.5, 0.02)
    said = describe(look(pretraining(pictures), tmp_path, workdir=workdir))
    assert f"{workdir} trains at 0.5 images/s, waiting 2% of the time" in said
    assert "input is not the bottleneck" in said


def test_a_run_that_waits_is_told_how_many_cores_it_needs(pictures, pretraining, tmp_path, metrics):
    found = look(pretraining(pictures), tmp_path, workdir=metrics(1e6, 0.5))
    assert found.run.images_per_s_without_waiting == pytest.approx(2e6)
    said = describe(found)
    assert "input is the bottleneck" in said and "cores like these" in said
    assert json.loads((tmp_path / "inspect.json").read_text())["run"]["input_wait"] == 0.5


def test_a_run_that_was_fed_by_more_is_told_so(pictures, pretraining, tmp_path, metrics):
    said = describe(look(pretraining(pictures), tmp_path, workdir=metrics(1e6, 0.01)))
    assert "here input would be the bottleneck" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--count=0"], "--count=0, and must be at least 1"),
        (["--seconds=0"], "--seconds=0, and must be above 0"),
        (["--config.data.flop=1"], "did you mean data.flip"),
        (["--config.data.dataset=folder:/nowhere"], "/nowhere"),
        (["--workdir=/nowhere"], "cannot read /nowhere/metrics.jsonl"),
        (["--out=/dev/null/out"], "cannot make the folder /dev/null/out"),
        (["--checkpoint=/nowhere"], "--checkpoint names the encoder of a probe"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(pictures, arguments, sentence, capsys, tmp_path):
    command = ["inspect", "--config=configs/demo.py", f"--config.data.dataset=folder:{pictures}"]
    if not any(argument.startswith("--out") for argument in arguments):
        command.append(f"--out={tmp_path}")
    assert main([*command, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xtra: ") and sentence in line


def test_the_command_writes_and_tells(pictures, capsys, tmp_path):
    command = ["inspect", "--config=configs/demo.py", f"--config.data.dataset=folder:{pictures}"]
    command += ["--config.data.eval_split=validation", "--seconds=0.2", "--count=4"]
    assert main([*command, f"--out={tmp_path / 'deep' / 'er'}"]) == 0
    assert capsys.readouterr().out.startswith("training     folder:")
    assert (tmp_path / "deep" / "er" / "training.png").exists()

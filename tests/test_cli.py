"""The front door: mistakes are one sentence and exit code 2, and nothing saved is touched."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xtra_jax.cli import main

TINY = [
    "--config=configs/demo.py",
    "--config.steps=4",
    "--config.optim.warmup_steps=2",
    "--config.batch_size=8",
    "--config.log_every=2",
    "--config.eval_every=0",
    "--config.save_every=2",
    "--config.model.width=12",
    "--config.model.depth=1",
    "--config.model.image_size=16",
    "--config.model.patch_size=4",
    "--config.predictor.width=12",
    "--config.predictor.hidden=8",
    "--config.predictor.depth=1",
    "--config.head.hidden=8",
    "--config.data.eval_resize=16",
    "--config.mesh.data=1",
    "--config.mesh.fsdp=8",
]


def write_images(folder: Path, count: int = 12, broken: int = 0) -> Path:
    """Noise as PNG files, the first ones cut short."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i:03d}.png"
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        if i < broken:
            path.write_bytes(path.read_bytes()[:40])
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def tiny(images, workdir, *more) -> list[str]:
    """A run of seconds over a folder of images."""
    return [
        "pretrain",
        *TINY,
        "--config.data.dataset=folder",
        f"--config.data.data_dir={images}",
        f"--workdir={workdir}",
        *more,
    ]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """A finished run."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert main(tiny(images, workdir)) == 0
    return workdir


def sentence(capsys) -> str:
    """What was printed on stderr, which must be one line from xtra itself."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("xtra: ")]
    assert len(lines) == 1
    return lines[0]


def everything_in(folder) -> dict:
    return {p: p.stat().st_mtime_ns for p in sorted(Path(folder).rglob("*"))}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.blok_size=2", "model.block_size"),
        ("model.lr=1e-3", "optim.lr"),
        ("batch_size=many", "batch_size"),
        ("model.block_size=3", "block_size=3 does not divide the grid of 4 x 4 tokens"),
        ("model.image_size=18", "image_size=18 is not a multiple of model.patch_size=4"),
        ("head.num_tokens=4", "needs at least 5 blocks"),
        ("mesh.fsdp=3", "there are 8"),
        ("batch_size=12", "the nearest sizes that do, are 8 and 16"),
        ("model.variant=bas", "base"),
        ("data.data_dir=/nowhere/at/all", "/nowhere/at/all"),
        ("data.dataset=imagenet2021", "imagenet2021"),
        ("init_from=/nowhere", "holds no checkpoint"),
    ],
)
def test_a_bad_config_is_one_sentence_and_leaves_no_run_behind(
    images, tmp_path, capsys, override, expected
):
    workdir = tmp_path / "run"
    assert main(tiny(images, workdir, f"--config.{override}")) == 2
    assert expected in sentence(capsys)
    assert not [path for path in workdir.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "COMMAND"),
        (["pretran"], "pretrain"),
        (["pretrain", "--workdir=x"], "--config"),
        (["pretrain", "--config=configs/nowhere.py", "--workdir=x"], "does not exist"),
        (["pretrain", "--config=configs/probe.py:digits", "--workdir=x"], "probe"),
        (["pretrain", "--config=x", "--workdir=x", "--coordinator=host:1"], "--process_id"),
        (["pretrain", "--config=x", "--workdir=x", "--process_id=one"], "invalid int value: 'one'"),
        (["probe", "--config=configs/demo.py"], "probe"),
        (["probe", "--config=configs/probe.py:digits"], "checkpoint"),
        (["reconstruct", "--checkpoint=/nowhere"], "holds no checkpoint"),
        (["reconstruct", "--checkpoint=x", "--config.steps=3"], "takes no config"),
    ],
)
def test_a_bad_command_line_is_one_sentence(arguments, expected, capsys):
    assert main(arguments) == 2
    assert expected in sentence(capsys)


def test_an_empty_folder_of_images_is_one_sentence(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    assert main(tiny(tmp_path / "images", tmp_path / "run")) == 2
    assert str(tmp_path / "images") in sentence(capsys)


def test_a_run_leaves_metrics_events_config_and_checkpoints(run):
    from xtra_jax.training.telemetry import read_metrics

    metrics = read_metrics(run)
    assert [m["step"] for m in metrics] == [2, 4, 4]
    needed = {"loss", "lr", "grad_norm", "images_per_s", "input_wait", "bad_images"}
    assert needed <= set(metrics[0])
    assert "validation/loss" in metrics[-1]
    assert (run / "config.json").exists() and list((run / "tensorboard").iterdir())
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["2", "4"]


def test_a_workdir_of_another_model_is_refused_and_left_as_it_was(run, images, capsys):
    before = everything_in(run)
    assert main(tiny(images, run, "--config.model.width=24")) == 2
    said = sentence(capsys)
    assert "model.width=12" in said and "24" in said
    assert everything_in(run) == before


def test_a_run_cannot_change_the_examples_its_steps_see(run, images, capsys):
    assert main(tiny(images, run, "--config.seed=5")) == 2
    assert "seed=0" in sentence(capsys)


def test_a_directory_of_something_else_is_not_taken_for_checkpoints(images, tmp_path, capsys):
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "7" / "holiday.jpg").write_bytes(b"precious")
    assert main(tiny(images, tmp_path / "run")) == 2
    assert "not a directory of checkpoints" in sentence(capsys)
    assert (tmp_path / "run" / "checkpoints" / "7" / "holiday.jpg").read_bytes() == b"precious"


def test_corrupt_images_end_no_run_and_are_counted(tmp_path, capsys):
    from xtra_jax.training.telemetry import read_metrics

    folder = write_images(tmp_path / "images", broken=3)
    assert main(tiny(folder, tmp_path / "run")) == 0
    assert read_metrics(tmp_path / "run")[-2]["bad_images"] > 0
    assert "is unusable and counts for nothing" in capsys.readouterr().err


def test_a_loss_that_is_no_longer_finite_names_quantity_and_step_and_keeps_the_checkpoint(
    run, images, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    kept = {
        path: path.read_bytes() for path in (workdir / "checkpoints").rglob("*") if path.is_file()
    }
    diverging = [
        "--config.steps=8",
        "--config.optim.lr=1e30",
        "--config.optim.warmup_lr=1e30",
        "--config.optim.weight_decay=1e8",
        "--config.optim.warmup_steps=0",
    ]
    assert main(tiny(images, workdir, *diverging)) == 1
    assert re.search(r"(loss|grad_norm|param_norm) is (nan|inf) at step [56],", sentence(capsys))
    now = {
        path: path.read_bytes() for path in (workdir / "checkpoints").rglob("*") if path.is_file()
    }
    assert now == kept


def test_reconstruct_draws_original_prediction_and_error(run, images, tmp_path, capsys):
    out = tmp_path / "pictures" / "sheet.png"
    arguments = ["reconstruct", f"--checkpoint={run}", f"--out={out}", "--count=3"]
    assert main([*arguments, f"--images={images}"]) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.height > 3 * 160 and sheet.width > 3 * 160
        colours = sheet.convert("RGB").getcolors(1 << 24)
    assert (255, 170, 0) in {colour for _, colour in colours}


def test_init_from_takes_the_weights_and_nothing_else(run, images, tmp_path):
    import jax

    from xtra_jax.training.checkpoint import restore_params

    workdir = tmp_path / "tuned"
    still = ["--config.optim.lr=1e-12", "--config.optim.warmup_lr=0", "--config.optim.end_lr=0"]
    assert main(tiny(images, workdir, f"--config.init_from={run}", *still)) == 0
    ours, theirs = restore_params(workdir), restore_params(run)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), ours, theirs)


@pytest.mark.parametrize("damage", ["config", "state/_METADATA", "halved"])
def test_a_damaged_checkpoint_is_one_sentence(run, images, tmp_path, capsys, damage):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    last = workdir / "checkpoints" / "4"
    if damage == "halved":
        for path in (last / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "config":
        shutil.rmtree(last / damage)
    else:
        (last / damage).unlink()
    for command in (
        ["reconstruct", f"--checkpoint={workdir}", f"--images={images}"],
        tiny(images, workdir, "--config.steps=6"),
    ):
        assert main([*command]) == 2
        assert str(last) in sentence(capsys)


def test_a_set_of_broken_images_is_refused_before_it_trains_anything(tmp_path, capsys):
    folder = write_images(tmp_path / "images", broken=12)
    assert main(tiny(folder, tmp_path / "run")) == 1
    assert "all 8 images of the first batch are unusable" in sentence(capsys)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_folder_that_changed_under_a_run_is_refused(run, tmp_path, capsys):
    import json

    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    folder = json.loads((run / "config.json").read_text())["data"]["data_dir"]
    grown = Path(folder) / "new"
    write_images(grown, count=10)
    try:
        assert main(tiny(folder, workdir, "--config.steps=6")) == 2
        assert "trains on 11 images" in sentence(capsys)
    finally:
        shutil.rmtree(grown)


def test_the_demo_says_at_once_what_it_is_not_for(tmp_path, capsys):
    arguments = ["demo", f"--workdir={tmp_path / 'demo'}", "--config.data.eval_split="]
    assert main(arguments) == 2
    assert "the demo needs data.eval_split=test" in sentence(capsys)
    assert not (tmp_path / "demo").exists()

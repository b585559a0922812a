"""The pretraining loss through the command line: the published one, of every image, once."""

import json

import numpy as np
import pytest
from PIL import Image

from tests import goldens
from tests.saved import (
    golden_config,
    golden_config_file,
    save_checkpoint,
    save_golden_file,
    save_golden_images,
    save_golden_probe,
    save_golden_run,
)
from xtra_jax.cli import main
from xtra_jax.data.images import open_images
from xtra_jax.errors import RunFailed
from xtra_jax.evaluate import SETTINGS, evaluate
from xtra_jax.interop.imported import write_checkpoint
from xtra_jax.interop.importer import import_weights
from xtra_jax.interop.open_checkpoint import open_checkpoint
from xtra_jax.model.patches import patchify
from xtra_jax.model.xtra import bind_encoder
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.probing.trained import trained_logits
from xtra_jax.training.pretrain import make_evaluation

pytestmark = pytest.mark.usefixtures("compiled_once")
SPEC = goldens.tiny_spec()
LOSS_RTOL = 1e-6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's working directory with the golden weights."""
    return save_golden_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(pixels, tmp_path_factory):
    """Eleven images of the model's size as PNG files, and one that is cut short."""
    path = tmp_path_factory.mktemp("images")
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(path / f"{i:02d}.png")
    (path / "05b.png").write_bytes((path / "05.png").read_bytes()[:99])
    return path


@pytest.fixture(scope="module")
def written(run, folder, tmp_path_factory):
    """The file about all images, with each of them."""
    out = tmp_path_factory.mktemp("evaluated") / "out.json"
    arguments = [f"--checkpoint={run}", f"--images={folder}", "--per_image", f"--out={out}"]
    assert main(["evaluate", *arguments]) == 0
    return out


@pytest.fixture(scope="module")
def found(written):
    return json.loads(written.read_text())


def evaluated(tmp_path, *arguments) -> dict:
    out = tmp_path / "out.json"
    assert main(["evaluate", *map(str, arguments), f"--out={out}"]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("weights", "golden", "changes"),
    [
        ("B_tiny_block_hot", "B_tiny_block_hot", {}),
        ("C_causal_hot", "C_causal_hot", {"model.block_size": 1}),
        ("C_tokens2_hot", "C_tokens2_hot", {"head.num_tokens": 2}),
        ("B_tiny_block_hot", "C_nonorm_hot_uses_B_hot_weights", {"loss.norm_pix": False}),
    ],
)
def test_a_published_file_gives_the_published_losses(tmp_path, weights, golden, changes):
    arguments = [
        f"--checkpoint={save_golden_file(tmp_path / 'golden.safetensors', weights)}",
        f"--config={golden_config_file(tmp_path, **changes)}",
        f"--images={save_golden_images(tmp_path / 'images.npy', golden)}",
    ]
    expected = goldens.load(golden)
    found = evaluated(tmp_path, *arguments)
    np.testing.assert_allclose(found["loss"], expected["loss_mse"], rtol=LOSS_RTOL)
    found = evaluated(tmp_path, *arguments, "--config.loss.kind=l1")
    np.testing.assert_allclose(found["loss"], expected["loss_l1"], rtol=LOSS_RTOL)


@pytest.mark.parametrize("size", [96, 32])
def test_another_image_size_gives_the_published_loss(run, tmp_path, size):
    key = f"B_tiny_block_hot/images_{size}"
    images = save_golden_images(tmp_path / "images.npy", "E_pos_interp", key)
    found = evaluated(tmp_path, f"--checkpoint={run}", f"--images={images}", f"--image_size={size}")
    expected = goldens.load("E_pos_interp")[f"B_tiny_block_hot/loss_mse_{size}"]
    np.testing.assert_allclose(found["loss"], expected, rtol=LOSS_RTOL)
    assert found["image_size"] == size


def normalised(pixels, config):
    values = pixels.astype(np.float32) / 255
    return (values - np.float32(config.data.mean)) / np.float32(config.data.std)


def test_images_of_the_models_size_are_not_resampled(run, pixels, found, tmp_path):
    """The config resizes to 80 before it crops 64: the loss is that of the pixels all the same."""
    np.save(tmp_path / "floats.npy", normalised(pixels, golden_config()))
    exact = evaluated(tmp_path, f"--checkpoint={run}", f"--images={tmp_path / 'floats.npy'}")
    np.testing.assert_allclose(found["loss"], exact["loss"], rtol=LOSS_RTOL)
    np.save(tmp_path / "pixels.npy", pixels)
    array = evaluated(tmp_path, f"--checkpoint={run}", f"--images={tmp_path / 'pixels.npy'}")
    assert array["loss"] == pytest.approx(found["loss"], rel=LOSS_RTOL)


def test_every_image_is_listed_once_in_order_and_a_broken_one_is_counted(
    run, folder, found, tmp_path
):
    assert [entry["key"] for entry in found["per_image"]] == sorted(
        path.name for path in folder.iterdir()
    )
    losses = [entry["loss"] for entry in found["per_image"]]
    assert losses[6] is None and found["unusable"] == ["05b.png"] and found["images"] == 11
    assert found["loss"] == pytest.approx(np.mean([x for x in losses if x is not None]), rel=1e-12)

    alone = evaluated(tmp_path, f"--checkpoint={run}", f"--images={folder / '03.png'}")
    np.testing.assert_allclose(losses[3], alone["loss"], rtol=LOSS_RTOL)


def test_the_same_command_writes_the_same_bytes_and_names_the_broken_image(
    run, folder, written, tmp_path, capsys
):
    evaluated(tmp_path, f"--checkpoint={run}", f"--images={folder}", "--per_image")
    assert (tmp_path / "out.json").read_bytes() == written.read_bytes()
    said = capsys.readouterr()
    assert "05b.png is unusable" in said.err
    assert "over 11 images" in said.out and "and 1 that cannot be used" in said.out


@pytest.mark.parametrize("keys", [["mesh.data=1", "mesh.fsdp=8"], ["mesh.fsdp=2", "mesh.tensor=2"]])
def test_the_loss_is_the_same_on_any_mesh_in_any_batches(run, folder, found, tmp_path, keys):
    arguments = [f"--checkpoint={run}", f"--images={folder}", "--per_image", "--batch_size=8"]
    other = evaluated(tmp_path, *arguments, *(f"--config.{key}" for key in keys))
    assert other["loss"] == pytest.approx(found["loss"], rel=LOSS_RTOL)
    for ours, theirs in zip(other["per_image"], found["per_image"], strict=True):
        assert ours["key"] == theirs["key"]
        assert ours["loss"] == (theirs["loss"] and pytest.approx(theirs["loss"], rel=5e-6))


def test_the_loss_on_the_held_out_images_is_the_runs_validation_loss(run, folder, tmp_path):
    config = golden_config(
        **{"data.dataset": "folder", "data.data_dir": str(folder), "data.eval_resize": 64}
    )
    params = goldens.params_of("B_tiny_block_hot", SPEC)
    workdir = save_checkpoint(tmp_path / "run", config, params)
    validated = make_evaluation(config, SPEC, make_mesh({"data": 8}))(params)
    found = evaluated(tmp_path, f"--checkpoint={workdir}")
    assert found["images"] == validated["images"]
    assert found["loss"] == pytest.approx(validated["loss"], rel=LOSS_RTOL)


def test_an_imported_probe_gives_its_accuracy_without_training(pixels, tmp_path, capsys):
    file = save_golden_probe(tmp_path / "probe.safetensors", "att")
    imported = import_weights(file, golden_config(), probe_heads=4, probe_layers=2)
    workdir = write_checkpoint(imported, tmp_path / "imported")

    encoder = bind_encoder(SPEC, imported.params["encoder"])
    inputs = patchify(normalised(pixels, golden_config()), SPEC.grid)
    classes = np.argmax(trained_logits(imported.probe, encoder, inputs), axis=-1)
    labels = np.where(np.arange(11) == 3, (classes + 1) % 10, classes)
    for number in range(10):
        (tmp_path / "images" / str(number)).mkdir(parents=True)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image).save(tmp_path / "images" / str(label) / f"{i}.png")

    arguments = [f"--checkpoint={workdir}", f"--images={tmp_path / 'images'}", "--probe"]
    found = evaluated(tmp_path, *arguments, "--per_image")
    assert (found["correct"], found["images"], found["loss"]) == (10, 11, None)
    assert found["top1"] == pytest.approx(10 / 11)
    (wrong,) = [e for e in found["per_image"] if e["class"] != e["label"]]
    assert wrong["key"].endswith("/3.png")

    (tmp_path / "images" / "10").mkdir()
    assert main(["evaluate", *arguments]) == 2
    assert "has 11 classes, and the probe tells 10 classes apart" in capsys.readouterr().err


def test_losses_that_are_not_finite_fail_the_run(run, folder):
    opened = open_checkpoint(run, settings=SETTINGS)
    opened.params["heads"]["0"]["fc2"]["bias"][:] = np.inf
    with pytest.raises(RunFailed, match="the loss of 11 of 11 images is not finite"):
        evaluate(opened, open_images([str(folder)]))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--probe"], "holds no probe"),
        (["--split=nowhere"], "has no split 'nowhere'"),
        (["--image_size=16"], "have 1 blocks, and the loss of 1 heads needs at least 2"),
        (
            ["--image_size=96", "--config.model.order=pseudo_random"],
            "have 36 blocks, and model.order=pseudo_random is of 16",
        ),
        (["--image_size=60"], "60 is not a multiple of model.patch_size=8"),
        (["--out=/proc/nowhere/out.json"], "cannot write"),
        (["--checkpoint=/nowhere"], "holds no checkpoint"),
        (["--step=7"], "holds no checkpoint of step 7"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_file(
    run, folder, tmp_path, capsys, arguments, expected
):
    out = tmp_path / "out.json"
    given = ["evaluate", f"--checkpoint={run}", f"--images={folder}", f"--out={out}", *arguments]
    assert main(given) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("xtra: ")]
    assert len(lines) == 1 and expected in lines[0]
    assert not out.exists()


def test_an_encoder_alone_has_no_loss(tmp_path, folder, capsys):
    params = {"encoder": goldens.params_of("B_tiny_block_hot", SPEC)["encoder"]}
    workdir = save_checkpoint(tmp_path / "run", golden_config(), params)
    assert main(["evaluate", f"--checkpoint={workdir}", f"--images={folder}"]) == 2
    assert "holds an encoder without its predictor" in capsys.readouterr().err

"""Features through the command line: the published ones, of every image, on any mesh."""

import json
from types import SimpleNamespace

import jax
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
    save_golden_run,
)
from xtra_jax.cli import main
from xtra_jax.data.images import open_images
from xtra_jax.errors import RunFailed, UserError
from xtra_jax.features.job import SETTINGS, extract_features
from xtra_jax.interop.open_checkpoint import open_checkpoint
from xtra_jax.model.masks import block_raster_order
from xtra_jax.probing.features import LINEAR, FeatureSpec, load_encoder

pytestmark = pytest.mark.usefixtures("compiled_once")
SPEC = goldens.tiny_spec()
PUBLISHED = "F_probe_features_uses_B_hot_weights"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's working directory with the golden weights."""
    return save_golden_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven images of several sizes in two classes, the third of them cut short."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(11):
        (path / "ba"[i % 2]).mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (64 + i % 3, 64 + i % 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / "ba"[i % 2] / f"{i:02d}.png")
    broken = path / "a" / "05.png"
    broken.write_bytes(broken.read_bytes()[:50])
    return path


def features_of(path):
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("n2_layeravg1_patchavg0_norm0", ["--last_layers=2", "--tokens"]),
        ("n3_layeravg1_patchavg1_norm1", ["--last_layers=3", "--norm"]),
    ],
)
def test_a_published_file_gives_the_published_features(tmp_path, name, flags):
    arguments = [
        "features",
        f"--checkpoint={save_golden_file(tmp_path / 'golden.safetensors')}",
        f"--config={golden_config_file(tmp_path)}",
        f"--images={save_golden_images(tmp_path / 'images.npy', PUBLISHED, 'images_eval')}",
        f"--out={tmp_path / 'features.npz'}",
    ]
    assert main([*arguments, *flags]) == 0
    found = features_of(tmp_path / "features.npz")
    expected = goldens.load(PUBLISHED)[f"features/{name}"]
    np.testing.assert_allclose(found["features"], expected, rtol=0, atol=5e-5)
    assert found["valid"].all() and found["keys"].tolist() == list("0123")


def test_another_image_size_gives_the_published_features_of_resized_positions(run, tmp_path):
    key = "B_tiny_block_hot/images_96"
    images = save_golden_images(tmp_path / "images.npy", "E_pos_interp", key)
    out = tmp_path / "features.npz"
    arguments = [f"--checkpoint={run}", f"--images={images}", f"--out={out}", "--image_size=96"]
    assert main(["features", *arguments, "--norm", "--tokens"]) == 0
    expected = goldens.load("E_pos_interp")["B_tiny_block_hot/enc_out_96"]
    np.testing.assert_allclose(features_of(out)["features"], expected, rtol=0, atol=5e-5)

    encode = load_encoder(str(run), image_size=96, dtype="float32")
    tokens = encode(np.load(images), FeatureSpec(norm=True, raster=True))
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=5e-5)


def test_every_image_has_its_row_and_a_broken_one_is_named(run, folder, tmp_path, capsys):
    out = tmp_path / "features.npz"
    arguments = ["features", f"--checkpoint={run}", f"--images={folder}", f"--out={out}"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "NaN for 1 unusable images (a/05.png)" in said.out
    assert "a/05.png is unusable" in said.err
    found = features_of(out)
    order = [1, 3, 5, 7, 9, 0, 2, 4, 6, 8, 10]
    names = [f"{'ba'[i % 2]}/{i:02d}.png" for i in order]
    assert found["keys"].tolist() == names
    assert found["labels"].tolist() == [0] * 5 + [1] * 6
    assert found["valid"].tolist() == [i != 5 for i in order]
    assert np.isnan(found["features"][2]).all()
    assert np.isfinite(found["features"][found["valid"]]).all()

    # Each alone, as somebody with a notebook would do it.
    encode = load_encoder(str(run))
    exact = np.asarray(Image.open(folder / "b" / "00.png"))
    assert exact.shape == (64, 64, 3)
    np.testing.assert_allclose(found["features"][5], encode(exact[None])[0], atol=5e-5)

    about = json.loads(found["metadata"].item())
    assert about["features"] == {
        "last_layers": 1,
        "average_layers": True,
        "pool": True,
        "norm": False,
        "raster": False,
    }
    assert about["image_size"] == 64 and about["class_names"] == ["a", "b"]
    assert len(about["encoder_sha256"]) == 64
    assert (about["checkpoint"], about["images"]) == ("run, step 1", folder.name)


def extracted(run, folder, out, features=LINEAR, mesh=(-1, 1, 1), **options):
    overrides = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), mesh, strict=True))
    opened = open_checkpoint(run, settings=SETTINGS, overrides=overrides)
    extract_features(opened, open_images([str(folder)]), str(out), features, **options)
    return features_of(out)


@pytest.mark.parametrize(("mesh", "batch_size"), [((1, 8, 1), 8), ((2, 2, 2), 4)])
def test_features_are_the_same_on_any_mesh_in_any_batches(run, folder, tmp_path, mesh, batch_size):
    one = extracted(run, folder, tmp_path / "one.npz")
    other = extracted(run, folder, tmp_path / "other.npz", mesh=mesh, batch_size=batch_size)
    np.testing.assert_allclose(other["features"], one["features"], rtol=0, atol=1e-5)
    for name in ("keys", "labels", "valid"):
        np.testing.assert_array_equal(other[name], one[name])


def test_float16_holds_the_rounded_features_and_nothing_beyond_its_range(
    run, folder, tmp_path, monkeypatch
):
    one = extracted(run, folder, tmp_path / "one.npz")
    half = extracted(run, folder, tmp_path / "half.npz", dtype="float16")
    np.testing.assert_array_equal(half["features"], one["features"].astype(np.float16))

    opened = open_checkpoint(run, settings=SETTINGS)
    opened.params["encoder"]["norm"]["scale"] *= 1e6
    with pytest.raises(RunFailed, match="is beyond float16, which ends at 65504"):
        extract_features(
            opened,
            open_images([str(folder)]),
            str(tmp_path / "large.npz"),
            FeatureSpec(pool=True, norm=True),
            dtype="float16",
        )
    assert not list(tmp_path.glob("large*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--last_layers=4"], "xtra: last_layers=4, and the encoder has 3 layers: ask for 1 to 3"),
        (["--dtype=int8"], "float32 and float16"),
        (["--image_size=60"], "60 is not a multiple of model.patch_size=8"),
        (["--batch_size=-3"], "batch_size=-3 is no number of images"),
        (["--batch_size=12"], "the nearest sizes that do, are 8 and 16"),
        (["--images=/nowhere"], "/nowhere does not exist"),
        (["--dataset=imagenet2012"], "--images and --dataset name two sets of images"),
        (["--config.model.depth=2"], "holds another model than its config describes"),
        (["--out=features.h5"], "must end in .npz or .safetensors"),
        (["--checkpoint=/nowhere"], "holds no checkpoint"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_file(
    run, folder, tmp_path, capsys, arguments, expected
):
    out = tmp_path / "features.npz"
    given = ["features", f"--checkpoint={run}", f"--images={folder}", f"--out={out}", *arguments]
    assert main(given) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("xtra: ")]
    assert len(lines) == 1 and expected in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_folder_without_one_readable_image_is_one_sentence(run, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="the only image cannot be read"):
        extracted(run, tmp_path / "images", tmp_path / "out.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_features_that_the_disk_has_no_room_for_are_refused_at_once(
    run, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="GiB left: pool them"):
        extracted(run, folder, tmp_path / "out.npz", FeatureSpec(raster=True))


def test_tokens_in_raster_order_are_those_in_block_order_elsewhere(run):
    encode = load_encoder(str(run))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    blocks, raster = encode(images, FeatureSpec()), encode(images, FeatureSpec(raster=True))
    assert isinstance(raster, jax.Array)
    np.testing.assert_array_equal(raster[:, block_raster_order(SPEC.grid)], blocks)


@pytest.mark.parametrize("name", ["out.npz", "out.safetensors"])
def test_a_feature_that_is_not_finite_fails_the_run_and_names_the_image(
    run, folder, tmp_path, name
):
    opened = open_checkpoint(run, settings=SETTINGS)
    opened.params["encoder"]["layers"]["02"]["mlp"]["fc2"]["bias"][0] = np.inf
    with pytest.raises(RunFailed, match="features of a/01.png are not finite, so nothing was"):
        extract_features(opened, open_images([str(folder)]), str(tmp_path / name))
    assert not list(tmp_path.iterdir())


def test_in_python_features_are_float32_whatever_the_run_was_trained_in(run, tmp_path):
    params = goldens.params_of("B_tiny_block_hot", SPEC)
    config = golden_config(**{"model.dtype": "bfloat16"})
    half = save_checkpoint(tmp_path / "half", config, params)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    exact = load_encoder(str(run))(images)
    np.testing.assert_array_equal(load_encoder(str(half))(images), exact)
    assert np.abs(load_encoder(str(half), dtype="bfloat16")(images) - exact).max() > 1e-4


def test_in_python_images_may_be_a_list_and_others_are_one_sentence(run):
    encode = load_encoder(str(run))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(encode(list(images)), encode(images))
    with pytest.raises(UserError, match="takes one array of images"):
        encode([images[0], images[1, :32]])
    with pytest.raises(UserError, match="takes uint8 images"):
        encode(images.tolist())
    for unit in (images / np.float32(255), jax.numpy.asarray(images, np.float32) / 255):
        with pytest.raises(UserError, match=r"floats lie in \[0, 1\]"):
            encode(unit)

"""One --checkpoint for all commands: runs, checkpoints, imports and files, and their mistakes."""

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
    save_golden_probe,
)
from xtra_jax.cli import main
from xtra_jax.errors import UserError
from xtra_jax.interop.imported import write_checkpoint
from xtra_jax.interop.importer import import_weights
from xtra_jax.interop.open_checkpoint import open_checkpoint, open_probe, weights_sha256
from xtra_jax.probing.features import load_encoder
from xtra_jax.probing.results import read_results

SPEC = goldens.tiny_spec()


@pytest.fixture(scope="module")
def params():
    return goldens.params_of("B_tiny_block_hot", SPEC)


@pytest.fixture(scope="module")
def places(params, tmp_path_factory):
    """The same weights in every form that --checkpoint takes."""
    folder = tmp_path_factory.mktemp("places")
    workdir = save_checkpoint(folder / "run", golden_config(), params)
    file = save_golden_file(folder / "golden.safetensors")
    imported = write_checkpoint(import_weights(file, golden_config()), folder / "imported")
    return {
        "run": workdir,
        "checkpoints": workdir / "checkpoints",
        "one": workdir / "checkpoints" / "1",
        "imported": imported,
        "file": file,
    }


@pytest.mark.parametrize("form", ["run", "checkpoints", "one", "imported", "file"])
def test_every_form_gives_the_same_weights_and_config(places, params, form):
    given = {"config": golden_config()} if form == "file" else {}
    opened = open_checkpoint(places[form], **given)
    assert opened.whole and opened.spec == SPEC
    jax.tree.map(np.testing.assert_array_equal, opened.params, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(opened.params)} == {np.dtype(np.float32)}
    assert weights_sha256(opened.params) == weights_sha256(params)


def test_the_digest_is_of_names_shapes_and_values(params):
    changed = jax.tree.map(np.copy, params)
    changed["encoder"]["norm"]["bias"][0] += 1e-3
    renamed = {"encoders" if name == "encoder" else name: part for name, part in params.items()}
    digests = {weights_sha256(tree) for tree in (params, changed, renamed)}
    assert len(digests) == 3


def test_a_loaded_encoder_is_the_same_from_every_form(places):
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    expected = load_encoder(str(places["run"]))(images)
    for form in ("imported", "file"):
        config = golden_config() if form == "file" else ""
        found = load_encoder(str(places[form]), config=config)(images)
        np.testing.assert_array_equal(found, expected)


def test_settings_are_the_callers_and_overrides_go_before_them(places):
    settings = {"mesh.data": 1, "model.dtype": "bfloat16"}
    opened = open_checkpoint(places["run"], settings=settings, overrides={"model.dtype": "float32"})
    assert (opened.config.mesh.data, opened.config.model.dtype) == (1, "float32")
    assert open_checkpoint(places["run"]).config.mesh.data == -1


def test_bfloat16_weights_are_widened_exactly(places, params, tmp_path):
    half = jax.tree.map(lambda leaf: np.asarray(leaf, jax.numpy.bfloat16), params)
    workdir = save_checkpoint(tmp_path / "run", golden_config(), half)
    opened = open_checkpoint(workdir)
    for ours, theirs in zip(jax.tree.leaves(opened.params), jax.tree.leaves(half), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs.astype(np.float32))


@pytest.mark.parametrize(
    ("form", "given", "expected"),
    [
        ("", {}, "no checkpoint was named"),
        ("/nowhere", {}, "/nowhere holds no checkpoint, for it does not exist"),
        ("run", {"step": 7}, "holds no checkpoint of step 7, only of 1"),
        ("file", {"step": 1}, "step 1 was asked for, and .* is a single file"),
        ("run", {"config": "configs/demo.py"}, "holds another model than its config describes: "),
        ("run", {"overrides": {"model.depth": 2}}, r"encoder/layers/02/.* is \[.*\] there and ab"),
        ("run", {"overrides": {"model.deph": 2}}, "model.depth"),
        ("run", {"config": "configs/probe.py:digits"}, "is a probe config"),
        ("run", {"config": "configs/nowhere.py"}, "does not exist"),
    ],
)
def test_every_mistake_is_one_sentence(places, form, given, expected):
    with pytest.raises(UserError, match=expected):
        open_checkpoint(places.get(form, form), **given)


def test_a_folder_of_something_else_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint: give the working directory of a run"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    for other in ("a.safetensors", "mask.safetensors"):
        (tmp_path / other).write_bytes(b"")
    with pytest.raises(UserError, match="did you mean the file .*/model.safetensors"):
        open_checkpoint(tmp_path)


def test_neither_a_mask_nor_a_probe_is_taken_for_the_weights(tmp_path):
    for name in ("mask.safetensors", "probe.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError) as told:
        open_checkpoint(tmp_path)
    assert "did you mean" not in str(told.value)


def test_a_probe_in_a_file_is_no_concern_of_what_needs_the_encoder(params, tmp_path):
    file = save_golden_probe(tmp_path / "att.safetensors", "att")
    opened = open_checkpoint(file, config=golden_config())
    jax.tree.map(np.testing.assert_array_equal, opened.params["encoder"], params["encoder"])
    with pytest.raises(UserError, match="`xtra import .*att.safetensors --out DIR`, by --probe_he"):
        open_probe(opened)

    file = save_golden_probe(tmp_path / "linear.safetensors", "linear_bn")
    found = open_probe(open_checkpoint(file, config=golden_config()))
    expected = import_weights(file, golden_config()).probe
    assert (found.kind, found.num_classes) == ("linear", 10)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_a_file_without_a_probe_is_one_sentence(places):
    with pytest.raises(UserError, match="holds no probe"):
        open_probe(open_checkpoint(places["file"], config=golden_config()))


def test_pictures_can_be_drawn_of_a_file_of_weights(places, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 80, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "one.png")
    drawn = []
    for form in ("file", "run"):
        out = tmp_path / f"{form}.png"
        given = [f"--config={golden_config_file(tmp_path)}"] if form == "file" else []
        arguments = [f"--checkpoint={places[form]}", f"--images={tmp_path / 'images'}", *given]
        assert main(["reconstruct", *arguments, f"--out={out}"]) == 0
        drawn.append(np.asarray(Image.open(out))[-400:])
    np.testing.assert_array_equal(*drawn)


def test_a_file_of_weights_can_be_probed(places, tmp_path):
    out = tmp_path / "probe"
    settings = {"kind": "linear", "steps": 1, "epochs": 0.0, "batch_size": 64, "rates": "0.01"}
    settings |= {"data.data_dir": tmp_path / "data", "data.eval_split": "test[:64]"}
    arguments = [
        f"--checkpoint={places['file']}",
        f"--encoder_config={golden_config_file(tmp_path)}",
        f"--out={out}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]
    assert main(["probe", "--config=configs/probe.py:digits", *arguments]) == 0
    results = read_results(out)
    assert results.provenance.checkpoint == places["file"].name
    assert [history.test.total for history in results.histories] == [64]

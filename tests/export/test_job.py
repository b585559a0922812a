"""An export is whole, says what it is, stands in nobody's way, and comes back as it was."""

import json
import os
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from safetensors import safe_open

from tests import goldens
from tests.export.exported import check_manifest, exported, golden_run, manifest_of
from tests.runs import ROOT
from tests.saved import golden_config, save_checkpoint
from xtra_jax.cli import main
from xtra_jax.config import load, model_spec
from xtra_jax.errors import UserError
from xtra_jax.export.job import FORMATS, export
from xtra_jax.interop.containers import read_tensors
from xtra_jax.interop.importer import import_weights
from xtra_jax.interop.open_checkpoint import open_checkpoint, weights_sha256
from xtra_jax.interop.published import published_shapes
from xtra_jax.model.xtra import init_params


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return golden_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def golden():
    return goldens.subset(goldens.load("B_tiny_block_hot"), "param/")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_the_published_layout_holds_every_golden_tensor_and_nothing_else(
    run, golden, tmp_path, name
):
    tensors = read_tensors(exported(run, tmp_path / "out", "published") / name)
    assert set(tensors) == set(golden)
    for tensor in golden:
        assert tensors[tensor].dtype == np.float32
        np.testing.assert_array_equal(tensors[tensor], golden[tensor], err_msg=tensor)


@pytest.mark.parametrize("format", ["safetensors", "published"])
def test_an_export_comes_back_as_the_same_model_described_as_it_was(run, tmp_path, format):
    folder = exported(run, tmp_path / "out", format)
    before = open_checkpoint(run)
    for file in folder.glob("model.*"):
        back = import_weights(file)
        ours, theirs = before.config.to_dict(), back.config.to_dict()
        for room in ("model", "predictor", "head", "loss"):
            assert theirs[room] == ours[room]
        for key in ("mean", "std", "eval_resize"):
            assert theirs["data"][key] == ours["data"][key]
        assert weights_sha256(back.params) == manifest_of(folder)["weights_sha256"]
        assert jax.tree.structure(back.params) == jax.tree.structure(before.params)
        jax.tree.map(np.testing.assert_array_equal, back.params, before.params)


def test_our_own_names_are_paths_through_the_parameters(run, tmp_path):
    folder = exported(run, tmp_path / "out", "safetensors")
    params = open_checkpoint(run).params
    with safe_open(folder / "model.safetensors", framework="np") as file:
        kernel = file.get_tensor("encoder/layers/02/attention/qkv/kernel")
        assert json.loads(file.metadata()["config"]) == manifest_of(folder)["config"]
        assert file.metadata()["layout"] == "safetensors"
    np.testing.assert_array_equal(
        kernel, params["encoder"]["layers"]["02"]["attention"]["qkv"]["kernel"]
    )
    assert kernel.shape == (48, 3, 3, 16)


@pytest.mark.parametrize(
    ("config", "keys"),
    [("xtra_b16_in1k", "H_keys_B16_256"), ("xtra_h14_in21k", "H_keys_H14_224")],
)
def test_names_and_shapes_of_the_real_sizes_are_the_published_ones(config, keys):
    spec = model_spec(load(f"configs/pretrain/{config}.py"))
    expected = json.loads((goldens.FOLDER / f"{keys}.json").read_text())
    assert {name: list(shape) for name, shape in published_shapes(spec).items()} == expected


@pytest.mark.slow
def test_a_file_of_the_real_size_has_the_published_names_and_shapes(tmp_path):
    config = load("configs/pretrain/xtra_b16_in1k.py")
    params = init_params(model_spec(config), jax.random.key(0))
    run = save_checkpoint(tmp_path / "run", config, params)
    folder = exported(run, tmp_path / "out", "published")
    expected = json.loads((goldens.FOLDER / "H_keys_B16_256.json").read_text())
    for name in ("model.safetensors", "model.pt"):
        sources = read_tensors(folder / name).sources
        assert {n: list(source.shape) for n, source in sources.items()} == expected
        back = import_weights(folder / name)
        jax.tree.map(np.testing.assert_array_equal, back.params, params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_another_dtype_values_are_rounded_to_nearest(run, golden, tmp_path, dtype):
    folder = exported(run, tmp_path / "out", "published", dtype=dtype)
    for name in ("model.safetensors", "model.pt"):
        tensors = read_tensors(folder / name)
        for tensor, expected in golden.items():
            assert tensors[tensor].dtype.name == dtype
            np.testing.assert_array_equal(tensors[tensor], expected.astype(tensors[tensor].dtype))


@pytest.mark.parametrize("container", ["safetensors", "pt"])
def test_one_container_alone_can_be_asked_for(run, tmp_path, container):
    folder = exported(run, tmp_path / "out", "published", containers=(container,))
    assert [path.name for path in folder.glob("model.*")] == [f"model.{container}"]


def test_another_image_size_takes_resized_positions_along(run, tmp_path):
    changed = {"model.image_size": 96, "data.eval_resize": 96}
    folder = exported(run, tmp_path / "out", "published", overrides=changed)
    tensors = read_tensors(folder / "model.pt")
    for name in ("enc.pos_embed", "predictor.pos_embed"):
        assert tensors[name].shape[1] == 144
    assert manifest_of(folder)["config"]["model"]["image_size"] == 96
    expected = goldens.load("E_pos_interp")["B_tiny_block_hot/pos_96"]
    np.testing.assert_allclose(tensors["enc.pos_embed"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", ["safetensors", "published", "timm"])
def test_the_same_checkpoint_gives_the_same_bytes(run, tmp_path, format):
    first, second = (contents(exported(run, tmp_path / n, format)) for n in ("a", "b"))
    assert first == second


def test_an_encoder_alone_can_be_exported_as_far_as_it_goes(run, tmp_path):
    encoder = exported(run, tmp_path / "timm", "timm") / "model.safetensors"
    config = golden_config()
    exported(encoder, tmp_path / "again", "timm", config=config)
    exported(encoder, tmp_path / "ours", "safetensors", config=config)
    assert len(read_tensors(tmp_path / "ours" / "model.safetensors")) == 41
    with pytest.raises(UserError, match="without its predictor, and the published layout needs"):
        export(encoder, str(tmp_path / "published"), "published", config=config)
    assert not (tmp_path / "published").exists()


def test_what_is_there_is_replaced_only_when_told_and_only_an_export(run, tmp_path):
    folder = exported(run, tmp_path / "out", "published")
    before = contents(folder)
    with pytest.raises(UserError, match="holds an export already: .* or add --overwrite"):
        export(run, str(folder), "timm")
    assert contents(folder) == before
    exported(run, folder, "timm", overwrite=True)
    assert not (folder / "model.pt").exists()

    other = tmp_path / "other"
    shutil.copytree(run, other)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds something else than an export"):
            export(run, str(other), "timm", overwrite=overwrite)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file: name a folder"):
        export(run, str(tmp_path / "file"), "timm", overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {"out", "other", "file"}


def test_an_empty_folder_is_as_good_as_none(run, tmp_path):
    (tmp_path / "out").mkdir()
    exported(run, tmp_path / "out", "timm")


def test_a_value_too_large_leaves_nothing_behind_and_what_was_there_in_place(tmp_path):
    config = golden_config()
    params = goldens.params_of("B_tiny_block_hot", model_spec(config))
    params["predictor"]["norm"]["scale"] = np.full(40, 1e5, np.float32)
    run = save_checkpoint(tmp_path / "run", config, params)
    folder = exported(run, tmp_path / "out", "published")
    before = contents(folder)
    with pytest.raises(UserError, match=r"predictor.norm.weight holds 100000, .*float16 is 65504"):
        export(run, str(folder), "published", dtype="float16", overwrite=True)
    assert contents(folder) == before
    assert {p.name for p in tmp_path.iterdir()} == {"run", "out"}


def test_what_a_killed_export_left_is_cleared_away(run, tmp_path):
    left = tmp_path / "out.xtra-export-tmp"
    left.mkdir()
    (left / "model.pt").write_bytes(b"half")
    exported(run, tmp_path / "out", "timm")
    assert not left.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--format=torch"], "--format=torch is not a choice: there are safetensors, published"),
        (["--format=publishd"], "did you mean published? There are"),
        (["--format=timm", "--dtype=float64"], "--dtype=float64 is not a choice: did you mean"),
        (["--format=stablehlo", "--dtype=float16"], "There are float32, bfloat16"),
        (["--format=published", "--container=ckpt"], "--container=ckpt is not a choice"),
        (["--format=timm", "--container=pt"], "--container is for --format=published"),
        (["--format=timm", "--tokens"], "say what a program gives (--format=stablehlo)"),
        (["--format=stablehlo", "--last_layers=4"], "xtra: last_layers=4, and the encoder"),
        (["--format=timm", "--step=7"], "no checkpoint of step 7, only of 1"),
        (["--format=timm", "--config.model.image_size=60"], "not a multiple of model.patch_size"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(
    run, tmp_path, capsys, arguments, sentence
):
    out = tmp_path / "out"
    assert main(["export", f"--checkpoint={run}", f"--out={out}", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_line_says_what_it_wrote(run, tmp_path, capsys, format):
    out = tmp_path / "out"
    assert main(["export", f"--checkpoint={run}", f"--format={format}", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    check_manifest(out)
    for name, file in manifest_of(out)["files"].items():
        assert f"{file['bytes']:,} bytes" in said and name in said


def test_a_link_stays_one_and_leads_to_the_export(run, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for overwrite in (False, True):
        export(run, str(tmp_path / "link"), "timm", overwrite=overwrite)
        check_manifest(tmp_path / "out")
        assert (tmp_path / "link").is_symlink()
        assert {path.name for path in tmp_path.iterdir()} == {"link", "out"}


def test_what_a_killed_export_was_about_to_replace_is_put_back(run, tmp_path):
    folder = exported(run, tmp_path / "out", "published")
    folder.rename(tmp_path / "out.xtra-export-old")
    with pytest.raises(UserError, match="holds an export already"):
        export(run, str(folder), "timm")
    check_manifest(folder)
    exported(run, folder, "timm", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_cannot_take_its_place_leaves_what_was_there(run, tmp_path, monkeypatch):
    folder = exported(run, tmp_path / "out", "published")
    before, rename = contents(folder), Path.rename

    def fail(path, target):
        if str(path).endswith("-tmp"):
            raise OSError("the disk is gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(type(epath.Path(".")), "rename", fail)
    with pytest.raises(UserError, match="the disk is gone"):
        export(run, str(folder), "timm", overwrite=True)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("out", [".", "..", "../here"])
def test_the_current_folder_is_not_moved_away(run, tmp_path, monkeypatch, out):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="name a folder other than the current one"):
        export(run, out, "timm")
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


@pytest.mark.parametrize("format", FORMATS)
def test_no_file_tells_where_things_lie_on_this_machine(tmp_path, format):
    changes = {
        "init_from": "/secret/run",
        "data.dataset": "digits,folder:/secret/images",
        "data.eval_dataset": "folder:/secret/held",
        "data.data_dir": "/secret/data",
        "data.subset": "list:/secret/names.txt",
    }
    folder = exported(golden_run(tmp_path / "run", **changes), tmp_path / "out", format)
    for path in folder.iterdir():
        content = path.read_bytes()
        for place in ("/secret", str(tmp_path), str(ROOT), sys.prefix):
            assert os.fsencode(place) not in content
    data = manifest_of(folder)["config"]["data"]
    assert (data["dataset"], data["subset"]) == ("digits,folder", "list:names.txt")


def test_a_folder_that_cannot_be_made_is_one_sentence(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert main(["export", f"--checkpoint={run}", "--format=timm", f"--out={out}"]) == 2
    assert "Not a directory" in capsys.readouterr().err

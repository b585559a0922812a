"""Encoders alone, under the names of XTRA, timm, MAE and AIM, and this package's own files."""

import json

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests import goldens
from tests.interop import torch_files
from tests.interop.weights import (
    ENCODER,
    FLAGS,
    HEADS,
    SPEC,
    as_aim,
    as_vit,
    bare,
    encoder_only,
    equal,
    tensors,
)
from tests.saved import golden_config
from xtra_jax.cli import main
from xtra_jax.config import load, model_spec
from xtra_jax.errors import UserError
from xtra_jax.interop.importer import import_weights
from xtra_jax.interop.infer import make_config, read_sizes
from xtra_jax.interop.published import published_shapes
from xtra_jax.model.grid import Grid
from xtra_jax.model.variants import EncoderSpec, HeadSpec, PredictorSpec, XTRASpec
from xtra_jax.model.xtra import abstract_params
from xtra_jax.training.checkpoint import read_config, restore_params


def test_an_encoder_alone_is_imported_and_what_is_missing_said(tmp_path, capsys):
    path, out = bare(tmp_path / "x.pt", encoder_only(tensors())), tmp_path / "imported"
    flags = [*FLAGS[:1], "--config.model.block_size=2"]
    assert main(["import", str(path), "--out", str(out), *flags]) == 0
    said = capsys.readouterr().out
    assert "missing: projection, predictor, heads; good for features and probes" in said
    params = restore_params(out)
    assert params.keys() == {"encoder"}
    equal(params["encoder"], goldens.params_of("B_tiny_block_hot", SPEC)["encoder"])
    assert read_config(out)["head"]["num_tokens"] == 0
    with pytest.raises(UserError, match="holds an encoder alone, as the file that it was"):
        restore_params(out, abstract_params(model_spec(golden_config())))  # as `init_from` does
    with pytest.raises(UserError, match=r"is a file, .* `xtra import .*x\.pt --out FOLDER`"):
        restore_params(path)


def test_parts_of_no_use_without_the_rest_are_left_out_and_named(tmp_path):
    named = {n: t for n, t in tensors().items() if not n.startswith("aim_proj")}
    imported = import_weights(bare(tmp_path / "x.pt", named), None, HEADS)
    assert imported.params.keys() == {"encoder"} and imported.report.missing == ["heads"]
    left = imported.report.left_out["of no use without the heads"]
    assert set(left) == {n for n in named if not n.startswith("enc.")}


def test_a_model_without_an_encoder_is_one_sentence(tmp_path):
    named = {n: t for n, t in tensors().items() if n.startswith("predictor")}
    with pytest.raises(UserError, match="named as in no encoder that is known here"):
        import_weights(bare(tmp_path / "x.pt", named))


@pytest.mark.parametrize("rename", [as_vit, as_aim])
def test_timm_and_aim_names_are_the_same_encoder(tmp_path, rename):
    path = bare(tmp_path / "x.pt", rename(tensors()))
    imported = import_weights(path, None, ENCODER)
    equal(imported.params["encoder"], goldens.params_of("B_tiny_block_hot", SPEC)["encoder"])
    assert model_spec(imported.config).grid == SPEC.grid


def test_an_encoder_without_a_mask_gets_one_block_unless_told_otherwise(tmp_path):
    path = bare(tmp_path / "x.pt", as_vit(tensors()))
    imported = import_weights(path, None, {"model.num_heads": 3})
    assert imported.config.model.block_size == 8
    assert any(note.startswith("no mask") for note in imported.report.notes)
    assert not import_weights(path, None, ENCODER).report.notes


def test_a_class_token_is_left_out_with_its_row_of_positions(tmp_path):
    named = as_vit(tensors())
    row = np.full((1, 1, 48), 7, np.float32)
    named["cls_token"] = np.ones((1, 1, 48), np.float32)
    named["pos_embed"] = np.concatenate([row, named["pos_embed"]], axis=1)
    named |= {"mask_token": row, "decoder_embed.weight": row, "decoder_blocks.0.norm1.bias": row}
    imported = import_weights(bare(tmp_path / "x.pt", {"model": named}), None, ENCODER)
    equal(imported.params["encoder"], goldens.params_of("B_tiny_block_hot", SPEC)["encoder"])
    assert imported.report.left_out["this encoder has no class token"] == ["cls_token"]
    assert len(imported.report.left_out["MAE's decoder"]) == 3
    assert any("class token is left out" in note for note in imported.report.notes)


def test_a_bias_that_a_whole_encoder_does_without_is_zeros(tmp_path):
    named = {n: t for n, t in as_aim(tensors()).items() if not n.endswith("qkv.bias")}
    imported = import_weights(bare(tmp_path / "x.pt", named), None, ENCODER)
    (filled,) = imported.report.filled.values()
    assert filled == [f"enc.blocks.{i}.attn.qkv.bias" for i in range(3)]
    flat = flatten_dict(imported.params["encoder"], sep="/")
    assert all(not flat[f"layers/0{i}/attention/qkv/bias"].any() for i in range(3))

    del named["trunk.blocks.1.norm_1.bias"]
    with pytest.raises(UserError, match=r"it lacks enc\.blocks\.1\.norm1\.bias"):
        import_weights(bare(tmp_path / "y.pt", named), None, ENCODER)


def test_aims_fixed_positions_become_a_table(tmp_path):
    named = as_aim(tensors())
    del named["preprocessor.pos_embed"]
    with_size = ENCODER | {"model.image_size": 64, "data.eval_resize": 64}
    imported = import_weights(bare(tmp_path / "x.pt", named), None, with_size)
    table = imported.params["encoder"]["position"]
    for row, column in [(0, 0), (1, 0), (0, 1), (5, 7)]:
        for i in (0, 3, 11):
            wave = 10000 ** (-i / 12)
            expected = [
                np.sin(column * wave),
                np.cos(column * wave),
                np.sin(row * wave),
                np.cos(row * wave),
            ]
            found = table[8 * row + column][[i, 12 + i, 24 + i, 36 + i]]
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_aim_with_a_norm_after_its_patches_is_another_architecture(tmp_path):
    named = as_aim(tensors()) | {"preprocessor.patchifier.norm.weight": np.ones(48, np.float32)}
    with pytest.raises(UserError, match=r"patchifier\.norm\.weight of shape \[48\] has no place"):
        import_weights(bare(tmp_path / "x.pt", named), None, ENCODER)


def test_our_own_names_bring_heads_along(tmp_path):
    flat = flatten_dict(goldens.params_of("B_tiny_block_hot", SPEC), sep="/")
    for separator in "/.":
        named = {name.replace("/", separator): np.asarray(t) for name, t in flat.items()}
        path = torch_files.save_safetensors(tmp_path / "x.safetensors", named)
        imported = import_weights(path)
        equal(imported.params, goldens.params_of("B_tiny_block_hot", SPEC))
        assert model_spec(imported.config).encoder.num_heads == 3


def test_the_config_that_a_file_carries_is_used_where_it_fits(tmp_path):
    config = golden_config(name="carried")
    carried = {"config": json.dumps(config.to_dict())}
    path = torch_files.save_safetensors(tmp_path / "x.safetensors", tensors(), carried)
    found = import_weights(path).config
    assert found.model == config.model and found.predictor == config.predictor
    assert (found.head, found.loss) == (config.head, config.loss)
    content = {"state_dict": tensors(), "about": carried}
    path = torch_files.save(tmp_path / "x.pt", content)
    assert import_weights(path).config.to_dict() == found.to_dict()

    for wrong in ("{", "[]", '{"model": 3}', '{"model": {"width": 49}}', "[" * 60_000):
        path = torch_files.save_safetensors(
            tmp_path / "y.safetensors", tensors(), {"config": wrong}
        )
        with pytest.raises(UserError, match="attention heads"):
            import_weights(path)


def test_what_a_file_says_is_believed_of_its_model_and_pixels_and_nothing_else(tmp_path):
    config = golden_config()
    values = config.to_dict()
    values["data"] |= {"num_workers": 100_000, "data_dir": "/etc", "prefetch": 10**9}
    values["data"] |= {"mean": (0.5, 0.4, 0.3), "std": (0.3, 0.2, 0.1), "eval_resize": 200}
    values |= {"name": "theirs", "init_from": "/theirs", "seed": 9, "batch_size": 10**9}
    values["mesh"]["tensor"] = 7

    def found(resize):
        values["data"]["eval_resize"] = resize
        carried = {"config": json.dumps(values)}
        path = torch_files.save_safetensors(tmp_path / "x.safetensors", tensors(), carried)
        return import_weights(path).config

    expected = load("configs/base.py").to_dict() | {"name": "imported"}
    expected |= {room: values[room] for room in ("model", "predictor", "head", "loss")}
    expected["data"] |= {"mean": (0.5, 0.4, 0.3), "std": (0.3, 0.2, 0.1), "eval_resize": 200}
    assert found(200).to_dict() == expected
    for resize in (10**6, 4 * 64 + 1, 63, "x", None):
        assert found(resize).data.eval_resize == 73


def test_what_a_file_says_of_parts_that_it_lacks_is_not_believed(tmp_path):
    config = golden_config().to_dict()
    config["predictor"]["depth"] = 10**9
    carried = {"config": json.dumps(config)}
    named = encoder_only(tensors())
    path = torch_files.save_safetensors(tmp_path / "x.safetensors", named, carried)
    found = import_weights(path).config
    assert found.model.num_heads == 3 and found.predictor.depth == 8

    config["model"]["image_size"] = 8 * 10**6  # of which fixed positions would be made
    named = as_aim(tensors())
    del named["preprocessor.pos_embed"]
    carried = {"config": json.dumps(config)}
    path = torch_files.save_safetensors(tmp_path / "x.safetensors", named, carried)
    assert import_weights(path, None, ENCODER).config.model.image_size == 224


@pytest.mark.parametrize("rename", [as_vit, as_aim, lambda named: named])
def test_heads_that_are_a_variants_are_said_to_be_assumed(tmp_path, rename):
    spec = XTRASpec(
        EncoderSpec(Grid(32, 16, 1), width=192, depth=12, num_heads=3),
        PredictorSpec(hidden=4, width=4, depth=1, num_heads=1),
        HeadSpec(hidden=4, num_tokens=1),
    )
    shapes = encoder_only(published_shapes(spec))
    named = rename({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    path = torch_files.save_safetensors(tmp_path / "x.safetensors", named)
    expected = "3 heads, as ViT-Ti has, are assumed; --config.model.num_heads=N says otherwise"
    imported = import_weights(path)
    assert imported.report.notes[-1] == expected
    assert model_spec(imported.config).encoder.num_heads == 3
    for heads in (3, 4):
        notes = import_weights(path, None, {"model.num_heads": heads}).report.notes
        assert not any("heads" in note for note in notes)


def test_heads_of_a_published_model_are_said_to_be_assumed():
    shapes = json.loads((goldens.FOLDER / "H_keys_B16_256.json").read_text())
    shapes = {key: tuple(shape) for key, shape in shapes.items()}
    names = {key: key for key in shapes}
    sizes = read_sizes(shapes, names, layout="xtra", whole=True, class_token=False)
    make_config(sizes, given=None, overrides={}, whole=True)
    assert [note.split(" has,")[0] for note in sizes.notes] == [
        "12 heads, as ViT-B",
        "6 heads of the predictor, as the published one of its sizes",
    ]


@pytest.mark.parametrize(("layout", "name"), [("xtra", "xtra_b16_in1k"), ("vit", "imported")])
def test_an_encoder_of_a_published_size_is_told_by_its_names(layout, name):
    shapes = json.loads((goldens.FOLDER / "H_keys_B16_256.json").read_text())
    shapes = {key: tuple(shape) for key, shape in encoder_only(shapes).items()}
    names = {key: key for key in shapes}
    sizes = read_sizes(shapes, names, layout=layout, whole=False, class_token=False)
    config = make_config(sizes, given=None, overrides={}, whole=False)
    assert (config.name, config.model.variant, config.head.num_tokens) == (name, "base", 0)
    assert config.model.block_size == (4 if layout == "xtra" else 16)
    assert model_spec(config).encoder.num_heads == 12

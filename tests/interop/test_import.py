"""`xtra import`: weights come in exactly, and a word is said of every tensor."""

import json

import jax
import numpy as np
import pytest

from tests import goldens
from tests.interop import torch_files
from tests.interop.torch_files import BFLOAT16
from tests.interop.weights import (
    CONTAINERS,
    FLAGS,
    HEADS,
    SPEC,
    bare,
    changed,
    encoder_only,
    equal,
    prefixed,
    tensors,
)
from tests.saved import golden_config, save_golden_images
from xtra_jax.cli import main
from xtra_jax.config import from_dict, load, model_spec
from xtra_jax.errors import UserError
from xtra_jax.interop.importer import import_weights
from xtra_jax.model.xtra import abstract_params
from xtra_jax.training.checkpoint import read_config, restore_params
from xtra_jax.training.restore import read_state


@pytest.mark.parametrize("name", CONTAINERS)
def test_golden_weights_come_in_bit_for_bit_through_the_command_line(name, tmp_path, capsys):
    path, out = CONTAINERS[name](tmp_path / name, tensors()), tmp_path / "imported"
    assert main(["import", str(path), "--out", str(out), *FLAGS]) == 0
    said = capsys.readouterr().out
    assert "whole model, 234,976 parameters from 75 tensors" in said
    assert "width 48, depth 3, 3 heads, patch 8, image 64, block 2" in said
    equal(restore_params(out), goldens.params_of("B_tiny_block_hot", SPEC))

    spec = model_spec(from_dict(read_config(out)))
    assert (spec.encoder.grid, spec.encoder.width) == (SPEC.grid, 48)
    assert (spec.predictor, spec.head) == (SPEC.predictor, SPEC.head)
    report = json.loads((out / "import.json").read_text())
    assert report["used"] == 75 and not report["left_out"] and not report["missing"]
    if name.endswith("ckpt"):
        assert "optimizer_states (225 tensors)" in report["elsewhere"]
        assert report["metadata"] == {"epoch": "799", "global_step": "490400"}
    if name.startswith("mp_rank"):
        assert "optimizer (225 tensors)" in report["elsewhere"]


@pytest.mark.parametrize("name", ["epoch=799.ckpt", "mp_rank_00_model_states.pt"])
def test_what_was_imported_gives_the_golden_features_and_losses(name, tmp_path, runs):
    path, out = CONTAINERS[name](tmp_path / name, tensors()), tmp_path / "imported"
    assert main(["import", str(path), f"--out={out}", *FLAGS]) == 0

    golden = "F_probe_features_uses_B_hot_weights"
    images = save_golden_images(tmp_path / "images.npy", golden, "images_eval")
    command = ["features", f"--checkpoint={out}", f"--images={images}", "--tokens"]
    with runs.cache_here():
        written = tmp_path / "features.npz"
        assert main([*command, "--last_layers=2", f"--out={written}"]) == 0
        with np.load(written) as found:
            expected = goldens.load(golden)["features/n2_layeravg1_patchavg0_norm0"]
            np.testing.assert_allclose(found["features"], expected, rtol=0, atol=5e-5)

        images = save_golden_images(tmp_path / "images.npy")
        written = tmp_path / "loss.json"
        command = ["evaluate", f"--checkpoint={out}", f"--images={images}", f"--out={written}"]
        assert main(command) == 0
    expected = goldens.load("B_tiny_block_hot")["loss_mse"]
    np.testing.assert_allclose(json.loads(written.read_text())["loss"], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float16)], ids=str)
@pytest.mark.parametrize("save", [bare, torch_files.save_safetensors], ids=["pt", "safetensors"])
def test_half_precision_keeps_its_values(tmp_path, dtype, save):
    half = {name: tensor.astype(dtype) for name, tensor in tensors().items()}
    imported = import_weights(save(tmp_path / "x", half), None, HEADS)
    assert {leaf.dtype for leaf in jax.tree.leaves(imported.params)} == {np.dtype(np.float32)}
    expected = goldens.from_published(
        {name: tensor.astype(np.float32) for name, tensor in half.items()}, SPEC
    )
    equal(imported.params, expected)


def test_transposed_tensors_of_one_storage_come_in_right(tmp_path):
    named = {n: np.asfortranarray(t) for n, t in tensors().items()}
    flat = np.concatenate([t.reshape(-1, order="F") for t in named.values()])
    views, at = {}, 0
    for name, tensor in named.items():
        steps = [stride // 4 for stride in tensor.strides]
        views[name] = torch_files.Tensor(flat, at, tensor.shape, steps)
        at += tensor.size
    imported = import_weights(bare(tmp_path / "x.pt", views), None, HEADS)
    equal(imported.params, goldens.params_of("B_tiny_block_hot", SPEC))


def test_a_run_starts_from_an_imported_checkpoint_and_does_not_continue_it(tmp_path, capsys):
    out = tmp_path / "imported"
    path = bare(tmp_path / "x.pt", tensors())
    assert main(["import", str(path), "--out", str(out), *FLAGS]) == 0
    config = golden_config()
    restore_params(out, abstract_params(model_spec(config)))  # as `init_from` does

    with pytest.raises(UserError, match=r"start a new run from them, with --config\.init_from"):
        wanted = {"params": restore_params(out), "step": np.zeros((), np.int32)}
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), wanted)
        read_state(out / "checkpoints" / "0", shapes)


# What the sizes are, is in the tensors.


def shapes_only(name):
    """A published model's tensors, of its real shapes, without their numbers."""
    shapes = json.loads((goldens.FOLDER / f"H_keys_{name}.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("keys", "config"),
    [
        ("B16_256", "configs/pretrain/xtra_b16_in1k.py"),
        ("H14_224", "configs/pretrain/xtra_h14_in21k.py"),
    ],
)
def test_the_published_models_are_recognised_by_their_shapes(keys, config):
    from xtra_jax.interop.infer import make_config, read_sizes

    shapes = shapes_only(keys)
    names = {name: name for name in shapes}
    sizes = read_sizes(shapes, names, layout="xtra", whole=True, class_token=False)
    found = make_config(sizes, given=None, overrides={}, whole=True)
    assert found.to_dict() == load(config).to_dict()


def test_heads_that_cannot_be_known_are_asked_for(tmp_path):
    path = bare(tmp_path / "x.pt", tensors())
    with pytest.raises(UserError, match=r"--config\.model\.num_heads=N"):
        import_weights(path)
    with pytest.raises(UserError, match=r"unknown config key 'model\.num_hads': did you mean"):
        import_weights(path, None, {"model.num_hads": 3})
    with pytest.raises(UserError, match=r"--config\.predictor\.num_heads=N"):
        import_weights(path, None, {"model.num_heads": 3})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"model.width": 60}, r"enc\.patch_embed\.proj\.weight of shape \[48, 3, 8, 8\] says "
         r"model\.width=48, and the config says model\.width=60"),
        ({"model.depth": 4}, "says model.depth=3, and the config says model.depth=4"),
        ({"model.block_size": 4}, "says model.block_size=2, and the config says"),
        ({"model.image_size": 128, "data.eval_resize": 128}, "says model.image_size=64, and the"),
        ({"model.mlp_ratio": 2.0}, "says model.mlp_ratio=4, and the config says model.mlp_ratio=2"),
        ({"predictor.width": 80}, "says predictor.width=40, and the config says"),
        ({"predictor.depth": 1}, "says predictor.depth=2"),
        ({"head.hidden": 95}, "says head.hidden=96"),
        ({"head.num_tokens": 2}, "says head.num_tokens=1"),
    ],
)  # fmt: skip
def test_a_config_that_says_otherwise_is_an_error_with_tensor_and_shape(tmp_path, overrides, said):
    path = bare(tmp_path / "x.pt", tensors())
    config = golden_config(**overrides)
    with pytest.raises(UserError, match=said):
        import_weights(path, config)


def test_a_config_that_agrees_is_taken_as_it_is(tmp_path):
    path = bare(tmp_path / "x.pt", tensors())
    config = golden_config()
    assert import_weights(path, config).config.to_dict() == config.to_dict()


# A word on every tensor.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"enc__norm__bias": None}, r"it lacks enc\.norm\.bias of shape \[48\]"),
        ({"enc__blocks__1__norm1__bias": None}, r"it lacks enc\.blocks\.1\.norm1\.bias"),
        ({"predictor__pos_embed": None}, r"it lacks predictor\.pos_embed of shape \[1, 64, 40\]"),
        ({"enc__extra": np.ones(3, np.float32)}, r"enc\.extra of shape \[3\] has no place"),
        ({"teacher__w": np.ones(3, np.float32)}, r"teacher\.w of shape \[3\] has no place"),
        ({"enc__norm__bias": np.ones(47, np.float32)},
         r"enc\.norm\.bias has shape \[47\], and this model needs \[48\]"),
        ({"enc__pos_embed": np.ones((1, 63, 48), np.float32)}, "63 tokens are no square"),
        ({"enc__blocks__0__attn__qkv__weight": np.ones((144, 47), np.float32)},
         r"has shape \[144, 47\], and \[144, 48\] is expected"),
        ({"enc__norm__bias": np.ones(48, np.int64)}, "enc.norm.bias is of int64"),
        ({"enc__patch_embed__proj__weight": np.zeros((0,), np.float32)}, "zero_to_fp32.py"),
        ({"enc__blocks__1000000__norm1__bias": np.ones(48, np.float32)}, "has no place"),
        ({"enc__blocks__999__norm1__bias": np.ones(48, np.float32)}, "1000 layers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_its_shape(tmp_path, capsys, changes, said):
    path, out = bare(tmp_path / "x.pt", changed(tensors(), **changes)), tmp_path / "imported"
    with pytest.raises(UserError, match=said):
        import_weights(path, None, HEADS)
    assert main(["import", str(path), "--out", str(out), *FLAGS]) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith(f"xtra: {path}: ") and sentence.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_a_huge_shape_without_numbers_is_refused_before_it_is_read(tmp_path):
    empty = np.zeros((1 << 44, 0), np.float32)
    for save in (bare, torch_files.save_safetensors):
        path = save(tmp_path / "x", changed(tensors(), enc__blocks__1__norm1__bias=empty))
        with pytest.raises(UserError, match=r"has shape \[17592186044416, 0\], and this model"):
            import_weights(path, None, HEADS)


def test_tensors_can_be_left_out_by_name(tmp_path):
    named = changed(tensors(), teacher__w=np.ones(3, np.float32))
    path = bare(tmp_path / "x.pt", named)
    imported = import_weights(path, None, HEADS, leave_out=["teacher.*"])
    assert imported.report.left_out == {"as asked for": ["teacher.w"]}
    equal(imported.params, goldens.params_of("B_tiny_block_hot", SPEC))


def test_one_tensor_under_two_names_is_an_error(tmp_path):
    named = tensors() | prefixed({"enc.norm.bias": np.ones(48, np.float32)}, "module.")
    with pytest.raises(
        UserError, match=r"enc\.norm\.bias and module\.enc\.norm\.bias are the same"
    ):
        import_weights(bare(tmp_path / "x.pt", named), None, HEADS)


def test_tensors_that_share_their_numbers_cannot_fill_a_large_model(tmp_path):
    named = tensors()
    matrix = np.zeros((192, 48), np.float32)
    for i in range(3):
        del named[f"enc.blocks.{i}.mlp.fc1.weight"]
    for i in range(90):
        for name in list(encoder_only(tensors())):
            if name.startswith("enc.blocks.0."):
                again = name.replace(".0.", f".{i}.", 1)
                named[again] = matrix if name.endswith("fc1.weight") else tensors()[name]
    shared = {k: v for k, v in named.items()}
    content = {k: torch_files.Tensor(*shared_view(k, v)) for k, v in shared.items()}
    with pytest.raises(UserError, match="several share their numbers"):
        import_weights(bare(tmp_path / "x.pt", content), None, HEADS)


_STORAGES = {}


def shared_view(name, tensor):
    """The same storage for the same kind of tensor, whatever its layer."""
    kind = name.split(".", 3)[-1] if "blocks" in name else name
    flat = _STORAGES.setdefault((kind, tensor.shape), np.ascontiguousarray(tensor).reshape(-1))
    return flat, 0, tensor.shape, [s // 4 for s in np.empty(tensor.shape, np.float32).strides]


# Writing.


def test_nothing_is_overwritten(tmp_path, capsys):
    path, out = bare(tmp_path / "x.pt", tensors()), tmp_path / "imported"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert main(["import", str(path), "--out", str(out), *FLAGS]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["mine"]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    from xtra_jax.interop import imported as module

    result = import_weights(bare(tmp_path / "x.pt", tensors()), None, HEADS)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_text", full)
    with pytest.raises(UserError, match="No space left on device"):
        module.write_checkpoint(result, tmp_path / "imported")
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]

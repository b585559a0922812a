"""Files that PyTorch itself writes are read to the bit, where it is installed to write them."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from xtra_jax.config import model_spec
from xtra_jax.errors import UserError
from xtra_jax.interop.containers import read_tensors
from xtra_jax.interop.importer import import_weights
from xtra_jax.model.patches import patchify
from xtra_jax.model.xtra import bind_encoder
from xtra_jax.probing.features import FeatureSpec, encoder_features

torch = pytest.importorskip("torch")


def tensors():
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    flat = torch.randn(100)
    return {
        "plain": base.clone(),
        "transposed": base.T,
        "view": base[1:3, 2:5],
        "flat": flat.narrow(0, 10, 12).view(3, 4),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "bfloat16": torch.randn(5).bfloat16(),
        "float16": torch.randn(5).half(),
        "float64": torch.randn(5).double(),
        "int64": torch.arange(4),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }


def content(named):
    parameter = torch.nn.Parameter(torch.randn(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    return {
        "state_dict": named,
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": argparse.Namespace(lr=1e-3, path=Path("/x"), names={"a", "b"}),
        "dtype": torch.float32,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_pytorch_saves_is_read_as_pytorch_reads_it(tmp_path, zipped):
    named = tensors()
    path = tmp_path / "x.ckpt"
    torch.save(content(named), path, _use_new_zipfile_serialization=zipped)
    read = read_tensors(path)
    assert read.sources.keys() == named.keys() and not read.unreadable
    for name, tensor in named.items():
        expected = tensor.detach()
        if tensor.dtype == torch.bfloat16:
            expected = expected.float()
            assert str(read[name].dtype) == "bfloat16"
            np.testing.assert_array_equal(read[name].astype(np.float32), expected.numpy())
        else:
            assert read[name].dtype == expected.numpy().dtype
            np.testing.assert_array_equal(read[name], expected.numpy(), err_msg=name)
    assert "optimizer_states (3 tensors)" in read.elsewhere


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_modules_state_dict_is_read(tmp_path, zipped):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    path = tmp_path / "x.pth"
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=zipped)
    read = read_tensors(path)
    assert list(read.sources) == list(module.state_dict())
    np.testing.assert_array_equal(read["0.weight"], module[0].weight.detach().numpy())
    assert read["1.num_batches_tracked"] == 0


def test_a_file_without_checksums_is_read(tmp_path):
    path = tmp_path / "x.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(4.0)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(read_tensors(path)["w"], [0, 1, 2, 3])


def test_a_whole_module_is_one_sentence(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(torch.nn.Linear(3, 4), path)
    with pytest.raises(UserError, match="it holds no dict of tensors"):
        read_tensors(path)


def test_tensors_that_are_no_plain_arrays_are_named(tmp_path):
    path = tmp_path / "x.pth"
    odd = {
        "sparse": torch.eye(3).to_sparse(),
        "float8": torch.zeros(4).to(torch.float8_e4m3fn),
        "complex": torch.zeros(4, dtype=torch.complex64),
        "w": torch.arange(4.0),
    }
    torch.save(odd, path)
    read = read_tensors(path)
    assert list(read.sources) == ["w"]
    assert read.unreadable.keys() == {"sparse", "float8", "complex"}
    assert "torch._utils._rebuild_sparse_tensor" in read.unreadable["sparse"]


@pytest.mark.parametrize("prefix", ["", "model."])
def test_timms_encoder_gives_timms_features(tmp_path, prefix):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 0}
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", **options, **sizes).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(8.0 if "qkv.weight" in name else 1.0).add_(0.01)
    path = tmp_path / "x.pth"
    torch.save({prefix + name: tensor for name, tensor in model.state_dict().items()}, path)

    imported = import_weights(path, None, {"model.num_heads": 3, "model.dtype": "float32"})
    spec = model_spec(imported.config)
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    patches = patchify(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), spec.grid)
    encoder = bind_encoder(spec, imported.params["encoder"])
    ours = encoder_features(encoder, patches, FeatureSpec(norm=True))
    with torch.no_grad():
        theirs = model.forward_features(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-5)

"""What is written by hand, others read: safetensors, zip files and, where it is there, PyTorch."""

import io
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors

from xtra_jax.errors import UserError
from xtra_jax.interop.writers import DTYPES, write_safetensors, write_torch

NESTED = {
    "whole": 7,
    "negative": -3,
    "long": 2**40,
    "rate": 1e-3,
    "flag": True,
    "off": False,
    "none": None,
    "text": "größer",
    "pair": (0.3, 1.0),
    "empty": {},
    "list": [1, "a", [2.5]],
}


@pytest.fixture
def tensors():
    random = np.random.default_rng(0)
    return {
        "mask": np.eye(3, dtype=bool),
        "transposed": random.normal(size=(5, 3)).astype(np.float32).T,
        "sliced": random.normal(size=(4, 6)).astype(np.float32)[::2, 1::2],
        "vector": random.normal(size=7).astype(np.float32),
        "one": np.float32([[2.5]]),
    }


def written(write, tensors, **how) -> bytes:
    file = io.BytesIO()
    write(file, tensors, **how)
    return file.getvalue()


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """By the safetensors library, which knows bfloat16 and leaves the array of it to us."""
    dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": bool}
    return {
        name: np.frombuffer(tensor["data"], dtypes[tensor["dtype"]]).reshape(tensor["shape"])
        for name, tensor in safetensors.deserialize(data)
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_safetensors_library_reads_names_shapes_dtypes_and_values(tensors, dtype):
    read = read_safetensors(written(write_safetensors, tensors, dtype=dtype))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor if tensor.dtype == bool else tensor.astype(DTYPES[dtype])
        assert read[name].dtype == expected.dtype
        np.testing.assert_array_equal(read[name], expected, err_msg=name)


def test_a_safetensors_file_says_of_itself_what_it_is_told_and_is_aligned(tensors):
    data = written(write_safetensors, tensors, metadata={"format": "pt", "config": '{"ü": 1}'})
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert header["__metadata__"] == {"format": "pt", "config": '{"ü": 1}'}
    assert size % 8 == 0
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.itemsize == 0


@pytest.mark.parametrize("write", [write_safetensors, write_torch])
def test_a_value_too_large_for_the_dtype_is_refused_with_its_tensor(tensors, write):
    tensors["vector"][3] = -70000
    with pytest.raises(UserError, match=r"vector holds 70000, .* float16 is 65504: use another"):
        written(write, tensors, dtype="float16")
    written(write, tensors, dtype="bfloat16")


def test_infinities_that_were_there_before_stay():
    bias = np.float32([[0, -np.inf]])
    read = read_safetensors(written(write_safetensors, {"bias": bias}, dtype="float16"))
    np.testing.assert_array_equal(read["bias"], bias)


def test_the_container_of_pytorch_is_a_sound_zip_file_with_aligned_tensors(tensors):
    data = written(write_torch, tensors)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.read("model/byteorder") == b"little"
        for i, tensor in enumerate(tensors.values()):
            raw = archive.read(f"model/data/{i}")
            assert raw == np.ascontiguousarray(tensor).tobytes()
            assert data.find(raw, archive.getinfo(f"model/data/{i}").header_offset) % 64 == 0


@pytest.mark.parametrize("write", [write_safetensors, write_torch])
def test_the_same_tensors_give_the_same_bytes(tensors, write):
    assert written(write, tensors) == written(write, tensors)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pytorch_reads_tensors_and_settings_and_runs_no_code(tensors, tmp_path, dtype, mapped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    path.write_bytes(
        written(write_torch, tensors, dtype=dtype, beside={"hyper_parameters": NESTED})
    )
    read = torch.load(path, weights_only=True, mmap=mapped)
    assert read["hyper_parameters"] == NESTED
    assert read["state_dict"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        loaded = read["state_dict"][name]
        assert loaded.dtype == (torch.bool if tensor.dtype == bool else getattr(torch, dtype))
        assert loaded.is_contiguous() and not loaded.requires_grad
        expected = tensor if tensor.dtype == bool else tensor.astype(DTYPES[dtype])
        got = loaded.view(torch.uint8) if loaded.dtype == torch.bool else loaded.float()
        np.testing.assert_array_equal(got.numpy(), expected.astype(np.float32), err_msg=name)


def test_what_is_no_setting_is_a_mistake_of_the_caller(tensors):
    with pytest.raises(TypeError, match="ndarray is nothing that a checkpoint's settings hold"):
        written(write_torch, tensors, beside={"array": np.zeros(3)})


def test_dtypes_are_named_as_numpy_names_them():
    assert {name: dtype.name for name, dtype in DTYPES.items()} == {n: n for n in DTYPES}
    assert DTYPES["bfloat16"] == ml_dtypes.bfloat16

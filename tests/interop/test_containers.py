"""Files of weights are read exactly, and no more is believed of them than they can hold."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest

from tests.interop import torch_files
from tests.interop.torch_files import BFLOAT16, Tensor
from xtra_jax.errors import UserError
from xtra_jax.interop.containers import read_tensors

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(5, 7)).astype(np.float32)


def save(path, tensors, **options):
    return torch_files.save(path, {"state_dict": tensors}, **options)


def only(path, name="w"):
    return np.asarray(read_tensors(path)[name])


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize(
    "dtype",
    [np.float64, np.float32, np.float16, BFLOAT16, np.int64, np.int32, np.uint8, np.bool_],
    ids=lambda dtype: np.dtype(dtype).name,
)
def test_every_dtype_keeps_its_values_in_either_byte_order(tmp_path, dtype, byteorder):
    tensor = (MATRIX * 9).astype(dtype)
    read = only(save(tmp_path / "x.pt", {"w": tensor}, byteorder=byteorder))
    assert read.dtype == tensor.dtype
    np.testing.assert_array_equal(read, tensor)


def test_views_of_one_storage_are_told_apart(tmp_path):
    flat = np.arange(60, dtype=np.float32)
    views = {
        "whole": Tensor(flat, 0, (60,), (1,)),
        "offset": Tensor(flat, 12, (3, 4), (4, 1)),
        "transposed": Tensor(flat, 12, (4, 3), (1, 4)),
        "every other": Tensor(flat, 1, (5, 2), (12, 2)),
        "scalar": Tensor(flat, 59, (), ()),
        "empty": Tensor(flat, 0, (0, 3), (3, 1)),
    }
    path = save(tmp_path / "x.pt", views)
    assert len([n for n in zipfile.ZipFile(path).namelist() if "/data/" in n]) == 1
    tensors = read_tensors(path)
    np.testing.assert_array_equal(tensors["whole"], flat)
    np.testing.assert_array_equal(tensors["offset"], flat[12:24].reshape(3, 4))
    np.testing.assert_array_equal(tensors["transposed"], flat[12:24].reshape(3, 4).T)
    np.testing.assert_array_equal(
        tensors["every other"], [[1, 3], [13, 15], [25, 27], [37, 39], [49, 51]]
    )
    assert tensors["scalar"] == 59 and tensors["empty"].shape == (0, 3)


def test_a_transposed_array_is_saved_and_read_transposed(tmp_path):
    flat = np.arange(12, dtype=np.float32)
    read = only(save(tmp_path / "x.pt", {"w": flat.reshape(3, 4).T}))
    np.testing.assert_array_equal(read, flat.reshape(3, 4).T)


@pytest.mark.parametrize("key", ["state_dict", "module", "model", "model_state_dict", None])
def test_the_state_dict_is_found_and_the_rest_told(tmp_path, key):
    tensors = {"a": MATRIX, "b": MATRIX.T.copy()}
    content = tensors
    if key:
        content = {"epoch": 7, key: tensors, "optimizer": {"m": [MATRIX * 2, MATRIX * 3]}}
    read = read_tensors(torch_files.save(tmp_path / "x.pt", content))
    assert dict(read.sources).keys() == {"a", "b"}
    assert read.elsewhere == (("epoch", "optimizer (2 tensors)") if key else ())
    assert read.metadata == ({"epoch": "7"} if key else {})


def test_a_file_of_an_older_pytorch_is_read_too(tmp_path):
    flat = np.arange(12, dtype=np.float32)
    content = {"module": {"w": flat.reshape(3, 4).T, "h": MATRIX.astype(np.float16)}, "step": 1}
    tensors = read_tensors(torch_files.save_legacy(tmp_path / "x.pt", content))
    np.testing.assert_array_equal(tensors["w"], flat.reshape(3, 4).T)
    np.testing.assert_array_equal(tensors["h"], MATRIX.astype(np.float16))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16, np.int64])
def test_safetensors_are_read(tmp_path, dtype):
    tensor = (MATRIX * 9).astype(dtype)
    path = torch_files.save_safetensors(
        tmp_path / "x.safetensors", {"w": tensor, "scalar": tensor[0, 0]}, {"step": "9"}
    )
    tensors = read_tensors(path)
    np.testing.assert_array_equal(tensors["w"], tensor)
    assert tensors["scalar"] == tensor[0, 0] and tensors.metadata == {"step": "9"}


def test_what_the_safetensors_library_writes_is_read(tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": MATRIX, "i": np.arange(3)}, tmp_path / "x.safetensors", {"a": "b"})
    np.testing.assert_array_equal(only(tmp_path / "x.safetensors"), MATRIX)


def test_a_dtype_without_numbers_that_numpy_has_is_named(tmp_path):
    header = {"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    tensors = read_tensors(safetensors_of(tmp_path, header, b"1234"))
    assert not tensors and tensors.unreadable == {"w": "its dtype"}


def test_a_flipped_bit_in_the_numbers_is_found_by_the_checksum(tmp_path):
    path = save(tmp_path / "x.pt", {"w": MATRIX})
    data = bytearray(path.read_bytes())
    data[data.find(MATRIX.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"'x/data/0' is damaged: its checksum is wrong"):
        only(path)


def test_a_flipped_bit_is_found_where_only_a_part_of_the_storage_is_wanted(tmp_path):
    flat = np.arange(12, dtype=np.float32)
    path = save(tmp_path / "x.pt", {"w": Tensor(flat, 0, (3,), (1,))})
    data = bytearray(path.read_bytes())
    data[data.find(flat.tobytes()) + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="checksum"):
        only(path)


def test_a_file_that_was_written_without_checksums_is_read(tmp_path):
    path = save(tmp_path / "x.pt", {"w": MATRIX}, checksums=False)
    np.testing.assert_array_equal(only(path), MATRIX)


def zip_with(tmp_path, pickle: bytes, *, method=zipfile.ZIP_STORED, **entries):
    content = {"x/data.pkl": pickle} | {f"x/data/{k}": v for k, v in entries.items()}
    return torch_files.write_zip(tmp_path / "x.pt", content, method)


def pickle_of(shape, stride, offset=0, numel=4):
    """A state dict with one tensor, of a storage "0" of float32, as it claims to be."""
    value = {"state_dict": {"w": Tensor(np.zeros(numel, np.float32), offset, shape, stride)}}
    return torch_files.pickled(value)[0]


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((5,), (1,), 0),
        ((4,), (1,), 1),
        ((2, 2), (3, 1), 0),
        ((1 << 20, 1 << 20), (0, 0), 0),  # 4 TB of one number
        ((1 << 40,), (1,), 0),
        ((1,), (1,), 1 << 40),
    ],
)
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path, shape, stride, offset):
    path = zip_with(tmp_path, pickle_of(shape, stride, offset), **{"0": bytes(16)})
    with pytest.raises(UserError, match="does not fit its storage of 16 bytes"):
        read_tensors(path)


def test_a_storage_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="its storage '0' is missing"):
        read_tensors(zip_with(tmp_path, pickle_of((4,), (1,))))


def test_a_storage_key_is_a_name_and_no_path(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(16))
    data = pickle_of((4,), (1,)).replace(b"X\x01\x00\x00\x000", b"X\x0c\x00\x00\x00../../secret")
    with pytest.raises(UserError, match="is missing"):
        read_tensors(zip_with(tmp_path, data, **{"0": bytes(16)}))


def test_names_that_lead_out_of_the_archive_are_never_followed(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = save(inside / "x.pt", {"w": MATRIX})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../escaped", "x")
        archive.writestr("/tmp/escaped-from-a-checkpoint", "x")
    np.testing.assert_array_equal(only(path), MATRIX)
    assert [p.name for p in tmp_path.rglob("*")] == ["inside", "x.pt"]


def test_a_compressed_archive_is_refused_before_it_grows(tmp_path):
    path = zip_with(tmp_path, bytes(1 << 24), method=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 17
    with pytest.raises(UserError, match="is compressed, and a checkpoint"):
        read_tensors(path)


def directory_of(data: bytes) -> int:
    return struct.unpack_from("<I", data, data.rfind(b"PK\x05\x06") + 16)[0]


def test_entries_that_overlap_are_refused(tmp_path):
    path = zip_with(tmp_path, pickle_of((4,), (1,)), **{"0": bytes(64), "1": bytes(64)})
    data = bytearray(path.read_bytes())
    second = data.find(b"x/data/1", directory_of(data)) - 46
    first = data.find(b"x/data/0", directory_of(data)) - 46
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    name = data.find(b"x/data/1", directory_of(data))
    data[name : name + 8] = b"x/data/0"
    path.write_bytes(data)
    with pytest.raises(UserError, match="two entries of the name"):
        read_tensors(path)
    data[name : name + 8] = b"x/data/1"
    header = struct.unpack_from("<I", data, first + 42)[0]
    data[header + 30 : header + 38] = b"x/data/1"
    path.write_bytes(data)
    with pytest.raises(UserError, match="an entry is not where its directory says"):
        read_tensors(path)


def test_an_entry_of_more_than_the_file_is_refused(tmp_path):
    path = zip_with(tmp_path, pickle_of((4,), (1,)), **{"0": bytes(64)})
    data = bytearray(path.read_bytes())
    at = data.find(b"x/data/0", directory_of(data)) - 46
    struct.pack_into("<II", data, at + 20, 1 << 31, 1 << 31)
    path.write_bytes(data)
    with pytest.raises(UserError, match="overlap or reach beyond its end"):
        read_tensors(path)


def test_a_huge_pickle_is_refused_unread(tmp_path):
    path = zip_with(tmp_path, bytes(17 << 20))
    with pytest.raises(UserError, match=r"its pickle .* takes 17,825,792 bytes"):
        read_tensors(path)


def test_a_torchscript_program_is_refused(tmp_path):
    content = {"x/data.pkl": b"}.", "x/constants.pkl": b").", "x/code/model.py": b"import os"}
    with pytest.raises(UserError, match="a TorchScript program"):
        read_tensors(torch_files.write_zip(tmp_path / "x.pt", content))


def safetensors_of(tmp_path, header, content=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + content)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"w": entry([2], 0, 4)}, r"'w' has shape \[2\] of F32 and 4 bytes"),
        ({"w": entry([2], 0, 8), "v": entry([2], 4, 12)}, "overlap or leave gaps"),
        ({"w": entry([1], 0, 4), "v": entry([1], 8, 12)}, "overlap or leave gaps"),
        ({"w": entry([1 << 40], 0, 1 << 42)}, "it is cut short or damaged"),
        ({"w": entry([-1], 0, 4)}, "its header is damaged"),
        ({"w": entry([1.0], 0, 4)}, "its header is damaged"),
        ({"w": entry([True], 0, 4)}, "its header is damaged"),
        ({"w": {"dtype": "F32"}}, "its header is damaged"),
        ({"w": 3}, "its header is damaged"),
        (b'{"w": 1, "w": 2}', "a name occurs twice"),
        (b'{"a":' + b"[" * 100_000, "it nests too deep"),
        (b"{not json}", "its header is damaged"),
        ({"w": entry([1], 0, 4)}, "it is cut short or damaged"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header, said):
    content = bytes(4) if header == {"w": entry([2], 0, 4)} else b""
    with pytest.raises(UserError, match=said) as raised:
        read_tensors(safetensors_of(tmp_path, header, content))
    assert "\n" not in str(raised.value)


def test_a_safetensors_header_longer_than_the_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="it ends at byte 10"):
        read_tensors(safetensors_of(tmp_path, b"{}", size=1 << 20))
    with pytest.raises(UserError, match="its header would take"):
        read_tensors(safetensors_of(tmp_path, b"{}", size=1 << 30))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no file of weights that is known here"),
        (b"hello, world", "no file of weights that is known here"),
        (b"PK\x03\x04", "it is cut short"),
        (b"\x80\x02}.", "no file of weights that is known here"),
    ],
)
def test_other_files_are_one_sentence(tmp_path, content, said):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_tensors(path)


def test_a_zip_of_something_else_is_one_sentence(tmp_path):
    path = torch_files.write_zip(tmp_path / "x.pt", {"hello.txt": b"hello"})
    with pytest.raises(UserError, match="it has no data.pkl"):
        read_tensors(path)


def test_a_folder_names_the_file_in_it(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    save(tmp_path / "checkpoint" / "mp_rank_00_model_states.pt", {"w": MATRIX})
    with pytest.raises(UserError, match=r"is a folder: did you mean .*mp_rank_00"):
        read_tensors(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        read_tensors(tmp_path / "missing.pt")


@pytest.mark.parametrize(
    "made", ["checkpoints/7/state", "7/state", "state"], ids=["run", "checkpoints", "one"]
)
def test_a_folder_of_a_run_is_said_to_be_a_checkpoint_already(tmp_path, made):
    (tmp_path / made).mkdir(parents=True)
    save(tmp_path / "probe.pt", {"w": MATRIX})
    with pytest.raises(UserError, match="is a checkpoint of xtra_jax already"):
        read_tensors(tmp_path)


def test_a_folder_names_its_model_and_never_a_mask_or_a_probe(tmp_path):
    for name in ("mask.safetensors", "probe.safetensors"):
        torch_files.save_safetensors(tmp_path / name, {"w": MATRIX})
    with pytest.raises(UserError, match="is a folder, and a file is needed"):
        read_tensors(tmp_path)
    for name in ("ema.safetensors", "model.safetensors"):
        torch_files.save_safetensors(tmp_path / name, {"w": MATRIX})
    with pytest.raises(UserError, match=r"did you mean .*/model\.safetensors\?"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("name", ["w" * 300, "a\nb", "a\x1b[2J"], ids=["long", "line", "escape"])
def test_a_tensor_with_a_name_that_cannot_be_shown_is_refused(tmp_path, name):
    for path in (
        save(tmp_path / "x.pt", {name: MATRIX}),
        torch_files.save_safetensors(tmp_path / "x.safetensors", {name: MATRIX}),
    ):
        with pytest.raises(UserError, match="which no checkpoint has") as raised:
            read_tensors(path)
        assert str(raised.value).isprintable() and len(str(raised.value)) < 400


def test_axes_that_no_array_can_have_are_refused_even_without_numbers(tmp_path):
    path = zip_with(tmp_path, pickle_of((0, 1 << 47, 1 << 47), (1, 1, 1)), **{"0": bytes(16)})
    with pytest.raises(UserError, match="a tensor of the huge shape"):
        read_tensors(path)
    path = safetensors_of(tmp_path, {"w": entry([0, 1 << 47, 1 << 47], 0, 0)})
    with pytest.raises(UserError, match="'w' has the huge shape"):
        read_tensors(path)


def test_a_byte_order_of_many_bytes_is_refused_unread(tmp_path):
    content = {"x/data.pkl": pickle_of((4,), (1,)), "x/data/0": bytes(16)}
    path = torch_files.write_zip(tmp_path / "x.pt", content | {"x/byteorder": bytes(100)})
    with pytest.raises(UserError, match="its byte order takes 100 bytes"):
        read_tensors(path)


def test_a_file_without_tensors_says_what_it_has(tmp_path):
    path = torch_files.save(tmp_path / "x.pt", {"config": 1, "epoch": 2})
    with pytest.raises(UserError, match=r"its keys are 'config', 'epoch'"):
        read_tensors(path)


def test_objects_of_other_packages_do_not_keep_a_file_from_being_read(tmp_path):
    content = {
        "state_dict": {"w": MATRIX},
        "hyper_parameters": torch_files.Hyperparameters(lr=1e-3, name="x"),
    }
    path = torch_files.save(tmp_path / "x.ckpt", content)
    pickle = zipfile.ZipFile(io.BytesIO(path.read_bytes())).read("x/data.pkl")
    assert b"pytorch_lightning.utilities" in pickle
    tensors = read_tensors(path)
    np.testing.assert_array_equal(tensors["w"], MATRIX)
    assert tensors.elsewhere == ("hyper_parameters",)

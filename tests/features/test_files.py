"""Files of features: whole or absent, readable by others, and larger than the memory."""

import json
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open

from xtra_jax.errors import UserError
from xtra_jax.features.files import feature_file

KEYS = ["a/1.png", "b/ü.png", "c\n.png"]
VALID = np.array([True, False, True])
ABOUT = {"checkpoint": "run", "features": {"last_layers": 2}}


def write(path, features, labels=None, pieces=2, dtype="float32"):
    with feature_file(str(path), features.shape, dtype, ABOUT) as file:
        for rows in np.array_split(features, pieces):
            file.add(rows)
        file.finish(valid=VALID, keys=KEYS, labels=labels)


def read(path):
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            found = dict(file)
        return found | {"keys": found["keys"].tolist(), "metadata": found["metadata"].item()}
    with safe_open(path, "np") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()["xtra_jax"]
    return found | {"keys": json.loads(bytes(found["keys"])), "metadata": metadata}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 2)])
def test_what_is_written_in_pieces_is_read_whole(tmp_path, suffix, dtype, shape):
    features = np.random.default_rng(0).normal(size=shape).astype(dtype)
    features[1] = np.nan
    path = tmp_path / f"features{suffix}"
    write(path, features, np.array([4, -1, 2]), dtype=dtype)
    found = read(path)
    assert found.keys() == {"features", "labels", "valid", "keys", "metadata"}
    np.testing.assert_array_equal(found["features"], features)
    assert found["features"].dtype == dtype
    assert found["labels"].tolist() == [4, -1, 2] and found["labels"].dtype == np.int32
    assert found["valid"].tolist() == VALID.tolist() and found["valid"].dtype == bool
    assert found["keys"] == KEYS
    assert json.loads(found["metadata"]) == ABOUT


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_without_labels_there_is_no_array_of_them(tmp_path, suffix):
    write(tmp_path / f"features{suffix}", np.zeros((3, 2), np.float32))
    assert "labels" not in read(tmp_path / f"features{suffix}")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_what_fails_leaves_nothing_and_what_was_there(tmp_path, suffix):
    path = tmp_path / f"features{suffix}"
    write(path, np.ones((3, 2), np.float32))
    before = path.read_bytes()
    with (
        pytest.raises(RuntimeError, match="the device is gone"),
        feature_file(str(path), (3, 2), "float32", ABOUT) as file,
    ):
        file.add(np.zeros((1, 2), np.float32))
        raise RuntimeError("the device is gone")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_of_the_users_own_beside_it_stays(tmp_path, suffix):
    (tmp_path / f"features{suffix}.tmp").write_text("mine")
    write(tmp_path / f"features{suffix}", np.ones((3, 2), np.float32))
    assert (tmp_path / f"features{suffix}.tmp").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    rows = np.zeros((64, 4096), np.float32)  # a mebibyte
    path = tmp_path / f"features{suffix}"
    tracemalloc.start()
    with feature_file(str(path), (64 * 64, 4096), "float32", {}) as file:
        for _ in range(64):
            file.add(rows)
        file.finish(valid=np.ones(64 * 64, bool), keys=["key"] * 64 * 64, labels=None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 64 * 2**20 > 16 * peak


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("features.h5", "must end in .npz or .safetensors"),
        ("folder.npz", "is a folder"),
        ("file.txt/features.npz", "cannot write"),
        ("gs://bucket/features.npz", "local files only"),
    ],
)
def test_a_name_that_cannot_be_written_is_one_sentence(tmp_path, name, expected):
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file.txt").write_text("")
    path = name if "://" in name else str(tmp_path / name)
    with (
        pytest.raises(UserError, match=expected),
        feature_file(path, (1, 1), "float32", {}) as file,
    ):
        file.add(np.zeros((1, 1), np.float32))

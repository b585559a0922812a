"""Files from strangers: no code runs, nothing hangs, memory is bounded, one sentence each."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.interop import torch_files
from xtra_jax.cli import main
from xtra_jax.interop.published import published_shapes
from xtra_jax.model.grid import Grid
from xtra_jax.model.variants import EncoderSpec, HeadSpec, PredictorSpec, XTRASpec

ROOT = Path(__file__).parents[2]
HEADS = ["--config.model.num_heads=2", "--config.predictor.num_heads=2"]


def small_tensors():
    spec = XTRASpec(
        EncoderSpec(Grid(8, 2, 2), width=8, depth=1, num_heads=2),
        PredictorSpec(hidden=4, width=4, depth=1, num_heads=2),
        HeadSpec(hidden=4),
    )
    rng = np.random.default_rng(0)
    shapes = published_shapes(spec)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


class Call:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_files(folder, marker):
    """Files that would leave a marker behind if anything in them were run."""
    (folder / "trap.py").write_text(
        f"open({str(marker)!r}, 'w').close()\ndef make(*_): return {{}}\n"
    )
    touch = f"touch {marker}"
    named = small_tensors()
    calls = {
        "system": Call(os.system, touch),
        "evaluate": Call(eval, f"open({str(marker)!r}, 'w')"),
        "popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "import": Call(__import__, "trap"),
        "nested": Call(dict, Call(zip, [Call(os.system, touch)], [1])),
    }
    paths = []
    for name, call in calls.items():
        content = {"state_dict": named, "hyper_parameters": {"x": [call]}}
        paths.append(torch_files.save(folder / f"{name}.ckpt", content))
        paths.append(torch_files.save_legacy(folder / f"{name}_legacy.ckpt", content))
        instead = {"state_dict": named | {"enc.norm.bias": call}}
        paths.append(torch_files.save(folder / f"{name}_as_tensor.ckpt", instead))

    data, storages = torch_files.pickled({"state_dict": named})
    body = data[:-1]  # without its end, so that more can follow
    by_hand = {
        "reduced_twice": body + b"0ctrap\nmake\n)R)R.",
        "instance": body + b"0(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "state_set": body + b"0cposix\nsystem\n(S'" + touch.encode() + b"'\ntR.",
        "proto_4": body + b"0\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.",
        "extension": body + b"0\x82\x01.",
    }
    for name, pickled in by_hand.items():
        entries = {"x/data.pkl": pickled}
        entries |= {f"x/data/{key}": array.tobytes() for key, array in storages.items()}
        paths.append(torch_files.write_zip(folder / f"{name}.ckpt", entries))
    return paths


def test_pickles_that_would_run_code_are_refused_in_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    marker, out = tmp_path / "ran", tmp_path / "imported"
    paths = hostile_files(tmp_path, marker)
    before = sorted(tmp_path.iterdir())
    for path in paths:
        assert main(["import", str(path), "--out", str(out), *HEADS]) == 2, path
        said = capsys.readouterr().err
        assert said.startswith(f"xtra: {path} is refused, and nothing in it was run"), said
        assert said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before and "trap" not in sys.modules


def test_the_hostile_pickles_do_run_code_elsewhere(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    marker = tmp_path / "ran"
    archives = [p for p in hostile_files(tmp_path, marker)[:3] if zipfile.is_zipfile(p)]
    assert len(archives) >= 2
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            Anything(archive.read(f"{path.stem}/data.pkl")).load()
        assert marker.exists()
        marker.unlink()


class Anything(pickle.Unpickler):
    """Python's own, with something in place of what PyTorch would have given."""

    def __init__(self, data):
        import io

        super().__init__(io.BytesIO(data))

    def persistent_load(self, pid):
        return None

    def find_class(self, module, name):
        if module.startswith("torch"):
            return lambda *_: None
        return super().find_class(module, name)


def test_a_class_of_a_training_framework_is_neither_imported_nor_in_the_way(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    marker = tmp_path / "ran"
    hostile_files(tmp_path, marker)
    data, storages = torch_files.pickled({"state_dict": small_tensors()})
    body = data[:-1] + b"X\x01\x00\x00\x00hctrap\nmake\n(K\x01tRs."
    entries = {"x/data.pkl": body}
    entries |= {f"x/data/{key}": array.tobytes() for key, array in storages.items()}
    path = torch_files.write_zip(tmp_path / "x.ckpt", entries)
    assert main(["import", str(path), "--out", str(tmp_path / "imported"), *HEADS]) == 0
    assert not marker.exists() and "trap" not in sys.modules


def repeated():
    """Pickles in which one large object is named again and again."""
    state = torch_files.pickled({"state_dict": {"w": np.zeros(4, np.float32)}})[0][:-1]
    numbers = b"](" + b"".join(b"J" + i.to_bytes(4, "little") for i in range(60_000)) + b"e"
    pairs = b"](" + b"".join(b"J" + i.to_bytes(4, "little") + b"N\x86" for i in range(60_000))
    ordered = b"ccollections\nOrderedDict\nr\x01\x01\x00\x00"
    text = b"X" + (4 << 20).to_bytes(4, "little") + b"." * (4 << 20)
    get, get_2 = b"j\x00\x01\x00\x00", b"j\x01\x01\x00\x00"

    def put(made):
        return made + b"r\x00\x01\x00\x00"

    def under_x(made):
        return state + b"X\x01\x00\x00\x00x" + made + b"s."

    return {
        "pairs": under_x(
            put(pairs + b"e\x85") + ordered + b"](" + (get_2 + get + b"R") * 3000 + b"e"
        ),
        "arguments": under_x(
            put(b"](" + b"N" * 900_000 + b"e")
            + b"0ctorch._utils\n_rebuild_parameter\nr\x01\x01\x00\x000("
            + b"N" * 900_000
            + b"tr\x00\x01\x00\x00]("
            + (get_2 + get + b"R") * 60_000
            + b"e"
        ),
        "names": under_x(put(text) + b"](" + (get + get + b"\x93") * 300_000 + b"e"),
        "keys": under_x(
            put(text)
            + b"0"
            + text
            + b"r\x01\x01\x00\x00}("
            + (get + b"N" + get_2 + b"N") * 300_000
            + b"u"
        ),
        "memo_collisions": b"]"
        + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(500_000))
        + b"0"
        + state[2:]
        + b".",
        "walked": state
        + put(numbers)
        + b"0"
        + b"".join(b"X\x06\x00\x00\x00%06d" % i + get + b"s" for i in range(100_000))
        + b".",
    }


def bombs(folder):
    """Small files that would take a lot of memory or time from a trusting reader."""
    named = small_tensors()
    many = b"\x80\x02" + b"]" * 15_000_000 + b"."
    yield torch_files.write_zip(folder / "instructions.pt", {"x/data.pkl": many})
    memo = b"\x80\x02}r\xff\xff\xff\xff" + b"j\xff\xff\xff\xff0" * 1000 + b"."
    yield torch_files.write_zip(folder / "memo.pt", {"x/data.pkl": memo})
    deep = b"\x80\x02" + b"(" * 900_000 + b"t" * 900_000 + b"."
    yield torch_files.write_zip(folder / "deep.pt", {"x/data.pkl": deep})
    doubled = b"\x80\x02]q\x00" + b"(h\x00h\x00e" * 100_000 + b"."
    yield torch_files.write_zip(folder / "doubled.pt", {"x/data.pkl": doubled})
    number = b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\xff" * 1000 + b"."
    yield torch_files.write_zip(folder / "number.pt", {"x/data.pkl": number})
    digits = b"\x80\x02I" + b"9" * 10_000_000 + b"\n."
    yield torch_files.write_zip(folder / "digits.pt", {"x/data.pkl": digits})
    path = folder / "deflated.pt"
    yield torch_files.write_zip(path, {"x/data.pkl": bytes(200 << 20)}, zipfile.ZIP_DEFLATED)
    shared = torch_files.Tensor(np.zeros(1, np.float32), 0, (1 << 20, 1 << 20), (0, 0))
    yield torch_files.save(folder / "expanded.pt", named | {"enc.pos_embed": shared})
    tensors = {f"enc.blocks.{i}.norm1.bias": np.zeros(1, np.float32) for i in range(3000)}
    yield torch_files.save(folder / "layers.pt", named | tensors)
    for name, pickled in repeated().items():
        entries = {"x/data.pkl": pickled, "x/data/0": bytes(16)}
        yield torch_files.write_zip(folder / f"{name}.pt", entries)
    entries = {"x/data.pkl": pickled, "x/data/0": bytes(16), "x/byteorder": b"b" * (1 << 20)}
    yield torch_files.write_zip(folder / "byteorder.pt", entries)
    huge = {"w": {"dtype": "F32", "shape": [0, 1 << 47, 1 << 47], "data_offsets": [0, 0]}}
    text = json.dumps(huge).encode()
    path = folder / "huge.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    yield path
    empty = torch_files.Tensor(np.zeros(1, np.float32), 0, (1 << 40, 0), (1, 1))
    yield torch_files.save(folder / "empty.pt", named | {"enc.pos_embed": empty})
    wide = {"enc.patch_embed.proj.weight": np.zeros((1 << 18, 3, 1, 1), np.float32)}
    yield torch_files.save(folder / "wide.pt", named | wide)
    header = {"w": {"dtype": "F32", "shape": [1 << 30, 1 << 30], "data_offsets": [0, 1 << 62]}}
    text = json.dumps(header).encode()
    path = folder / "claims.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    yield path


_BOUNDED = """
import resource, sys
from xtra_jax.interop.importer import import_weights
from xtra_jax.interop.infer import make_config
from xtra_jax.errors import UserError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
try:
    import_weights(sys.argv[1], None, {"model.num_heads": 2, "predictor.num_heads": 2})
except UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_bombs_take_neither_memory_nor_time(tmp_path):
    for path in bombs(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", _BOUNDED, str(path)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=300,
        )
        assert done.returncode == 0, (path.name, done.stderr[-800:])
        assert done.stdout.count("\n") == 1 and str(path) in done.stdout, (path.name, done.stdout)
        assert "enough memory" not in done.stdout, path.name
        path.unlink()


def mutate(tmp_path, count, seed):
    """Imports `count` mutations of a file of each container in a process of its own."""
    folder = tmp_path / "whole"
    folder.mkdir()
    named = small_tensors()
    content = {"state_dict": named, "hyper_parameters": torch_files.Hyperparameters(lr=1.0)}
    torch_files.save(folder / "zip.ckpt", content)
    torch_files.save_legacy(folder / "legacy.ckpt", content)
    torch_files.save_safetensors(folder / "x.safetensors", named)
    done = subprocess.run(
        [sys.executable, "-m", "tests.interop.mutations", str(folder), str(count), str(seed)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check(found, runs):
    assert found["runs"] == runs and not found["bad"], found["bad"][:5]
    assert not found["events"]
    assert found["slowest"] < 20
    assert len(found["sentences"]) > 10  # the mutations reach into all of it
    assert found["imported"] < 0.3 * runs


def test_damaged_files_are_one_sentence_each(tmp_path):
    check(mutate(tmp_path, 40, seed=1), 120)


@pytest.mark.slow
def test_thousands_of_damaged_files_are_one_sentence_each(tmp_path):
    check(mutate(tmp_path, 900, seed=2), 2700)

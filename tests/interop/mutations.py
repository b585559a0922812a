"""Imports mutated files in this process and tells what became of them; see test_hostile_files.py.

    python -m tests.interop.mutations FOLDER COUNT SEED

The folder holds whole files of weights. Each is damaged COUNT times in the ways of its container,
and imported by the command line's own function, under a limit on memory and a limit on time, while
an audit hook watches for anything that runs code or reaches out. Prints JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import shutil
import signal
import struct
import sys
import time
import zipfile
from pathlib import Path

MEMORY = 2 << 30  # bytes beyond what the libraries take
SECONDS = 30
FORBIDDEN = {
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
    "ctypes.dlopen",
    "shutil.move",
    "urllib.Request",
    "webbrowser.open",
}
_EXTREME = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
_INSTRUCTIONS = b"()]}.0123NRcibostuaeqrhjQPB\x80\x81\x82\x85\x8a\x8c\x8f\x90\x93\x94\x95"


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one or a few mistakes in them."""
    data = bytearray(data)
    kind = rng.randrange(6)
    at = rng.randrange(len(data))
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        size = rng.choice([1, 2, 4, 8])
        data[at : at + size] = struct.pack("<Q", rng.choice(_EXTREME))[:size]
    elif kind == 3:
        del data[at : at + rng.choice([1, 4, 40])]
    elif kind == 4:
        begin = rng.randrange(len(data))
        data[at:at] = data[begin : begin + rng.choice([1, 8, 200])]
    else:
        for _ in range(rng.choice([1, 3])):
            data[rng.randrange(len(data))] = rng.choice(_INSTRUCTIONS)
    return bytes(data)


def ends(data: bytes, rng: random.Random, size: int) -> bytes:
    """Damage in the first or the last bytes, where containers keep their directories."""
    if rng.random() < 0.5:
        return damaged(data[:size], rng) + data[size:]
    return data[:-size] + damaged(data[-size:], rng)


def with_damaged_pickle(data: bytes, rng: random.Random) -> bytes:
    """A zip archive whose checksums are right, of a pickle that is not."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, damaged(content, rng) if name.endswith("data.pkl") else content)
    return made.getvalue()


def mutated(name: str, data: bytes, rng: random.Random) -> bytes:
    if name.endswith(".safetensors"):
        header = 8 + int.from_bytes(data[:8], "little")
        return ends(data, rng, header) if rng.random() < 0.8 else damaged(data, rng)
    if name.startswith("legacy"):
        return damaged(data[:9000], rng) + data[9000:] if rng.random() < 0.8 else damaged(data, rng)
    choice = rng.random()
    if choice < 0.5:
        return with_damaged_pickle(data, rng)
    return ends(data, rng, 4000) if choice < 0.8 else damaged(data, rng)


def main(folder: str, count: str, seed: str) -> None:
    import numpy as np

    from xtra_jax.cli import main as xtra
    from xtra_jax.training.checkpoint import restore_params

    files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    work = Path(folder).parent / "mutations"
    work.mkdir()
    out = work / "imported"
    command = ["--out", str(out), "--config.model.num_heads=2", "--config.predictor.num_heads=2"]

    def run(name: str, data: bytes) -> tuple[int, str, float]:
        path = work / name
        path.write_bytes(data)
        begin, said, told = time.monotonic(), io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(told):
            signal.alarm(SECONDS)
            code = xtra(["import", str(path), *command])
            signal.alarm(0)
        path.unlink()
        return code, said.getvalue(), time.monotonic() - begin

    for name, data in files.items():  # all is imported and compiled once before limits are set
        assert run(name, data)[0] == 0
        whole = restore_params(out)
        shutil.rmtree(out)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    watching, events = [False], []
    sys.addaudithook(
        lambda event, _: events.append(event) if watching[0] and event in FORBIDDEN else None
    )

    rng = random.Random(int(seed))
    found = {"runs": 0, "imported": 0, "changed": 0, "slowest": 0.0, "bad": [], "sentences": {}}
    for name, data in files.items():
        for _ in range(int(count)):
            changed = mutated(name, data, rng)
            watching[0] = True
            code, said, seconds = run(name, changed)
            watching[0] = False
            found["runs"] += 1
            found["slowest"] = max(found["slowest"], seconds)
            one_sentence = said.startswith("xtra: ") and said.count("\n") == 1 and len(said) < 700
            if code == 0:
                found["imported"] += 1
                flat = [np.asarray(x) for x in _leaves(restore_params(out))]
                same = [np.array_equal(a, b) for a, b in zip(flat, _leaves(whole), strict=False)]
                found["changed"] += not all(same)
                shutil.rmtree(out)
            elif code != 2 or not one_sentence or "enough memory" in said:
                found["bad"].append(f"{name}: {code} {said}")
            else:
                kind = said.split(":")[-1].strip()[:60]
                found["sentences"][kind] = found["sentences"].get(kind, 0) + 1
            left = [path.name for path in work.iterdir()]
            if left:
                found["bad"].append(f"{name} left {left}")
    found["events"] = events
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(found))


def _leaves(tree: dict) -> list:
    found = []
    for key in sorted(tree):
        found += _leaves(tree[key]) if isinstance(tree[key], dict) else [tree[key]]
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])

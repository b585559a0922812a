"""Features and losses that two processes share are those of one."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from tests.runs import ROOT, Run, free_port
from tests.saved import save_golden_run


def start(command: str, workdir, folder, out, number: int, *place: str, devices: int) -> Run:
    variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    arguments = [f"--checkpoint={workdir}", f"--images={folder}", f"--out={out}", *place]
    return Run(
        [sys.executable, "-m", "xtra_jax", command, *arguments],
        os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        out.parent / f"{out.name}-{number}.log",
    )


def alone_and_in_two(command: str, workdir, folder, one, two) -> None:
    start(command, workdir, folder, one, 0, devices=1).succeed()
    place = ("--coordinator", f"127.0.0.1:{free_port()}", "--num_processes", "2", "--process_id")
    pair = [start(command, workdir, folder, two, i, *place, str(i), devices=2) for i in range(2)]
    for process in pair:
        process.succeed()
    assert any("1 " in line for line in pair[0].own_lines)
    # A bad image is named by the process that read it.
    assert [line for line in pair[1].own_lines if "is unusable" not in line] == []


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path):
    workdir = save_golden_run(tmp_path / "run")
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(7):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:60])

    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    alone_and_in_two("features", workdir, folder, one, two)
    with np.load(one) as ours, np.load(two) as theirs:
        np.testing.assert_allclose(theirs["features"], ours["features"], rtol=0, atol=1e-5)
        for name in ("keys", "valid"):
            np.testing.assert_array_equal(theirs[name], ours[name])

    one, two = tmp_path / "one.json", tmp_path / "two.json"
    alone_and_in_two("evaluate", workdir, folder, one, two)
    ours, theirs = (json.loads(path.read_text()) for path in (one, two))
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-6)
    assert (theirs["images"], theirs["unusable"]) == (6, ["5.png"])

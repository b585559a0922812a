"""A probe that two processes share is the probe of one."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.runs import ROOT, Run, free_port

QUICK = {
    "steps": 8,
    "epochs": 0.0,
    "eval_every": 4,
    "log_every": 4,
    "batch_size": 16,
    "probe.last_layers": 1,
    "data.num_workers": 0,
}


def start_probe(runs, workdir, out, number: int, *place: str, devices: int) -> Run:
    data = str(runs.overrides()["data.data_dir"])
    keys = [f"--config.{key}={value}" for key, value in (QUICK | {"data.data_dir": data}).items()]
    command = [sys.executable, "-m", "xtra_jax", "probe", "--config=configs/probe.py:digits", *keys]
    variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return Run(
        [*command, f"--checkpoint={workdir}", f"--out={out}", *place],
        os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        out.parent / f"{out.stem}-{number}.log",
    )


@pytest.mark.slow
def test_two_processes_probe_as_one_and_count_every_example_once(runs, tmp_path):
    workdir = tmp_path / "run"
    runs.start(workdir, {"steps": 5}).succeed()
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    start_probe(runs, workdir, one, 0, devices=4).succeed()
    place = ("--coordinator", f"127.0.0.1:{free_port()}", "--num_processes", "2", "--process_id")
    pair = [start_probe(runs, workdir, two, i, *place, str(i), devices=2) for i in range(2)]
    for process in pair:
        process.succeed()
    assert "best accuracy" in pair[0].output and "chosen on" in pair[0].output
    assert pair[1].own_lines == []

    ours, theirs = (json.loads(path.read_text())["heads"] for path in (two, one))
    assert len(ours) == len(theirs) > 1
    for a, b in zip(ours, theirs, strict=True):
        assert a["last"]["total"] == b["last"]["total"] == 355  # of the digits, an uneven number
        assert a["last"]["loss"] == pytest.approx(b["last"]["loss"], rel=1e-4)

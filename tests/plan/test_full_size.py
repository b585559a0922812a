"""XTRA-H/14's step, compiled whole for chips that are not here: what it needs, and its layouts.

Each takes minutes: `make test-slow`. Nothing is timed; an accelerator would add its kernels' own
workspaces, which no compiler knows without one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks.gpu_layouts import batch_minor
from tests.plan.cuda_environment import ROOT, cuda_python, environment

GIB = 2**30


def compiled_ahead(python, env, tmp_path, *options) -> dict:
    out = tmp_path / "ahead.jsonl"
    command = [str(python), "-m", "benchmarks.gpu_ahead", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = out.read_text().splitlines()
    return json.loads(line)


@pytest.mark.slow
def test_h14_at_batch_128_fits_an_h100_and_transposes_no_float32_activations(tmp_path):
    found = compiled_ahead(
        cuda_python(), environment(), tmp_path, "base", "--depths=32", "--batch=128"
    )
    assert found["settings"]["batch"] == 128 and found["topology"] == "h100:1"
    assert found["program_peak_bytes"] <= 62 * GIB
    assert found["float32_batch_minor"] == []


@pytest.mark.slow
def test_h14_at_64_images_per_chip_fits_a_v5p_with_room_to_spare(tmp_path):
    pytest.importorskip("libtpu")
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    options = ("xla", "--depths=32", "--batch=64", "--topology=v5p:2x2x1")
    found = compiled_ahead(sys.executable, env, tmp_path, *options)
    assert found["program_peak_bytes"] <= 40 * GIB


PROGRAM = """HloModule jit_step, is_scheduled=true

%fused (p.1: f32[30,16]) -> f32[30,16] {
  %p.1 = f32[30,16]{1,0} parameter(0)
  ROOT %inside = f32[30,16]{0,1} transpose(%p.1), dimensions={1,0}
}

ENTRY %main (p: f32[30,16]) -> f32[30,16] {
  %p = f32[30,16]{1,0} parameter(0)
  %fusion = f32[30,16]{1,0} fusion(%p), kind=kLoop, calls=%fused
  %flat = f32[30,16]{0,1} copy(%p)
  %deep = (f32[6,5,16]{0,2,1}, f32[30]{0}) fusion(%p), kind=kInput, calls=%fused
  %half = bf16[30,16]{0,1} copy(%p)
  %small = f32[30,2]{0,1} copy(%p)
  ROOT %out = f32[6,5,16]{2,1,0} bitcast(%p)
}
"""


def test_what_counts_as_a_batch_minor_activation():
    assert batch_minor(PROGRAM, batch=6, tokens=5, width=16) == ["flat", "deep"]

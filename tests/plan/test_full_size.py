"""XTRA-H/14's step, compiled whole for chips that are not here: what it needs, and its layouts.

The step is the one that `xtra pretrain` compiles of the shipped config. Each takes minutes: `make
test-slow`. Nothing is timed; an accelerator would add its kernels' own workspaces, which no
compiler knows without one.
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


def compiled_ahead(python, env, topology: str, *overrides: str) -> dict:
    config = "configs/pretrain/xtra_h14_in21k.py"
    command = [str(python), "-m", "tests.plan.compiled_ahead", config, topology, *overrides]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_h14_at_batch_128_fits_an_h100_and_transposes_no_float32_activations():
    """As it is shipped: the predictor in float32, and cuDNN's attention in the encoder alone."""
    found = compiled_ahead(cuda_python(), environment(), "h100:1", "batch_size=128")
    assert found["per_chip"] == 128
    assert found["attention"] == {"encoder": "cudnn", "predictor": "xla"}
    assert found["bytes"] <= 62 * GIB
    assert found["batch_minor"] == []


@pytest.mark.slow
def test_h14_at_64_images_per_chip_fits_a_v5p_with_room_to_spare():
    pytest.importorskip("libtpu")
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    found = compiled_ahead(sys.executable, env, "v5p:2x2x1", "batch_size=256")
    assert found["per_chip"] == 64 and set(found["attention"].values()) == {"xla"}
    assert found["bytes"] <= 40 * GIB


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

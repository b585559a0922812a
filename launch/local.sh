#!/usr/bin/env bash
# Runs `xtra` on all devices of this machine, from a checkout or an installation:
#
#     launch/local.sh pretrain --config configs/pretrain/xtra_b16_in1k.py --workdir runs/b16
set -euo pipefail

# Training has the GPUs to itself; jax would reserve 75 % of their memory. Nothing on CPU and TPU.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
# Log lines appear when they are written, also in a file.
export PYTHONUNBUFFERED=1

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python=python3
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

exec "$python" -m xtra_jax "$@"

#!/usr/bin/env bash
# Measures the train step on the GPU of this machine: variants, the PyTorch peer, a profile. One
# call takes at most --minutes (9.5), and a further one with the same folder goes on from there.
# Needs jax with CUDA, flax, optax and, for the peer, torch; nothing else of what xtra_jax uses.
#
#     benchmarks/gpu.sh FOLDER [--minutes 9.5] [--only PATTERN ...]
#     benchmarks/gpu.sh FOLDER --platform cpu --tiny      # to try it
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"

#!/usr/bin/env bash
# Measures the train step on the GPU of this machine: variants, the PyTorch peer, a profile. One
# call takes at most --minutes (9.5), and a further one with the same folder goes on from there;
# benchmarks/gpu_questions.py says what to expect of three. On another machine with such a GPU it
# goes on, too, if the folder is brought along, but programs are compiled anew. Ended early, by Ctrl-C
# or SIGTERM, it still writes its tables.
# Needs jax with CUDA, flax, optax and, for the peer, torch; nothing else of what xtra_jax uses.
#
#     benchmarks/gpu.sh FOLDER [--minutes 9.5] [--only PATTERN ...]
#     benchmarks/gpu.sh FOLDER --platform cpu --tiny      # to try it
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"

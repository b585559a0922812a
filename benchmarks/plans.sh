#!/usr/bin/env bash
# Plans ViT-H/14 for three machines without any of them, as the README's table shows it. Each program
# takes minutes to compile, and the largest batch takes three. Needs `pip install .[tpu,cuda]`.
#
#     benchmarks/plans.sh [FOLDER FOR THE JSON FILES]
set -euo pipefail

out="${1:-plans}"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

plan() {
    local name="$1" topology="$2"
    shift 2
    # A plan that does not fit exits with 3 and is a result, too.
    "${PYTHON:-python3}" -m xtra_jax plan \
        --config configs/pretrain/xtra_h14_in21k.py --config.mesh.data=1 --config.mesh.fsdp=-1 \
        --topology "$topology" --largest_batch --out "$out/$name.json" "$@" || [ $? -eq 3 ]
}

plan h14_v5e_8x8 v5e:8x8 --config.model.remat=full      # 32 images per chip
plan h14_v5p_2x2x4 v5p:2x2x4                            # 128 images per chip
plan h14_h100_8 h100:8 --config.accumulate=2            # twice 128 images per chip

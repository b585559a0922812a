#!/usr/bin/env bash
# Plans ViT-H/14 for three machines without any of them, as the README's table shows it. Compiling
# takes minutes each. Needs `pip install '.[tpu,cuda]'`, and no accelerator.
#
#     benchmarks/plans.sh [FOLDER FOR THE JSON FILES] [--largest_batch]
set -euo pipefail

out="${1:-plans}"
[ $# -eq 0 ] || shift
more=("$@")
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

plan() {
    local name="$1" topology="$2"
    shift 2
    # A plan that does not fit exits with 3 and is a result, too.
    "${PYTHON:-python3}" -m xtra_jax plan --config configs/pretrain/xtra_h14_in21k.py \
        --topology "$topology" --out "$out/$name.json" "$@" "${more[@]}" || [ $? -eq 3 ]
}

fsdp=(--config.mesh.data=1 --config.mesh.fsdp=-1)
# 32 images per chip, 128, and twice 128. With 16 shards each has whole tiles of a TPU's memory.
plan h14_v5e_8x8 v5e:8x8 --config.mesh.data=4 --config.mesh.fsdp=16 --config.model.remat=dots
plan h14_v5p_2x2x4 v5p:2x2x4 "${fsdp[@]}"
plan h14_h100_8 h100:8 "${fsdp[@]}" --config.accumulate=2

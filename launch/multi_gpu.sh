#!/usr/bin/env bash
# Runs `xtra` on the NVIDIA GPUs of this host, all of them or those that are named:
#
#     launch/multi_gpu.sh pretrain --config configs/pretrain/xtra_h14_in21k.py --workdir runs/h14
#     CUDA_VISIBLE_DEVICES=0,1,2,3 launch/multi_gpu.sh pretrain ...
#
# One process drives them all. One per GPU would bring nothing to steps of this length, and cost a
# data loader and a compilation each, a port, and a watch over the others.
set -euo pipefail

# Where CUDA doesn't work the run ends and says so; jax alone would go on with the CPU.
nvidia-smi --list-gpus >/dev/null 2>&1 || {
	echo "multi_gpu.sh: nvidia-smi finds no GPU here; launch/local.sh takes what there is" >&2
	exit 2
}
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}"

exec "$(dirname "${BASH_SOURCE[0]}")/local.sh" "$@"

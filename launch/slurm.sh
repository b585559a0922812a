#!/usr/bin/env bash
# Runs `xtra` on the nodes of a Slurm job, one process per node, and continues past its time limit:
#
#     sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh \
#         pretrain --config configs/pretrain/xtra_h14_in21k.py --workdir /shared/runs/h14
#     launch/slurm.sh --dry-run pretrain ...       # prints what the job would run, and runs nothing
#
# Submit it from the root of the checkout. Options of sbatch go before the file and win over these:
#SBATCH --job-name=xtra
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Three minutes before the end every process is told, so that even ViT-H has the time to save.
# Without "B:" the signal goes to the processes that srun starts, not to this script, which goes on.
#SBATCH --signal=USR1@180
set -euo pipefail

fail() {
	echo "slurm.sh: $*" >&2
	exit 2
}

dry_run=false
if [ "${1-}" = --dry-run ]; then
	dry_run=true
	shift
fi
[ $# -gt 0 ] || fail "say what to run, as in: sbatch launch/slurm.sh pretrain --config ... \
--workdir ..."

# Slurm runs a copy of this file from elsewhere.
if [ -n "${SLURM_JOB_ID-}" ]; then
	root="$SLURM_SUBMIT_DIR"
	[ -x "$root/launch/local.sh" ] || fail "$root has no launch/local.sh: submit from the checkout"
else
	root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
	$dry_run || fail "this is no Slurm job: submit it with sbatch launch/slurm.sh $1 ..., or see" \
		"what would run with launch/slurm.sh --dry-run $1 ..."
fi

# A run that was stopped and has saved says so by this exit code; one that is complete exits with 0.
stopped=85
case "$1" in
pretrain | probe) set -- "$@" --stopped_exit_code "$stopped" ;;
esac

# One process for all GPUs of its node, where jax alone would give it the first of them. A process
# for each GPU is jax's own way, and what sbatch --ntasks-per-node=8 gets.
if [ "${SLURM_NTASKS_PER_NODE:-1}" = 1 ] && [ -n "${SLURM_GPUS_ON_NODE-}" ]; then
	JAX_LOCAL_DEVICE_IDS="$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))"
	export JAX_LOCAL_DEVICE_IDS
fi

# Every process may use all CPUs of its node. When one ends, the others have two minutes to end.
set -- srun --cpu-bind=none --kill-on-bad-exit=0 --wait=120 "$root/launch/local.sh" "$@"

if $dry_run; then
	grep '^#SBATCH' "${BASH_SOURCE[0]}"
	printf '%q ' "$@"
	echo
	exit
fi

status=0
"$@" || status=$?
if [ "$status" = "$stopped" ]; then
	# "Incomplete" leaves a job alone that was cancelled meanwhile.
	scontrol requeue Incomplete "$SLURM_JOB_ID" ||
		fail "job $SLURM_JOB_ID can't be requeued: submit it again, and it continues"
	echo "slurm.sh: stopped and saved; job $SLURM_JOB_ID is queued again and will continue"
fi
exit "$status"

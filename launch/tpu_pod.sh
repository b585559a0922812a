#!/usr/bin/env bash
# Runs `xtra` on every host of a Cloud TPU slice, the same command on all, over gcloud's ssh:
#
#     export TPU_NAME=my-slice TPU_ZONE=us-east5-b
#     launch/tpu_pod.sh pretrain --config configs/pretrain/xtra_h14_in21k.py --workdir gs://mine/h14
#     launch/tpu_pod.sh --dry-run pretrain ...     # prints what would run, and runs nothing
#
# The checkout is at TPU_DIR of every host (xtra_jax, from the home folder). Project and account are
# gcloud's own. jax finds the other hosts by itself.
set -euo pipefail

fail() {
	echo "tpu_pod.sh: $*" >&2
	exit 2
}

dry_run=false
if [ "${1-}" = --dry-run ]; then
	dry_run=true
	shift
fi
[ $# -gt 0 ] || fail "say what to run, as in: launch/tpu_pod.sh pretrain --config ... --workdir ..."
[ -n "${TPU_NAME-}" ] || fail "TPU_NAME is not set: give the name of the TPU slice"
[ -n "${TPU_ZONE-}" ] || fail "TPU_ZONE is not set: give the zone of $TPU_NAME, as in us-east5-b"
$dry_run || command -v gcloud >/dev/null ||
	fail "gcloud is not installed: get the Google Cloud CLI, or see what would run with --dry-run"

# Quoted once more, for the shell at the other end.
printf -v words ' %q' "$@"
printf -v folder '%q' "${TPU_DIR:-xtra_jax}"
remote="cd $folder && exec launch/local.sh$words"

set -- gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone "$TPU_ZONE" --worker all \
	--command "$remote"

if $dry_run; then
	echo "# on every host: $remote"
	printf '%q ' "$@"
	echo
	exit
fi
exec "$@"

#!/usr/bin/env bash
# Train on a spot Cloud TPU slice: requests it, installs the last commit, trains on every worker, restarts
# workers that were stopped, and requests a new slice when this one is preempted. It runs until training is
# done: start it in tmux. Ctrl-C makes the workers save and stop. The slice is kept, and paid for, until
# --delete.
#
#   ZONE=us-east5-b TYPE=v6e-16 RUNTIME=v2-alpha-tpuv6e DATA=gs://BUCKET/data launch/tpu_vm.sh [--dry_run] \
#       --config=configs/svamp_mi.py --config.data.root=data --workdir=gs://BUCKET/run
#   ZONE=us-east5-b launch/tpu_vm.sh [--dry_run] --delete
#
# DATA is a folder of a bucket, copied to every worker as data. The workers' service account needs the rights
# named in docs/runs.md. Instead of buckets: SHARE=10.0.0.2:/share, an NFS export that all workers can reach
# (e.g. Filestore), mounted at /shared. NAME tells runs apart. The project is gcloud's own
# (CLOUDSDK_CORE_PROJECT).
set -euo pipefail

name=${NAME:-cot-jax}
zone=${ZONE:?give a zone, e.g. ZONE=us-east5-b}
dry_run=
if [ "${1:-}" = --dry_run ]; then
  dry_run=1
  shift
fi

tpus() {
  if [ -n "$dry_run" ]; then
    printf 'gcloud compute tpus'
    printf ' %q' "$@" "--zone=$zone"
    printf '\n'
  else
    gcloud compute tpus "$@" "--zone=$zone"
  fi
}

on_all_workers() {
  tpus tpu-vm ssh "$name" --worker=all --command="$1"
}

# Deletes the slice as well as the request for it.
delete() {
  tpus queued-resources delete "$name" --force --quiet
}

if [ "${1:-}" = --delete ]; then
  delete
  exit
fi

type=${TYPE:?give an accelerator type, e.g. TYPE=v6e-16}
runtime=${RUNTIME:?give its TPU software version, e.g. RUNTIME=v2-alpha-tpuv6e}

# Brackets and quotes: pkill must find neither its own shell nor the one that trains.
stop='pkill -TERM -f m.cot_jax[.]train'
# A lost connection may have left the last attempt alive: it is stopped on all workers before they start.
train="if $stop; then while $stop; do sleep 5; done; exit 75; fi
cd cot_jax && ../venv/bin/python -m \"cot_jax.train\" --distributed"
for argument in "$@"; do
  train+=" $(printf '%q' "$argument")"
done
# These images come with Python 3.10: uv brings a newer one.
install="set -e
mkdir -p cot_jax/data
tar xzf cot_jax.tar.gz -C cot_jax
"
if [ -n "${SHARE:-}" ]; then
  install+="mountpoint -q /shared || {
  sudo apt-get install -qq -y nfs-common
  sudo mkdir -p /shared
  sudo mount -t nfs $(printf '%q' "$SHARE") /shared
}
"
fi
if [ -n "${DATA:-}" ]; then
  install+="gcloud storage rsync --recursive $(printf '%q' "$DATA") cot_jax/data
"
fi
install+="\
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python 3.12 venv
python3 -m uv pip install --quiet --python venv/bin/python -e 'cot_jax[tpu,buckets]'"

# The request's state; of one that is ACTIVE, the slice's own, which is READY or no use.
state() {
  local found
  if ! found=$(gcloud compute tpus queued-resources describe "$name" "--zone=$zone" \
    --format='value(state.state)' 2>"$scratch/error"); then
    # No answer at all must not look like no slice.
    if grep -q NOT_FOUND "$scratch/error"; then found=NONE; else found=$(<"$scratch/error"); fi
  elif [ "$found" = ACTIVE ]; then
    found=$(gcloud compute tpus tpu-vm describe "$name" "--zone=$zone" --format='value(state)') ||
      found=UNKNOWN
  fi
  echo "$found"
}

request() {
  tpus queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=$runtime" --spot
}

set_up() {
  tpus tpu-vm scp "$source" "$name:cot_jax.tar.gz" --worker=all
  on_all_workers "$install"
}

if [ -n "$dry_run" ]; then
  source=cot_jax.tar.gz
  request
  echo '# when it is ACTIVE:'
  set_up
  on_all_workers "$train"
  echo '# again while it ends with 75; if the slice was taken away, first'
  delete
  exit
fi

scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
source=$scratch/cot_jax.tar.gz
git -C "$(dirname "$0")/.." archive --output="$source" HEAD
trap 'on_all_workers "$stop" || true; exit 75' INT TERM

ready=
while true; do
  current=$(state)
  case $current in
    READY)
      if [ -z "$ready" ]; then
        set_up
        ready=1
      fi
      status=0
      on_all_workers "$train" || status=$?
      if [ "$status" -eq 0 ]; then
        break
      elif [ "$status" -ne 75 ]; then
        # A slice is said to be gone only some time after it went.
        sleep "${POLL:-30}"
        if [ "$(state)" = READY ]; then
          exit "$status"
        fi
      fi
      ;;
    NONE)
      request
      ready=
      ;;
    SUSPENDED | PREEMPTED | TERMINATED)
      delete
      ;;
    FAILED)
      echo "error: $name: the request failed: gcloud compute tpus queued-resources describe $name" >&2
      exit 1
      ;;
    *)
      echo "$name: $current" >&2
      sleep "${POLL:-30}"
      ;;
  esac
done
echo "done; the slice is still there: ZONE=$zone NAME=$name $0 --delete" >&2

#!/usr/bin/env bash
# Train on a Cloud TPU slice: ask for it, install, run on all hosts, again after every preemption.
#
#   NAME=llave PROJECT=my-project ZONE=us-central1-a TOPOLOGY=v5e:8x8 WORKDIR=gs://my-bucket/llave \
#     experiments/launch/tpu_queued_resource.sh [--dry-run] \
#     --config=experiments/llave.py:llava_onevision_7b --config.data.folder=gs://my-bucket/data
#
# WORKDIR is a bucket (jobs train, export, embed and plan), or a folder that SETUP mounts on every
# host: SETUP='mountpoint -q /mnt/runs || sudo mount --mkdir 10.0.0.2:/runs /mnt/runs'
#
# Run it from the repository's root on any machine that has gcloud, and keep it running (tmux): it
# is what starts the run again. What is committed here is what runs there. The slice goes on costing
# until it is deleted, which this script does when the run is finished (KEEP=1: it does not).
# --dry-run prints the commands and runs none of them.
set -euo pipefail

dry_run=0
if [[ ${1:-} == --dry-run ]]; then dry_run=1; shift; fi

need() { [[ -n ${!1:-} ]] || { echo "error: set $1: $2" >&2; exit 2; }; }
need NAME "a name for the slice and its queued resource"
need PROJECT "the Google Cloud project"
need ZONE "a zone that has such TPUs, for example us-central1-a"
need TOPOLOGY "chip and shape as jobs/plan names them: v5e:4x4, v6e:4x4, v5p:2x2x4"
need WORKDIR "the run's folder, gs://<bucket>/<folder> or on a file system that all hosts mount (see SETUP)"
SETUP=${SETUP:-true}       # a command that every host runs before each start: mount WORKDIR
SPOT=${SPOT:-1}            # 0: on demand
RUNTIME=${RUNTIME:-}       # the hosts' image; by default the one for the chip
PYTHON=${PYTHON:-3.12}     # uv installs it, images have older ones
RESTARTS=${RESTARTS:-100}  # failures, preemptions included, before it gives up
POLL=${POLL:-120}          # seconds between looks; hosts take 100 to see that another one is gone
QUICK=${QUICK:-300}        # seconds: five failures in a row so soon after the start end it
KEEP=${KEEP:-0}            # 1: leave the slice when the run is finished
(($#)) || { echo "error: give the flags of unime_jax.main, first of all --config=..." >&2; exit 2; }
if [[ $WORKDIR != gs://?* && $WORKDIR != /* ]]; then
  echo "error: WORKDIR=$WORKDIR must be gs://<bucket>/<folder> or an absolute path that SETUP mounts" >&2
  exit 2
fi

if ! [[ $TOPOLOGY =~ ^(v5e:|v6e:|v5p:[0-9]+x)[0-9]+x[0-9]+$ ]]; then
  echo "error: TOPOLOGY=$TOPOLOGY is none of v5e:AxB, v6e:AxB, v5p:AxBxC" >&2
  exit 2
fi
shape=${TOPOLOGY#*:}
chips=$((${shape//x/*}))
case $TOPOLOGY in
  v5e:*) accelerator=v5litepod-$chips image=v2-alpha-tpuv5-lite ;;
  v6e:*) accelerator=v6e-$chips image=v2-alpha-tpuv6e ;;
  v5p:*) accelerator=v5p-$((2 * chips)) image=v2-alpha-tpuv5 ;;  # by cores; a chip has two
esac

run() {  # prints a command, and runs it unless this is a dry run
  printf '%q ' "$@"; echo
  ((dry_run)) || "$@"
}
place=("--project=$PROJECT" "--zone=$ZONE")
on_all() { run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=all "--command=$1"; }

state() {
  local said
  if said=$(gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" \
    '--format=value(state.state)' 2>&1); then
    echo "$said"
  elif [[ $said == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "$said" >&2
    echo UNKNOWN
  fi
}

create() {
  local flags=("--accelerator-type=$accelerator" "--runtime-version=${RUNTIME:-$image}")
  ((SPOT)) && flags+=(--spot)
  run gcloud compute tpus queued-resources create "$NAME" "--node-id=$NAME" "${place[@]}" \
    "${flags[@]}"
}

delete() { run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet; }

install() {
  run git archive --format=tar.gz "--output=$archive" HEAD &&
    run gcloud compute tpus tpu-vm scp "$archive" "$NAME:unime_jax.tar.gz" "${place[@]}" \
      --worker=all &&
    on_all "mkdir -p unime_jax && tar -xzf unime_jax.tar.gz -C unime_jax && cd unime_jax \
&& python3 -m pip install --quiet --user uv \
&& python3 -m uv venv --quiet --allow-existing --python=$PYTHON .venv \
&& python3 -m uv pip install --quiet --python=.venv -e '.[tpu,gcs]'"
}

archive=${TMPDIR:-/tmp}/unime_jax_$NAME.tar.gz
main=$(printf '%q ' .venv/bin/python -m unime_jax.main --distributed "--workdir=$WORKDIR" "$@")
train() { on_all "{ $SETUP; } && cd unime_jax && exec ${main% }"; }

if ((dry_run)); then
  create; install; train
  ((KEEP)) || delete
  exit
fi
failures=0
failed() {
  if ((++failures > RESTARTS)); then
    echo "error: failed $failures times; see above why" >&2
    exit 1
  fi
  sleep "$POLL"
}
# Any status but 65 is a reason to go on: 143 (SIGTERM), 75 (it hung, and its watchdog ended it), 1 (another
# process failed), and ssh's own. A mistake in the flags or the data fails soon after each start.
quick=0
failed_soon() {
  if (($1 >= QUICK)); then quick=0; return; fi
  if ((++quick >= 5)); then
    echo "error: failed $quick times in a row within $QUICK s of the start; see above why" >&2
    exit 1
  fi
}
installed=0
while true; do
  case $(state) in
    ACTIVE)
      if ((installed)) || install; then
        installed=1
        began=$SECONDS
        status=0
        train || status=$?
        ((status)) || break
        if ((status == 65)); then  # nor would one be next time
          echo "error: no step of the run was finite; see above why" >&2
          exit "$status"
        fi
        failed_soon $((SECONDS - began))
      fi
      failed
      ;;
    NONE) installed=0; create || failed ;;
    SUSPENDED | FAILED) installed=0 quick=0; delete || failed ;;  # preempted: ask for another one
    *) sleep "$POLL" ;;
  esac
done
((KEEP)) || delete

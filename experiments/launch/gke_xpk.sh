#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster, through xpk (pip install xpk; `xpk cluster create` first).
#
#   NAME=llave PROJECT=my-project ZONE=us-central1-a CLUSTER=pods TOPOLOGY=v6e:4x4 SLICES=2 \
#     IMAGE=us-docker.pkg.dev/my-project/images/unime_jax:1 WORKDIR=gs://my-bucket/llave \
#     experiments/launch/gke_xpk.sh [--dry-run] --config.mesh.data=2 \
#     --config=experiments/llave.py:llava_onevision_7b --config.data.folder=gs://my-bucket/data
#
# IMAGE has this repository in it, from the repository's root:
#   docker build -f experiments/launch/Dockerfile -t $IMAGE . && docker push $IMAGE
# WORKDIR is a bucket (jobs train, export, embed and plan), or a folder below the mount point of
# STORAGE: what `xpk storage create` (Filestore) or `xpk storage attach` (gcsfuse) calls the file
# system. Pods that fail or are preempted are started again by GKE.
# --dry-run prints the command and does not run it.
set -euo pipefail

dry_run=0
if [[ ${1:-} == --dry-run ]]; then dry_run=1; shift; fi

need() { [[ -n ${!1:-} ]] || { echo "error: set $1: $2" >&2; exit 2; }; }
need NAME "a name for the workload, new for every run"
need PROJECT "the Google Cloud project"
need ZONE "the cluster's zone"
need CLUSTER "the cluster's name"
need TOPOLOGY "chip and shape as jobs/plan names them: v5e:4x4, v6e:4x4, v5p:2x2x4"
need IMAGE "the container image (see Dockerfile)"
need WORKDIR "the run's folder, gs://<bucket>/<folder> or below the mount point of STORAGE"
[[ $WORKDIR == gs://?* ]] || need STORAGE "xpk's name of the file system that all pods share"
SLICES=${SLICES:-1}
PRIORITY=${PRIORITY:-medium}
RESTARTS=${RESTARTS:-50}  # of the whole workload, preemptions included
GRACE=${GRACE:-60}        # seconds between SIGTERM and SIGKILL, to save what is not saved
(($#)) || { echo "error: give the flags of unime_jax.main, first of all --config=..." >&2; exit 2; }
if [[ $WORKDIR != gs://?* && $WORKDIR != /* ]]; then
  echo "error: WORKDIR=$WORKDIR must be gs://<bucket>/<folder> or an absolute path below the mount" \
    "point of STORAGE" >&2
  exit 2
fi

if ! [[ $TOPOLOGY =~ ^(v5e:|v6e:|v5p:[0-9]+x)[0-9]+x[0-9]+$ ]]; then
  echo "error: TOPOLOGY=$TOPOLOGY is none of v5e:AxB, v6e:AxB, v5p:AxBxC" >&2
  exit 2
fi
shape=${TOPOLOGY#*:}
chips=$((${shape//x/*}))
case $TOPOLOGY in
  v5e:*) type=v5litepod-$chips ;;
  v6e:*) type=v6e-$chips ;;
  v5p:*) type=v5p-$((2 * chips)) ;;  # by cores; a chip has two
esac

# "exec", so that SIGTERM reaches the run and not a shell around it. GKE restarts what ends with 42
# or 127 to 255 (143: SIGTERM, 134: aborted by JAX, 137: killed), and what is named here: 75, a run
# that hung and was ended by its watchdog, and 1, which is also how a run ends whose other processes
# failed. A mistake in the flags ends with 1 as well; RESTARTS bounds what that costs.
main=$(printf '%q ' python -m unime_jax.main --distributed "--workdir=$WORKDIR" "$@")
command=(
  xpk workload create "--workload=$NAME" "--cluster=$CLUSTER" "--project=$PROJECT" "--zone=$ZONE"
  "--tpu-type=$type" "--num-slices=$SLICES" "--docker-image=$IMAGE"
  "--priority=$PRIORITY" "--max-restarts=$RESTARTS" --restart-on-exit-codes=1,75
  "--termination-grace-period-seconds=$GRACE" "--command=exec ${main% }"
)
[[ -z ${STORAGE:-} ]] || command+=("--storage=$STORAGE")
printf '%q ' "${command[@]}"; echo
((dry_run)) || "${command[@]}"

#!/usr/bin/env bash
# Train on GPU nodes under SLURM: this script submits itself, and goes on after every interruption.
#
#   NODES=4 TIME=24:00:00 WORKDIR=/shared/runs/stage2 SBATCH_PARTITION=gpu \
#     experiments/launch/slurm.sh [--dry-run] --config=experiments/stage2.py:llava_onevision_7b \
#     --config.mesh.data=4 --config.chunk_size=32
#
# JAX counts nodes that no NVLink joins as slices, and only mesh.data crosses those: make it NODES.
# chunk_size is a multiple of all GPUs.
# Run it in the repository's root, on a file system that all nodes share. VENV is made if it is not
# there. sbatch's own variables (SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS, ...) hold as ever.
# SIGTERM comes before the time is up: the run saves what is not saved and is queued again.
# --dry-run prints the commands, those of the job too, and runs none of them.
set -euo pipefail

dry_run=0
if [[ ${1:-} == --dry-run ]]; then dry_run=1; shift; fi

need() { [[ -n ${!1:-} ]] || { echo "error: set $1: $2" >&2; exit 2; }; }
need WORKDIR "the run's folder, on a file system that all nodes share, or gs://<bucket>/<folder>"
need NODES "how many nodes"
need TIME "a time limit as sbatch has it, after which the run is queued again: 24:00:00"
NAME=${NAME:-$(basename "$WORKDIR")}
GPUS=${GPUS:-8}                # of a node
PER_GPU=${PER_GPU:-0}          # 1: a process for every GPU, not one for every node
CPUS=${CPUS:-64}               # of a node, for reading and decoding
GRACE=${GRACE:-180}            # seconds between SIGTERM and the end of the time
RESTARTS=${RESTARTS:-20}       # of a job, interruptions included, before it gives up
QUICK=${QUICK:-300}            # seconds: three errors in a row so soon after the start end it
VENV=${VENV:-$PWD/.venv}
if [[ $WORKDIR == gs://?* ]]; then LOGS=${LOGS:-$PWD/runs/$NAME}; fi
LOGS=${LOGS:-$WORKDIR}         # slurm.log, on a file system that all nodes share
(($#)) || { echo "error: give the flags of unime_jax.main, first of all --config=..." >&2; exit 2; }
if [[ $WORKDIR != gs://?* && $WORKDIR != /* ]]; then
  echo "error: WORKDIR=$WORKDIR must be an absolute path on a file system that all nodes share, or" \
    "gs://<bucket>/<folder>" >&2
  exit 2
fi
if [[ $LOGS != /* ]]; then
  echo "error: LOGS=$LOGS must be an absolute path on a file system that all nodes share" >&2
  exit 2
fi
[[ -f unime_jax/main.py ]] || { echo "error: run this in the repository's root" >&2; exit 2; }

run() {  # prints a command, and runs it unless this is a dry run
  printf '%q ' "$@"; echo
  ((dry_run)) || "$@"
}

tasks=1
devices=$(seq -s, 0 $((GPUS - 1)))  # JAX takes one GPU a process under SLURM unless it is told
if ((PER_GPU)); then tasks=$GPUS devices=; fi

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  export WORKDIR NODES TIME NAME GPUS PER_GPU CPUS GRACE RESTARTS QUICK VENV LOGS
  run mkdir -p "$LOGS"
  run sbatch "--job-name=$NAME" "--nodes=$NODES" "--ntasks-per-node=$tasks" \
    "--gpus-per-node=$GPUS" "--cpus-per-task=$((CPUS / tasks))" "--time=$TIME" \
    "--signal=TERM@$GRACE" --requeue --open-mode=append "--output=$LOGS/slurm.log" \
    --export=ALL "$0" "$@"
  ((dry_run)) || exit 0
fi

if ! [[ -x $VENV/bin/python ]] || ((dry_run)); then
  run python3 -m venv "$VENV"
  run "$VENV/bin/pip" install --quiet -e '.[cuda12,gcs]'
fi
if [[ -n $devices ]]; then run export "JAX_LOCAL_DEVICE_IDS=$devices"; fi
status=0
# JAX finds the processes by SLURM's variables. They end each other, and one that is done with
# saving before the others are is no reason for SLURM to end those.
run srun --kill-on-bad-exit=0 "--cpus-per-task=$((CPUS / tasks))" "$VENV/bin/python" \
  -m unime_jax.main --distributed "--workdir=$WORKDIR" "$@" || status=$?
((dry_run)) && exit 0
# 143 (SIGTERM), 75 (it hung, and its watchdog ended it), 134 and 137 (aborted, killed): again. So is
# 1, which is also how a run ends whose other processes failed, but not for ever: a mistake in the
# flags or the data ends with 1 soon after each start. 130 is Ctrl-C: somebody wants it to end; 76:
# another run has its folder; 65: no step was finite, nor would one be next time.
quick=$LOGS/slurm.quick_failures
if ((status == 1 && SECONDS < QUICK)); then
  { echo failed >>"$quick"; } 2>/dev/null || true
  if [[ -f $quick ]] && (($(wc -l <"$quick") >= 3)); then
    echo "error: three errors in a row within $QUICK s of the start; see above why" >&2
    rm -f "$quick"
    exit "$status"
  fi
else
  rm -f "$quick"
fi
if ((status && status != 130 && status != 76 && status != 65)) && ((${SLURM_RESTART_COUNT:-0} < RESTARTS)); then
  run scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

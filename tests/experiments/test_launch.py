"""The launch scripts: what they would run, what they ask for, and that they start again."""

import os
import pathlib
import shlex
import subprocess

import yaml

from tests.tables import for_each
from unime_jax.operations import command_line, recipes, stop, watchdog, workdir_lock
from unime_jax.training import outcome

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "experiments" / "launch"
FLAGS = ["--config=experiments/llave.py:llava_onevision_7b", "--config.data.suffix=it's two words"]
WORKDIR = "/mnt/my runs/llave"
CLOUD = {"NAME": "llave", "PROJECT": "lab", "ZONE": "us-central1-a", "WORKDIR": WORKDIR}
TPU = CLOUD | {"TOPOLOGY": "v5e:8x8"}
GKE = TPU | {"CLUSTER": "pods", "IMAGE": "registry/image:1", "STORAGE": "runs"}
SLURM = {"NODES": "4", "TIME": "24:00:00", "WORKDIR": WORKDIR, "VENV": "/shared/venv"}
SCRIPTS = {"tpu_queued_resource.sh": TPU, "gke_xpk.sh": GKE, "slurm.sh": SLURM}
PLAIN = {"PATH": os.environ["PATH"], "TMPDIR": "/tmp"}


def call(script, variables, *arguments, **others) -> subprocess.CompletedProcess:
    return subprocess.run(
        [LAUNCH / script, *arguments],
        env=PLAIN | variables | others,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def dry(script, variables, *flags, **others) -> list[list[str]]:
    """The commands of a dry run, each as a shell would split it."""
    done = call(script, variables, "--dry-run", *(flags or FLAGS), **others)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def remote(command: list[str]) -> str:
    return next(part for part in command if part.startswith("--command=")).split("=", 1)[1]


@for_each("script", SCRIPTS)
def test_they_are_bash_need_flags_and_start_nothing_in_a_dry_run(script, tmp_path):
    # They are bash.
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    assert os.access(LAUNCH / script, os.X_OK)

    # Without flags of the run they say that these are needed.
    done = call(script, SCRIPTS[script], "--dry-run")
    assert done.returncode == 2 and "give the flags of unime_jax.main" in done.stderr

    # A dry run is the same where only the shell's own tools are.
    for tool in ("bash", "env", "basename", "seq"):
        (tmp_path / tool).symlink_to(subprocess.check_output(["which", tool], text=True).strip())
    assert dry(script, SCRIPTS[script], PATH=str(tmp_path)) == dry(script, SCRIPTS[script])


@for_each(("script", "name"), [(s, name) for s in SCRIPTS for name in SCRIPTS[s]])
def test_what_is_not_set_is_named(script, name):
    if name == "VENV":  # has a default
        return
    left = {key: value for key, value in SCRIPTS[script].items() if key != name}
    done = call(script, left, "--dry-run", *FLAGS)
    assert done.returncode == 2 and done.stderr.startswith(f"error: set {name}: ")
    assert not done.stdout


@for_each("script", SCRIPTS)
def test_a_workdir_is_a_mounted_folder_or_a_bucket(script):
    for workdir in ("s3://bucket/run", "gs://", "runs/llave"):
        done = call(script, SCRIPTS[script], "--dry-run", *FLAGS, WORKDIR=workdir)
        assert done.returncode == 2 and f"WORKDIR={workdir} must be " in done.stderr

    # A bucket needs no file system, and reaches the run as it is; gcsfs is installed for it.
    given = {key: value for key, value in SCRIPTS[script].items() if key != "STORAGE"}
    commands = dry(script, given, WORKDIR="gs://bucket/run")
    text = " ".join(word for command in commands for word in command)
    assert "--workdir=gs://bucket/run" in text and "--storage" not in text
    assert ",gcs]" in text or "xpk" in text
    if script == "slurm.sh":  # whose log is a file
        assert f"--output={ROOT}/runs/run/slurm.log" in text and "mkdir -p gs:" not in text


@for_each(
    ("topology", "accelerator", "image"),
    [
        ("v5e:4x4", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5e:8x8", "v5litepod-64", "v2-alpha-tpuv5-lite"),
        ("v6e:4x4", "v6e-16", "v2-alpha-tpuv6e"),
        ("v5p:2x2x4", "v5p-32", "v2-alpha-tpuv5"),
        ("v5p:4x4x4", "v5p-128", "v2-alpha-tpuv5"),
    ],
)
def test_a_topology_is_an_accelerator_type_and_an_image(topology, accelerator, image):
    create = dry("tpu_queued_resource.sh", TPU, TOPOLOGY=topology)[0]
    assert f"--accelerator-type={accelerator}" in create
    assert f"--runtime-version={image}" in create
    (workload,) = dry("gke_xpk.sh", GKE, TOPOLOGY=topology)
    assert f"--tpu-type={accelerator}" in workload


@for_each("script", ["tpu_queued_resource.sh", "gke_xpk.sh"])
@for_each("topology", ["v5e", "v4:4x4", "v5p:4x4", "v5e:2x2x2", "v6e:4*4"])
def test_another_topology_is_refused(script, topology):
    done = call(script, SCRIPTS[script], "--dry-run", *FLAGS, TOPOLOGY=topology)
    assert done.returncode == 2 and f"TOPOLOGY={topology} is none of" in done.stderr


def test_tpu_commands_and_options():
    create, archive, copy, install, train, delete = dry("tpu_queued_resource.sh", TPU)
    gcloud, place = ["gcloud", "compute", "tpus"], ["--project=lab", "--zone=us-central1-a"]
    assert create == [
        *(*gcloud, "queued-resources", "create", "llave", "--node-id=llave", *place),
        *("--accelerator-type=v5litepod-64", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
    ]
    assert archive[:2] == ["git", "archive"]
    assert copy[:4] == [*gcloud, "tpu-vm"] and copy[4] == "scp" and "--worker=all" in copy
    assert "--worker=all" in install and "-e '.[tpu,gcs]'" in remote(install)
    assert train[:-1] == [*gcloud, "tpu-vm", "ssh", "llave", *place, "--worker=all"]
    started = remote(train).removeprefix("{ true; } && cd unime_jax && exec ")
    assert shlex.split(started) == [
        *(".venv/bin/python", "-m", "unime_jax.main", "--distributed", f"--workdir={WORKDIR}"),
        *FLAGS,
    ]
    assert delete[:6] == [*gcloud, "queued-resources", "delete", "llave"] and "--force" in delete

    # On demand, kept after the run, and with a set-up of its own.
    commands = dry("tpu_queued_resource.sh", TPU, SPOT="0", KEEP="1", SETUP="mount /mnt || false")
    assert "--spot" not in commands[0]
    assert commands[-1][4] == "ssh"
    assert remote(commands[-1]).startswith("{ mount /mnt || false; } && cd unime_jax && exec ")

    # Gke command and what it restarts
    (command,) = dry("gke_xpk.sh", GKE, SLICES="2")
    assert command[:3] == ["xpk", "workload", "create"]
    assert {
        *("--workload=llave", "--cluster=pods", "--project=lab", "--zone=us-central1-a"),
        *("--num-slices=2", "--docker-image=registry/image:1", "--storage=runs"),
        *("--max-restarts=50", "--restart-on-exit-codes=1,75"),
    } <= set(command)
    exec_, *started = shlex.split(remote(command))
    assert exec_ == "exec" and started == [
        *("python", "-m", "unime_jax.main", "--distributed", f"--workdir={WORKDIR}", *FLAGS)
    ]
    image = (LAUNCH / "Dockerfile").read_text()
    assert 'pip install --no-cache-dir -e ".[${EXTRA}]"' in image and "EXTRA=tpu,gcs" in image

    # The manifest is the same run, on two slices.
    job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())["spec"]["replicatedJobs"][0]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    arguments = container["command"]
    assert arguments[:4] == ["python", "-m", "unime_jax.main", "--distributed"]
    given, unexpected = command_line.split(arguments[5:])
    assert ("mesh.data", str(job["replicas"])) in given
    config = recipes.load(unexpected[0].removeprefix("--config="))
    command_line.apply(config, given)
    chips = job["replicas"] * job["template"]["spec"]["completions"] * 4
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert config.chunk_size % chips == 0 and config.batch_size % chips == 0

    # What it restarts is what a run ends with when it is to go on, besides what it restarts by
    # itself: 42 and 127 to 255.
    (command,) = dry("gke_xpk.sh", GKE)
    (codes,) = (part for part in command if part.startswith("--restart-on-exit-codes="))
    named = {int(code) for code in codes.partition("=")[2].split(",")}
    for status in (watchdog.STATUS, stop.STATUS, 1, 134, 137):
        assert status in named or 127 <= status <= 255, status
    assert workdir_lock.LOST not in named  # another run has the folder
    assert outcome.STATUS not in named  # no step was finite

    # Slurm commands by node and by gpu
    _, submit, venv, install, devices, srun = dry("slurm.sh", SLURM)
    assert submit[0] == "sbatch" and submit[-3:] == [str(LAUNCH / "slurm.sh"), *FLAGS]
    assert {
        *("--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--cpus-per-task=64"),
        *("--time=24:00:00", "--signal=TERM@180", "--requeue", f"--output={WORKDIR}/slurm.log"),
    } <= set(submit)
    assert venv == ["python3", "-m", "venv", "/shared/venv"]
    assert install == ["/shared/venv/bin/pip", "install", "--quiet", "-e", ".[cuda12,gcs]"]
    assert devices == ["export", "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7"]
    assert srun == [
        *("srun", "--kill-on-bad-exit=0", "--cpus-per-task=64", "/shared/venv/bin/python", "-m"),
        *("unime_jax.main", "--distributed", f"--workdir={WORKDIR}", *FLAGS),
    ]

    # A process for every GPU.
    commands = dry("slurm.sh", SLURM, PER_GPU="1", GPUS="4")
    assert {"--ntasks-per-node=4", "--cpus-per-task=16"} <= set(commands[1])
    assert not any(command[0] == "export" for command in commands)  # JAX takes one each


# What happens then, by stand-ins for the commands


def stand_in(folder: pathlib.Path, name: str, body: str) -> None:
    """A command that notes its arguments in calls.txt, and then does `body`."""
    log = shlex.quote(str(folder / "calls.txt"))
    (folder / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >> {log}\n{body}\n')
    (folder / name).chmod(0o755)


def calls(folder: pathlib.Path) -> list[str]:
    return (folder / "calls.txt").read_text().splitlines()


def test_a_preempted_slice_is_asked_for_again(tmp_path):
    """Not there, waited for, a run that fails as it is preempted; then one that ends well."""
    states = "NONE WAITING_FOR_RESOURCES ACTIVE SUSPENDED NONE ACTIVE"
    (tmp_path / "states").write_text("\n".join(states.split()))
    stand_in(
        tmp_path,
        "gcloud",
        f"""cd {tmp_path}
        case "$*" in
          *describe*) now=$(head -1 states); sed -i 1d states
            if [[ $now == NONE ]]; then echo "NOT_FOUND: no such thing" >&2; exit 1; fi
            echo $now ;;
          *unime_jax.main*) [[ -e failed ]] || {{ touch failed; exit 1; }} ;;
        esac""",
    )
    stand_in(tmp_path, "git", "")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = call("tpu_queued_resource.sh", TPU, *FLAGS, POLL="0", PATH=path)
    assert done.returncode == 0, done.stderr
    does = {"describe": "?", " create": "create", "scp": "copy", "unime_jax.main": "train"}
    does |= {"uv": "install", " delete": "delete"}
    found = [next((d for key, d in does.items() if key in line), "git") for line in calls(tmp_path)]
    assert [one for one in found if one not in "?git"] == [
        *("create", "copy", "install", "train", "delete"),
        *("create", "copy", "install", "train", "delete"),
    ]


def test_a_run_that_fails_for_good_is_given_up_on_tpus(tmp_path):
    # After so many restarts.
    stand_in(tmp_path, "gcloud", '[[ $* == *describe* ]] && echo ACTIVE; [[ $* != *"main"* ]]')
    stand_in(tmp_path, "git", "")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = call("tpu_queued_resource.sh", TPU, *FLAGS, POLL="0", RESTARTS="2", PATH=path)
    assert done.returncode == 1 and "failed 3 times" in done.stderr
    found = calls(tmp_path)
    assert sum("unime_jax.main" in line for line in found) == 3
    assert sum("scp" in line for line in found) == 1  # installed once
    assert not any("delete" in line for line in found)

    # By default, when it fails quickly five times in a row.
    (tmp_path := tmp_path / "quickly").mkdir()
    stand_in(tmp_path, "gcloud", '[[ $* == *describe* ]] && echo ACTIVE; [[ $* != *"main"* ]]')
    stand_in(tmp_path, "git", "")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = call("tpu_queued_resource.sh", TPU, *FLAGS, POLL="0", PATH=path)
    assert done.returncode == 1 and "failed 5 times in a row within 300 s" in done.stderr
    assert sum("unime_jax.main" in line for line in calls(tmp_path)) == 5

    # At once where it learnt nothing.
    (tmp_path := tmp_path / "learnt_nothing").mkdir()
    answers = {"queued-resources describe": "echo ACTIVE", "unime_jax.main": "exit 65"}
    cases = "".join(f'*"{words}"*) {then};; ' for words, then in answers.items())
    stand_in(tmp_path, "gcloud", f'case "$*" in {cases} esac')
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = call("tpu_queued_resource.sh", TPU, *FLAGS, POLL="0", PATH=path)
    assert done.returncode == 65 and "no step of the run was finite" in done.stderr
    assert sum("unime_jax.main" in line for line in calls(tmp_path)) == 1


def test_a_mistake_is_not_queued_for_ever_by_slurm(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "run").mkdir()
    stand_in(tmp_path / "bin", "python", "")
    stand_in(tmp_path, "scontrol", "")
    said = []
    for number, status in enumerate([1, 143, 1, 1, 1]):
        stand_in(tmp_path, "srun", f"exit {status}")
        given = SLURM | {"WORKDIR": str(tmp_path / "run"), "VENV": str(tmp_path)}
        path = f"{tmp_path}:{os.environ['PATH']}"
        job = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(number)}
        said.append(call("slurm.sh", given, *FLAGS, PATH=path, **job))
    assert [done.returncode for done in said] == [1, 143, 1, 1, 1]
    assert sum("requeue" in line for line in calls(tmp_path)) == 4  # SIGTERM begins a new row
    assert "three errors in a row" in said[-1].stderr and "error" not in said[-2].stderr


@for_each(
    ("status", "restarts", "requeued"),
    [
        (0, 0, False),
        (143, 3, True),
        (75, 3, True),
        (134, 0, True),
        (137, 0, True),
        (1, 0, True),
        (130, 0, False),
        (76, 0, False),
        (65, 0, False),
        (1, 20, False),
        (75, 20, False),
    ],
)
def test_an_interrupted_slurm_job_is_queued_again(tmp_path, status, restarts, requeued):
    stand_in(tmp_path, "srun", f"echo $JAX_LOCAL_DEVICE_IDS; exit {status}")
    stand_in(tmp_path, "scontrol", "")
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path / "bin", "python", "")
    done = call(
        "slurm.sh",
        SLURM,
        *FLAGS,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        VENV=str(tmp_path),
        SLURM_JOB_ID="17",
        SLURM_RESTART_COUNT=str(restarts),
    )
    assert done.returncode == status, done.stderr
    assert "0,1,2,3,4,5,6,7" in done.stdout.splitlines()
    found = calls(tmp_path)
    assert found[0].startswith("srun ") and not any("sbatch" in line for line in found)
    assert found[1:] == (["scontrol requeue 17"] if requeued else [])

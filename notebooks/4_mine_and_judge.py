# ---
# jupyter:
#   accelerator: TPU
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: accelerator
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Mine negatives, judge them, train again
#
# A model's own mistakes are the best negatives, if those that are no mistakes are left out. Job
# `mine` searches the whole corpus for each query, job `judge` asks a multimodal model whether a
# candidate fits, and UniME-V2's loss learns from its scores. `rounds` is all of it as one command
# (docs/rounds.md); here it goes step by step.

# %%
# Installs unime_jax where it is missing. Colab's and Kaggle's runtimes come with another JAX, so
# that they restart once here: run this cell again after that, then go on.
import importlib.util
import os
import pathlib
import subprocess
import sys

SOURCE = ""  # of this repository: a git URL, or a folder; "": the folder above this notebook's

if not importlib.util.find_spec("unime_jax"):
    source = SOURCE or str(pathlib.Path.cwd().parent)
    if "://" not in source and not pathlib.Path(source, "setup.py").exists():
        raise RuntimeError("set SOURCE to this repository's git URL: it is not in the folder above")
    source = f"git+{source}" if "://" in source else pathlib.Path(source).resolve().as_uri()
    has_tpu = any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
    wanted = f"unime_jax{'[tpu]' if has_tpu else ''} @ {source}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", wanted], check=True)
    if {"jax", "google.colab", "numpy"} & set(sys.modules):
        os.kill(os.getpid(), 9)  # the runtime comes back with the new libraries


def job(*arguments):
    """Runs a job of unime_jax in a process of its own and shows its log; an error ends the cell."""
    command = [sys.executable, "-m", "unime_jax.main", *arguments]
    with subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            print(line, end="")
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with status {process.returncode}")


# %% tags=["parameters"]
JUDGE = ""  # such as "Qwen/Qwen2-VL-7B-Instruct"; "": no judge, the mined negatives as they are
WORKDIR = "runs/mine_and_judge"
FIRST_STEPS = 300  # of the model that mines
STEPS = 100
NEGATIVES = 4  # of a pair

# %% [markdown]
# ## A first model, and what it takes for its targets

# %%
job("--config=stage2", f"--config.steps={FIRST_STEPS}", f"--workdir={WORKDIR}/first")
job(
    "--config=mine",
    f"--config.backbone={WORKDIR}/first/hf",
    "--config.data.folder=data",
    "--config.data.train=mini_mmeb/train",
    "--config.data.first_rows=200",
    f"--config.search.negatives={2 * NEGATIVES if JUDGE else NEGATIVES}",
    f"--workdir={WORKDIR}/mined",
)

# %% [markdown]
# ## A judge's view
#
# It reads query and candidate, pictures too, and its score is the probability of "Yes"
# (docs/judging.md).

# %%
if JUDGE:
    job(
        "--config=judge",
        f"--config.backbone={JUDGE}",
        "--config.data.folder=data",
        "--config.data.train=mini_mmeb/train",
        f"--config.data.mined={WORKDIR}/mined",
        f"--workdir={WORKDIR}/judged",
    )

# %% [markdown]
# ## Train again, with and without the mined negatives
#
# Both start from the first model and see the same rows.

# %%
again = [
    f"--config.init_from={WORKDIR}/first",
    f"--config.steps={STEPS}",
    "--config.infonce_steps=0",
]
again += [
    "--config.optimizer.learning_rate=5e-4",
    f"--config.data.negatives={NEGATIVES}",
    "--config.data.first_rows=200",
]
job("--config=stage2", f"--workdir={WORKDIR}/plain", *again)
job(
    "--config=stage2",
    f"--workdir={WORKDIR}/with_mined",
    f"--config.data.mined={WORKDIR}/mined",
    *again,
)

# %%
compared = [
    sys.executable,
    "-m",
    "unime_jax.evaluation.compare",
    f"{WORKDIR}/plain",
    f"{WORKDIR}/with_mined",
]
print(subprocess.run(compared, stdout=-1, stderr=subprocess.STDOUT, text=True, check=True).stdout)

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
# # UniME and LLaVE, trained on a Colab TPU
#
# UniME's first stage teaches the language component a text teacher's similarities, its second
# stage contrasts pairs with hard negatives from which false ones are filtered; LLaVE weights
# negatives by their hardness. Here all three run on embedded data with a tiny LLaVA-OneVision,
# minutes each. `REAL` switches to LLaVA-OneVision-0.5B with LoRA on pairs of your own folder,
# which fits a single chip.

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
REAL = False  # the published 0.5B model and the data below, in the place of the embedded ones
DATA = "data"  # a folder: for REAL with MMEB-train, see docs/benchmarks.md
WORKDIR = "runs/train"  # on Colab perhaps "/content/drive/MyDrive/train" or gs://bucket/train
STAGE1_STEPS = 150
STAGE2_STEPS = 700  # of LLaVE, too
EVERY = 50  # steps from one checkpoint to the next: what a lost runtime costs, at most

# %% [markdown]
# ## Stage 1, textual discriminative distillation
#
# The teacher's embeddings are files: all-MiniLM-L6-v2's for the embedded sentences, NV-Embed-v2's
# for NLI triples (docs/stage1.md). REAL goes straight to stage 2, as published LLaVA-OneVision
# has no stage 1 of 0.5B.

# %%
common = [f"--config.data.folder={DATA}", f"--config.checkpoint.every={EVERY}"]
if not REAL:
    job("--config=stage1", f"--config.steps={STAGE1_STEPS}", f"--workdir={WORKDIR}/stage1", *common)

# %% [markdown]
# ## Stage 2, hard negatives

# %%
recipe = "stage2:llava_onevision_05b" if REAL else "stage2"
start = [] if REAL else [f"--config.init_from={WORKDIR}/stage1"]
steps = f"--config.steps={STAGE2_STEPS}"
job(f"--config={recipe}", steps, f"--workdir={WORKDIR}/stage2", *start, *common)

# %% [markdown]
# ## LLaVE's loss on the same rows
#
# `loss.hardness` weights a negative by exp(hardness * similarity); both directions count. The
# masks and everything else are as above, so that the two runs differ in the loss alone.

# %%
loss = [
    "--config.loss.hardness=9.0",
    "--config.loss.symmetric=True",
    "--config.loss.hard_negatives=None",
]
loss += ["--config.loss.false_negative_margin=None"]
job(f"--config={recipe}", steps, f"--workdir={WORKDIR}/llave", *loss, *start, *common)

# %% [markdown]
# ## What came of it
#
# Every run leaves metrics.jsonl, evaluation.json and a report.html with curves, scores and
# examples of what was found.

# %%
import json

import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(7, 3))
for name in ("stage2", "llave"):
    lines = pathlib.Path(WORKDIR, name, "metrics.jsonl").read_text().splitlines()
    points = [(line["step"], line["loss"]) for line in map(json.loads, lines) if "loss" in line]
    axis.plot(*zip(*points), label=name, linewidth=1)
axis.set(xlabel="step", ylabel="loss", yscale="log")
axis.legend()

for name in ("stage2", "llave"):
    scores = json.loads(pathlib.Path(WORKDIR, name, "evaluation.json").read_text())
    for when in ("before", "after"):
        rest = ", ".join(
            f"{key} {scores[when][key]:.1f}"
            for key in ("CLS", "VQA", "RET", "VG", "All")
            if key in scores[when]
        )
        print(f"{name:7} {when:7} {rest}")

# %%
from IPython.display import IFrame

IFrame(os.path.relpath(pathlib.Path(WORKDIR, "stage2", "report.html")), 1000, 600)

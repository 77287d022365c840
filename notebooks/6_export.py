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
# # Export, and use elsewhere
#
# `<workdir>/hf` is a folder of Hugging Face: transformers opens its model, sentence-transformers
# and mteb embed with it. Each gives the vectors that were trained, which the folder's
# self_check.json proves.

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
RUN = ""  # a work directory of a training; "": a short one is made here
STEPS = 300
WORKDIR = "runs/export"

# %%
if not RUN:
    job("--config=stage2", f"--config.steps={STEPS}", f"--workdir={WORKDIR}")
    RUN = WORKDIR
folder = f"{RUN}/hf"
print(*sorted(file.name for file in pathlib.Path(folder).iterdir()), sep="\n")

# %% [markdown]
# ## The self-check
#
# Inputs and embeddings as they were when the model was written, computed again from the folder
# alone:

# %%
check = [sys.executable, "-m", "unime_jax.export.self_check", folder]
print(subprocess.run(check, stdout=-1, stderr=subprocess.STDOUT, text=True, check=True).stdout)

# %% [markdown]
# ## Here

# %%
import numpy as np

from unime_jax import Embedder

texts = ["a red circle", "a blue square"]
ours = Embedder.from_pretrained(folder, dtype="float32").encode(texts)
print(ours.shape, ours.dtype)

# %% [markdown]
# ## sentence-transformers
#
# In a process of its own, as PyTorch and JAX share a runtime's memory badly. Images go in as
# `{"image": path}`, as here.

# %%
if importlib.util.find_spec("sentence_transformers"):
    code = f"""
import numpy as np
from sentence_transformers import SentenceTransformer
np.save({WORKDIR + "/theirs.npy"!r}, SentenceTransformer({folder!r}).encode({texts!r}))
"""
    pathlib.Path(WORKDIR).mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    theirs = np.load(f"{WORKDIR}/theirs.npy")
    print("cosines with ours:", np.sum(ours * theirs, axis=1))
    assert np.allclose(ours, theirs, atol=1e-4)
else:
    print("pip install 'sentence-transformers>=6.2' for this cell")

# %% [markdown]
# ## mteb and the hub
#
# - **mteb**: `unime_jax.integrations.mteb.load(folder)` is a model for `mteb.evaluate`
# (docs/evaluation.md); so is the folder itself, as one of sentence-transformers.
# - **The hub**: `hf upload <you>/<name> <folder>`. The card in the folder has the run's own
# numbers, and names the licences of backbone and teacher.
# - vLLM was not tried with these folders.

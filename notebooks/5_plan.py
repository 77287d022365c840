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
# # Sharding, memory, and the plan before you rent a pod
#
# What a step needs can be known without the hardware: libtpu compiles a program for slices that
# are not there. Needs `pip install "unime_jax[tpu]"`; without libtpu the part on virtual devices
# runs alone.

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
PLAN = "stage2_05b_lora"  # one of experiments/plan.py, or "stage2:qwen2_vl_7b"
SLICES = '("v5e:1x1",)'  # such as '("v5e:4x4", "v6e:4x4")'
WORKDIR = "runs/plan"

# %% [markdown]
# ## A mesh
#
# Rows of a batch are spread over the axes `data` and `fsdp`, weights over `fsdp` and `tensor`.
# Eight virtual CPU devices show how the arrays of a model lie; in a process of its own, as
# devices are counted once.

# %%
code = """
import jax
from unime_jax import sharding
mesh = sharding.make_mesh(2, 2, 2)
kernel = jax.ShapeDtypeStruct((28, 3584, 18944), "bfloat16")
name = "language_model.layers.mlp.up_proj.kernel"
placed = sharding.parameter_shardings(mesh, {name: kernel.shape})[name]
part = placed.shard_shape(kernel.shape)
print(dict(mesh.shape), "kernel", kernel.shape, "->", placed.spec, "a part on each device:", part)
"""
flags = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "JAX_PLATFORMS": "cpu",
}
print(
    subprocess.run([sys.executable, "-c", code], env=flags, stdout=-1, text=True, check=True).stdout
)

# %% [markdown]
# ## The plan
#
# Memory by the compiler, FLOPs by a count of the program, a step's time as a bound (published
# peaks, everything overlapped). Each program takes minutes to compile and is kept.

# %%
if importlib.util.find_spec("libtpu"):
    job(f"--config=plan:{PLAN}", f"--config.topologies={SLICES}", f"--workdir={WORKDIR}")
    from IPython.display import Markdown, display

    display(Markdown(pathlib.Path(WORKDIR, "plan.md").read_text()))
else:
    print("no libtpu here: pip install 'unime_jax[tpu]' on Linux, then run this cell again")

# %% [markdown]
# `--config.search` looks for chunk, remat and mesh that are fastest and fit (docs/planning.md);
# docs/plans.md has plans of the recipes.

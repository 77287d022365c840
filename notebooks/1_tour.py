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
# # A tour: embed, search with words and pictures, see what a vector sees
#
# A universal multimodal embedder gives texts, images, and both together, vectors in one space. By
# default this trains a tiny model first (four minutes on two CPU cores), so that nothing has to
# be downloaded; with `MODEL` set to a folder or a hub id it is about that model.

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
MODEL = ""  # such as "Qwen/Qwen2-VL-2B-Instruct"; "": a tiny one, trained here
STEPS = 700  # of its training
WORKDIR = "runs/tour"  # on Colab perhaps "/content/drive/MyDrive/tour", which outlives the runtime

# %%
if not MODEL:
    # The job is a process of its own, and gives the devices back when it ends. Should the runtime
    # be lost, the same cell goes on from the last checkpoint.
    job("--config=stage2", f"--config.steps={STEPS}", f"--workdir={WORKDIR}")
    MODEL = f"{WORKDIR}/hf"

# %% [markdown]
# ## Pictures to look for
#
# Two things above each other, drawn as in the training data: 48 pixels wide, on several grounds.
# For a model of the real world, put photographs here; paths, bytes, PIL images and uint8 arrays
# will do.

# %%
import matplotlib.pyplot as plt
import numpy as np

from data_pipelines.mini_mmeb import render
from data_pipelines.mini_mmeb.world import Scene, Thing

KINDS = ("red circle", "orange cross", "cyan star", "purple square", "green triangle")
GROUNDS = ("gray", "sky", "sand")


def drawn(upper, lower, ground):
    things = Thing(*upper.split(), 24, 13, 9.0), Thing(*lower.split(), 24, 35, 9.0)
    return render.draw(Scene(48, 48, ground, things, texture=0))


def named(upper, lower, ground):
    upper, lower = (("an " if "orange" in kind else "a ") + kind for kind in (upper, lower))
    return f"{upper} above {lower} on {ground}"


scenes = [
    (KINDS[i], KINDS[(i + step) % len(KINDS)], GROUNDS[(i + step) % 3])
    for i in range(len(KINDS))
    for step in (1, 2)
]
captions = [named(*scene) for scene in scenes]
pictures = [drawn(*scene) for scene in scenes]

figure, axes = plt.subplots(2, 5, figsize=(10, 4))
for axis, caption, picture in zip(axes.flat, captions, pictures):
    axis.imshow(picture)
    axis.set_title(caption.replace(" above ", "\nabove ").replace(" on ", "\non "), fontsize=8)
    axis.axis("off")
figure.tight_layout()

# %% [markdown]
# ## Embed and search
#
# `encode` takes lists of items or a single one; `prompt` goes before a text, `suffix` after it,
# and they should be those of the training. `Index` compares a query with every entry, on all
# devices, and has ids, filters, `save` and `load`.

# %%
from unime_jax import Embedder, Index

FIND = {"prompt": "Find an image of this scene: ", "suffix": "\n"}
REPRESENT = {"prompt": "<|image_1|>\nRepresent the given image.\n"}

model = Embedder.from_pretrained(MODEL, dtype="float32")
vectors = model.encode([{"image": picture} for picture in pictures], **REPRESENT)
index = Index(vectors, captions)
print(f"{len(index)} pictures, each a vector of {index.dimension} numbers and of length 1")

right = 0
for caption, hits in zip(captions, index.search(model.encode(captions, **FIND), k=2)):
    right += hits[0].id == caption
    print(f"{caption}\n    " + "\n    ".join(f"{hit.score:.2f} {hit.id}" for hit in hits))
print(f"{right} of {len(captions)} at the first place")

# %% [markdown]
# A query may also be a picture and a text in one vector, here a picture and what is to be
# changed:

# %%
query = {"image": drawn("red circle", "orange cross", "sand"), "text": "now on sky"}
change = {"prompt": "<|image_1|>\nFind this image with a change: ", "suffix": "\n"}
for hit in index.search(model.encode([query], **change), k=3)[0]:
    print(f"{hit.score:.2f} {hit.id}")

# %% [markdown]
# All cosines at once; a row is a text, a column a picture:

# %%
cosines = model.similarity(model.encode(captions, **FIND), vectors)
figure, axis = plt.subplots(figsize=(6, 5))
axis.imshow(cosines, cmap="viridis")
axis.set_yticks(range(len(captions)), captions, fontsize=7)
axis.set_xticks([])
axis.set_title("cosine of text and picture")
figure.tight_layout()

# %% [markdown]
# ## What the vector sees
#
# A patch of the picture is covered, and the picture embedded again: where the cosine with a text
# falls, there is what the two have in common. This asks the model for nothing but embeddings, so
# that it works with any.


# %%
def covered(picture, patch, step):
    """The picture with one patch after the other in the colour of its ground, row by row."""
    pixels = np.asarray(picture)
    ground = np.median(pixels.reshape(-1, 3), axis=0).astype(np.uint8)
    for top in range(0, pixels.shape[0], step):
        for left in range(0, pixels.shape[1], step):
            copy = pixels.copy()
            copy[
                max(0, top - patch // 2) : top + patch // 2,
                max(0, left - patch // 2) : left + patch // 2,
            ] = ground
            yield {"image": copy}


IDENTIFY = {"prompt": "<|image_1|>\nIdentify the object.\n"}


def seen(picture, text, patch=16, step=4):
    """How much the cosine with the text falls where a patch is covered, [rows, columns]."""
    whole, *parts = model.encode([{"image": picture}, *covered(picture, patch, step)], **IDENTIFY)
    fall = (whole - np.stack(parts)) @ model.encode(text)
    return fall.reshape(-(-picture.height // step), -1)


figure, axes = plt.subplots(2, 5, figsize=(10, 4.4))
for number, kind in enumerate(KINDS):
    thing = Thing(*kind.split(), *((14, 34), (34, 14))[number % 2], 10.5)
    picture, text = render.draw(Scene(48, 48, "gray", (thing,), number)), f"{kind} on gray"
    axes[0, number].imshow(picture)
    axes[0, number].set_title(text, fontsize=8)
    axes[1, number].imshow(seen(picture, text), cmap="inferno", vmin=0)
for axis in axes.flat:
    axis.axis("off")

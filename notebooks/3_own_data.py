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
# # Your own data, from a JSONL
#
# A line is a query and what it should find; an item is a text, or text and image. Here a little
# file is written, checked and trained on; put yours in its place. `BACKBONE` may be any folder or
# hub id of a family that docs/families.md names.

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
# such as "sentence-transformers/all-MiniLM-L6-v2"; "": a tiny model, trained here first
BACKBONE = ""
PAIRS = ""  # your file; "": one that is written below
WORKDIR = "runs/own_data"
FIRST_STEPS = 300  # of the tiny model
STEPS = 60

# %% [markdown]
# ## The file
#
# Pictures lie beside it, and their paths are relative to it. Other columns are `negatives` (a
# list), `id`, and `score`, of graded pairs; CSV, parquet, webdataset and TFDS will do as well
# (docs/data.md).

# %%
import json

from PIL import Image, ImageDraw

if not PAIRS:
    folder = pathlib.Path(WORKDIR, "pairs")
    folder.mkdir(parents=True, exist_ok=True)
    colors = {
        "red": (220, 40, 40),
        "green": (40, 170, 70),
        "blue": (50, 80, 220),
        "white": (250, 250, 250),
    }
    rows = []
    for number, (color, rgb) in enumerate(colors.items()):
        for shape in ("disc", "box"):
            for size in (20, 30, 40):
                image = Image.new("RGB", (96, 96), (90, 90, 90))
                draw = ImageDraw.Draw(image)
                box = (10 + 3 * number, 20, 10 + 3 * number + size, 20 + size)
                (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=rgb)
                name = f"{color}_{shape}_{size}.png"
                image.save(folder / name)
                rows.append(
                    {"query": f"a {color} {shape}, {size} wide", "positive": {"image": name}}
                )
    PAIRS = str(folder / "pairs.jsonl")
    pathlib.Path(PAIRS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(len(rows), "pairs; the first:", rows[0])

# %% [markdown]
# ## Is it usable?
#
# Rows that cannot be used, duplicates, and pairs that would be each other's false negatives,
# before any training:

# %%
check = [sys.executable, "-m", "data_pipelines.validate", PAIRS]
print(subprocess.run(check, stdout=-1, stderr=subprocess.STDOUT, text=True).stdout)

# %% [markdown]
# ## Fine-tune
#
# What the recipe leaves open (learning rate, LoRA or all weights, the shapes of batches) follows
# from model and data, and is logged. Here the file is also evaluated on; hold pairs out of yours.

# %%
if not BACKBONE:
    job("--config=stage2", f"--config.steps={FIRST_STEPS}", f"--workdir={WORKDIR}/first")
    BACKBONE = f"{WORKDIR}/first/hf"
job(
    "--config=own",
    f"--config.backbone={BACKBONE}",
    f"--config.data.train={PAIRS}",
    f"--config.data.eval={PAIRS}",
    f"--config.steps={STEPS}",
    "--config.batch_size=8",
    f"--workdir={WORKDIR}/tuned",
)

# %%
scores = json.loads(pathlib.Path(WORKDIR, "tuned", "evaluation.json").read_text())
for when in ("before", "after"):
    own = scores[when]["retrieval"]
    print(f"{when:7}", ", ".join(f"{name} {own[name]:.1f}" for name in ("R@1", "R@5", "nDCG@10")))

# %% [markdown]
# ## Use it

# %%
from unime_jax import Embedder, Index

model = Embedder.from_pretrained(f"{WORKDIR}/tuned/hf", dtype="float32")
lines = [json.loads(line) for line in pathlib.Path(PAIRS).read_text().splitlines()]
targets = [line["positive"] for line in lines]
beside = pathlib.Path(PAIRS).parent
items = [
    {**t, "image": str(beside / t["image"])} if isinstance(t, dict) and "image" in t else t
    for t in targets
]
index = Index(model.encode(items), [f"row {n}" for n in range(len(items))])
for line, hits in zip(
    lines[::6], index.search(model.encode([line["query"] for line in lines[::6]]), k=3)
):
    print(line["query"], "->", [(hit.id, round(hit.score, 3)) for hit in hits])

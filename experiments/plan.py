"""The plan before you rent: memory and time of a run on TPU slices that are not at hand.

--config=experiments/plan.py                       all plans named below
--config=experiments/plan.py:stage2_7b_lora        one of them, likewise the others
--config=experiments/plan.py:stage2:qwen2_vl_7b    any recipe and variant, or file of your own

The keys of the run are below config.run: --config=plan:stage2:qwen2_vl_7b
--config.topologies=v5e:4x4 --config.run.batch_size=512. Each program takes minutes to compile, so a
first call with all plans takes hours; finished ones stay in <workdir>/cache, so it may be
interrupted, or come one plan at a time. The named plans have the published shapes of their models
in experiments/plans/models, so that no hub is asked.
"""

import os
import pathlib

from ml_collections import ConfigDict

from unime_jax.operations import recipes

# Relative where it can be, so that plans made in a clone name no machine's folders.
MODELS = os.path.relpath(pathlib.Path(__file__).parent / "plans" / "models") + "/"

SINGLE_CHIPS = ("v5e:1x1", "v6e:1x1")  # as Colab has them
SLICES = ("v5e:4x4", "v6e:4x4", "v5p:2x2x4")
PODS = ("v5e:4x4", "v5e:8x8", "v6e:4x4", "v5p:2x2x4")

# What batches are expected to hold, by recipe: a sample of lengths, by which buckets are chosen
# that a recipe leaves open; of dual encoders, which name theirs, shares of the rows and tokens of a
# row, by bucket. For a recipe that is not here, all rows are in the largest bucket and full.
LENGTHS = os.path.relpath(pathlib.Path(__file__).parent / "plans" / "lengths") + "/"
SENTENCES = {"lengths": LENGTHS + "nli_sentences.csv", "teacher": 4096}  # NV-Embed-v2's width
EXPECTED = {
    "stage1:llava_next_7b": {"topologies": SLICES, **SENTENCES},
    "stage1:llava_onevision_7b": {"topologies": SLICES, **SENTENCES},
    "stage1:qwen2_vl_7b": {"topologies": SLICES, **SENTENCES},
    "stage1:qwen2_5_vl_7b": {"topologies": SLICES, **SENTENCES},
    "stage1:qwen3_vl_2b": {"topologies": SLICES, **SENTENCES},
    "stage1:qwen3_vl_8b": {"topologies": SLICES, **SENTENCES},
    "stage1:phi3_v_4b": {"topologies": SLICES, **SENTENCES},
    "stage2:llava_onevision_05b": {"lengths": LENGTHS + "mmeb_onevision_384.csv"},
    "stage2:llava_onevision_7b": {
        "topologies": SLICES,
        "lengths": LENGTHS + "mmeb_onevision_384.csv",
    },
    "stage2:llava_next_7b": {"topologies": SLICES, "lengths": LENGTHS + "mmeb_next_336.csv"},
    "stage2:qwen2_vl_7b": {"topologies": SLICES, "lengths": LENGTHS + "mmeb_qwen2_vl_672.csv"},
    "stage2:qwen2_5_vl_7b": {
        "topologies": SLICES,
        "lengths": LENGTHS + "mmeb_qwen2_vl_672.csv",  # the same tokens and tiles
    },
    "stage2:qwen2_5_vl_3b": {
        "topologies": SLICES,
        "lengths": LENGTHS + "mmeb_qwen2_vl_672.csv",  # the same tokens and tiles
    },
    "stage2:phi3_v_4b": {"topologies": SLICES, "lengths": LENGTHS + "mmeb_phi3_v.csv"},
    # Of a token of 28 x 28 pixels, where these models have one of 32 x 32: rows are shorter.
    "stage2:qwen3_vl_2b": {"topologies": SLICES, "lengths": LENGTHS + "mmeb_qwen2_vl_672.csv"},
    "stage2:qwen3_vl_8b": {"topologies": SLICES, "lengths": LENGTHS + "mmeb_qwen2_vl_672.csv"},
    "stage2:qwen3_vl_embedding_2b": {
        "topologies": SLICES,
        "lengths": LENGTHS + "mmeb_qwen2_vl_672.csv",
    },
    "stage2:clip_large_336": {"rows": (0.0, 0.5, 0.5), "tokens": (0, 24, 40)},
    "stage2:siglip2_so400m": {"rows": (0.0, 0.5, 0.5), "tokens": (0, 64, 64)},
    "llave:llava_onevision_7b": {
        "topologies": SLICES,
        "lengths": LENGTHS + "mmeb_onevision_768.csv",
    },
    "embed:nv_embed_v2": {"topologies": ("v5e:2x4",)},
}


# This project's own plans: recipe, slices, and the model whose shapes are in this folder. `CHANGED`
# has keys of the run by plan.
NAMED = {
    "stage2_05b_lora": ("stage2:llava_onevision_05b", SINGLE_CHIPS, "llava_onevision_05b"),
    "stage1_7b_lora": ("stage1:llava_onevision_7b", PODS, "llava_onevision_7b"),
    "stage2_7b_lora": ("stage2:llava_onevision_7b", PODS, "llava_onevision_7b"),
    "stage2_qwen2_5_vl_7b": ("stage2:qwen2_5_vl_7b", SLICES, "qwen2_5_vl_7b"),
    "stage2_qwen2_5_vl_3b": ("stage2:qwen2_5_vl_3b", SLICES, "qwen2_5_vl_3b"),
    "llave_7b": ("llave:llava_onevision_7b", ("v5e:8x8",), "llava_onevision_7b"),
    "llave_7b_4096_pairs": ("llave:llava_onevision_7b", ("v5p:4x4x4",), "llava_onevision_7b"),
    "qwen3_vl_2b_lora": ("stage2:qwen3_vl_2b", ("v5e:4x4",), "qwen3_vl_2b"),
    "qwen3_vl_8b_lora": ("stage2:qwen3_vl_8b", ("v5e:4x4",), "qwen3_vl_8b"),
    "qwen3_vl_2b_int8": ("stage2:qwen3_vl_2b", ("v6e:1x1",), "qwen3_vl_2b"),
    "embed_nv_embed_v2": ("embed:nv_embed_v2", ("v5e:2x4",), "nv_embed_v2"),
}
CHANGED = {
    "qwen3_vl_2b_int8": {"execution.frozen_dtype": "int8", "batch_size": 256},
    "llave_7b_4096_pairs": {
        "batch_size": 4096,
        "steps": 162,  # one epoch, as of 256 pairs
        "optimizer.warmup_steps": 5,
    },
}


def get_config(variant: str = "all") -> ConfigDict:
    if variant == "all":
        plans = {name: named(name) for name in NAMED}
        return ConfigDict({"job": "plan", "recipes": plans})
    if variant in NAMED:
        return named(variant)
    if ".py" in variant or variant.partition(":")[0] in recipes.names():
        return plan_of(variant)
    raise KeyError(
        f'no plan "{variant}"; use one of all, {", ".join(NAMED)}; or a recipe, '
        f"{', '.join(recipes.names())}, with a variant or without; or a file of your own"
    )


def named(name: str) -> ConfigDict:
    """One of this project's own plans."""
    recipe, topologies, model = NAMED[name]
    config = plan_of(recipe)
    config.name, config.topologies, config.model = name, topologies, MODELS + model
    config.run.update_from_flattened_dict(CHANGED.get(name, {}))
    return config


def plan_of(recipe: str) -> ConfigDict:
    """A recipe's plan with its expected batches; config.run is the recipe, to be changed."""
    config = ConfigDict()
    config.job = "plan"
    config.name = recipes.short(recipe)  # of its lines in the table
    config.topologies = SINGLE_CHIPS  # slices of TPUs
    config.rows = ()  # share of the rows by bucket; empty: all in the largest
    config.tokens = ()  # of a row, by bucket; empty: full
    config.model = ""  # a folder whose config.json stands in for the backbone's
    # A CSV file of pair, tokens and tiles of a sample of items: buckets that the run leaves open
    # are chosen by it, and rows and tokens follow from it where they are empty.
    config.lengths = ""
    config.teacher = 0  # width of its embeddings
    config.suggest = True  # changes that fit, or that fill a slice
    config.search = 0  # programs compiled in search of a faster step by chunk, remat and mesh
    config.update(EXPECTED.get(recipes.short(recipe), {}))
    config.run = recipes.load(recipe)
    return config

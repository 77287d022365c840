"""The plan before you rent: what the recipes of this folder need on TPU slices.

--config=experiments/plan.py                  all recipes below
--config=experiments/plan.py:stage2_7b_lora   one of them, likewise the others

Each program takes minutes to compile, so a first call with all of them takes hours; what is done
stays in <workdir>/cache, so it may be interrupted, or come one recipe at a time. Any other run:
--config=experiments/<name>.py:<variant> --config.job=plan. The models here have the published
shapes, kept in experiments/plans/models, so that no hub is asked.
"""

import os
import pathlib

from ml_collections import ConfigDict

from unime_jax.operations.recipes import embed, llave, stage1, stage2

# Relative where it can be, so that plans made in a clone name no machine's folders.
MODELS = os.path.relpath(pathlib.Path(__file__).parent / "plans" / "models") + "/"
ONEVISION_7B = MODELS + "llava_onevision_7b"
PODS = ("v5e:4x4", "v5e:8x8", "v6e:4x4", "v5p:2x2x4")


def get_config(variant: str = "all") -> ConfigDict:
    config = ConfigDict()
    config.job = "plan"
    config.recipes = ConfigDict(recipes())
    if variant != "all":
        if variant not in config.recipes:
            raise KeyError(f'no variant "{variant}"; use one of all, {", ".join(config.recipes)}')
        config.recipes = ConfigDict({variant: config.recipes[variant]})
    return config


def recipes() -> dict[str, ConfigDict]:
    """Single chips as Colab has them, UniME's two stages and LLaVE at 7B, and stage 1's teacher."""
    full = llave.llava_onevision_7b()
    full.batch_size, full.chunk_size = 4096, 128
    full.execution.remat = "dots"  # a chip of v5p has room for that
    full.steps, full.optimizer.warmup_steps = 162, 5  # one epoch, as the recipe of 256 pairs
    return {
        "stage2_05b_lora": on(
            ("v5e:1x1", "v6e:1x1"), stage2.llava_onevision_05b(), MODELS + "llava_onevision_05b"
        ),
        "stage1_7b_lora": on(PODS, stage1.llava_onevision_7b()),
        "stage2_7b_lora": on(PODS, stage2.llava_onevision_7b()),
        "llave_7b": on(("v5e:8x8",), llave.llava_onevision_7b()),
        "llave_7b_4096_pairs": on(("v5p:4x4x4",), full),
        "embed_nv_embed_v2": on(("v5e:2x4",), embed.nv_embed_v2(), MODELS + "nv_embed_v2"),
    }


def on(topologies: tuple[str, ...], config: ConfigDict, model: str = ONEVISION_7B) -> ConfigDict:
    """A recipe for these slices."""
    config.plan.topologies = topologies
    config.plan.model = model
    return config

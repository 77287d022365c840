"""A study of negatives on MiniMMEB: one half-trained model, and one factor of stage2.py at a time.

--config=experiments/study.py             the common start: plain InfoNCE at a constant rate
--config=experiments/study.py:margin:off  stage2.py from there, with one factor changed

Every value of FACTORS is a variant, and "default" is stage2.py's loss and batches; the rate goes
down to 0. The command `python -m tests.study` runs all of them over several seeds, with the mined
and judged negatives that some read, and makes the table of docs/study.md.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from unime_jax.operations.recipes import base, stage2

FOLDER = "runs/study"  # of the study's command
START_STEPS = 160
STEPS = 24

# LLaVE weighs all negatives of the batch, where UniME keeps the hardest.
ALL = {"loss.hard_negatives": None, "loss.false_negative_margin": None}
MINED = {"data.mined": f"{FOLDER}/mined", "data.mined_use": "instead"}
JUDGED = {"data.train": "../judged/rows"}  # below data.folder

# What each value changes; {}: it is the default's.
FACTORS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "margin": {
        "-0.1": {"loss.false_negative_margin": -0.1},
        "0": {"loss.false_negative_margin": 0.0},
        "0.1": {},
        "0.3": {"loss.false_negative_margin": 0.3},
        "off": {"loss.false_negative_margin": None},
    },
    "k": {
        "4": {"loss.hard_negatives": 4},
        "8": {},
        "16": {"loss.hard_negatives": 16},
        "63": {"loss.hard_negatives": 63},  # a batch of 64 has no 64th
    },
    # The hardest negatives of a query: of the batch, of the data (a row sees its own two only), or
    # both; and what a judge says of those of the data.
    "negatives": {
        "in-batch": {"data.negatives": 0},
        "own": {},  # those of two sources' rows, beside the batch's
        "mined": MINED | {"loss.closed_sources": "all"},
        "both": MINED,
        "judged": JUDGED | {"loss.contrastive_weight": 0.0},
        "judged+batch": JUDGED | {"loss.contrastive_weight": 1.0},
    },
    "hardness": {
        "0": ALL,
        "3": ALL | {"loss.hardness": 3.0},
        "9": ALL | {"loss.hardness": 9.0},
        "27": ALL | {"loss.hardness": 27.0},
    },
    "source_run": {
        "0": {"data.source_run": 0},
        "16": {},
        "64": {"data.source_run": 64},
    },
    "duplicates": {
        "off": {},
        "0.95": {"loss.duplicate_queries": 0.95, "loss.duplicate_targets": 0.95},
        "queries_0.98": {"loss.duplicate_queries": 0.98},
    },
}
SOURCES = (
    "Backgrounds", "Counts", "Crops", "DigitSearch", "Digits", "Edits", "LongCaptions_t2i",
    "Objects", "Relations", "Scenes_i2t", "Scenes_t2i",
)  # fmt: skip


def variants() -> dict[str, Mapping[str, Any]]:
    """What each variant changes of the default, by name; the default itself is the first."""
    every = {
        f"{factor}:{value}": changes
        for factor, of in FACTORS.items()
        for value, changes in of.items()
    }
    return {"default": {}} | {name: changes for name, changes in every.items() if changes}


def get_config(variant: str = "start") -> ConfigDict:
    base.variant_of(variant, ("start", *variants()))
    config = stage2.get_config()
    config.data.folder = f"{FOLDER}/data"  # fewer rows than stage2.py's
    config.data.prepare.train_rows = 480
    config.infonce_steps = 0
    config.evaluation.composition = ""
    config.export.verify = False
    if variant == "start":
        config.steps = START_STEPS
        config.loss = base.contrastive()
        config.optimizer.schedule = "constant"
        return config
    config.init_from = f"{FOLDER}/start"
    config.steps = STEPS
    config.optimizer.warmup_steps = 5
    changes = variants()[variant]
    if "loss.contrastive_weight" in changes:
        contrast, config.loss = config.loss, base.judge_distillation()
        config.loss.contrastive = contrast
        config.loss.judge_temperature = 0.1
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        target = config[group]
        target[name] = SOURCES if value == "all" else value
    return config

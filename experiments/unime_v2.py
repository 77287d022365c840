"""UniME-V2: a judge's soft labels on a query's own hard negatives (Gu et al. 2025, 2510.13515).

--config=experiments/unime_v2.py                         MiniMMEB with scores, from scratch
--config=experiments/unime_v2.py:qwen2_vl_7b             DoRA on a pod, judged MMEB-train
--config=experiments/unime_v2.py:llava_onevision_7b      the same for LLaVA-OneVision
--config=experiments/unime_v2.py:qwen2_5_vl_7b           the same for Qwen2.5-VL
--config=experiments/unime_v2.py:qwen3_vl_2b             the same for Qwen3-VL
--config=experiments/unime_v2.py:qwen3_vl_8b             the same for its 8B
--config=experiments/unime_v2.py:own                     own rows with scores, by a trained model

Rows have `scores`, as job judge (experiments/judge.py) writes them. In-batch InfoNCE is added by
config.loss.contrastive_weight; the original has none.
"""

from ml_collections import ConfigDict

from unime_jax.operations.recipes import base, own

PRETRAINED = (
    "qwen2_vl_7b",
    "llava_onevision_7b",
    "qwen2_5_vl_7b",
    "qwen3_vl_2b",
    "qwen3_vl_8b",
)
NEGATIVES = 8  # the best of 4, 6, 8, 10 in the paper


def get_config(variant: str = "mini") -> ConfigDict:
    base.variant_of(variant, ("mini", *PRETRAINED, "own"))
    if variant == "mini":
        config = base.mini()
        config.data.train = "mini_mmeb_judged/rows"  # of job judge
        config.data.negatives = 2  # all that MiniMMEB's rows have
    elif variant == "own":
        config = own.get_config()
        config.data.negatives = NEGATIVES
    else:
        config = base.pretrained(variant)
        config.steps = 2000
        config.batch_size = 512  # of the script, as its steps; the paper has 1024
        config.optimizer.learning_rate = 1e-4  # of the script; the paper: 2e-5 for LLaVA-OneVision
        config.optimizer.warmup_steps = 200
        config.data.train = "mmeb_train_judged/rows"
        config.data.source_run = 0
        config.data.negatives = NEGATIVES
    config.loss = base.judge_distillation()
    if variant == "mini":
        config.loss.contrastive_weight = 1.0  # few of its rows have negatives, so few are judged
    return config

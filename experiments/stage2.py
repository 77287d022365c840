"""UniME stage 2: hard-negative instruction tuning with false-negative filtering.

--config=experiments/stage2.py                         the embedded MiniMMEB, from scratch
--config=experiments/stage2.py:mini_video              on from there, on clips of MiniVideo as well
--config=experiments/stage2.py:llava_onevision_7b      DoRA on a pod, MMEB-train
--config=experiments/stage2.py:llava_onevision_05b     the same for 0.5B, on a single chip
--config=experiments/stage2.py:llava_next_7b           the same for LLaVA-1.6
--config=experiments/stage2.py:qwen2_vl_7b             the same for Qwen2-VL
--config=experiments/stage2.py:qwen2_5_vl_7b           the same for Qwen2.5-VL
--config=experiments/stage2.py:qwen2_5_vl_3b           the same for Qwen2.5-VL-3B
--config=experiments/stage2.py:qwen3_vl_2b             the same for Qwen3-VL; or qwen3_vl_8b
--config=experiments/stage2.py:qwen3_vl_embedding_2b   LoRA on Qwen3-VL-Embedding
--config=experiments/stage2.py:phi3_v_4b               the same for Phi-3.5-Vision
--config=experiments/stage2.py:clip_large_336          the same for CLIP, a baseline
--config=experiments/stage2.py:siglip2_so400m          the same for SigLIP 2

Gu et al. 2025, arXiv 2504.17432, section 3.3 and appendix A.
"""

from ml_collections import ConfigDict

from unime_jax.data.settings import Bucket
from unime_jax.operations.recipes import base, families

FASTER = (  # learn at 1e-4
    "qwen2_vl_7b", "qwen2_5_vl_7b", "qwen2_5_vl_3b", "qwen3_vl_2b", "qwen3_vl_8b", "phi3_v_4b",
    "clip_large_336", "siglip2_so400m",
)  # fmt: skip


def get_config(variant: str = "mini") -> ConfigDict:
    if base.variant_of(variant, ("mini", "mini_video", *families.FAMILIES)) == "mini":
        config = base.mini()
    elif variant == "mini_video":
        config = _mini_video()
    else:
        config = base.pretrained(variant)
        config.optimizer.learning_rate = 2e-5
    if variant in FASTER:
        config.optimizer.learning_rate = 1e-4
    config.loss.hard_negatives = 8
    config.loss.false_negative_margin = 0.1
    return config


def _mini_video() -> ConfigDict:
    """Keys of the second run of a tiny model: MiniVideo's clips beside MiniMMEB's images."""
    config = base.mini()
    config.init_from = "runs/stage2"
    config.steps = 300
    config.infonce_steps = 0
    config.optimizer.learning_rate = 1e-3
    config.data.prepare.module = "data_pipelines.mini_video"
    config.data.train = "mini_video/train"  # MiniMMEB's pairs are linked from there
    config.data.clips = True
    *images, widest = config.data.buckets
    clips = Bucket(tokens=52, tiles=6)  # a frame is a tile
    config.data.buckets = (*images, clips, Bucket(tokens=widest.tokens, tiles=clips.tiles))
    config.evaluation.mmeb = "mini_video/eval"
    config.evaluation.images = "mini_video/clips"
    config.evaluation.composition = ""
    return config

"""LLaVE: negatives weighted by hardness, both directions (Lan et al. 2025, arXiv 2503.04812).

--config=experiments/llave.py                          the embedded MiniMMEB, from scratch
--config=experiments/llave.py:llava_onevision_7b      full fine-tuning on a pod, MMEB-train

LLaVE's script contrasts 32 pairs at a time, which is --config.loss.pool=32; here all 256 of a step
are contrasted at once.
"""

from ml_collections import ConfigDict

from unime_jax.operations.recipes import base


def get_config(variant: str = "mini") -> ConfigDict:
    if base.variant_of(variant, ("mini", "llava_onevision_7b")) == "mini":
        config = base.mini()
    else:
        config = base.pretrained(variant)
        config.steps = 2600  # one epoch of 662K pairs
        config.batch_size = 256
        config.trainable = ((r"vision_tower\..*", False), (".*", True))
        config.lora.rank = 0
        config.export.adapter = False  # there is none
        config.optimizer.learning_rate = 5e-6
        config.optimizer.warmup_steps = 78  # 3 %
        config.optimizer.schedule = "cosine"
        config.optimizer.beta2 = 0.999
        config.optimizer.weight_decays = ((".*", 0.0),)
        config.processing.pinpoints = ((384, 384), (384, 768), (768, 384), (768, 768))
    config.loss.hardness = 9.0
    config.loss.symmetric = True
    return config

"""LLaVE: negatives weighted by hardness, both directions (Lan et al. 2025, arXiv 2503.04812).

--config=experiments/llave.py                          the embedded MiniMMEB, from scratch
--config=experiments/llave.py:llava_onevision_7b      full fine-tuning on a pod, MMEB-train

What is not said here is as in stage2.py.
"""

from ml_collections import ConfigDict

from unime_jax.operations.recipes import stage2


def get_config(variant: str = "mini") -> ConfigDict:
    variants = {"mini": mini, "llava_onevision_7b": llava_onevision_7b}
    if variant not in variants:
        raise KeyError(f'no variant "{variant}"; use one of {", ".join(variants)}')
    return variants[variant]()


def mini() -> ConfigDict:
    """All parameters of a tiny LLaVA-OneVision, on generated data; minutes on a laptop."""
    return with_loss(stage2.mini())


def llava_onevision_7b() -> ConfigDict:
    """LLaVE-7B's recipe; but its 256 pairs are contrasted at once, not 32 at a time."""
    config = with_loss(stage2.llava_onevision_7b())
    config.steps = 2600  # one epoch of 662K pairs
    config.batch_size = 256
    config.processing.pinpoints = ((384, 384), (384, 768), (768, 384), (768, 768))
    config.trainable = ((r"vision_tower\..*", False), (".*", True))
    config.lora.rank = 0
    config.export.adapter = False  # there is none
    config.optimizer.learning_rate = 5e-6
    config.optimizer.warmup_steps = 78  # 3 %
    config.optimizer.schedule = "cosine"
    config.optimizer.beta2 = 0.999
    config.optimizer.weight_decays = ((".*", 0.0),)
    config.data.buckets = ((128, 0, 1.0), (512, 0, 0.25), (1792, 2, 1.0), (4096, 5, 1.0))
    config.plan.rows = (0.5, 0.0, 0.0, 0.5)
    config.plan.tokens = (48, 512, 1536, 3712)
    return config


def with_loss(config: ConfigDict) -> ConfigDict:
    config.loss.hard_negatives = None
    config.loss.false_negative_margin = None
    config.loss.hardness = 9.0
    config.loss.symmetric = True
    return config

"""UniME stage 1: the language component learns a text teacher's similarities.

--config=experiments/stage1.py                         sentences about MiniMMEB, from scratch
--config=experiments/stage1.py:paper_literal           the same, the loss as the paper prints it
--config=experiments/stage1.py:llava_next_7b           LoRA on a pod, NLI triples, NV-Embed-v2
--config=experiments/stage1.py:llava_onevision_7b      the same for LLaVA-OneVision
--config=experiments/stage1.py:qwen2_vl_7b             the same for Qwen2-VL
--config=experiments/stage1.py:qwen2_5_vl_7b           the same for Qwen2.5-VL
--config=experiments/stage1.py:qwen3_vl_2b             the same for Qwen3-VL
--config=experiments/stage1.py:qwen3_vl_8b             the same for its 8B
--config=experiments/stage1.py:phi3_v_4b               the same for Phi-3.5-Vision

Then --config=experiments/stage2.py --config.init_from=<work directory of stage 1>. The NLI triples
are built by `python -m data_pipelines.texts`, the teacher's embeddings of them by
experiments/embed.py. The paper (arXiv 2504.17432, section 3.2 and table 6) has settings for
LLaVA-1.6 and Phi-3.5-Vision; the others have those of LLaVA-1.6.
"""

from ml_collections import ConfigDict

from unime_jax.data.settings import Bucket
from unime_jax.operations.recipes import base

MINI = ("mini", "paper_literal")
PRETRAINED = (
    "llava_next_7b",
    "llava_onevision_7b",
    "qwen2_vl_7b",
    "qwen2_5_vl_7b",
    "qwen3_vl_2b",
    "qwen3_vl_8b",
    "phi3_v_4b",
)


def get_config(variant: str = "mini") -> ConfigDict:
    if base.variant_of(variant, (*MINI, *PRETRAINED)) in MINI:
        config = base.mini()  # its decoder, with all-MiniLM-L6-v2 as teacher
        config.steps = 150
        config.chunk_size = 32
        config.trainable = ((r"language_model\..*", True), (".*", False))
        config.data.prepare.module = "data_pipelines.mini_nli"
        config.data.train = config.evaluation.texts = "mini_nli/texts"
        config.data.weights = ConfigDict({"train": 1.0})
        config.data.teacher = "mini_nli/teacher"
        config.data.buckets = (Bucket(tokens=64, tiles=0), Bucket(tokens=96, tiles=0))
    else:
        config = base.pretrained(variant)
        config.steps = 711  # two epochs of 273K triples
        config.batch_size = 768
        config.processing.prompt = "chat"
        config.lora.rank = 32
        config.lora.dora = False
        config.lora.targets = ((r"language_model\..*_proj", True), (".*", False))
        config.optimizer.learning_rate = 5e-4
        config.optimizer.warmup_steps = 100  # E5-V's
        config.data.train = config.evaluation.texts = "nli"
        config.data.weights = ConfigDict({"train": 1.0})
        config.data.teacher = "nli_nv_embed_v2"
    config.infonce_steps = 0
    config.data.source_run = 0
    config.data.negatives = 1
    # Published checkpoints are asked this at evaluation; the paper words it in three ways.
    config.data.suffix = "\nSummary above sentence in one word:"
    config.evaluation.mmeb = config.evaluation.composition = config.evaluation.images = ""

    # The recommended reading of the paper's loss. The paper does not say its temperature.
    config.loss = base.distillation()
    if variant == "paper_literal":  # KL(student || teacher) with the diagonal, summed (Eq. 2)
        config.loss.texts = "queries"
        config.loss.direction = "student_teacher"
        config.loss.mask_diagonal = False
        config.loss.reduction = "sum"
    return config

"""UniME stage 1: the language component learns a text teacher's similarities.

--config=experiments/stage1.py                         sentences about MiniMMEB, from scratch
--config=experiments/stage1.py:paper_literal           the same, the loss as the paper prints it
--config=experiments/stage1.py:llava_next_7b           LoRA on a pod, NLI triples, NV-Embed-v2
--config=experiments/stage1.py:llava_onevision_7b      the same for LLaVA-OneVision
--config=experiments/stage1.py:qwen2_vl_7b             the same for Qwen2-VL
--config=experiments/stage1.py:phi3_v_4b               the same for Phi-3.5-Vision

Then --config=experiments/stage2.py --config.init_from=<work directory of stage 1>. The NLI triples
are built by `python -m data_pipelines.texts`, the teacher's embeddings of them by
experiments/embed.py. What is not said here is as in stage2.py.
"""

from ml_collections import ConfigDict, config_dict

from unime_jax.recipes import stage2

# What the published checkpoints are asked at evaluation; the paper words it in three ways.
SUFFIX = "\nSummary above sentence in one word:"


def get_config(variant: str = "mini") -> ConfigDict:
    variants = {
        "mini": mini,
        "paper_literal": paper_literal,
        "llava_next_7b": llava_next_7b,
        "llava_onevision_7b": llava_onevision_7b,
        "qwen2_vl_7b": qwen2_vl_7b,
        "phi3_v_4b": phi3_v_4b,
    }
    if variant not in variants:
        raise KeyError(f'no variant "{variant}"; use one of {", ".join(variants)}')
    return variants[variant]()


def mini() -> ConfigDict:
    """The whole decoder of a tiny LLaVA-OneVision, all-MiniLM-L6-v2 as its teacher."""
    config = with_loss(stage2.mini())
    config.steps = 150
    config.chunk_size = 32
    config.trainable = ((r"language_model\..*", True), (".*", False))
    config.data.prepare.module = "data_pipelines.mini_nli"
    config.data.train = "mini_nli/texts"
    config.data.weights = ConfigDict({"train": 1.0})
    config.data.teacher = "mini_nli/teacher"
    config.data.buckets = ((64, 0, 1.0), (96, 0, 1.0))
    config.evaluation.mmeb = config.evaluation.composition = config.evaluation.images = ""
    config.evaluation.texts = "mini_nli/texts"
    return config


def paper_literal() -> ConfigDict:
    """KL(student || teacher), the diagonal kept, summed over the batch's first sentences (Eq. 2).

    The paper does not say its temperature.
    """
    config = mini()
    config.loss.texts = "queries"
    config.loss.direction = "student_teacher"
    config.loss.mask_diagonal = False
    config.loss.reduction = "sum"
    return config


def llava_next_7b() -> ConfigDict:
    """LLaVA-1.6-Mistral-7B with LoRA, 768 triples a step, two epochs (UniME, table 6)."""
    config = pretrained(stage2.llava_next_7b())
    config.chunk_size = 192  # it is wider, and so is what is kept of it
    return config


def llava_onevision_7b() -> ConfigDict:
    """LLaVA-OneVision-7B, for which the paper gives no settings of its own."""
    return pretrained(stage2.llava_onevision_7b())


def qwen2_vl_7b() -> ConfigDict:
    """Qwen2-VL-7B, with LLaVA-1.6's settings."""
    return pretrained(stage2.qwen2_vl_7b())


def phi3_v_4b() -> ConfigDict:
    """Phi-3.5-Vision, 4.2B parameters (UniME, table 6)."""
    return pretrained(stage2.phi3_v_4b())


def pretrained(config: ConfigDict) -> ConfigDict:
    config = with_loss(config)
    config.steps = 711  # two epochs of 273K triples
    config.batch_size = 768
    config.chunk_size = 384
    # Texts are short: 16 chips keep what layers hand on for all of them, and none is encoded twice.
    config.execution.recompute = False
    config.processing.prompt = "chat"
    config.lora.rank = 32
    config.lora.dora = False
    config.lora.targets = ((r"language_model\..*_proj", True), (".*", False))
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 100  # E5-V's
    config.data.train = "nli"
    config.data.weights = ConfigDict({"train": 1.0})
    config.data.teacher = "nli_nv_embed_v2"
    config.data.buckets = ((64, 0, 1.0), (128, 0, 1.0))
    config.evaluation.mmeb = config.evaluation.images = ""
    config.evaluation.texts = "nli"
    config.plan.rows = (1.0, 0.0)
    config.plan.tokens = (48, 96)
    config.plan.teacher = 4096  # NV-Embed-v2
    return config


def with_loss(config: ConfigDict) -> ConfigDict:
    """The recommended reading of the paper's loss; `paper_literal` is the other one."""
    config.infonce_steps = 0
    config.loss = ConfigDict()
    config.loss.objective = "distillation"
    config.loss.texts = "all"
    config.loss.temperature = 0.02  # the paper does not say
    config.loss.teacher_temperature = config_dict.placeholder(float)  # empty: the same
    config.loss.direction = "teacher_student"
    config.loss.mask_diagonal = True
    config.loss.reduction = "mean"
    config.data.source_run = 0
    config.data.negatives = 1
    config.data.suffix = SUFFIX
    return config

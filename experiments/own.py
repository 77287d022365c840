"""Own data: a fine-tune of any model folder or hub id on pairs, with settings that fit both.

--config=experiments/own.py             needs config.backbone and config.data.train

What is None here follows from the backbone's size, `data.buckets` from the lengths of the rows; the
choices are logged, and kept in <workdir>/automatic.json. Models of 1e9 parameters and more have
LoRA adapters on their decoder in bfloat16, smaller ones train all weights in float32. There is no
from-scratch warm-up by plain InfoNCE, as the model is trained already. Paths are relative to the
current folder.
"""

from ml_collections import ConfigDict

from unime_jax.operations.recipes import base

# The linear layers of the decoder or encoder, of every family, and of both towers of CLIP and
# SigLIP. No vision tower of others: LLaVE's ablation has 0.8 more on MMEB with the tower frozen
# (arXiv 2503.04812).
LAYERS = r"(language_model|embedding_model|((text|vision)_model\.)?encoder)\.layers?\..*"


def get_config(variant: str = "default") -> ConfigDict:
    base.variant_of(variant, ("default",))
    config = base.mini()
    config.backbone = ""
    config.init = "pretrained"
    config.steps = 300  # or 0, and epochs
    config.chunk_size = 0  # by the memory of a device, with remat and kept_chunks
    config.infonce_steps = 0
    config.log_every = 10
    config.processing = None  # as the backbone was exported or published
    config.trainable = None  # the adapters, or all weights without

    config.lora.rank = None  # 16 from 1e9 parameters on, else 0
    config.lora.alpha = 32.0
    config.lora.dora = False  # LoRA is what servers take unmerged, and a step without norms
    config.lora.targets = ((LAYERS, True), (".*", False))
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})

    config.optimizer.learning_rate = None  # LoRA 1e-4; all: by size
    config.optimizer.warmup_steps = None  # a tenth of all steps
    config.optimizer.beta2 = 0.999
    config.checkpoint.every = 100
    config.evaluation.mmeb = config.evaluation.composition = config.evaluation.images = ""

    config.data.folder = ""
    config.data.prepare.module = ""
    config.data.train = ""
    config.data.source_run = 0
    config.data.buckets = ()  # by the lengths of the rows
    config.execution.dtype = None  # bfloat16 from 1e9 parameters on
    config.execution.frozen_dtype = None  # the same
    config.execution.remat = "auto"  # by memory; where that is not known, as on CPUs, "full"
    config.execution.kept_chunks = config.execution.merged_chunks = None  # by memory, too
    config.export.dtype = None  # the same
    return config

"""Contrastive losses of published embedders as presets, beside stage2.py (UniME) and llave.py.

--config=experiments/presets.py                                   as :qwen3_vl_embedding
--config=experiments/presets.py:qwen3_vl_embedding                queries and documents, too
--config=experiments/presets.py:wemm                              no duplicates, one source a batch
--config=experiments/presets.py:embedding_gemma                   hardness on explicit negatives
--config=experiments/presets.py:qwen3_vl_embedding:qwen2_vl_7b    the first for a pod, MMEB-train
--config=experiments/presets.py:wemm_teacher                      two-way KL to data.teacher, too
--config=experiments/presets.py:embedding_gemma_teacher           vectors matched to data.teacher's

They run on the embedded MiniMMEB, from scratch; with a checkpoint of families.py behind the preset,
as the last one, on MMEB-train with DoRA. A preset is a loss, the prefixes of embeddings that it is
taken of as well, and how batches are drawn: backbones, data, stages and quantisation of the
originals are not in it. Sources that are classification go into loss.closed_sources
(Qwen3-VL-Embedding): their explicit negatives must then be wrong labels. Sources of graded pairs,
such as STS, go into loss.graded_sources (Qwen3-VL-Embedding, WeMM). The two with a teacher read its
vectors of all items, which job embed writes, from data.teacher; the originals run theirs online,
which gives the same vectors, as it is frozen.
The thresholds of wemm are for a model that is trained already, or for one after `infonce_steps`.
"""

from ml_collections import ConfigDict

from unime_jax.operations.recipes import base, families

PRESETS = ("qwen3_vl_embedding", "wemm", "embedding_gemma")
TAUGHT = ("wemm_teacher", "embedding_gemma_teacher")
DIMS = (64, 128, 256, 512, 1024)  # Qwen3-VL-Embedding's and WeMM's; weights are ours: 1 each
PREFIXES = dict.fromkeys(("llava_onevision_05b", "clip_large_336"), DIMS[:-1])  # narrower models


def get_config(variant: str = "qwen3_vl_embedding") -> ConfigDict:
    pretrained = [f"{name}:{family}" for name in PRESETS for family in families.FAMILIES]
    known = [*PRESETS, *TAUGHT, *pretrained]
    preset, _, family = base.variant_of(variant, known).partition(":")
    config = base.pretrained(family) if family else base.mini()
    if family:
        config.optimizer.learning_rate = 1e-4
        config.data.negatives = 2
    loss = config.loss
    if preset == "qwen3_vl_embedding":  # the first stage; later ones drop both terms
        loss.query_query = loss.document_document = True
        loss.false_negative_margin = 0.1
        loss.query_query_margin = loss.document_document_margin = 0.1
        loss.trust_explicit = False
        loss.graded_form = "cosent"  # at the temperature of the rest
        loss.graded_temperature = loss.temperature
    elif preset in ("wemm", "wemm_teacher"):  # arXiv 2608.24053; the numbers are ours
        loss.duplicate_queries = loss.duplicate_targets = 0.95
        loss.trust_explicit = False
        loss.temperature_learning_rate = 1e-3
        loss.graded_form = "gap_weighted_cosent"
        config.data.source_run = config.batch_size
    else:  # arXiv 2509.20354; the weights of regulariser and teacher are ours
        loss.hardness = 5.0
        loss.hardness_on = "explicit"
        loss.spread_out_weight = 1.0
    config.matryoshka.dims = (16, 32, 64) if not family else PREFIXES.get(family, DIMS)
    if preset in TAUGHT:
        config.data.teacher = "teacher"  # a work directory of job embed, below data.folder
        if preset == "wemm_teacher":
            loss.teacher_weight = 1.0
        else:  # of the model's own width
            loss.teacher_matching_weight = 1.0
    return config

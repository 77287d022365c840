"""Scores of a multimodal judge for the candidates of training pairs, for unime_v2.py.

--config=experiments/judge.py                 MiniMMEB by the model of the default run of stage2.py
--config=experiments/judge.py:qwen2_5_vl_7b   MMEB-train with mined negatives, by Qwen2.5-VL-7B
--config=experiments/judge.py:qwen2_vl_7b     the same by Qwen2-VL-7B
--config=experiments/judge.py:qwen2_vl_7b_reranker     the same, in Qwen3-VL-Reranker's words

Rows with scores are written to <workdir>/rows. The default is a rehearsal: a model that was trained
to embed, and never to answer, has no opinion. Name a judge of your own by config.backbone, and your
rows by config.data.folder and config.data.train. Gu et al. 2025, arXiv 2510.13515.
"""

from ml_collections import ConfigDict, config_dict

from unime_jax.operations.recipes import base


def get_config(variant: str = "mini") -> ConfigDict:
    base.variant_of(variant, ("mini", "qwen2_5_vl_7b", "qwen2_vl_7b", "qwen2_vl_7b_reranker"))
    config = ConfigDict()
    config.job = "judge"
    config.backbone = "runs/stage2/hf"  # a folder or a hub id, with its language-model head
    config.revision = config_dict.placeholder(str)  # of a hub id: branch, tag or commit
    config.processing = None  # as the backbone was exported or published; or keys as in base.py
    # Tokens of a query and a candidate with their images; None: as the folder says.
    config.max_length = 512
    config.batch_size = 64  # rows judged at once, of one pair or of several of a query
    config.dtype = "float32"  # or "bfloat16"
    config.compilation_cache = "auto"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # a process's own devices

    config.judging = ConfigDict()
    config.judging.prompt = "unime_v2"  # or "qwen3_vl_reranker"
    config.judging.instruction = config_dict.placeholder(str)  # None: the prompt's own, published
    config.judging.yes = config_dict.placeholder(str)  # None: the prompt's own: "Yes", "yes"
    config.judging.no = config_dict.placeholder(str)
    config.judging.share_prefix = True  # a query's prompts: what they begin with is encoded once
    config.judging.repetition_penalty = 1.0  # 1.05: as UniME-V2's published scores
    config.judging.margin = config_dict.placeholder(float)  # negatives above positive - margin go
    config.judging.keep = 0  # negatives of a row, spread over their ranks; 0: all

    config.data = ConfigDict()
    config.data.folder = "data"
    config.data.train = "mini_mmeb/train"  # pairs, as data.train of base.py
    config.data.columns = ConfigDict()  # as in base.py
    config.data.mined = ""  # a work directory of mine.py: its negatives are judged, too
    config.data.mined_use = "beside"  # the rows' own, or "instead"
    config.data.block = 64  # rows of a file
    config.data.max_bad_share = 0.05  # of the rows

    if variant != "mini":
        # Write to where unime_v2.py looks: --workdir=<data.folder>/mmeb_train_judged
        config.backbone = "Qwen/Qwen2-VL-7B-Instruct"
        config.processing = base.mini().processing
        config.processing.pixels = (56 * 56, 672 * 672)
        config.max_length = 4096
        config.dtype = "bfloat16"
        config.judging.margin = 0.01
        config.judging.keep = 10
        config.data.train = "mmeb_train"
        config.data.mined = "runs/mine"
        config.data.mined_use = "instead"
        config.data.block = 256
    if variant == "qwen2_5_vl_7b":  # the paper's judge, as its scores were made
        config.backbone = "Qwen/Qwen2.5-VL-7B-Instruct"
        config.judging.repetition_penalty = 1.05
    if variant == "qwen2_vl_7b_reranker":
        config.judging.prompt = "qwen3_vl_reranker"
    return config

"""Embeddings of a corpus on disk, for example a teacher's for stage 1.

--config=experiments/embed.py                 MiniMMEB by the model of the default run of stage2.py
--config=experiments/embed.py:nv_embed_v2     NLI sentences by NV-Embed-v2, for stage1.py

The default embeds every distinct item that stage2.py trains with; it runs after that recipe.
"""

from ml_collections import ConfigDict, config_dict

from unime_jax.operations.recipes import base


def get_config(variant: str = "mini") -> ConfigDict:
    base.variant_of(variant, ("mini", "nv_embed_v2"))
    config = ConfigDict()
    config.job = "embed"
    config.backbone = "runs/stage2/hf"  # a folder or a hub id
    config.revision = config_dict.placeholder(str)  # of a hub id: branch, tag or commit
    config.processing = None  # as the backbone was exported or published; or keys as in base.py
    # Instructions before and after every text; None: the default prompt of a folder of
    # sentence-transformers, else none.
    config.prefix = config_dict.placeholder(str)
    config.suffix = ""
    # Tokens of an item, image tokens and instructions included; None: as the folder says.
    config.max_length = config_dict.placeholder(int)
    # Numbers of an embedding that are kept; None: as a folder of sentence-transformers says.
    config.truncate_dim = config_dict.placeholder(int)
    config.batch_size = 64  # items encoded at once
    config.dtype = "float32"  # or "bfloat16", "int8"
    config.compilation_cache = "auto"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # a process's own devices

    config.data = ConfigDict()
    config.data.folder = "data"
    config.data.datasets = ("mini_mmeb/train",)  # pairs, as data.train of base.py
    config.data.columns = ConfigDict()  # as in base.py
    config.data.splits = ()  # sources; empty: all
    config.data.sides = ("query", "positive", "negatives")
    config.data.texts = ()  # files with a text a line
    config.data.max_bad_share = 0.05  # of the items

    config.output = ConfigDict()
    config.output.block = 1024  # vectors of a file
    config.output.dtype = "float32"

    if variant == "nv_embed_v2":
        # 4096 float16 numbers each. Write to where stage1.py looks:
        # --workdir=<data.folder>/nli_nv_embed_v2
        # UniME does not say which instruction its teacher had. None, as here, is NV-Embed's way
        # with passages; for similarity of sentences its authors have
        # `prefix = "Instruct: Retrieve semantically similar text.\nQuery: "`.
        config.backbone = "nvidia/NV-Embed-v2"
        config.max_length = 512
        config.batch_size = 256
        config.dtype = "bfloat16"
        config.data.datasets = ("nli",)
        config.output.block = 8192
        config.output.dtype = "float16"
    return config

"""Embeddings of a corpus on disk, for example a teacher's for stage 1.

--config=experiments/embed.py                 MiniMMEB by the model of the default run of stage2.py
--config=experiments/embed.py:nv_embed_v2     NLI sentences by NV-Embed-v2, for stage1.py
"""

from ml_collections import ConfigDict, config_dict


def get_config(variant: str = "mini") -> ConfigDict:
    variants = {"mini": mini, "nv_embed_v2": nv_embed_v2}
    if variant not in variants:
        raise KeyError(f'no variant "{variant}"; use one of {", ".join(variants)}')
    return variants[variant]()


def mini() -> ConfigDict:
    """Every distinct item that stage2.py trains with; after `--config=experiments/stage2.py`."""
    config = ConfigDict()
    config.job = "embed"
    config.backbone = "runs/stage2/hf"  # a folder or a hub id
    config.revision = config_dict.placeholder(str)  # of a hub id: branch, tag or commit
    config.processing = None  # as the backbone was exported or published; else as in stage2.py
    # Instructions before and after every text; None: the default prompt of a folder of
    # sentence-transformers, else none.
    config.prefix = config_dict.placeholder(str)
    config.suffix = ""
    # Tokens of an item, image tokens and instructions included; None: as the folder says.
    config.max_length = config_dict.placeholder(int)
    # Numbers of an embedding that are kept; None: as a folder of sentence-transformers says.
    config.truncate_dim = config_dict.placeholder(int)
    config.batch_size = 64
    config.dtype = "float32"
    config.compilation_cache = "auto"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # a process's own devices

    config.data = ConfigDict()
    config.data.folder = "data"
    config.data.datasets = ("mini_mmeb/train",)  # TFDS folders in MMEB-train's columns
    config.data.splits = ()  # empty: all
    config.data.sides = ("query", "positive", "negatives")
    config.data.texts = ()  # files with a text a line
    config.data.max_bad_share = 0.05

    config.output = ConfigDict()
    config.output.block = 1024  # vectors of a file
    config.output.dtype = "float32"

    config.plan = ConfigDict()  # as in stage2.py
    config.plan.topologies = ("v5e:1x1", "v6e:1x1")
    config.plan.rows = ()
    config.plan.tokens = ()
    config.plan.model = ""
    config.plan.teacher = 0
    config.plan.suggest = True
    return config


def nv_embed_v2() -> ConfigDict:
    """NV-Embed-v2 on the sentences that stage1.py trains with; 4096 float16 numbers each.

    UniME does not say which instruction its teacher had. None, as here, is NV-Embed's way with
    passages; for similarity of sentences its authors have
    `prefix = "Instruct: Retrieve semantically similar text.\\nQuery: "`.
    Write to where stage1.py looks: --workdir=<data.folder>/nli_nv_embed_v2
    """
    config = mini()
    config.backbone = "nvidia/NV-Embed-v2"
    config.max_length = 512
    config.batch_size = 256
    config.dtype = "bfloat16"
    config.data.datasets = ("nli",)
    config.output.block = 8192
    config.output.dtype = "float16"
    config.plan.topologies = ("v5e:2x4",)
    return config

"""Negatives mined for training rows by a model's similarities, that `data.mined` joins.

--config=experiments/mine.py            needs config.backbone and config.data.train
--config=experiments/mine.py:unime_v2   50 candidates below the positive, 10 kept cyclically

Paths are relative to the current folder. Then train with --config.data.mined=<work directory> and
--config.data.negatives=<how many a pair has>.
"""

from ml_collections import ConfigDict, config_dict

from unime_jax.operations.recipes import base


def get_config(variant: str = "default") -> ConfigDict:
    base.variant_of(variant, ("default", "unime_v2"))
    config = ConfigDict()
    config.job = "mine"
    config.backbone = ""  # a folder or a hub id
    config.revision = config_dict.placeholder(str)  # of a hub id: branch, tag or commit
    config.processing = None  # as the backbone was exported or published; or keys as in base.py
    # Instructions before and after every text; None: the prompts "query" and "document" of a folder
    # of sentence-transformers, or its default.
    config.query_prefix = config_dict.placeholder(str)
    config.candidate_prefix = config_dict.placeholder(str)
    config.suffix = ""
    config.max_length = config_dict.placeholder(int)  # tokens of an item; None: as the folder says
    config.truncate_dim = config_dict.placeholder(int)  # numbers that are kept; None: the folder's
    config.batch_size = 64  # items encoded at once
    config.dtype = "float32"  # or "bfloat16", "int8"
    config.compilation_cache = "auto"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # a process's own devices

    config.data = ConfigDict()
    config.data.folder = ""
    config.data.train = ""  # pairs, as data.train of base.py
    config.data.columns = ConfigDict()  # as in base.py
    config.data.sources = ()  # that are mined for; empty: all
    config.data.first_rows = 0  # of each source; 0: all
    config.data.first_rows_by_source = ConfigDict()
    config.data.corpus = ""  # candidates; "": the positives and negatives of the rows
    config.data.max_bad_share = 0.05  # of the items

    config.search = ConfigDict()
    config.search.negatives = 8  # a row
    config.search.ranks = (1, 50)  # the first and the last
    config.search.margin = config_dict.placeholder(float)  # score <= positive's - margin
    config.search.ratio = 0.95  # score <= ratio * positive's
    config.search.max_score = config_dict.placeholder(float)
    config.search.guide = ""  # a work directory of this job, by another model on the same rows
    config.search.guide_margin = 0.0  # score there <= positive's - guide_margin
    config.search.pool = "all"  # or "source": the candidates of a row's own source
    config.search.own_negatives = False  # they come beside
    config.search.choice = "first"  # or "cyclic", "random"
    config.search.interval = 5  # of "cyclic"
    config.search.fill = False  # repeat negatives where there are fewer
    config.search.seed = 0  # of "random"
    config.search.method = "exact"  # or "approximate", on TPU
    config.search.rows = 2048  # searched at once, and a block of the table
    config.search.columns = 32768  # candidates that they are compared with at once

    config.output = ConfigDict()
    config.output.block = 8192  # vectors of a file
    config.output.dtype = "float32"

    if variant == "unime_v2":
        # arXiv 2510.13515: the best 50 of all candidates that score no higher than the positive,
        # then 10 in steps of 5. Its judge stands between the two.
        config.search.negatives = 10
        config.search.margin = 0.0
        config.search.ratio = config_dict.placeholder(float)
        config.search.choice = "cyclic"
        config.search.fill = True
        config.search.own_negatives = True
    return config

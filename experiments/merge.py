"""One model of several of one family: weights merged, without training or data.

--config=experiments/merge.py                 runs of stage2.py from several seeds, averaged

The default wants runs that started from one model: --config.models='("runs/a", "runs/b")'.
docs/merging.md has the methods, and how to score a merge beside its parts.
"""

from ml_collections import ConfigDict, config_dict

from unime_jax.operations.recipes import base


def get_config(variant: str = "default") -> ConfigDict:
    base.variant_of(variant, ("default",))
    config = ConfigDict()
    config.job = "merge"
    # Folders or hub ids, of models or adapters; or work directories, whose export is meant.
    config.models = ("runs/a", "runs/b", "runs/c")
    config.method = "linear"  # or "slerp" (two models), "ties", "dare_ties"
    config.weights = ()  # of the models; (): equal
    # Of ties and dare_ties only:
    config.base = ""  # what all models were trained from
    config.density = 0.5  # share of each difference from the base that is kept
    config.normalize = True  # sums of differences by the weights of their terms
    config.scale = 1.0  # factor of what is added to the base
    config.seed = 0  # of what dare_ties drops

    config.processing = None  # as the models were exported or published; or keys as in base.py
    config.max_length = config_dict.placeholder(int)  # tokens of an item; None: the models' own
    config.dtype = config_dict.placeholder(str)  # "float32", "bfloat16"; None: as the models have
    config.check_dtype = "float32"  # that the merged model is run in to check it; or "bfloat16"
    config.verify = True  # repeat the check in a new process
    config.compilation_cache = "auto"
    return config

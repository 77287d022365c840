"""Rounds of mining and training: each mines with the model of the round before, in one command.

--config=experiments/rounds.py             MiniMMEB: a model from scratch, then two rounds
--config=experiments/rounds.py:own         needs config.backbone and config.data.train
--config=experiments/rounds.py:unime_v2    own rows, a judge between mining and training

Below config.mine, config.judge, config.train and config.initial are the keys of the jobs, such as
--config.mine.search.ratio=0.9; what they have in common is above: config.backbone, config.data.
Paths are relative to the current folder.
"""

from ml_collections import ConfigDict, FieldReference, config_dict

from unime_jax.operations.recipes import base, judge, mine, own, stage2, unime_v2


def get_config(variant: str = "mini") -> ConfigDict:
    base.variant_of(variant, ("mini", "own", "unime_v2"))
    config = ConfigDict()
    config.job = "rounds"
    config.rounds = 2  # of mining and training
    config.start = "last"  # each trains the model that has mined; or "first": as config.train says
    config.initial = None  # or a training before the first round, whose model mines first
    config.mine = mine.get_config("unime_v2" if variant == "unime_v2" else "default")
    config.judge = judge.get_config()
    config.judge.backbone = ""  # none
    if variant == "mini":
        config.initial = stage2.get_config()
        config.train = stage2.get_config()
        config.train.infonce_steps = 0  # with start="first", from scratch again: as of `initial`
        config.train.steps = 145
        config.train.optimizer.learning_rate = 5e-4
        config.train.data.negatives = 4
    elif variant == "own":
        config.train = own.get_config()
        config.train.data.negatives = 4
    else:
        config.judge.backbone = "Qwen/Qwen2.5-VL-7B-Instruct"
        config.judge.max_length = 4096
        config.judge.dtype = "bfloat16"
        config.judge.judging.margin = 0.01
        config.judge.judging.keep = 10
        config.judge.data.mined_use = "instead"
        config.train = unime_v2.get_config("own")

    # The rows and the first model are one key for all parts.
    mini = variant == "mini"
    folder = FieldReference("data" if mini else "")
    config.backbone = folder + "/mini_mmeb/backbone" if mini else ""
    config.revision = config_dict.placeholder(str)  # of a hub id: branch, tag or commit
    config.data = ConfigDict()
    config.data.folder = folder
    config.data.train = "mini_mmeb/train" if mini else ""  # pairs, as data.train of base.py
    config.data.columns = ConfigDict()  # as in base.py
    for part in (config.mine, config.judge, config.train, config.initial):
        if part is not None:
            _follow(part, config)
    return config


def _follow(part: ConfigDict, config: ConfigDict) -> None:
    """Makes the keys of a part refer to those that all have in common."""
    part.data.folder = config.data.get_ref("folder")
    part.data.train = config.data.get_ref("train")
    part.data.columns = config.data.columns
    if part is not config.judge:
        part.backbone, part.revision = config.get_ref("backbone"), config.get_ref("revision")

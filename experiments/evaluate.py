"""Scores of a model on MMEB and caption sets, apart from any training.

--config=experiments/evaluate.py             the default run of stage2.py on MiniMMEB
--config=experiments/evaluate.py:mmeb        a model in bfloat16 on MMEB's 36 sets
"""

from ml_collections import ConfigDict, config_dict


def get_config(variant: str = "mini") -> ConfigDict:
    variants = {"mini": mini, "mmeb": mmeb}
    if variant not in variants:
        raise KeyError(f'no variant "{variant}"; use one of {", ".join(variants)}')
    return variants[variant]()


def mini() -> ConfigDict:
    """MiniMMEB, by the model of stage2.py's default run or any other `config.backbone`."""
    config = ConfigDict()
    config.job = "evaluate"
    config.backbone = "runs/stage2"  # a folder, a hub id, a PEFT adapter, or a run: its export
    config.revision = config_dict.placeholder(str)  # of a hub id: branch, tag or commit
    config.processing = None  # as the backbone was exported or published; else as in stage2.py
    config.max_length = config_dict.placeholder(int)  # tokens of an item; None: as the folder says
    config.batch_size = 64
    config.dtype = "float32"
    config.compilation_cache = "auto"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})

    config.watchdog = ConfigDict()  # as in stage2.py
    config.watchdog.setup_seconds = 3600.0
    config.watchdog.evaluation_seconds = 3600.0
    config.watchdog.exit = True

    config.data = ConfigDict()
    config.data.folder = "data"
    config.data.prepare = ConfigDict()  # the same data as of stage2.py
    config.data.prepare.module = "data_pipelines.mini_mmeb"
    config.data.prepare.seed = 0
    config.data.prepare.train_rows = 480
    config.data.prepare.eval_rows = 100

    config.evaluation = ConfigDict()
    config.evaluation.mmeb = "mini_mmeb/eval"
    config.evaluation.composition = "mini_mmeb/composition"
    config.evaluation.images = "mini_mmeb/images"
    config.evaluation.image_prompt = "<|image_1|>\nFind an image caption describing the image.\n"
    config.evaluation.limit = 0  # the first rows of each dataset; 0: all
    return config


def mmeb() -> ConfigDict:
    """MMEB-eval and its images below `data.folder`, see data_pipelines/."""
    config = mini()
    config.backbone = "runs/stage2_llava_onevision_7b"
    config.dtype = "bfloat16"
    config.data.prepare.module = ""
    config.evaluation.mmeb = "mmeb_eval"
    config.evaluation.composition = ""
    config.evaluation.images = "mmeb_eval_images"
    config.evaluation.image_prompt = "<|image_1|>\nSummary above image in one word:"
    return config

"""Scores of a model on MMEB, caption sets and held-out texts, apart from any training.

--config=experiments/evaluate.py             the default run of stage2.py on MiniMMEB
--config=experiments/evaluate.py:mmeb        a model in bfloat16 on MMEB's 36 sets
--config=experiments/evaluate.py:benchmarks  a model in bfloat16 on prepared benchmark sets
--config=experiments/evaluate.py:video       LLaVE, in its words, on MSR-VTT 1K-A and MSVD
--config=experiments/evaluate.py:mini_video  the default run of stage2.py on MiniVideo
--config=experiments/evaluate.py:texts       the default run of stage1.py on held-out texts

With --config.library=sentence_transformers a model of that library is scored on the same sets.
"""

from ml_collections import ConfigDict, config_dict

from unime_jax.operations.recipes import base, stage1, stage2


def get_config(variant: str = "mini") -> ConfigDict:
    base.variant_of(variant, ("mini", "mmeb", "benchmarks", "video", "mini_video", "texts"))
    like, distillation = base.mini(), base.distillation()
    config = ConfigDict()
    config.job = "evaluate"
    config.backbone = "runs/stage2"  # a folder, a hub id, a PEFT adapter, or a run: its export
    config.library = "unime_jax"  # or "sentence_transformers": its models, as peers
    config.late_fusion = False  # of peers: an item with text and image is the sum of both
    config.revision = config_dict.placeholder(str)  # of a hub id: branch, tag or commit
    config.processing = None  # as the backbone was exported or published; or keys as in base.py
    config.max_length = config_dict.placeholder(int)  # tokens of an item; None: as the folder says
    config.batch_size = 64  # items encoded at once
    config.dtype = "float32"  # or "bfloat16", "int8"
    config.compilation_cache = "auto"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # of all devices

    config.watchdog = ConfigDict()  # seconds, as in base.py
    config.watchdog.setup_seconds = like.watchdog.setup_seconds
    config.watchdog.evaluation_seconds = like.watchdog.evaluation_seconds
    config.watchdog.exit = True

    config.data = ConfigDict()
    config.data.folder = "data"
    config.data.prepare = like.data.prepare  # where the default run has its data from
    config.data.eval = ""  # retrieval sets: pairs, or folders in BEIR's layout
    config.data.columns = ConfigDict()  # of pairs here and in evaluation.texts, as in base.py
    config.data.teacher = ""  # its embeddings of evaluation.texts, below data.folder
    config.data.suffix = ""  # an instruction after every one of these texts

    config.evaluation = ConfigDict()  # paths below data.folder; "": none
    config.evaluation.mmeb = like.evaluation.mmeb
    config.evaluation.instructions = "data"  # around MMEB's rows; or "vlm2vec", "qwen3_vl"
    config.evaluation.composition = like.evaluation.composition
    config.evaluation.benchmarks = ""  # sets that data_pipelines.benchmarks has prepared
    config.evaluation.sets = ()  # names of these; (): all that are prepared
    config.evaluation.texts = ""  # held-out texts that are compared with a teacher's view of them
    config.evaluation.agreement = ConfigDict()  # as the loss of a distillation
    config.evaluation.agreement.temperature = distillation.temperature
    config.evaluation.agreement.teacher_temperature = config_dict.placeholder(float)  # the same
    config.evaluation.agreement.direction = distillation.direction
    config.evaluation.agreement.mask_diagonal = distillation.mask_diagonal
    config.evaluation.images = like.evaluation.images
    config.evaluation.image_prompt = like.evaluation.image_prompt
    config.evaluation.caption_prompt = "{caption}"  # of captions; {caption} stands for one
    config.evaluation.video_prompt = "<|video_1|>\nRepresent the given video."  # of their clips
    config.evaluation.limit = 0  # the first rows of each dataset, but for the texts; 0: all
    config.evaluation.dims = ()  # scores of the first numbers of embeddings as well
    config.evaluation.precisions = ()  # and in fewer bits: of "float16", "int8", "binary"
    # vectors of items, by the model's and their content: a folder; "auto": below ~/.cache; "": none
    config.evaluation.cache = "auto"

    if variant in ("mmeb", "benchmarks"):  # data and images below `data.folder`
        pod = base.pretrained("llava_onevision_7b")
        config.backbone = "runs/stage2_llava_onevision_7b"
        config.dtype = "bfloat16"
        config.data.prepare.module = ""
        config.evaluation.mmeb = "" if variant == "benchmarks" else pod.evaluation.mmeb
        config.evaluation.composition = ""
        config.evaluation.images = "" if variant == "benchmarks" else pod.evaluation.images
        config.evaluation.image_prompt = pod.evaluation.image_prompt
    if variant == "benchmarks":
        config.evaluation.benchmarks = "benchmarks"
        config.evaluation.caption_prompt = "{caption}\nSummary above sentence in one word:"
    if variant == "video":
        config.backbone = "zhibinlan/LLaVE-7B"
        config.max_length = 8192  # 32 frames are 6720 tokens
        config.batch_size = 8
        config.dtype = "bfloat16"
        config.data.prepare.module = ""
        config.evaluation.mmeb = config.evaluation.composition = config.evaluation.images = ""
        config.evaluation.benchmarks = "benchmarks"
        config.evaluation.sets = ("msrvtt_1k", "msvd")
        wording = "Find me an video that matches the given caption: {caption}"  # sic
        config.evaluation.caption_prompt = wording
    if variant == "mini_video":
        trained = stage2.get_config("mini_video")
        config.data.prepare = trained.data.prepare
        config.evaluation.mmeb = trained.evaluation.mmeb
        config.evaluation.images = trained.evaluation.images
        config.evaluation.composition = ""
    if variant == "texts":
        trained = stage1.get_config()
        config.backbone = "runs/stage1"
        config.data.prepare = trained.data.prepare
        config.data.teacher = trained.data.teacher
        config.data.suffix = trained.data.suffix
        config.evaluation.mmeb = config.evaluation.composition = config.evaluation.images = ""
        config.evaluation.texts = trained.evaluation.texts
    return config

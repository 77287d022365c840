"""UniME stage 2: hard-negative instruction tuning with false-negative filtering.

--config=experiments/stage2.py                         the embedded MiniMMEB, from scratch
--config=experiments/stage2.py:llava_onevision_7b      DoRA on a pod, MMEB-train
--config=experiments/stage2.py:llava_onevision_05b     the same for 0.5B, on a single chip
--config=experiments/stage2.py:llava_next_7b           the same for LLaVA-1.6
--config=experiments/stage2.py:qwen2_vl_7b             the same for Qwen2-VL
--config=experiments/stage2.py:phi3_v_4b               the same for Phi-3.5-Vision
"""

from ml_collections import ConfigDict, FieldReference, config_dict

# The layers that VLM2Vec's and UniME's target names reach: of the decoder all but gate and up, of
# a CLIP or SigLIP tower the attention's; no layer of Qwen2-VL's tower has such a name.
ADAPTED = r"(language_model|vision_tower)\..*\.(q|k|v|o|down|out)_proj"


def get_config(variant: str = "mini") -> ConfigDict:
    variants = {
        "mini": mini,
        "llava_onevision_7b": llava_onevision_7b,
        "llava_onevision_05b": llava_onevision_05b,
        "llava_next_7b": llava_next_7b,
        "qwen2_vl_7b": qwen2_vl_7b,
        "phi3_v_4b": phi3_v_4b,
    }
    if variant not in variants:
        raise KeyError(f'no variant "{variant}"; use one of {", ".join(variants)}')
    return variants[variant]()


def mini() -> ConfigDict:
    """All parameters of a tiny LLaVA-OneVision, on generated data; minutes on a laptop."""
    folder = FieldReference("data")
    config = ConfigDict()
    config.job = "train"
    config.seed = 0
    config.steps = 290
    config.batch_size = 64  # pairs, over all devices
    config.chunk_size = 8  # rows of the longest bucket that are encoded at once
    config.log_every = 1
    config.max_skipped = 10
    config.infonce_steps = 60  # from scratch, the hardest negatives alone make a model collapse
    config.backbone = folder + "/mini_mmeb/backbone"  # a folder or a hub id
    config.revision = config_dict.placeholder(str)  # of a hub id: branch, tag or commit
    config.init_from = ""  # a work directory: start from the model that a run exported there
    config.init = "random"
    config.trainable = ((".*", True),)

    config.processing = ConfigDict()
    config.processing.prompt = "chat"
    config.processing.image_size = config_dict.placeholder(tuple)
    config.processing.pinpoints = ()  # image canvases (height, width); empty: the backbone's own
    config.processing.pixels = config_dict.placeholder(tuple)
    config.processing.crops = config_dict.placeholder(int)
    config.processing.grid_positions = False
    config.processing.legacy_padding = False
    config.processing.orphans = "strip"  # image markers without an image

    config.lora = ConfigDict()
    config.lora.rank = 0
    config.lora.alpha = 64.0
    config.lora.dora = True
    config.lora.targets = ((r"language_model\..*", True), (".*", False))

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    config.loss = ConfigDict()
    config.loss.objective = "contrastive"
    config.loss.temperature = 0.02
    config.loss.hard_negatives = config_dict.placeholder(int)
    config.loss.hard_negatives = 8
    config.loss.false_negative_margin = config_dict.placeholder(float)
    config.loss.false_negative_margin = 0.1
    config.loss.hardness = 0.0
    config.loss.symmetric = False
    config.loss.tile = config_dict.placeholder(int)  # for batches of 16k: columns at a time
    config.loss.mask_same_target = True

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.warmup_steps = 15
    config.optimizer.schedule = "linear"
    config.optimizer.schedule_steps = 0  # config.steps
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.98
    config.optimizer.epsilon = 1e-8
    config.optimizer.clip_norm = 1.0
    config.optimizer.learning_rates = ((".*", 1.0),)
    config.optimizer.weight_decays = ((r".*\.(kernel|embedding)", 0.01), (".*", 0.0))

    config.checkpoint = ConfigDict({"every": 50, "keep": 2, "keep_best": False})
    config.compilation_cache = "auto"  # in the work directory, but for CPUs the user's
    config.profile = ConfigDict({"first_step": 10, "steps": 0})
    config.watchdog = ConfigDict()  # stacks, and the end, after so long without ... (0: never)
    config.watchdog.seconds = 1800.0  # a finished step
    config.watchdog.setup_seconds = 3600.0  # a tensor read, a checkpoint restored or written
    config.watchdog.compile_seconds = 7200.0  # the compiled step
    config.watchdog.evaluation_seconds = 3600.0  # a window of items embedded
    config.watchdog.export_seconds = 7200.0  # a tensor written, a check passed
    config.watchdog.exit = True

    config.data = ConfigDict()
    config.data.folder = folder
    config.data.prepare = ConfigDict()
    config.data.prepare.module = "data_pipelines.mini_mmeb"
    config.data.prepare.seed = 0
    config.data.prepare.train_rows = 480
    config.data.prepare.eval_rows = 100
    config.data.train = "mini_mmeb/train"
    config.data.weights = ConfigDict()
    config.data.homogeneous = 16
    config.data.negatives = 2
    config.data.suffix = ""  # an instruction after every text
    config.data.teacher = ""
    config.data.buckets = ((20, 0, 1.0), (40, 0, 1.0), (52, 2, 1.0), (84, 3, 1.0))
    config.data.workers = 0
    config.data.max_bad_share = 0.05

    config.evaluation = ConfigDict()
    config.evaluation.every = 0  # steps; 0: only before and after training
    config.evaluation.mmeb = "mini_mmeb/eval"
    config.evaluation.composition = "mini_mmeb/composition"
    config.evaluation.texts = ""
    config.evaluation.images = "mini_mmeb/images"
    config.evaluation.image_prompt = "<|image_1|>\nFind an image caption describing the image.\n"
    config.evaluation.rows = 256
    config.evaluation.limit = 0

    config.execution = ConfigDict()
    config.execution.dtype = "float32"
    config.execution.frozen_dtype = "float32"  # or "bfloat16", or "int8" for linear layers
    config.execution.remat = "none"
    config.execution.attention = "xla"
    config.execution.recompute = True

    config.export = ConfigDict()
    config.export.checkpoint = "newest"  # or "best", with checkpoint.keep_best
    config.export.dtype = "float32"
    config.export.adapter = False
    config.export.verify = True
    config.export.prompts = ConfigDict()  # by name, for sentence-transformers

    config.plan = ConfigDict()  # for --config.job=plan
    config.plan.topologies = ("v5e:1x1", "v6e:1x1")  # slices of TPUs
    config.plan.rows = ()  # share of the rows by bucket; empty: all in the largest
    config.plan.tokens = ()  # of a row, by bucket; empty: full
    config.plan.model = ""  # a folder whose config.json stands in for the backbone's
    config.plan.teacher = 0  # width of its embeddings
    config.plan.suggest = True  # changes that fit, or that fill a slice

    config.wandb_project = config_dict.placeholder(str)
    return config


def llava_onevision_7b() -> ConfigDict:
    """LLaVA-OneVision-7B with DoRA on MMEB-train, 1024 pairs a step (UniME, appendix A)."""
    config = mini()
    config.steps = 1000
    config.batch_size = 1024
    config.chunk_size = 64
    config.infonce_steps = 0
    config.log_every = 10
    config.backbone = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    config.processing.pinpoints = ((384, 384),)  # UniME trains at a low resolution
    config.init = "pretrained"
    config.trainable = ((r".*\.lora_(a|b|magnitude)", True), (".*", False))
    config.lora.rank = 16
    config.lora.targets = ((ADAPTED, True), (".*", False))
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_steps = 100
    config.checkpoint.every = 100
    config.data.prepare.module = ""
    config.data.train = "mmeb_train"
    config.data.homogeneous = 64
    config.data.negatives = 0
    config.data.buckets = ((128, 0, 1.0), (512, 0, 0.25), (1792, 2, 1.0))
    config.data.workers = 8
    config.evaluation.mmeb = "mmeb_eval"
    config.evaluation.composition = ""
    config.evaluation.images = "mmeb_eval_images"
    config.evaluation.image_prompt = "<|image_1|>\nSummary above image in one word:"
    config.evaluation.rows = 2048
    config.execution.dtype = "bfloat16"
    config.execution.frozen_dtype = "bfloat16"
    config.execution.remat = "full"
    config.export.dtype = "bfloat16"
    config.export.adapter = True
    config.export.verify = False  # 30 GB of host memory, and minutes
    config.plan.topologies = ("v5e:4x4", "v6e:4x4", "v5p:2x2x4")
    config.plan.rows = (0.5, 0.0, 0.5)  # an image on one side, a short text on the other
    config.plan.tokens = (48, 512, 1536)
    return config


def llava_onevision_05b() -> ConfigDict:
    """LLaVA-OneVision-0.5B on a single chip, for example Colab's: the same recipe in small."""
    config = llava_onevision_7b()
    config.backbone = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
    config.batch_size = 256
    config.chunk_size = 4
    config.evaluation.rows = 512
    config.plan.topologies = ("v5e:1x1", "v6e:1x1")
    return config


def llava_next_7b() -> ConfigDict:
    """LLaVA-1.6-Mistral-7B on one 336-pixel tile an image and the base tile.

    UniME's own way to a low resolution is `processing.image_size = (336, 336)` with the
    checkpoint's canvases, of which the smallest then is half empty: 1176 tokens, too. Other
    libraries can be told of canvases, but not of resizing first.
    """
    config = llava_onevision_7b()
    config.backbone = "llava-hf/llava-v1.6-mistral-7b-hf"
    config.chunk_size = 32
    config.processing.prompt = "raw"
    config.processing.pinpoints = ((336, 336),)
    config.data.buckets = ((128, 0, 1.0), (512, 0, 0.25), (1536, 2, 1.0))
    config.plan.tokens = (48, 512, 1280)
    return config


def qwen2_vl_7b() -> ConfigDict:
    """Qwen2-VL-7B, images of up to 672 x 672 pixels (UniME-V2, table 7), in the chat template.

    UniME-V2's own way is `processing.prompt = "raw"`, bare text whose image tokens have plain
    positions, and `processing.image_size = (672, 672)`. Other libraries give image tokens rows and
    columns, and don't resize first, so such a model only works with care there.
    """
    config = llava_onevision_7b()
    config.backbone = "Qwen/Qwen2-VL-7B-Instruct"
    config.chunk_size = 32
    config.optimizer.learning_rate = 1e-4
    config.processing.pixels = (56 * 56, 672 * 672)
    config.processing.pinpoints = ()
    config.data.buckets = ((128, 0, 1.0), (512, 0, 0.25), (1024, 9, 1.0))
    config.plan.tokens = (48, 512, 640)
    return config


def phi3_v_4b() -> ConfigDict:
    """Phi-3.5-Vision, 4 crops an image, bare text (VLM2Vec); UniME adds `image_size = (336, 336)`.

    Their targets name its fused layers, so gate and up have adapters, too. The parts of a fused
    layer have one each here; exported, they are one of two or three times the rank.
    """
    config = llava_onevision_7b()
    config.backbone = "microsoft/Phi-3.5-vision-instruct"
    config.chunk_size = 32
    config.optimizer.learning_rate = 1e-4
    config.processing.prompt = "raw"
    config.processing.crops = 4
    config.processing.pinpoints = ()
    config.lora.targets = (
        (ADAPTED, True),
        (r"language_model\..*\.(gate|up)_proj", True),
        (".*", False),
    )
    config.data.buckets = ((128, 0, 1.0), (512, 0, 0.25), (1024, 5, 1.0))
    config.plan.tokens = (48, 512, 832)
    return config

"""Every key of a training run, once, with its unit. The recipes beside this file change some.

`mini` has the values of a tiny model on generated data, `pretrained` those of a published
checkpoint on a pod; both with plain InfoNCE. `--help` says more of every key.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict, FieldReference, config_dict

from unime_jax.data.settings import Bucket
from unime_jax.operations.recipes import families


def variant_of(variant: str, known: Sequence[str]) -> str:
    """The variant, if a recipe has it. Raises KeyError with those that there are."""
    if variant not in known:
        raise KeyError(f'no variant "{variant}"; use one of {", ".join(known)}')
    return variant


def mini() -> ConfigDict:
    """All parameters of a tiny LLaVA-OneVision, from scratch on MiniMMEB; minutes on a laptop."""
    folder = FieldReference("data")  # what is below it follows --config.data.folder
    config = ConfigDict()
    config.job = "train"
    config.seed = 0
    config.steps = 700
    config.epochs = 0.0  # passes over the training data, in the place of steps
    config.batch_size = 64  # pairs, over all devices
    config.chunk_size = 8  # rows of the longest bucket that are encoded at once
    config.log_every = 1  # steps
    config.max_skipped = 10  # steps in a row without a finite gradient
    config.infonce_steps = 60  # from scratch, the hardest negatives alone make a model collapse
    config.backbone = folder + "/mini_mmeb/backbone"  # a folder or a hub id
    config.revision = config_dict.placeholder(str)  # of a hub id: branch, tag or commit
    config.init_from = ""  # a work directory: start from the model that a run exported there
    config.init = "random"  # or "pretrained"
    config.trainable = ((".*", True),)  # by path: the first pattern that matches decides

    config.processing = ConfigDict()
    config.processing.prompt = "chat"  # or "system", "verbatim", "raw"
    config.processing.image_size = config_dict.placeholder(tuple)  # pixels (height, width)
    config.processing.resolution = config_dict.placeholder(str)  # VLM2Vec's, such as "mid"
    config.processing.pinpoints = ()  # image canvases (height, width); empty: the backbone's own
    config.processing.pixels = config_dict.placeholder(tuple)  # of an image (least, most)
    config.processing.crops = config_dict.placeholder(int)  # of an image, at most
    config.processing.grid_positions = False  # rows and columns for all images (Qwen2-VL)
    config.processing.legacy_padding = False  # of canvases, as in transformers 4.48
    config.processing.missing_images = "strip"  # markers without an image; or "token", "image"
    config.processing.fps = config_dict.placeholder(float)  # frames a second of a clip
    config.processing.frames = config_dict.placeholder(tuple)  # of a clip (least, most)
    config.processing.frame_pixels = config_dict.placeholder(tuple)  # of one (least, most)
    config.processing.clip_pixels = config_dict.placeholder(int)  # of all frames, at most
    config.processing.clip_newlines = config_dict.placeholder(str)  # "one" or "grid" (LLaVA)
    config.processing.final_norm = True  # the decoder's, before the pooled state

    config.lora = ConfigDict()
    config.lora.rank = 0  # 0: no adapters
    config.lora.alpha = 64.0  # adapters are scaled by alpha / rank
    config.lora.dora = True  # also a magnitude by output
    config.lora.targets = ((r"language_model\..*", True), (".*", False))  # by path of a layer

    # Devices along each axis; -1: those that the other two leave.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    config.loss = contrastive()
    # Also of the first numbers of embeddings (Matryoshka), and the weights of these losses beside
    # the whole one's 1; (): of whole embeddings only, and all 1.
    config.matryoshka = ConfigDict({"dims": (), "weights": ()})

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1.5e-3  # at the end of the warm-up
    config.optimizer.warmup_steps = 15
    config.optimizer.schedule = "linear"  # or "cosine", "constant"
    config.optimizer.schedule_steps = 0  # 0: all
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.98
    config.optimizer.epsilon = 1e-8
    config.optimizer.clip_norm = 1.0  # of the whole gradient
    config.optimizer.learning_rates = ((".*", 1.0),)  # multipliers by path
    config.optimizer.weight_decays = ((r".*\.(kernel|embedding)", 0.01), (".*", 0.0))  # by path

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 50  # steps
    config.checkpoint.keep = 2  # the newest checkpoints
    config.checkpoint.keep_best = False  # beside them the best one, by evaluation.every

    config.evaluation = ConfigDict()  # paths below data.folder; "": none
    config.evaluation.every = 0  # steps; 0: only before and after training
    config.evaluation.mmeb = "mini_mmeb/eval"
    config.evaluation.instructions = "data"  # around MMEB's rows; or "vlm2vec", "qwen3_vl"
    config.evaluation.composition = "mini_mmeb/composition"
    config.evaluation.texts = ""  # distillation only
    config.evaluation.images = "mini_mmeb/images"
    config.evaluation.image_prompt = "<|image_1|>\nFind an image caption describing the image.\n"
    config.evaluation.rows = 256  # encoded at once
    config.evaluation.limit = 0  # rows of each dataset; 0: all
    # Scores of the first numbers of embeddings as well; None: as matryoshka.dims.
    config.evaluation.dims = config_dict.placeholder(tuple)
    config.evaluation.precisions = ()  # and in fewer bits: of "float16", "int8", "binary"

    config.compilation_cache = "auto"  # in the work directory, but for CPUs the user's

    config.profile = ConfigDict()
    config.profile.first_step = 10
    config.profile.steps = 0  # that are traced; 0: none

    config.watchdog = ConfigDict()  # seconds without a sign of life; 0: no limit
    config.watchdog.seconds = 1800.0  # a finished step
    config.watchdog.setup_seconds = 3600.0  # a tensor read, a checkpoint restored or written
    config.watchdog.compile_seconds = 7200.0  # the compiled step
    config.watchdog.evaluation_seconds = 3600.0  # a window of items embedded
    config.watchdog.export_seconds = 7200.0  # a tensor written, a check passed
    config.watchdog.exit = True  # end the process; False: write the stacks and wait on

    config.data = ConfigDict()
    config.data.folder = folder
    config.data.prepare = ConfigDict()
    config.data.prepare.module = "data_pipelines.mini_mmeb"  # makes data that is missing; "": none
    config.data.prepare.seed = 0
    config.data.prepare.train_rows = 1200  # of each source
    config.data.prepare.eval_rows = 100  # of each dataset
    config.data.train = "mini_mmeb/train"  # below data.folder: a folder, a file or *.jsonl
    config.data.columns = ConfigDict()  # of the query, positive, ...; empty: told by their names
    config.data.eval = ""  # retrieval sets below data.folder: pairs, or folders in BEIR's layout
    config.data.weights = ConfigDict()  # by source; empty: all sources, equally often
    # In their place, by size: rows to the power of 1 / size_temperature; None: by weights.
    config.data.size_temperature = config_dict.placeholder(float)
    config.data.first_rows = 0  # of each source, from its head; 0: all
    config.data.first_rows_by_source = ConfigDict()  # of single sources, in place of these
    config.data.split_modalities = False  # batches with images in queries apart from others
    config.data.source_run = 16  # examples in a row from one source; 0: mixed freely
    config.data.negatives = 2  # explicit negatives a pair, at most
    config.data.mined = ""  # a work directory of mine.py: its negatives are joined
    config.data.mined_use = "beside"  # the rows' own, or "instead"
    config.data.cluster_size = 0  # rows that mined each other, in one batch; 0: no clusters
    config.data.cluster_ranks = (1, 100)  # of a row's mined candidates, which lead to other rows
    config.data.suffix = ""  # an instruction after every text; distillation only
    config.data.teacher = ""  # a teacher's embeddings, below data.folder, for losses that use one
    config.data.buckets = (  # tokens and image tiles of a row, from small to large
        Bucket(tokens=20, tiles=0),
        Bucket(tokens=40, tiles=0),
        Bucket(tokens=52, tiles=2),
        Bucket(tokens=84, tiles=3),
    )
    config.data.packing = "auto"  # of texts into rows, where buckets are chosen; or "off"
    config.data.clips = False  # rows may have clips
    config.data.workers = 0  # processes that read; 0: threads of this one
    config.data.max_bad_share = 0.05  # of the examples read

    config.execution = ConfigDict()
    config.execution.dtype = "float32"  # of activations; or "bfloat16"
    config.execution.frozen_dtype = "float32"  # or "bfloat16", or "int8" for linear layers
    # Recomputed in a layer, the more the later: or "dots", "attention_up", "attention", "full";
    # "offload" is as "full", with the inputs of layers in the host's memory; "auto": by memory
    config.execution.remat = "none"
    config.execution.attention = "auto"  # by platform; or "xla", "splash" (TPU), "cudnn" (GPU)
    config.execution.recompute = True  # chunks are encoded twice; False: activations are kept
    # What a frozen tower makes of images, once a step; None: where that takes 2 GiB a device.
    config.execution.keep_features = config_dict.placeholder(bool)
    config.execution.kept_chunks = ()  # by bucket, chunks that are encoded once nevertheless
    config.execution.merged_chunks = 1  # that the pass without gradient encodes at once

    config.export = ConfigDict()
    config.export.checkpoint = "newest"  # or "best", with checkpoint.keep_best
    config.export.dtype = "float32"  # of the weights; or "bfloat16"
    config.export.adapter = False  # also the adapters alone
    config.export.verify = True  # repeat the self-check in a new process
    config.export.prompts = ConfigDict()  # by name, for sentence-transformers
    config.export.truncate_dim = config_dict.placeholder(int)  # numbers that users get; None: all

    config.wandb_project = config_dict.placeholder(str)  # None: no Weights & Biases
    return config


def pretrained(family: str) -> ConfigDict:
    """DoRA on a checkpoint of families.py, MMEB-train, bfloat16, weights spread over a pod."""
    config = mini()
    config.steps = 1000
    config.batch_size = 1024
    config.infonce_steps = 0
    config.log_every = 10
    config.init = "pretrained"
    config.trainable = ((r".*\.lora_(a|b|magnitude)", True), (".*", False))
    config.lora.rank = 16
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    config.optimizer.warmup_steps = 100
    config.checkpoint.every = 100
    config.evaluation.mmeb = "mmeb_eval"
    config.evaluation.composition = ""
    config.evaluation.images = "mmeb_eval_images"
    config.evaluation.image_prompt = "<|image_1|>\nSummary above image in one word:"
    config.evaluation.rows = 2048
    config.data.prepare.module = ""
    config.data.train = "mmeb_train"
    config.data.source_run = 64
    config.data.negatives = 0
    config.data.workers = 8
    config.execution.dtype = "bfloat16"
    config.execution.frozen_dtype = "bfloat16"
    # By the lengths of the data and the memory of a device, as in own.py.
    config.data.buckets = ()
    config.chunk_size = 0
    config.execution.remat = "auto"
    config.execution.kept_chunks = config.execution.merged_chunks = None
    config.export.dtype = "bfloat16"
    config.export.adapter = True
    config.export.verify = False  # 30 GB of host memory, and minutes
    config.update(families.FAMILIES[family])
    return config


def contrastive() -> ConfigDict:
    """Plain InfoNCE; UniME's and LLaVE's losses are options of it."""
    loss = ConfigDict()
    loss.objective = "contrastive"
    loss.temperature = 0.02
    loss.hard_negatives = config_dict.placeholder(int)  # so many of the hardest; None: all
    loss.false_negative_margin = config_dict.placeholder(float)  # of similarity; None: none
    loss.hardness = 0.0  # weight of a negative by its similarity
    loss.symmetric = False  # also candidates to queries
    loss.column_block = config_dict.placeholder(int)  # columns at a time, for batches of 16k
    loss.mask_same_target = True
    loss.hardness_on = "all"  # negatives; or "explicit"
    loss.query_query = False  # also other queries as negatives
    loss.query_query_margin = config_dict.placeholder(float)  # of similarity; None: none
    loss.document_document = False  # also candidates as negatives of the query's target
    loss.document_document_margin = config_dict.placeholder(float)  # of similarity; None: none
    loss.duplicate_queries = config_dict.placeholder(float)  # of similarity; None: no mask
    loss.duplicate_targets = config_dict.placeholder(float)  # of similarity; None: no mask
    loss.trust_explicit = True  # masks spare explicit negatives
    loss.pool = config_dict.placeholder(int)  # pairs; None: the whole batch
    loss.spread_out_weight = 0.0  # of the squared cosines of different items
    loss.mask_same_query = False
    loss.closed_sources = ()  # whose queries see their own explicit negatives only
    loss.source_temperatures = ()  # (source, temperature)
    loss.temperature_learning_rate = 0.0  # 0: it is fixed
    loss.lowest_temperature = 0.01  # of a learned one
    loss.graded_sources = ()  # of pairs with a score of how alike they are
    loss.graded_form = "gap_weighted_cosent"  # or "cosent"
    loss.graded_temperature = 0.05
    loss.graded_smallest_gap = 1e-3  # in units of the scores
    loss.graded_weight = 1.0  # of a graded pair, beside others
    loss.teacher_weight = 0.0  # of the KL to the vectors of data.teacher; 0: none
    loss.teacher_temperature = 0.02
    loss.student_temperature = 0.02
    loss.teacher_matching_weight = 0.0  # of squared distances from them; 0: none
    return loss


def distillation() -> ConfigDict:
    """KL divergence between a teacher's and the student's similarities of texts."""
    loss = ConfigDict()
    loss.objective = "distillation"
    loss.texts = "all"  # or "queries", "pairs"
    loss.temperature = 0.02
    loss.teacher_temperature = config_dict.placeholder(float)  # None: the same
    loss.direction = "teacher_student"  # or "student_teacher", "symmetric"
    loss.mask_diagonal = True  # leave out a text's similarity with itself
    loss.reduction = "mean"  # or "sum", over texts
    return loss


def judge_distillation() -> ConfigDict:
    """Divergence from a judge's scores of a query's own candidates, and InfoNCE beside it."""
    loss = ConfigDict()
    loss.objective = "judge_distillation"
    loss.temperature = 0.02
    loss.judge_temperature = config_dict.placeholder(float)  # None: the same
    loss.contrastive_weight = 0.0  # of the next, which is added; 0: none
    loss.contrastive = contrastive()
    loss.form = "symmetric_kl"  # or "rank_kl", "gap_weighted_cosent"
    loss.smallest_gap = 1e-3  # in units of the scores; of the last alone
    return loss


def doctor() -> ConfigDict:
    """How closely job doctor looks at a run, of any recipe."""
    doctor = ConfigDict()
    doctor.rows = 512  # of the training data that are read
    doctor.slice = ""  # such as "v5e:4x4"; "": the devices of this machine
    doctor.compile = False  # minutes, for the peak of memory
    doctor.step_seconds = config_dict.placeholder(float)  # None: as was measured, or planned
    doctor.lost_minutes = 30.0  # that a preemption may cost
    return doctor

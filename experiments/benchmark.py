"""Encode and train steps, timed on the devices at hand: random weights, generated rows.

--config=experiments/benchmark.py            as :cpu
--config=experiments/benchmark.py:cpu        a tiny model, in two minutes of CPU time
--config=experiments/benchmark.py:h100       0.5B to 7B at real shapes, on one 80 GB GPU
--config=experiments/benchmark.py:tpu        the same on a TPU slice, 7B over all of its chips

--config.only='("onevision_7b_encode_image",)' measures one case of them. A case has the keys of a
run below config.cases.<name>.run. No hub is asked: the shapes of the published models are in
experiments/plans/models. docs/performance.md has figures.
"""

from ml_collections import ConfigDict

from unime_jax.data.settings import Bucket
from unime_jax.operations import recipes
from unime_jax.operations.recipes import base, plan

TINY, SMALL, LARGE = "llava_onevision_tiny", "llava_onevision_05b", "llava_onevision_7b"
NEXT = "llava_next_7b"
QWEN2, QWEN3 = "qwen2_vl_2b", "qwen3_vl_2b"
LOW = (384, 384)  # pixels: one canvas of one tile beside the small view
ANYRES = (768, 768)  # four tiles beside it
MOST = (672, 672)  # the largest of the Qwen recipes
PAIRS = {"rows": (0.5, 0.0, 0.5), "tokens": (48, 512, 1536)}  # an image on one side, as plan.py
# Shapes that a case's rows are generated for: runs choose theirs by their data and devices.
TEXTS = (Bucket(tokens=128, tiles=0), Bucket(tokens=512, tiles=0, share=0.25))
LOW_SHAPES = (*TEXTS, Bucket(tokens=1792, tiles=2))
NEXT_SHAPES = (*TEXTS, Bucket(tokens=1536, tiles=2))
ANYRES_SHAPES = (*LOW_SHAPES, Bucket(tokens=4096, tiles=5))
# An image of 576 tokens in 9 runs of patches, and of 441 in 7.
QWEN_SHAPES = {
    QWEN2: (*TEXTS, Bucket(tokens=768, tiles=9)),
    QWEN3: (*TEXTS, Bucket(tokens=640, tiles=7)),
}
SENTENCE_SHAPES = (Bucket(tokens=64, tiles=0), Bucket(tokens=128, tiles=0))
QWEN_RECIPES = {QWEN2: "stage2:qwen2_vl_7b", QWEN3: "stage2:qwen3_vl_2b"}
SENTENCES = {"rows": (1.0, 0.0), "tokens": (48, 96), "teacher": 4096}
# All but the vision tower, as LLaVE.
ALL_BUT_TOWER = (("vision_tower\\..*", False), (".*", True))


def get_config(variant: str = "cpu") -> ConfigDict:
    presets = {"cpu": cpu, "h100": h100, "tpu": tpu}
    base.variant_of(variant, tuple(presets))
    config = ConfigDict()
    config.job = "benchmark"
    config.platform = {"cpu": "cpu", "h100": "gpu", "tpu": "tpu"}[variant]
    config.cases = ConfigDict(presets[variant]())
    config.only = ()  # names of cases; empty: all
    config.warmup = 1  # calls that are not counted
    config.repetitions = 5  # calls that are timed
    config.compilation_cache = ""  # no: compiling is timed, too
    config.peers = ConfigDict()  # the same work by other libraries, which need torch
    config.peers.names = ()  # "gradcache", "sentence_transformers"
    config.peers.python = ""  # an interpreter that has them; "": this one
    config.peers.script = "benchmarks/peers.py"
    config.peers.seconds = 1800.0  # for a case, at most
    return config


def cpu() -> dict[str, ConfigDict]:
    """Cases of a model of a million parameters."""
    shapes = (Bucket(tokens=64, tiles=0), Bucket(tokens=96, tiles=2))
    lora, full = (
        train(TINY, "stage2:llava_onevision_05b", 8, shapes, image=(56, 56), **tiny_pairs())
        for _ in range(2)
    )
    train_all(full, ((".*", True),))
    stage1 = train(
        TINY, "stage1:llava_onevision_7b", 24, SENTENCE_SHAPES, image=(56, 56), **SENTENCES
    )
    keep(stage1, "attention", kept=(3, 0))
    stage1.teacher = 64
    stage1.run.batch_size = 24
    stage1.run.data.negatives = 0
    for case in (lora, full):
        case.run.batch_size = 32
    for case in (lora, full, stage1):
        case.run.processing.pinpoints = ((56, 56),)
        case.run.execution.dtype = case.run.execution.frozen_dtype = "float32"
    return {
        "tiny_train_lora": lora,
        "tiny_train_full": full,
        "tiny_stage1": stage1,
        "tiny_encode_text": encode(
            TINY, tokens=64, filled=48, rows=128, dtype="float32", image=(56, 56)
        ),
        "tiny_encode_image": encode(
            TINY, tokens=96, filled=80, rows=64, dtype="float32", tiles=2, image=(56, 56)
        ),
    }


def tiny_pairs() -> dict[str, tuple]:
    """The load of pairs of the tiny model, whose images take few tokens."""
    return {"rows": (0.5, 0.5), "tokens": (48, 80)}


def h100() -> dict[str, ConfigDict]:
    """Cases that one GPU of 80 GB has room for by the plan's count of weights."""
    small, full = (
        train(SMALL, "stage2:llava_onevision_05b", 16, LOW_SHAPES, image=LOW, **PAIRS)
        for _ in range(2)
    )
    train_all(full, ALL_BUT_TOWER)
    large = train(LARGE, "stage2:llava_onevision_7b", 16, LOW_SHAPES, image=LOW, **PAIRS)
    large.run.batch_size = 256
    keep(large, "dots", merged=4)
    mistral = train(NEXT, "stage2:llava_next_7b", 16, NEXT_SHAPES, image=(336, 336))
    mistral.rows, mistral.tokens = (0.5, 0.0, 0.5), (48, 512, 1280)
    mistral.run.batch_size = 256
    anyres = train(LARGE, "llave:llava_onevision_7b", 8, ANYRES_SHAPES, image=ANYRES)
    anyres.rows, anyres.tokens = (0.5, 0.0, 0.0, 0.5), (48, 512, 1536, 3760)
    with_dora(anyres)
    anyres.run.batch_size = 128
    keep(anyres, "dots", merged=4)
    return {
        "onevision_05b_train_lora": small,
        "onevision_05b_train_full": full,
        "onevision_7b_train_lora": large,
        "onevision_7b_train_lora_anyres": anyres,
        "onevision_7b_stage1": sentences(),
        "next_7b_train_lora": mistral,
        "next_7b_encode_image": encode(
            NEXT, tokens=1280, filled=1264, rows=64, tiles=2, image=(336, 336)
        ),
        **encodes(SMALL, "onevision_05b", rows=256),
        **encodes(LARGE, "onevision_7b", rows=64),
        **qwen(QWEN2, batch_size=256, rows=128),
        **qwen(QWEN3, batch_size=256, rows=128),
    }


def tpu() -> dict[str, ConfigDict]:
    """The recipes' own batches, over all chips; 16 of a v5e and more."""
    large = train(LARGE, "stage2:llava_onevision_7b", 16, LOW_SHAPES, image=LOW, **PAIRS)
    keep(large, "dots", merged=4)
    full = train(LARGE, "llave:llava_onevision_7b", 64, ANYRES_SHAPES, image=ANYRES)
    full.rows, full.tokens = (0.5, 0.0, 0.0, 0.5), (48, 512, 1536, 3760)
    keep(full, "full", kept=(0, 0, 0, 4))
    return {
        "onevision_7b_train_lora": large,
        "onevision_7b_train_full": full,
        "onevision_7b_stage1": sentences(),
        **encodes(SMALL, "onevision_05b", rows=1024),
        **encodes(LARGE, "onevision_7b", rows=1024),
        **qwen(QWEN2, batch_size=1024, rows=1024),
        **qwen(QWEN3, batch_size=1024, rows=1024),
    }


def qwen(model: str, *, batch_size: int, rows: int) -> dict[str, ConfigDict]:
    """A 2B model of the Qwen families: a LoRA step, texts and images of 672 pixels encoded."""
    shapes, recipe = QWEN_SHAPES[model], QWEN_RECIPES[model]
    room = shapes[-1]
    filled = room.tokens - 64
    step = train(model, recipe, 16, shapes, image=MOST, **PAIRS)
    step.tokens = (48, 512, filled)
    step.run.batch_size = batch_size
    keep(step, "dots", merged=4)
    text = encode(model, tokens=64, filled=48, rows=16 * rows)
    image = encode(
        model, tokens=room.tokens, filled=filled, rows=rows, tiles=room.tiles, image=MOST
    )
    for case in (text, image):
        case.run.processing = step.run.processing
    return {
        f"{model}_train_lora": step,
        f"{model}_encode_text": text,
        f"{model}_encode_image": image,
    }


def sentences() -> ConfigDict:
    """UniME's stage 1: 768 sentences of a batch, all of them distinct."""
    case = train(LARGE, "stage1:llava_onevision_7b", 384, SENTENCE_SHAPES, image=LOW, **SENTENCES)
    keep(case, "attention", kept=(3, 0))
    case.run.batch_size, case.run.data.negatives = 384, 0
    return case


def encodes(model: str, name: str, *, rows: int) -> dict[str, ConfigDict]:
    """Batches of short texts, of images of one tile, and of images of four."""
    return {
        f"{name}_encode_text": encode(model, tokens=64, filled=48, rows=16 * rows),
        f"{name}_encode_image": encode(
            model, tokens=1536, filled=1520, rows=rows, tiles=2, image=LOW
        ),
        f"{name}_encode_anyres": encode(
            model, tokens=3776, filled=3760, rows=rows, tiles=5, image=ANYRES
        ),
    }


def train(
    model: str,
    recipe: str,
    chunk_size: int,
    buckets: tuple[Bucket, ...],
    *,
    image: tuple[int, int],
    **load,
) -> ConfigDict:
    """A recipe's step on rows that are expected of its data; layers recompute all."""
    case = _case(model, image, **load)
    case.run = recipes.load(recipe)
    case.run.unlock()
    case.run.evaluation.every = 0
    case.run.chunk_size, case.run.data.buckets = chunk_size, buckets
    keep(case, "full")
    return case


def keep(case: ConfigDict, remat: str, kept: tuple[int, ...] = (), merged: int = 1) -> None:
    """What a step keeps for gradients: of layers, of chunks by bucket; and chunks at once."""
    execution = case.run.execution
    execution.remat, execution.kept_chunks, execution.merged_chunks = remat, kept, merged


def encode(
    model: str,
    *,
    tokens: int,
    filled: int,
    rows: int,
    tiles: int = 0,
    image: tuple[int, int] = LOW,
    dtype: str = "bfloat16",
) -> ConfigDict:
    """A batch of an embedding job: rows of `filled` tokens in room for `tokens`."""
    case = _case(model, image, tokens=(filled,))
    case.tiles = tiles
    case.run = recipes.load("embed")
    case.run.unlock()
    case.run.max_length, case.run.batch_size, case.run.dtype = tokens, rows, dtype
    case.run.processing = base.mini().processing
    case.run.processing.pinpoints = (image,)  # one canvas, of which tiles are cut
    return case


def train_all(case: ConfigDict, trainable: tuple[tuple[str, bool], ...]) -> None:
    """No adapters: these parameters are trained themselves."""
    case.run.lora.rank = 0
    case.run.trainable = trainable
    case.run.export.adapter = False


def with_dora(case: ConfigDict) -> None:
    """The adapters of stage 2 in the place of what a recipe trains."""
    other = recipes.load("stage2:llava_onevision_7b")
    case.run.lora, case.run.trainable = other.lora, other.trainable


def _case(model: str, image: tuple[int, int], **load) -> ConfigDict:
    case = ConfigDict()
    case.model = plan.MODELS + model
    case.rows = ()  # shares of the rows by bucket; empty: all in the largest
    case.tokens = ()  # of a row, by bucket; empty: full
    case.tiles = 0  # of a row of a case that embeds
    case.image = image  # pixels
    case.teacher = 0  # width of its embeddings
    case.update(load)
    return case

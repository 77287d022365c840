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
LOW = (384, 384)  # pixels: one canvas of one tile beside the small view
ANYRES = (768, 768)  # four tiles beside it
PAIRS = {"rows": (0.5, 0.0, 0.5), "tokens": (48, 512, 1536)}  # an image on one side, as plan.py
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
    lora = train(TINY, "stage2:llava_onevision_05b", image=(56, 56), **tiny_pairs())
    full = train(TINY, "stage2:llava_onevision_05b", image=(56, 56), **tiny_pairs())
    train_all(full, ((".*", True),))
    stage1 = train(TINY, "stage1:llava_onevision_7b", image=(56, 56), **SENTENCES)
    stage1.teacher = 64
    stage1.run.batch_size, stage1.run.chunk_size = 24, 24
    stage1.run.data.negatives = 0
    for case in (lora, full):
        case.run.batch_size, case.run.chunk_size = 32, 8
        case.run.data.buckets = (Bucket(tokens=64, tiles=0), Bucket(tokens=96, tiles=2))
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
    small = train(SMALL, "stage2:llava_onevision_05b", image=LOW, **PAIRS)
    small.run.chunk_size = 16
    full = train(SMALL, "stage2:llava_onevision_05b", image=LOW, **PAIRS)
    train_all(full, ALL_BUT_TOWER)
    full.run.chunk_size = 16
    large = train(LARGE, "stage2:llava_onevision_7b", image=LOW, **PAIRS)
    large.run.batch_size, large.run.chunk_size = 256, 16
    mistral = train(NEXT, "stage2:llava_next_7b", image=(336, 336))
    mistral.rows, mistral.tokens = (0.5, 0.0, 0.5), (48, 512, 1280)
    mistral.run.batch_size, mistral.run.chunk_size = 256, 16
    anyres = train(LARGE, "llave:llava_onevision_7b", image=ANYRES)
    anyres.rows, anyres.tokens = (0.5, 0.0, 0.0, 0.5), (48, 512, 1536, 3760)
    with_dora(anyres)
    anyres.run.batch_size, anyres.run.chunk_size = 128, 8
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
    }


def tpu() -> dict[str, ConfigDict]:
    """The recipes' own batches, over all chips; 16 of a v5e and more."""
    large = train(LARGE, "stage2:llava_onevision_7b", image=LOW, **PAIRS)
    full = train(LARGE, "llave:llava_onevision_7b", image=ANYRES)
    full.rows, full.tokens = (0.5, 0.0, 0.0, 0.5), (48, 512, 1536, 3760)
    return {
        "onevision_7b_train_lora": large,
        "onevision_7b_train_full": full,
        "onevision_7b_stage1": sentences(),
        **encodes(SMALL, "onevision_05b", rows=1024),
        **encodes(LARGE, "onevision_7b", rows=1024),
    }


def sentences() -> ConfigDict:
    """UniME's stage 1: 768 sentences of a batch, all of them distinct."""
    case = train(LARGE, "stage1:llava_onevision_7b", image=LOW, **SENTENCES)
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


def train(model: str, recipe: str, *, image: tuple[int, int], **load) -> ConfigDict:
    """A recipe's step on rows that are expected of its data."""
    case = _case(model, image, **load)
    case.run = recipes.load(recipe)
    case.run.unlock()
    case.run.evaluation.every = 0
    return case


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
    case.run.execution = other.execution


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

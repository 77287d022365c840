"""Differences between the published checkpoints: where they are, images, prompts, adapters, memory.

Keys of a training run by checkpoint, for base.pretrained. Chunk sizes and shapes are those of pairs
with an image on one side.
"""

from unime_jax.data.settings import Bucket

# The layers that VLM2Vec's and UniME's target names reach: of the decoder all but gate and up, of
# a CLIP or SigLIP tower the attention's; no layer of Qwen2-VL's tower has such a name. Qwen2.5-VL's
# has a down_proj, which is left frozen with all else of it, so that its features are kept.
ADAPTED = r"(language_model|vision_tower)\..*\.(q|k|v|o|down|out)_proj"
# Phi-3.5-Vision's targets name its fused layers, so gate and up have adapters, too. The parts of a
# fused layer have one each here; exported, they are one of two or three times the rank.
GATE_AND_UP = r"language_model\..*\.(gate|up)_proj"

# Both towers of CLIP and SigLIP, all of their layers.
TOWERS = r"(text|vision)_model\.encoder\.layers\..*"

TEXTS = (Bucket(tokens=128, tiles=0), Bucket(tokens=512, tiles=0, share=0.25))

LLAVA_ONEVISION = {
    "processing": {"pinpoints": ((384, 384),)},  # UniME trains at a low resolution
    "lora": {"targets": ((ADAPTED, True), (".*", False))},
    "data": {"buckets": (*TEXTS, Bucket(tokens=1792, tiles=2))},
}

# Images of up to 672 x 672 pixels, as Qwen2-VL's below: 441 tokens of 32 x 32.
QWEN3_VL = {
    "chunk_size": 32,
    "processing": {"pixels": (4 * 32 * 32, 672 * 672), "grid_positions": True},
    "lora": {"targets": ((ADAPTED, True), (".*", False))},
    "data": {"buckets": (*TEXTS, Bucket(tokens=768, tiles=7))},
}
# What Qwen3-VL-Embedding's training adapted, LoRA of rank 32 (arXiv 2601.04720): not the output.
QWEN3_VL_ADAPTED = r"language_model\..*\.(q|k|v|gate|up)_proj"

FAMILIES = {
    "llava_onevision_7b": LLAVA_ONEVISION
    | {
        "backbone": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        # A row on each of 16 chips of 16 GB, which keeps what is dear to compute again. Larger pods
        # need as many rows as chips.
        "chunk_size": 16,
        "execution": {"remat": "dots", "merged_chunks": 4},
    },
    # For a single chip, for example Colab's.
    "llava_onevision_05b": LLAVA_ONEVISION
    | {
        "backbone": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "chunk_size": 4,
        "batch_size": 256,
        "evaluation": {"rows": 512},
    },
    # One 336-pixel tile an image and the base tile. UniME's own way to a low resolution is
    # `processing.image_size = (336, 336)` with the checkpoint's canvases, of which the smallest
    # then is half empty: 1176 tokens, too. Other libraries can be told of canvases, but not of
    # resizing first.
    "llava_next_7b": {
        "backbone": "llava-hf/llava-v1.6-mistral-7b-hf",
        "chunk_size": 32,
        "processing": {"prompt": "raw", "pinpoints": ((336, 336),)},
        "lora": {"targets": ((ADAPTED, True), (".*", False))},
        "data": {"buckets": (*TEXTS, Bucket(tokens=1536, tiles=2))},
    },
    # Images of up to 672 x 672 pixels (UniME-V2, table 7), in the chat template. UniME-V2's own way
    # is `processing.prompt = "raw"`, bare text whose image tokens have plain positions, and
    # `processing.image_size = (672, 672)`. Other libraries give image tokens rows and columns, and
    # don't resize first, so such a model only works with care there.
    "qwen2_vl_7b": {
        "backbone": "Qwen/Qwen2-VL-7B-Instruct",
        "chunk_size": 32,
        "processing": {"pixels": (56 * 56, 672 * 672)},
        "lora": {"targets": ((ADAPTED, True), (".*", False))},
        "data": {"buckets": (*TEXTS, Bucket(tokens=1024, tiles=9))},
    },
    # An embedder from the chat model, whose last token is the template's.
    "qwen3_vl_2b": QWEN3_VL | {"backbone": "Qwen/Qwen3-VL-2B-Instruct"},
    "qwen3_vl_8b": QWEN3_VL | {"backbone": "Qwen/Qwen3-VL-8B-Instruct"},
    # The published embedder, trained on: its instructions, its last token, its kind of adapters.
    "qwen3_vl_embedding_2b": QWEN3_VL
    | {
        "backbone": "Qwen/Qwen3-VL-Embedding-2B",
        "processing": QWEN3_VL["processing"] | {"prompt": "system"},
        "lora": {
            "rank": 32,
            "alpha": 32.0,
            "dora": False,
            "targets": ((QWEN3_VL_ADAPTED, True), (".*", False)),
        },
    },
    # As Qwen2-VL: images of up to 672 x 672 pixels, in the chat template.
    "qwen2_5_vl_7b": {
        "backbone": "Qwen/Qwen2.5-VL-7B-Instruct",
        "chunk_size": 32,
        "processing": {"pixels": (56 * 56, 672 * 672)},
        "lora": {"targets": ((ADAPTED, True), (".*", False))},
        "data": {"buckets": (*TEXTS, Bucket(tokens=1024, tiles=9))},
    },
    "qwen2_5_vl_3b": {
        "backbone": "Qwen/Qwen2.5-VL-3B-Instruct",
        "chunk_size": 32,
        "processing": {"pixels": (56 * 56, 672 * 672)},
        "lora": {"targets": ((ADAPTED, True), (".*", False))},
        "data": {"buckets": (*TEXTS, Bucket(tokens=1024, tiles=9))},
    },
    # 4 crops an image, bare text (VLM2Vec); UniME adds `processing.image_size = (336, 336)`.
    "phi3_v_4b": {
        "backbone": "microsoft/Phi-3.5-vision-instruct",
        "chunk_size": 32,
        "processing": {"prompt": "raw", "crops": 4},
        "lora": {"targets": ((ADAPTED, True), (GATE_AND_UP, True), (".*", False))},
        "data": {"buckets": (*TEXTS, Bucket(tokens=1024, tiles=5))},
    },
    # Dual encoders, as baselines: an image is one tile and takes no tokens.
    "clip_large_336": {
        "backbone": "openai/clip-vit-large-patch14-336",
        "chunk_size": 256,
        "processing": {"prompt": "raw"},
        "lora": {"targets": ((TOWERS, True), (".*", False))},
        "data": {
            "buckets": (
                Bucket(tokens=0, tiles=1),
                Bucket(tokens=77, tiles=0),
                Bucket(tokens=77, tiles=1),
            )
        },
    },
    "siglip2_so400m": {
        "backbone": "google/siglip2-so400m-patch14-384",
        "chunk_size": 128,
        "processing": {"prompt": "raw"},
        "lora": {"targets": ((TOWERS, True), (".*", False))},
        "data": {
            "buckets": (
                Bucket(tokens=0, tiles=1),
                Bucket(tokens=64, tiles=0),
                Bucket(tokens=64, tiles=1),
            )
        },
    },
}

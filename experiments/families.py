"""Differences between the published checkpoints: where they are, images, prompts, adapters.

Keys of a training run by checkpoint, for base.pretrained, which leaves buckets, chunks and what is
kept of them to the data and the devices. Dual encoders, whose rows are all alike, name theirs.
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

# Layers of dual encoders recompute all; no chunk's activations are kept.
EXECUTION = {"remat": "full", "kept_chunks": (), "merged_chunks": 1}

LLAVA_ONEVISION = {
    "processing": {"pinpoints": ((384, 384),)},  # UniME trains at a low resolution
    "lora": {"targets": ((ADAPTED, True), (".*", False))},
}

# Images of up to 672 x 672 pixels, as Qwen2-VL's below: 441 tokens of 32 x 32.
QWEN3_VL = {
    "processing": {"pixels": (4 * 32 * 32, 672 * 672), "grid_positions": True},
    "lora": {"targets": ((ADAPTED, True), (".*", False))},
}
# What Qwen3-VL-Embedding's training adapted, LoRA of rank 32 (arXiv 2601.04720): not the output.
QWEN3_VL_ADAPTED = r"language_model\..*\.(q|k|v|gate|up)_proj"

FAMILIES = {
    "llava_onevision_7b": LLAVA_ONEVISION
    | {
        "backbone": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    },
    # For a single chip, for example Colab's.
    "llava_onevision_05b": LLAVA_ONEVISION
    | {
        "backbone": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "batch_size": 256,
        "evaluation": {"rows": 512},
    },
    # One 336-pixel tile an image and the base tile. UniME's own way to a low resolution is
    # `processing.image_size = (336, 336)` with the checkpoint's canvases, of which the smallest
    # then is half empty: 1176 tokens, too. Other libraries can be told of canvases, but not of
    # resizing first.
    "llava_next_7b": {
        "backbone": "llava-hf/llava-v1.6-mistral-7b-hf",
        "processing": {"prompt": "raw", "pinpoints": ((336, 336),)},
        "lora": {"targets": ((ADAPTED, True), (".*", False))},
    },
    # Images of up to 672 x 672 pixels (UniME-V2, table 7), in the chat template. UniME-V2's own way
    # is `processing.prompt = "raw"`, bare text whose image tokens have plain positions, and
    # `processing.image_size = (672, 672)`. Other libraries give image tokens rows and columns, and
    # don't resize first, so such a model only works with care there.
    "qwen2_vl_7b": {
        "backbone": "Qwen/Qwen2-VL-7B-Instruct",
        "processing": {"pixels": (56 * 56, 672 * 672)},
        "lora": {"targets": ((ADAPTED, True), (".*", False))},
    },
    # An embedder from the chat model, whose last token is the template's.
    "qwen3_vl_2b": QWEN3_VL | {"backbone": "Qwen/Qwen3-VL-2B-Instruct"},
    "qwen3_vl_8b": QWEN3_VL | {"backbone": "Qwen/Qwen3-VL-8B-Instruct"},
    # The published embedder, trained on: its instructions, its last token, its kind of adapters.
    "qwen3_vl_embedding_2b": QWEN3_VL
    | {
        "backbone": "Qwen/Qwen3-VL-Embedding-2B",
        # Clips as in the embedder's own code: two frames have the tokens of one.
        "processing": QWEN3_VL["processing"]
        | {"prompt": "system", "fps": 1.0, "frames": (4, 64)}
        | {"frame_pixels": (128 * 32 * 32, 768 * 32 * 32), "clip_pixels": 2 * 7680 * 32 * 32},
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
        "processing": {"pixels": (56 * 56, 672 * 672)},
        "lora": {"targets": ((ADAPTED, True), (".*", False))},
    },
    "qwen2_5_vl_3b": {
        "backbone": "Qwen/Qwen2.5-VL-3B-Instruct",
        "processing": {"pixels": (56 * 56, 672 * 672)},
        "lora": {"targets": ((ADAPTED, True), (".*", False))},
    },
    # 4 crops an image, bare text (VLM2Vec); UniME adds `processing.image_size = (336, 336)`.
    "phi3_v_4b": {
        "backbone": "microsoft/Phi-3.5-vision-instruct",
        "processing": {"prompt": "raw", "crops": 4},
        "lora": {"targets": ((ADAPTED, True), (GATE_AND_UP, True), (".*", False))},
    },
    # Dual encoders, as baselines: an image is one tile and takes no tokens.
    "clip_large_336": {
        "backbone": "openai/clip-vit-large-patch14-336",
        "chunk_size": 256,
        "execution": EXECUTION,
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
        "execution": EXECUTION,
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

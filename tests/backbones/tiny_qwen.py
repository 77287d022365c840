"""Tiny Hugging Face folders of Qwen2-VL's and Qwen2.5-VL's form: all but the weights."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from tests.backbones.tiny_families import (
    CLIP_MEAN,
    CLIP_STD,
    DECODER,
    trained_tokenizer,
    write_json,
)

QWEN2_VL_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN2_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_VL_TOWER = dict(embed_dim=16, depth=2, num_heads=2, mlp_ratio=2)
QWEN2_5_VL_TOWER = dict(hidden_size=16, intermediate_size=24, depth=2, num_heads=2)


def write_qwen2_vl(
    folder: pathlib.Path,
    *,
    patch: int = 4,
    merge: int = 2,
    min_pixels: int = 4 * 64,
    max_pixels: int = 16 * 64,
    mrope_section: Sequence[int] = (1, 1, 2),
    vision: Mapping[str, int] = QWEN2_VL_TOWER,
    text: Mapping[str, Any] = DECODER,
) -> pathlib.Path:
    """Writes the files that a Qwen2-VL (Qwen2-VL-*-Instruct) has beside its weights.

    Args:
      folder: is made if it is not there.
      patch: pixels along a side of a patch.
      merge: merge x merge patches become one token.
      min_pixels: smaller images are enlarged to it; a token is (merge * patch)**2 pixels.
      max_pixels: larger images are reduced to it.
      mrope_section: how many rotary frequencies follow time, height and width; their sum is half
        of a head.
      vision: sizes of the tower; its output size is the decoder's.
      text: sizes of the decoder, flat in config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backend = qwen2_tokenizer()
    backend.save(str(folder / "tokenizer.json"))
    ids = {token: backend.token_to_id(token) for token in QWEN2_SPECIAL}
    write_json(
        folder,
        "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "padding_side": "left",
            "model_max_length": 32768,
            "chat_template": QWEN2_VL_TEMPLATE,
        },
    )
    write_json(folder, "chat_template.json", {"chat_template": QWEN2_VL_TEMPLATE})
    write_json(
        folder,
        "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            "patch_size": patch,
            "temporal_patch_size": 2,
            "merge_size": merge,
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_STD),
        },
    )
    write_json(
        folder,
        "config.json",
        {
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "model_type": "qwen2_vl",
            "attention_dropout": 0.0,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "vision_token_id": ids["<|vision_pad|>"],
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
            "max_window_layers": text["num_hidden_layers"],
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": list(mrope_section)},
            "sliding_window": 32768,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
            "vision_config": {
                "hidden_size": text["hidden_size"],
                "in_chans": 3,
                "patch_size": patch,
                "spatial_patch_size": patch,
                "spatial_merge_size": merge,
                "temporal_patch_size": 2,
            }
            | dict(vision),
        }
        | dict(text),
    )
    return folder


def write_qwen2_5_vl(
    folder: pathlib.Path,
    *,
    patch: int = 4,
    window_size: int = 28,
    full_layers: Sequence[int] = (1,),
    vision: Mapping[str, int] = QWEN2_5_VL_TOWER,
    text: Mapping[str, Any] = DECODER,
    **options: Any,
) -> pathlib.Path:
    """Writes the files that a Qwen2.5-VL (Qwen2.5-VL-*-Instruct) has beside its weights.

    Args:
      folder: is made if it is not there.
      patch: pixels along a side of a patch.
      window_size: pixels along a side of a window; those that fill no token are left out.
      full_layers: layers of the tower that attend over the whole image.
      vision: sizes of the tower.
      text: sizes of the decoder, flat in config.json.
      options: as of `write_qwen2_vl`.
    """
    write_qwen2_vl(folder, patch=patch, text=text, **options)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "vision_config": {
            "hidden_act": "silu",
            "in_chans": 3,
            "out_hidden_size": text["hidden_size"],
            "patch_size": patch,
            "spatial_patch_size": patch,
            "spatial_merge_size": config["vision_config"]["spatial_merge_size"],
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": window_size,
            "fullatt_block_indexes": list(full_layers),
        }
        | dict(vision),
    }
    write_json(folder, "config.json", config)
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    preprocessor |= {"processor_class": "Qwen2_5_VLProcessor"}
    write_json(folder, "preprocessor_config.json", preprocessor)
    return folder


def qwen2_tokenizer() -> tokenizers.Tokenizer:
    """Bytes as letters, words split before merging, no token added around a text."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    vocabulary, merges = trained_tokenizer(backend, pre_tokenizers.ByteLevel.alphabet(), 400)
    backend.model = models.BPE(vocab=vocabulary, merges=merges)
    backend.add_special_tokens([AddedToken(token, special=True) for token in QWEN2_SPECIAL])
    return backend

"""Tiny Hugging Face folders of Qwen3-VL's and Qwen3-VL-Embedding's form: all but the weights."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import processors

from tests.backbones.tiny_families import DECODER, write_json
from tests.backbones.tiny_qwen import QWEN2_SPECIAL, qwen2_tokenizer

# Of Qwen3-VL-*-Instruct, likewise: no system turn is made up.
QWEN3_VL_TEMPLATE = (
    "{%- macro words(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}"
    "{%- for part in content -%}"
    "{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part.type == 'video' or 'video' in part -%}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in part -%}{{- part.text -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' + words(message.content) + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
QWEN3_VL_TOWER = dict(
    hidden_size=16,
    intermediate_size=24,
    depth=3,
    num_heads=2,
    num_position_embeddings=25,
    deepstack_visual_indexes=[0, 1],
)

# Of the published config.json files: tower and decoder. Their parameters without a head are
# 2,127,532,032 and 8,144,793,840.
QWEN3_VL_PUBLISHED = {
    "2b": (
        dict(hidden_size=1024, intermediate_size=4096, depth=24, num_heads=16)
        | dict(num_position_embeddings=2304, deepstack_visual_indexes=[5, 11, 17]),
        dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28)
        | dict(num_attention_heads=16, num_key_value_heads=8, head_dim=128, vocab_size=151936),
    ),
    "8b": (
        dict(hidden_size=1152, intermediate_size=4304, depth=27, num_heads=16)
        | dict(num_position_embeddings=2304, deepstack_visual_indexes=[8, 16, 24]),
        dict(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36)
        | dict(num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=151936)
        | dict(tie_word_embeddings=False),
    ),
}


def write_qwen3_vl(
    folder: pathlib.Path,
    *,
    patch: int = 4,
    merge: int = 2,
    pixels: tuple[int, int] = (4 * 64, 16 * 64),
    mrope_section: Sequence[int] = (2, 1, 1),
    vision: Mapping[str, Any] = QWEN3_VL_TOWER,
    text: Mapping[str, Any] = DECODER,
    newest: bool = False,
) -> pathlib.Path:
    """Writes the files that a Qwen3-VL (Qwen3-VL-*-Instruct) has beside its weights.

    Args:
      folder: is made if it is not there.
      patch: pixels along a side of a patch.
      merge: merge x merge patches become one token.
      pixels: least and most of an image; a token is (merge * patch)**2.
      mrope_section: how many rotary frequencies follow time, height and width; their sum is half
        of a head.
      vision: sizes of the tower; its output size is the decoder's.
      text: sizes of the decoder.
      newest: as transformers 5 spells config.json, not as it is on the hub.
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
            "model_max_length": 262144,
            "chat_template": QWEN3_VL_TEMPLATE,
        },
    )
    write_json(folder, "chat_template.json", {"chat_template": QWEN3_VL_TEMPLATE})
    write_json(
        folder,
        "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen3VLProcessor",
            "size": {"shortest_edge": pixels[0], "longest_edge": pixels[1]},
            "patch_size": patch,
            "temporal_patch_size": 2,
            "merge_size": merge,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    )
    rope = {"mrope_interleaved": True, "mrope_section": list(mrope_section), "rope_type": "default"}
    theta = {"rope_theta": 5e6}
    head = text["hidden_size"] // text["num_attention_heads"]
    write_json(
        folder,
        "config.json",
        {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "tie_word_embeddings": text.get("tie_word_embeddings", True),
            "text_config": {
                "model_type": "qwen3_vl_text",
                "attention_bias": False,
                "bos_token_id": ids["<|endoftext|>"],
                "eos_token_id": ids["<|im_end|>"],
                "head_dim": head,
                "hidden_act": "silu",
                "max_position_embeddings": 262144,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": True,
            }
            | ({"rope_parameters": rope | theta} if newest else {"rope_scaling": rope} | theta)
            | {"dtype" if newest else "torch_dtype": "float32"}
            | dict(text),
            "vision_config": {
                "model_type": "qwen3_vl_vision" if newest else "qwen3_vl",
                "hidden_act": "gelu_pytorch_tanh",
                "in_channels": 3,
                "out_hidden_size": text["hidden_size"],
                "patch_size": patch,
                "spatial_merge_size": merge,
                "temporal_patch_size": 2,
            }
            | dict(vision),
        },
    )
    return folder


def write_qwen3_vl_embedding(folder: pathlib.Path, **sizes: Any) -> pathlib.Path:
    """As `write_qwen3_vl`, in the form of Qwen3-VL-Embedding-*.

    The tokenizer adds the token that is pooled, and there are files of sentence-transformers.
    """
    write_qwen3_vl(folder, **sizes)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = "<|endoftext|>"
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"$A:0 {end}:0",
                pair=f"$A:0 {end}:0 $B:1 {end}:1",
                special_tokens=[(end, backend.token_to_id(end))],
            ),
        ]
    )
    backend.save(str(folder / "tokenizer.json"))
    package = "sentence_transformers"
    kinds = (
        f"{package}.base.modules.transformer.Transformer",
        f"{package}.sentence_transformer.modules.pooling.Pooling",
        f"{package}.sentence_transformer.modules.normalize.Normalize",
    )
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    state = {"method": "forward", "method_output_name": "last_hidden_state"}
    write_json(
        folder,
        "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": state,
                "image": state,
                "message": state | {"format": "structured"},
            },
            "module_output_name": "token_embeddings",
            "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
        },
    )
    write_json(
        folder,
        "config_sentence_transformers.json",
        {
            "prompts": {"query": "Find what the query asks for", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    for path in paths[1:]:
        (folder / path).mkdir()
    width = json.loads((folder / "config.json").read_text())["text_config"]["hidden_size"]
    pooling = {"embedding_dimension": width, "pooling_mode": "lasttoken", "include_prompt": True}
    write_json(folder, "1_Pooling/config.json", pooling)
    return folder


def write_qwen3_vl_published(folder: pathlib.Path, size: str) -> pathlib.Path:
    """As `write_qwen3_vl`, in a published size and with images of up to 1280 tokens."""
    vision, text = QWEN3_VL_PUBLISHED[size]
    return write_qwen3_vl(
        folder,
        patch=16,
        pixels=(4 * 1024, 1280 * 1024),
        mrope_section=(24, 20, 20),
        vision=vision,
        text=text,
        newest=size == "8b",
    )

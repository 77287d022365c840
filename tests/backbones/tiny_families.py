"""Tiny Hugging Face folders of LLaVA-NeXT's and Qwen2-VL's form: all but the weights.

The files are written as those checkpoints have them on the hub, which is older than what
transformers would save today. LLaVA-OneVision's are in `tiny_folders`.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

TEXTS = ("Represent the given image for classification", "a red circle left of a blue square") * 3
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Published with llava-v1.6-vicuna-*-hf, llava-v1.6-mistral-7b-hf and Qwen2-VL-*-Instruct, shortened
# to system and user turns.
VICUNA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\\n' + message['content'][0]['text'] + '\\n<</SYS>>\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{' [/INST]' }}{% endif %}{% endfor %}"
)
QWEN2_VL_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What a tokenizer_config.json of the Mistral checkpoint still holds: the language model's own.
MISTRAL_LM_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)

LLAMA_SPECIAL = ("<unk>", "<s>", "</s>")
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

# Of Qwen3-VL-*-Instruct, likewise: no system turn is made up.
QWEN3_VL_TEMPLATE = (
    "{%- macro words(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}"
    "{%- for part in content -%}"
    "{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in part -%}{{- part.text -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' + words(message.content) + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)

DECODER = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=448,
)
CLIP_TOWER = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2)
QWEN2_VL_TOWER = dict(embed_dim=16, depth=2, num_heads=2, mlp_ratio=2)
QWEN2_5_VL_TOWER = dict(hidden_size=16, intermediate_size=24, depth=2, num_heads=2)
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


def write_llava_next(
    folder: pathlib.Path,
    *,
    decoder: Literal["llama", "mistral"] = "llama",
    tile: int = 28,
    patch: int = 7,
    pinpoints: Sequence[tuple[int, int]] = ((28, 56), (56, 28), (56, 56), (84, 28), (28, 84)),
    vision: Mapping[str, int] = CLIP_TOWER,
    text: Mapping[str, Any] = DECODER,
) -> pathlib.Path:
    """Writes the files that a LLaVA-NeXT (llava-v1.6-*-hf) has beside its weights.

    Args:
      folder: is made if it is not there.
      decoder: "llama" as the Vicuna checkpoints, "mistral" as the Mistral ones.
      tile: pixels along a side of a tile, the tower's image size.
      patch: pixels along a side of a patch.
      pinpoints: canvases (height, width), multiples of `tile`.
      vision: sizes of the CLIP tower; the layer before the last is read, so at least two layers.
      text: sizes of the decoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backend = _llama_tokenizer()
    backend.save(str(folder / "tokenizer.json"))
    image_token, pad_token = (backend.token_to_id(x) for x in ("<image>", "<pad>"))
    grid = [list(size) for size in pinpoints]
    tokenizer = {
        "tokenizer_class": "LlamaTokenizer",
        "processor_class": "LlavaNextProcessor",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "legacy": True,
        "padding_side": "left",
        "model_max_length": 1000000000000000019884624838656,
    }
    if decoder == "mistral":
        tokenizer["chat_template"] = MISTRAL_LM_TEMPLATE
    template = {"llama": VICUNA_TEMPLATE, "mistral": MISTRAL_TEMPLATE}[decoder]
    _write(folder, "tokenizer_config.json", tokenizer)
    _write(folder, "chat_template.json", {"chat_template": template})
    _write(
        folder,
        "preprocessor_config.json",
        {
            "image_processor_type": "LlavaNextImageProcessor",
            "processor_class": "LlavaNextProcessor",
            "aspect_ratio_setting": "anyres",
            "image_grid_pinpoints": grid,
            "size": {"shortest_edge": tile},
            "crop_size": {"height": tile, "width": tile},
            "do_resize": True,
            "do_center_crop": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "do_pad": True,
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_STD),
        },
    )
    _write(
        folder,
        "processor_config.json",
        {
            "processor_class": "LlavaNextProcessor",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": patch,
            "vision_feature_select_strategy": "default",
        },
    )
    _write(
        folder,
        "config.json",
        {
            "architectures": ["LlavaNextForConditionalGeneration"],
            "model_type": "llava_next",
            "ignore_index": -100,
            "image_grid_pinpoints": grid,
            "image_token_index": image_token,
            "pad_token_id": pad_token,
            "projector_hidden_act": "gelu",
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "use_image_newline_parameter": True,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "text_config": {
                "model_type": decoder,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
                "torch_dtype": "float32",
            }
            | ({"rope_theta": 1e6, "sliding_window": None} if decoder == "mistral" else {})
            | dict(text),
            "vision_config": {
                "model_type": "clip_vision_model",
                "image_size": tile,
                "patch_size": patch,
                "projection_dim": 8,
                "vocab_size": 32000,
            }
            | dict(vision),
        },
    )
    return folder


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
    backend = _qwen2_tokenizer()
    backend.save(str(folder / "tokenizer.json"))
    ids = {token: backend.token_to_id(token) for token in QWEN2_SPECIAL}
    _write(
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
    _write(folder, "chat_template.json", {"chat_template": QWEN2_VL_TEMPLATE})
    _write(
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
    _write(
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
    _write(folder, "config.json", config)
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    preprocessor |= {"processor_class": "Qwen2_5_VLProcessor"}
    _write(folder, "preprocessor_config.json", preprocessor)
    return folder


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
    backend = _qwen2_tokenizer()
    backend.save(str(folder / "tokenizer.json"))
    ids = {token: backend.token_to_id(token) for token in QWEN2_SPECIAL}
    _write(
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
    _write(folder, "chat_template.json", {"chat_template": QWEN3_VL_TEMPLATE})
    _write(
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
    _write(
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
    _write(
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
    _write(
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
    _write(folder, "1_Pooling/config.json", pooling)
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


def _write(folder: pathlib.Path, name: str, content: Mapping[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _trained(tokenizer: tokenizers.Tokenizer, alphabet: Sequence[str], size: int) -> Any:
    """Vocabulary and merges of a byte pair encoding of TEXTS, as tokenizer.json has them."""
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=list(alphabet), show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return trained["vocab"], [tuple(merge) for merge in trained["merges"]]


def _llama_tokenizer() -> tokenizers.Tokenizer:
    """SentencePiece's way: spaces are letters, unknown letters are bytes, <s> comes first."""
    draft = tokenizers.Tokenizer(models.BPE())
    draft.pre_tokenizer = pre_tokenizers.Metaspace()  # nothing is learned across words
    alphabet = [chr(x) for x in range(0x21, 0x7F)] + ["▁"]
    learned, merges = _trained(draft, alphabet, 160)
    byte_tokens = [f"<0x{x:02X}>" for x in range(256)]
    vocabulary = {token: i for i, token in enumerate([*LLAMA_SPECIAL, *byte_tokens])}
    for token in sorted(learned, key=lambda x: learned[x]):
        vocabulary[token] = len(vocabulary)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = [*LLAMA_SPECIAL, "<image>", "<pad>"]
    backend.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in special])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return backend


def _qwen2_tokenizer() -> tokenizers.Tokenizer:
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
    vocabulary, merges = _trained(backend, pre_tokenizers.ByteLevel.alphabet(), 400)
    backend.model = models.BPE(vocab=vocabulary, merges=merges)
    backend.add_special_tokens([AddedToken(token, special=True) for token in QWEN2_SPECIAL])
    return backend

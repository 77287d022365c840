"""Tiny Hugging Face folders of LLaVA-NeXT's form, all but the weights, and what others share.

The files are written as those checkpoints have them on the hub, which is older than what
transformers would save today. LLaVA-OneVision's are in `tiny_folders`, Qwen's in
`tiny_qwen` and `tiny_qwen3`.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
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
# What a tokenizer_config.json of the Mistral checkpoint still holds: the language model's own.
MISTRAL_LM_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)

LLAMA_SPECIAL = ("<unk>", "<s>", "</s>")

DECODER = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=448,
)
CLIP_TOWER = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2)


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
    backend = llama_tokenizer()
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
    write_json(folder, "tokenizer_config.json", tokenizer)
    write_json(folder, "chat_template.json", {"chat_template": template})
    write_json(
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
    write_json(
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
    write_json(
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


def write_json(folder: pathlib.Path, name: str, content: Mapping[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def trained_tokenizer(tokenizer: tokenizers.Tokenizer, alphabet: Sequence[str], size: int) -> Any:
    """Vocabulary and merges of a byte pair encoding of TEXTS, as tokenizer.json has them."""
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=list(alphabet), show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return trained["vocab"], [tuple(merge) for merge in trained["merges"]]


def llama_tokenizer() -> tokenizers.Tokenizer:
    """SentencePiece's way: spaces are letters, unknown letters are bytes, <s> comes first."""
    draft = tokenizers.Tokenizer(models.BPE())
    draft.pre_tokenizer = pre_tokenizers.Metaspace()  # nothing is learned across words
    alphabet = [chr(x) for x in range(0x21, 0x7F)] + ["▁"]
    learned, merges = trained_tokenizer(draft, alphabet, 160)
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

"""Write a Hugging Face folder of a tiny LLaVA-OneVision: everything but the weights.

The files have the form of llava-hf/llava-onevision-qwen2-0.5b-ov-hf, so that what reads this
folder reads the published one.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PAD, START, END, IMAGE, VIDEO = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"
# Qwen2's pre-tokenisation.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# LLaVA-OneVision's published turns: images, then videos, then a line of text each.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{# Render all video then #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}"
    "{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] }}{% endfor %}"
    "{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\\n' + content['text'] }}{% endgeneration %}{% endfor %}"
    "{% endif %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class TowerSize:
    """Widths of a transformer; `kv_heads` is None where every head has keys of its own."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    kv_heads: int | None = None


@dataclasses.dataclass(frozen=True)
class BackboneSize:
    """Sizes of the two towers, the tile and patch side in pixels, and the largest vocabulary."""

    text: TowerSize
    vision: TowerSize
    tile: int
    patch: int
    vocabulary: int


def write_backbone(folder: str | os.PathLike, texts: Iterable[str], size: BackboneSize) -> None:
    """Write config, tokenizer (trained on `texts`) and processor; the folder appears when whole.

    Raises FileExistsError if `folder` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder}: exists already; remove it or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incomplete_", dir=folder.parent) as scratch:
        unfinished = Path(scratch) / folder.name
        unfinished.mkdir()
        tokens = _write_tokenizer(unfinished, texts, size.vocabulary)
        _write_config(unfinished, size, tokens)
        _write_processor(unfinished, size)
        unfinished.rename(folder)


def pinpoints(tile: int) -> list[list[int]]:
    """The canvases that images are cut from, as (height, width): one tile, two side by side."""
    return [[tile, tile], [tile, 2 * tile], [2 * tile, tile]]


def _write_tokenizer(folder: Path, texts: Iterable[str], vocabulary: int) -> dict[str, int]:
    """A byte-level BPE with Qwen2's pre-tokenisation; returns the special tokens' ids."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    specials = (PAD, START, END, IMAGE, VIDEO)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # As often as texts, so that they are single tokens.
    words = (f"{role} \n{text}" for text in texts for role in ("user", "assistant"))
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    tokenizer.save(str(folder / "tokenizer.json"))

    vocab = tokenizer.get_vocab()
    ids = {token: vocab[token] for token in specials}
    described = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(number): {"content": token, **described, "special": True}
                for token, number in ids.items()
            },
            "additional_special_tokens": [START, END],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": END,
            "errors": "replace",
            "model_max_length": 32768,
            "pad_token": PAD,
            "processor_class": "LlavaOnevisionProcessor",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    model = json.loads(tokenizer.to_str())["model"]
    _write_json(folder / "vocab.json", model["vocab"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return ids | {"size": len(vocab)}


def _write_config(folder: Path, size: BackboneSize, tokens: dict[str, int]) -> None:
    from transformers import LlavaOnevisionConfig

    text, vision = size.text, size.vision
    config = LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": -(-tokens["size"] // 64) * 64,  # padded, as the published ones are
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.heads if text.kv_heads is None else text.kv_heads,
            "max_window_layers": text.layers,
            "rope_theta": 1000000.0,
            "bos_token_id": tokens[PAD],
            "eos_token_id": tokens[END],
            "tie_word_embeddings": True,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": size.tile,
            "patch_size": size.patch,
            "vision_use_head": False,
        },
        image_token_index=tokens[IMAGE],
        video_token_index=tokens[VIDEO],
        projector_hidden_act="gelu",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=pinpoints(size.tile),
        tie_word_embeddings=False,
        architectures=["LlavaOnevisionForConditionalGeneration"],
    )
    values = config.to_diff_dict()
    # The published file has the form of transformers 4.
    values["text_config"].pop("layer_types", None)
    values["text_config"].pop("rope_parameters", None)
    values["text_config"]["rope_theta"] = 1000000.0
    values |= {"ignore_index": -100, "torch_dtype": "float32", "use_image_newline_parameter": True}
    _write_json(folder / "config.json", values)
    _write_json(
        folder / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": tokens[PAD],
            "eos_token_id": tokens[END],
            "pad_token_id": tokens[PAD],
        },
    )


def _write_processor(folder: Path, size: BackboneSize) -> None:
    mean_and_std: Sequence[float] = [0.5, 0.5, 0.5]
    _write_json(
        folder / "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_grid_pinpoints": pinpoints(size.tile),
            "image_mean": mean_and_std,
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "image_std": mean_and_std,
            "processor_class": "LlavaOnevisionProcessor",
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": size.tile, "width": size.tile},
        },
    )
    _write_json(
        folder / "processor_config.json",
        {
            "image_token": IMAGE,
            "num_image_tokens": (size.tile // size.patch) ** 2,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": VIDEO,
            "vision_aspect_ratio": "anyres_max_9",
            "vision_feature_select_strategy": "full",
        },
    )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")

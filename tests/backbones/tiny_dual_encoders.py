"""Tiny folders of CLIP's and SigLIP's form, with random weights."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers
import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from tests.backbones.tiny_families import CLIP_MEAN, CLIP_STD, TEXTS

TOWER = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
IMAGES = TOWER | dict(hidden_size=24, num_attention_heads=3, image_size=28, patch_size=7)
LENGTH = 16  # tokens of a text


def write_clip(
    folder: pathlib.Path,
    *,
    eos_token_id: int | None = None,
    processor: Mapping[str, Any] = {},  # noqa: B006
) -> CLIPModel:
    """Writes the files of openai/clip-vit-*; `eos_token_id`: of config.json, None: the true one."""
    folder.mkdir(parents=True, exist_ok=True)
    special = ("<|startoftext|>", "<|endoftext|>")
    backend = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator([*TEXTS, " ".join(alphabet)], trainer)
    backend.add_special_tokens(list(special))
    bos, eos = (backend.token_to_id(token) for token in special)
    backend.post_processor = processors.RobertaProcessing(
        (special[1], eos), (special[0], bos), trim_offsets=False, add_prefix_space=False
    )
    backend.save(str(folder / "tokenizer.json"))
    size = IMAGES["image_size"]
    _write(
        folder,
        {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": special[0],
            "eos_token": special[1],
            "pad_token": special[1],
            "unk_token": special[1],
            "model_max_length": LENGTH,
        },
        {
            "crop_size": size,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "image_processor_type": "CLIPImageProcessor",
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "resample": 3,
            "size": size,
        }
        | dict(processor),
    )
    text = TOWER | dict(vocab_size=backend.get_vocab_size(), max_position_embeddings=LENGTH)
    eos = eos if eos_token_id is None else eos_token_id
    config = CLIPConfig(
        text_config=text | dict(eos_token_id=eos, bos_token_id=bos, pad_token_id=eos),
        vision_config=IMAGES,
        projection_dim=20,
    )
    return _save(CLIPModel(config), folder)


def write_siglip2(folder: pathlib.Path) -> Siglip2Model:
    """Writes the files of google/siglip2-*-naflex."""
    return write_siglip(folder, naflex=True)


def write_siglip(
    folder: pathlib.Path, *, side: str = "right", naflex: bool = False
) -> SiglipModel | Siglip2Model:
    """Writes the files of google/siglip2-* of one resolution; `side`: of the padding."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<eos>", "<unk>"],
        initial_alphabet=[chr(x) for x in range(0x21, 0x7F)],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    backend.save(str(folder / "tokenizer.json"))
    size = IMAGES["image_size"]
    _write(
        folder,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "padding_side": side,
            "model_input_names": ["input_ids"],
            "model_max_length": 1000000000000000019884624838656,
        },
        {
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "SiglipImageProcessor",
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": 2,
            "rescale_factor": 1 / 255,
        }
        | (
            {
                "image_processor_type": "Siglip2ImageProcessor",
                "patch_size": IMAGES["patch_size"],
                "max_num_patches": 20,
            }
            if naflex
            else {"size": {"height": size, "width": size}}
        ),
    )
    text = TOWER | dict(vocab_size=backend.get_vocab_size(), max_position_embeddings=LENGTH)
    if naflex:
        images = {k: x for k, x in IMAGES.items() if k != "image_size"} | {"num_patches": 16}
        text |= dict(projection_size=IMAGES["hidden_size"])
        return _save(Siglip2Model(Siglip2Config(text_config=text, vision_config=images)), folder)
    config = SiglipConfig(
        text_config=text | dict(projection_size=IMAGES["hidden_size"]), vision_config=IMAGES
    )
    return _save(SiglipModel(config), folder)


def _write(
    folder: pathlib.Path, tokenizer: Mapping[str, Any], processor: Mapping[str, Any]
) -> None:
    for name, content in (
        ("tokenizer_config.json", tokenizer),
        ("preprocessor_config.json", processor),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _save(model: torch.nn.Module, folder: pathlib.Path) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms must matter, too
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model.eval()

"""Tiny folders of models that embed texts only: all of NV-Embed's but the weights, BERT's whole."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, BertModel

from tests.backbones.tiny_families import TEXTS, llama_tokenizer

MISTRAL = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=448,
)
LATENTS = dict(
    num_latents_value=6, num_cross_heads=2, hidden_dim=32, latent_dim=32, cross_dim_head=16
)
BERT = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=3,
    max_position_embeddings=64,
)
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_nv_embed(
    folder: pathlib.Path,
    *,
    text: Mapping[str, Any] = MISTRAL,
    latents: Mapping[str, Any] = LATENTS,
) -> pathlib.Path:
    """Writes the files that NV-Embed-v2 has beside its weights and its code.

    Keys of config.json that have their defaults are left out, as they are in the published one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    llama_tokenizer().save(str(folder / "tokenizer.json"))
    tokenizer = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "legacy": True,
        "padding_side": "right",
        "model_max_length": 1000000000000000019884624838656,
    }
    config = {
        "architectures": ["NVEmbedModel"],
        "auto_map": {
            "AutoConfig": "configuration_nvembed.NVEmbedConfig",
            "AutoModel": "modeling_nvembed.NVEmbedModel",
        },
        "model_type": "nvembed",
        "add_eos": True,
        "add_pad_token": True,
        "hidden_size": text.get("hidden_size", 4096),
        "is_mask_instruction": True,
        "latent_attention_config": {"model_type": "latent_attention"} | dict(latents),
        "mask_type": "b",
        "padding_side": "right",
        "text_config": {
            "model_type": "bidir_mistral",
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "sliding_window": 4096,
        }
        | dict(text),
        "torch_dtype": "float16",
    }
    for name, content in (("tokenizer_config.json", tokenizer), ("config.json", config)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    return folder


def write_bert(
    folder: pathlib.Path,
    *,
    config: Mapping[str, Any] = BERT,
    pooling: Mapping[str, Any] = {"pooling_mode_mean_tokens": True},  # noqa: B006
    modules: Sequence[str] = ("Transformer", "Pooling", "Normalize"),
    settings: Mapping[str, Any] = {"max_seq_length": 32, "do_lower_case": False},  # noqa: B006
    lower_case: bool = True,
    masked_lm: bool = False,
    seed: int = 0,
) -> pathlib.Path:
    """Writes a sentence-transformers folder with random weights.

    `masked_lm`: the weights are those of a pretrained model, heads and "bert." included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backend = _wordpiece(lower_case)
    backend.save(str(folder / "tokenizer.json"))
    torch.manual_seed(seed)
    bert = BertConfig(vocab_size=backend.get_vocab_size(), **config)
    model = BertForMaskedLM(bert) if masked_lm else BertModel(bert)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms must matter, too
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(modules) if i)]
    files: dict[str, Any] = {
        "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": lower_case,
            "model_max_length": 48,
        },
        "sentence_bert_config.json": dict(settings),
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(zip(paths, modules, strict=True))
        ],
    }
    if "Pooling" in modules:
        place = paths[list(modules).index("Pooling")]
        width = {"word_embedding_dimension": config["hidden_size"]}
        files[f"{place}/config.json"] = width | dict(pooling)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    return folder


def _wordpiece(lower_case: bool) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = [chr(x) for x in range(0x21, 0x7F)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=300,
        initial_alphabet=alphabet,
        special_tokens=list(BERT_SPECIAL),
        show_progress=False,
    )
    backend.train_from_iterator([*TEXTS, " ".join(alphabet), "".join(alphabet)], trainer)
    special = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=special
    )
    return backend

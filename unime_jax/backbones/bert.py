"""BERT in a folder of sentence-transformers: encoder, pooling over its tokens, length one."""

import json
import pathlib
from typing import Any, get_args

from tokenizers import normalizers
from transformers import PretrainedConfig

from unime_jax.backbones import hf_config, texts
from unime_jax.backbones.backbone import Backbone
from unime_jax.backbones.names import AS_PUBLISHED, Names
from unime_jax.backbones.processing import Processing
from unime_jax.backbones.prompts import open_tokenizer
from unime_jax.models.bert import Bert, BertConfig, Pooling
from unime_jax.models.layers import ACTIVATIONS

PROCESSING = texts.PROCESSING

MODULES = "modules.json"
SETTINGS = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
FLAGS = "pooling_mode_"  # older files have one for each kind of pooling

NAMES = Names(
    prefixes=(("", ""),),
    aliases=(
        (r"^bert\.", ""),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    modules=(AS_PUBLISHED, (("", "bert."),)),
    unused=(r"(pooler|cls|classifier|qa_outputs)\..*", r"embeddings\.position_ids"),
    convolution=("", ()),
    targets=("query", "value"),
)


def open_folder(
    folder: pathlib.Path, config: PretrainedConfig, processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a model that sentence-transformers loads as Transformer, Pooling and Normalize.

    Embeddings have length one also where there is no Normalize. Prompts in the folder's files are
    not applied by themselves.

    Raises:
      ValueError: the files contradict each other, or ask for what this family does not do.
    """
    texts.check(folder, processing)
    transformer, pooling = _modules(folder)
    settings = _read(folder / transformer / SETTINGS)
    tokenizer = open_tokenizer(folder)
    longest = settings.get("max_seq_length") or tokenizer.model_max_length
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json may carry a length or padding of its own
    backend.no_padding()
    if settings.get("do_lower_case"):
        first = [normalizers.Lowercase()]
        backend.normalizer = normalizers.Sequence(
            first + ([backend.normalizer] if backend.normalizer else [])
        )
    longest = min(max_length, longest, config.max_position_embeddings)
    prompt = texts.TextPrompt(backend, "", config.vocab_size, longest)
    prompt.check_tokenizer(folder)
    preprocess = texts.TextPreprocessor(
        prompt, prefix_left_out=False, learned_positions=config.max_position_embeddings
    )
    model = _encoder(config, _pooling(folder / pooling / "config.json"))
    return Backbone(
        folder=folder,
        dimension=config.hidden_size,
        make_model=lambda key: Bert(model, key=key),
        names=NAMES,
        preprocess=preprocess,
        layout=preprocess.layout,
        processing=processing,
        own_files=(MODULES, SETTINGS, PROMPTS, f"{pooling}/config.json"),
    )


def _modules(folder: pathlib.Path) -> tuple[str, str]:
    """Where the settings of transformer and pooling lie."""
    if not (folder / MODULES).exists():
        raise ValueError(
            f"{folder} has no {MODULES}, so it does not say how tokens are pooled; use a folder of"
            " sentence-transformers"
        )
    modules = _read(folder / MODULES)
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(
            f"{folder}/{MODULES}: the modules are {', '.join(kinds)}; only Transformer, Pooling and"
            " Normalize are supported"
        )
    transformer, pooling = (module["path"] for module in modules[:2])
    hf_config.require(f"{MODULES}: path of Transformer", transformer, ("",))
    return transformer, pooling


def _pooling(file: pathlib.Path) -> Pooling:
    settings = _read(file)
    on = [key.removeprefix(FLAGS) for key in settings if key.startswith(FLAGS) and settings[key]]
    flags = " and ".join(key.removesuffix("_tokens").removesuffix("_token") for key in on)
    mode = settings.get("pooling_mode", flags or "mean")
    if mode not in POOLINGS or not settings.get("include_prompt", True):
        raise ValueError(
            f"{file}: pooling is {mode}, include_prompt {settings.get('include_prompt', True)};"
            f" only {' and '.join(POOLINGS)} over all tokens, the prompt's too, are supported"
        )
    return mode


def _encoder(config: PretrainedConfig, pooling: Pooling) -> BertConfig:
    hf_config.require("hidden_act", config.hidden_act, tuple(ACTIVATIONS))
    position = getattr(config, "position_embedding_type", "absolute")
    hf_config.require("position_embedding_type", position, ("absolute",))
    hf_config.require("is_decoder", config.is_decoder, (False,))
    if config.type_vocab_size < 1:
        raise ValueError(
            f"config.json: type_vocab_size is {config.type_vocab_size}; the type of a single text"
            " needs a row"
        )
    # transformers' implementations of attention disagree about True.
    hf_config.require("is_causal", bool(getattr(config, "is_causal", False)), (False,))
    return BertConfig(
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        token_types=config.type_vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        layer_norm_eps=config.layer_norm_eps,
        hidden_act=config.hidden_act,
        pooling=pooling,
    )


def _read(file: pathlib.Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else {}

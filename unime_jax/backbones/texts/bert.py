"""BERT in a folder of sentence-transformers: encoder, pooling of tokens, scaling to length one."""

import pathlib
from typing import TYPE_CHECKING, Literal, cast, get_args

from tokenizers import normalizers

from unime_jax.backbones.backbone import Backbone, MakeModel
from unime_jax.backbones.io import hf_config, st_folder
from unime_jax.backbones.io.names import AS_PUBLISHED, Names
from unime_jax.backbones.preprocessing.open_prompts import open_tokenizer
from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.backbones.texts import text_prompt
from unime_jax.models.bert import Bert, BertConfig, Pooling
from unime_jax.models.layers import ACTIVATIONS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESSING = text_prompt.PROCESSING

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

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
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a model that sentence-transformers loads as Transformer, Pooling and Normalize.

    Embeddings have length one also without Normalize. A text that is too long is cut at the side
    that the tokenizer's settings name.

    Raises:
      ValueError: the files contradict each other, or ask for something unsupported.
    """
    text_prompt.check(folder, processing)
    if not st_folder.is_one(folder):
        raise ValueError(
            f"{folder} has no {st_folder.MODULES}, so it does not say how tokens are pooled; use a"
            " folder of sentence-transformers"
        )
    st_folder.check(folder, POOLINGS)
    tokenizer = open_tokenizer(folder)
    longest = st_folder.max_seq_length(folder) or tokenizer.model_max_length
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json may carry a length or padding of its own
    backend.no_padding()
    if st_folder.setting(folder, "do_lower_case"):
        first = [normalizers.Lowercase()]
        backend.normalizer = normalizers.Sequence(
            first + ([backend.normalizer] if backend.normalizer else [])
        )
    side = st_folder.tokenizer_setting(folder, "truncation_side") or "right"
    prompt = text_prompt.TextPrompt(
        backend,
        "",
        config.vocab_size,
        min(max_length, longest, config.max_position_embeddings),
        cut=cast(Literal["left", "right"], side),
    )
    prompt.check_tokenizer(folder)
    preprocess = text_prompt.TextPreprocessor(
        prompt, prefix_left_out=False, learned_positions=config.max_position_embeddings
    )
    model = _encoder(config, cast(Pooling, st_folder.pooling(folder, POOLINGS)))
    return Backbone(
        folder=folder,
        dimension=config.hidden_size,
        make_model=MakeModel(Bert, model),
        names=NAMES,
        preprocess=preprocess,
        layout=preprocess.layout,
        processing=processing,
        loads_in_transformers=True,
        own_files=st_folder.files(folder),
    )


def _encoder(config: "PretrainedConfig", pooling: Pooling) -> BertConfig:
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

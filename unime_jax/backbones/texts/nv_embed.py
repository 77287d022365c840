"""NV-Embed-v2: texts after an instruction, which attention reads and the mean leaves out.

The item's `prefix` is the instruction, "Instruct: ...\\nQuery: "; passages have none.
"""

import pathlib
from typing import TYPE_CHECKING, Any

import tokenizers

from unime_jax.backbones.backbone import Backbone, MakeModel
from unime_jax.backbones.io import hf_config
from unime_jax.backbones.io.names import AS_PUBLISHED, Fused, Names
from unime_jax.backbones.preprocessing.open_prompts import open_tokenizer
from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.backbones.texts import text_prompt
from unime_jax.models.decoder import DecoderConfig
from unime_jax.models.latent_attention import LatentAttentionConfig
from unime_jax.models.nv_embed import NvEmbed, NvEmbedConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESSING = text_prompt.PROCESSING
POOLINGS = ("mean",)

NAMES = Names(
    prefixes=(
        ("embedding_model.", "embedding_model."),
        ("latent_attention_model.latents", "latent_attention_model.latents"),
        (
            "latent_attention_model.cross_attention.to_",
            "latent_attention_model.cross_attend_blocks.0.fn.to_",
        ),
        (
            "latent_attention_model.cross_attention.norm",  # and norm_context
            "latent_attention_model.cross_attend_blocks.0.norm",
        ),
        (
            "latent_attention_model.feed_forward.norm.",
            "latent_attention_model.cross_attend_blocks.1.norm.",
        ),
        (
            "latent_attention_model.feed_forward.down.",
            "latent_attention_model.cross_attend_blocks.1.fn.net.2.",
        ),
        (
            "latent_attention_model.feed_forward.",  # value and gate
            "latent_attention_model.cross_attend_blocks.1.fn.net.",
        ),
    ),
    aliases=(
        (r"^model\.(embedding_model|latent_attention_model)\.", r"\1."),
        (r"^embedding_model\.model\.", "embedding_model."),  # a decoder that has a head
        (r"^(?:model\.)?(embed_tokens|layers|norm)\.", r"embedding_model.\1."),  # it alone
    ),
    modules=(
        AS_PUBLISHED,
        (("", "model."),),
        (("embedding_model.", "embedding_model.model."), ("", "")),
        (("embedding_model.", ""),),
        (("embedding_model.", "model."),),
    ),
    # A head, and a buffer that older versions saved.
    unused=(r"(embedding_model\.)?lm_head\.weight", r".*\.inv_freq"),
    convolution=("", ()),
    fused=(
        Fused("latent_attention_model.cross_attention.", "to_kv", ("to_k", "to_v")),
        Fused("latent_attention_model.feed_forward.", "0", ("value", "gate")),
    ),
)


def open_folder(
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a checkpoint in the form of its original code, none of which is run.

    Texts that are too long lose tokens inside; the original cuts the end off, with the EOS.

    Raises:
      ValueError: the files contradict each other, or ask for something unsupported.
    """
    text_prompt.check(folder, processing)
    for key, value in (
        ("padding_side", "right"),
        ("is_mask_instruction", True),
        ("add_eos", True),
        ("mask_type", "b"),
        ("add_pad_token", True),
    ):
        hf_config.require(key, getattr(config, key, value), (value,))
    text, longest = _decoder(config)
    latent = _latent_attention(config, text.hidden_size)
    tokenizer, end = _tokenizer(folder)
    prompt = text_prompt.TextPrompt(tokenizer, end, text.vocab_size, min(max_length, longest))
    prompt.check_tokenizer(folder)
    preprocess = text_prompt.TextPreprocessor(prompt, prefix_left_out=True, learned_positions=None)
    model = NvEmbedConfig(text, latent)
    return Backbone(
        folder=folder,
        dimension=text.hidden_size,
        make_model=MakeModel(NvEmbed, model),
        names=NAMES,
        preprocess=preprocess,
        layout=preprocess.layout,
        processing=processing,
        loads_in_transformers=False,
        instruction="Instruct: {instruction}\nQuery: ",
        caveats=(
            "transformers and sentence-transformers open this model only with the Python files of"
            " NV-Embed's own repository, which are not copied here.",
        ),
    )


def _tokenizer(folder: pathlib.Path) -> tuple[tokenizers.Tokenizer, str]:
    """Tokenizer of tokenizer.json, and the EOS as text.

    transformers 5 makes another tokenizer for the class that published files name; it swallows a
    space at the start of a text.
    """
    special = open_tokenizer(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()  # the file may carry a length or padding of its own
    tokenizer.no_padding()
    ids, bos = tokenizer.encode(special.eos_token or "").ids, special.bos_token_id
    if ids != [bos, special.eos_token_id]:
        raise ValueError(
            f"{folder}: tokenizer.json reads the EOS {special.eos_token!r} as {ids}; it must be"
            f" the BOS {bos} and the EOS {special.eos_token_id} of tokenizer_config.json"
        )
    return tokenizer, str(special.eos_token)


def _decoder(config: "PretrainedConfig") -> tuple[DecoderConfig, int]:
    """The decoder, and its longest length in tokens."""
    from transformers import MistralConfig

    given: dict[str, Any] = dict(config.text_config)
    hf_config.require("text_config.model_type", given.pop("model_type", None), ("bidir_mistral",))
    given["sliding_window"] = None  # a token sees all others
    text = MistralConfig(**given)
    decoder = hf_config.decoder_config(
        text,
        model_types=("mistral",),
        max_length=text.max_position_embeddings,
        final_norm=True,
        causal=False,
    )
    return decoder, text.max_position_embeddings


def _latent_attention(config: "PretrainedConfig", width: int) -> LatentAttentionConfig:
    """Latent attention; missing keys of config.json have the values of the published model."""
    latent: dict[str, Any] = dict(getattr(config, "latent_attention_config", None) or {})
    for key in ("hidden_dim", "latent_dim"):
        hf_config.require(f"latent_attention_config.{key}", latent.get(key, 4096), (width,))
    normalised = latent.get("output_normalize", True)
    hf_config.require("latent_attention_config.output_normalize", normalised, (True,))
    return LatentAttentionConfig(
        hidden_size=width,
        num_latents=latent.get("num_latents_value", 512),
        num_heads=latent.get("num_cross_heads", 8),
        head_dim=latent.get("cross_dim_head", 4096),
    )

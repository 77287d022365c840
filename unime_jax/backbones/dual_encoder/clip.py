"""CLIP in Hugging Face form: a causal text tower, pooled at the EOS, and a class token."""

import pathlib
from typing import TYPE_CHECKING

from unime_jax.backbones.backbone import Backbone
from unime_jax.backbones.dual_encoder import dual_encoder
from unime_jax.backbones.dual_encoder.pair_prompt import PairPrompt
from unime_jax.backbones.io import hf_config
from unime_jax.backbones.preprocessing.open_prompts import open_tokenizer
from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.models.dual_encoder import TextPooling

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESSING = dual_encoder.PROCESSING
POOLINGS = dual_encoder.POOLINGS

OLDEST_EOS = 2  # of configurations that never meant it: their texts end in the largest id
DEFAULTS = {  # of transformers' CLIPImageProcessor
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "size": {"shortest_edge": 224},
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "resample": 3,
    "rescale_factor": 1 / 255,
}


def open_folder(
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a folder of transformers' CLIPModel.

    Raises:
      ValueError: the files contradict each other, or ask for something unsupported.
    """
    dual_encoder.check_processing(folder, processing)
    eos = config.text_config.eos_token_id
    if not isinstance(eos, int):
        raise ValueError(
            f"config.json: text_config.eos_token_id is {eos!r}; it must be one number: the id of"
            " the token that a text's vector is read at"
        )
    causal = getattr(config.text_config, "is_causal", None)
    hf_config.require("text_config.is_causal", causal, (None, True))
    pooling: TextPooling = "largest id" if eos == OLDEST_EOS else eos
    text = dual_encoder.text_config(config.text_config, causal=True, pooling=pooling)
    vision = dual_encoder.vision_config(config.vision_config, clip=True)
    tokenizer = open_tokenizer(folder)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json may carry a length or padding of its own
    backend.no_padding()
    ids = backend.encode("").ids
    if pooling == eos and eos not in ids:
        raise ValueError(
            f"{folder}: a text's vector is read at text_config.eos_token_id, {eos}, but"
            f" tokenizer.json ends texts otherwise: an empty one is {ids}"
        )
    longest = min(max_length, text.max_positions, tokenizer.model_max_length)
    tile, image_processor = dual_encoder.open_square(
        folder, vision, types=("CLIPImageProcessor",), defaults=DEFAULTS
    )
    return dual_encoder.assemble(
        folder,
        processing,
        text=text,
        vision=vision,
        dimension=config.projection_dim,
        siglip=False,
        prompt=PairPrompt(backend, text.vocab_size, longest),
        tile=tile,
        image_processor=image_processor,
    )

"""SigLIP, and SigLIP 2 of one resolution: texts of constant length, attention pooling of images.

transformers has one class for both, SiglipModel; the tokenizers differ.
"""

import pathlib
from typing import TYPE_CHECKING, Any, cast

import tokenizers
from absl import logging

from unime_jax.backbones.backbone import Backbone
from unime_jax.backbones.dual_encoder import dual_encoder
from unime_jax.backbones.dual_encoder.pair_prompt import Padding, PairPrompt
from unime_jax.backbones.dual_encoder.tiles import Flexible, Square
from unime_jax.backbones.io import hf_config, json_files, st_folder
from unime_jax.backbones.preprocessing.open_prompts import open_tokenizer
from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.models.vit import VisionConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESSING = dual_encoder.PROCESSING
POOLINGS = dual_encoder.POOLINGS

TOKENIZER = "tokenizer_config.json"
DEFAULTS = {  # of transformers' SiglipImageProcessor
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_center_crop": None,
    "size": {"height": 224, "width": 224},
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "resample": 3,
    "rescale_factor": 1 / 255,
}


def open_folder(
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a folder of transformers' SiglipModel.

    Raises:
      ValueError: the files contradict each other, or ask for something unsupported.
    """
    vision = dual_encoder.vision_config(config.vision_config, clip=False)
    tile, image_processor = dual_encoder.open_square(
        folder, vision, types=("SiglipImageProcessor",), defaults=DEFAULTS
    )
    return assemble(folder, config, processing, vision, tile, image_processor, max_length)


def assemble(
    folder: pathlib.Path,
    config: "PretrainedConfig",
    processing: Processing,
    vision: VisionConfig,
    tile: Square | Flexible,
    image_processor: dict[str, Any],
    max_length: int,
) -> Backbone:
    """Backbone of a SigLIP, of which the images' part has been read.

    Texts are padded to as many tokens as there are positions, and padding is attended to and
    pooled, as the models were trained.

    Raises:
      ValueError: the files contradict each other, or ask for something unsupported; or texts may
        not have that many tokens.
    """
    dual_encoder.check_processing(folder, processing)
    text = dual_encoder.text_config(config.text_config, causal=False, pooling="last")
    causal = bool(getattr(config.text_config, "is_causal", False))
    hf_config.require("text_config.is_causal", causal, (False,))
    head = getattr(config.vision_config, "vision_use_head", True)
    hf_config.require("vision_config.vision_use_head", head, (True,))
    dimension = config.text_config.projection_size
    if dimension != vision.hidden_size:
        raise ValueError(
            f"config.json: text_config.projection_size is {dimension}, and"
            f" vision_config.hidden_size {vision.hidden_size}; vectors of texts and images must"
            " have one length"
        )
    if max_length < text.max_positions:
        raise ValueError(
            f"{folder}: this model's texts are always padded to {text.max_positions} tokens, and"
            f" max_length, or the longest bucket, is {max_length}; make it {text.max_positions}"
        )
    backend, padding = _tokenizer(folder)
    masked = _masks_padding(folder)
    if masked:
        logging.warning(
            "%s: transformers' tokenizer masks padding, which this model attends to, as it was"
            " trained. Exports are put right",
            folder / TOKENIZER,
        )
    if st_folder.is_one(folder) and st_folder.padding(folder) != "max_length":
        logging.warning(
            "%s: sentence-transformers pads texts to the longest of a batch; here all have %d"
            " tokens, as the model was trained. Exports are put right",
            folder,
            text.max_positions,
        )
    return dual_encoder.assemble(
        folder,
        processing,
        text=text,
        vision=vision,
        dimension=dimension,
        siglip=True,
        prompt=PairPrompt(backend, text.vocab_size, text.max_positions, padding),
        tile=tile,
        image_processor=image_processor,
        convert=_without_mask if masked else None,
    )


def _tokenizer(folder: pathlib.Path) -> tuple[tokenizers.Tokenizer, Padding]:
    """Tokenizer of tokenizer.json, and how it pads.

    transformers' own class for SigLIP reads spiece.model and needs SentencePiece; tokenizer.json is
    the same in the form of `tokenizers`, and an export's check compares them where both are there.
    """
    settings = json_files.read(folder / TOKENIZER)
    file = folder / "tokenizer.json"
    if str(settings.get("tokenizer_class")).startswith("SiglipTokenizer") and file.exists():
        backend = tokenizers.Tokenizer.from_file(str(file))
        given: Any = settings.get("pad_token")
        pad = given.get("content") if isinstance(given, dict) else given
        token, side = backend.token_to_id(str(pad)), settings.get("padding_side", "right")
    else:
        tokenizer = open_tokenizer(folder)
        backend, pad = tokenizer.backend_tokenizer, tokenizer.pad_token
        token, side = tokenizer.pad_token_id, tokenizer.padding_side
    if token is None:
        raise ValueError(
            f"{folder}: texts are padded, and pad_token of tokenizer_config.json is {pad!r}"
        )
    backend.no_truncation()  # the file may carry a length or padding of its own
    backend.no_padding()
    return backend, Padding(token, cast(Any, side))


def _masks_padding(folder: pathlib.Path) -> bool:
    """Whether transformers' tokenizer of the folder gives a mask, which the model then heeds."""
    names = json_files.read(folder / TOKENIZER).get("model_input_names")
    return names is None or "attention_mask" in names


def _without_mask(folder: pathlib.Path) -> None:
    """Makes the tokenizer of a copy give token ids alone."""
    settings = json_files.read(folder / TOKENIZER)
    json_files.write(folder / TOKENIZER, settings | {"model_input_names": ["input_ids"]})

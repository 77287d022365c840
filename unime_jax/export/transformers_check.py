"""Check that transformers gives the same token ids and pixels for an exported folder.

It runs transformers itself, so that another order of files there, or other defaults, are seen: its
processor's token ids, pixels and chat template are compared with ours. Only the processor's parts
for texts and images are used, which do without torch.
"""

import dataclasses
import functools
import io
import pathlib
from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
from absl import logging
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from unime_jax.backbones import Backbone, MakeModel
from unime_jax.backbones.dual_encoder.pair_prompt import PairPrompt
from unime_jax.backbones.io import json_files
from unime_jax.backbones.preprocessing import image_processor_config
from unime_jax.backbones.preprocessing.images import decode_images
from unime_jax.backbones.preprocessing.processing import fixed_size
from unime_jax.backbones.preprocessing.prompts import Prompt, name_of
from unime_jax.batch import Item, Media
from unime_jax.models.vlm import normalise

PIXELS = 1e-4  # normalised; the order of float32 operations explains less
LENGTH = 1 << 20  # tokens; nothing is cut


def check(folder: pathlib.Path, backbone: Backbone, items: Sequence[Item]) -> None:
    """Compares the inputs of the items in transformers and in `backbone`.

    Differences named in the model card's caveats are not compared. Models whose code lies in
    their own repository are compared by the settings of their image processor alone.

    Args:
      folder: the export.
      backbone: the export, opened.
      items: texts and images; one of each is added.

    Raises:
      RuntimeError: something differs; the message lists it.
    """
    differences = _settings(folder)
    processor = _processor(folder)
    prompt = backbone.preprocess.prompt
    if processor is not None and isinstance(prompt, Prompt):
        differences += _templates(processor, prompt)
        for item in (*_probes(), *items):
            differences += _inputs(processor, backbone, prompt, item)
    if processor is not None and isinstance(prompt, PairPrompt):
        for item in (*_probes(), *items):
            differences += _separate_inputs(processor, backbone, prompt, item)
    if differences:
        import transformers

        raise RuntimeError(
            f"{folder}: transformers {transformers.__version__} reads this export otherwise than"
            f" this package:\n  " + "\n  ".join(differences) + "\nThe export is kept for study."
        )


def _settings(folder: pathlib.Path) -> list[str]:
    """Differences between the settings of transformers 4, which reads one file, and 5, with two.

    A key that one of the files lacks is not compared.
    """
    files = image_processor_config.sources(folder)
    if len(files) < 2:
        return []
    (_, newer), (name, older) = files
    keys = (*image_processor_config.KEYS, *image_processor_config.AREAS)
    return [
        f"{key} of the image processor is {newer[key]!r}, and {older[key]!r} in {name}, which"
        " transformers 4 reads"
        for key in keys
        if None not in (newer.get(key), older.get(key)) and newer[key] != older[key]
    ]


def _processor(folder: pathlib.Path) -> Any:
    """transformers' processor for texts and images; None: there is none to compare with."""
    import transformers  # takes a second, and torch with it where that is installed

    model_type = json_files.read(folder / "config.json").get("model_type", "")
    name: str | None = "processor"
    try:
        # Only here: where torch and torchvision do not fit each other, this fails.
        from transformers import AutoImageProcessor
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

        name = PROCESSOR_MAPPING_NAMES.get(model_type)
        if name is None:
            return None
        kind: Any = getattr(transformers, name)

        class WithoutVideos(kind):
            def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
                return type(argument)  # the video processor, which wants torch, is None

        parts = {
            "image_processor": AutoImageProcessor.from_pretrained(folder, backend="pil"),
            "tokenizer": transformers.AutoTokenizer.from_pretrained(folder),
        }
        settings, _ = kind.get_processor_dict(str(folder))
        arguments = [parts.get(attribute) for attribute in kind.get_attributes()]
        return WithoutVideos.from_args_and_dict(arguments, settings)
    except Exception as error:  # of a library's inner parts; that is no fault of the export
        logging.warning(
            "%s: inputs are not compared with transformers %s, whose %s cannot be made of it: %s",
            folder,
            transformers.__version__,
            name,
            error,
        )
        return None


def _templates(processor: Any, prompt: Prompt) -> list[str]:
    """Differences between a user turn in `prompt` and in the processor or its tokenizer alone.

    Neither knows prompts without a chat template.
    """
    differences = []
    for images in range(min(2, len(prompt.frames))):
        messages, expected = prompt.turns("probe", images)
        for name, part in (("processor", processor), ("tokenizer", processor.tokenizer)):
            try:
                rendered = part.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            except Exception as error:  # a template is a program
                rendered = f"{type(error).__name__}: {error}"
            if rendered != expected:
                differences.append(
                    f"prompt: the {name}'s chat template gives {rendered!r} for 'probe' with"
                    f" {images} images, here {expected!r}"
                )
    return differences


def _inputs(processor: Any, backbone: Backbone, prompt: Prompt, item: Item) -> list[str]:
    """Difference in the token ids or pixels of an item, uncut, as only this package cuts inside."""
    if prompt.empty_places(item):
        return []  # a marker without an image, which the model card names
    whole: Any = dataclasses.replace(prompt, max_length=LENGTH)
    preprocess = dataclasses.replace(cast(Any, backbone.preprocess), prompt=whole)
    if any(media.kind == "clip" for media in item.media):
        return []  # Qwen3-VL's processor words clips as no model was trained, see docs/video.md
    row = preprocess(item)
    images = decode_images(item, fixed_size(backbone.processing))
    try:
        inputs = processor(
            images=[images] if images else None,
            text=[prompt.rendered(item)],
            return_tensors="np",
        )
    except Exception as error:
        return [f"{name_of(item)}: the processor fails: {type(error).__name__}: {error}"]
    ids = inputs["input_ids"][0].tolist()
    if ids != row.tokens.tolist():
        what = _differing(ids, row.tokens.tolist(), prompt.image_token_id)
        return [
            f"{name_of(item)}: {what}: token ids are {ids[:40]} ({len(ids)}), here"
            f" {row.tokens.tolist()[:40]} ({len(row.tokens)})"
        ]
    # Of several images LLaVA-OneVision's processor gives tiles that its model does not read.
    if len(images) != 1 or backbone.processing.legacy_padding:
        return []
    assert row.patches is not None
    theirs = preprocess.as_patches(inputs)
    return _pixels(backbone, item, row.patches.reshape(-1, theirs.shape[1]), theirs)


def _differing(theirs: Sequence[int], ours: Sequence[int], image: int) -> str:
    """Which step makes other token ids."""
    without = [[token for token in ids if token != image] for ids in (theirs, ours)]
    if without[0] == without[1]:
        return f"resize: an image takes {theirs.count(image)} tokens, here {ours.count(image)}"
    shorter, longer = sorted((theirs, ours), key=len)
    if longer[: len(shorter)] == shorter:
        return f"end token: the last one is {theirs[-1]}, here {ours[-1]}"
    return "prompt"


def _separate_inputs(
    processor: Any, backbone: Backbone, prompt: PairPrompt, item: Item
) -> list[str]:
    """Difference in the token ids or pixels of an item whose text and images go apart."""
    row = backbone.preprocess(item)
    if len(row.tokens) and not row.truncated:  # only this package keeps a suffix
        padding = "max_length" if prompt.padding else False
        inputs = processor.tokenizer(
            prompt.rendered(item), padding=padding, max_length=prompt.max_length
        )
        ids = inputs["input_ids"]
        if ids != row.tokens.tolist():
            return [f"{name_of(item)}: token ids are {ids}, here {row.tokens.tolist()}"]
        if not all(inputs.get("attention_mask", [])):
            return [f"{name_of(item)}: the tokenizer masks padding, which is attended to here"]
    images = decode_images(item, backbone.processing.image_size)
    if not images:
        return []
    assert row.patches is not None and row.patch_position is not None
    inputs = processor.image_processor(images=images, return_tensors="np")
    theirs = cast(Any, backbone.preprocess).as_patches(inputs)
    filled = row.patch_position[..., 0].ravel() >= 0
    return _pixels(backbone, item, row.patches.reshape(len(filled), -1)[filled], theirs[filled])


def _pixels(
    backbone: Backbone,
    item: Item,
    patches: UInt8[np.ndarray, "patches F"],
    theirs: Float[np.ndarray, "theirs F"],
) -> list[str]:
    """Difference between an item's patches, normalised, and transformers', which come first."""
    channel = np.arange(patches.shape[1]) // (patches.shape[1] // 3)
    ours = _normalised(backbone.make_model)[patches, channel]
    apart = np.abs(ours[: len(theirs)] - theirs).max() if len(ours) >= len(theirs) else np.inf
    if not apart <= PIXELS:
        return [f"{name_of(item)}: resize: normalised pixels are up to {apart:.3g} apart"]
    return []


@functools.lru_cache(maxsize=1)
def _normalised(make_model: MakeModel) -> Float32[np.ndarray, "256 3"]:
    """Every byte as the model normalises it, by channel: one program for images of any size."""
    model: Any = jax.eval_shape(make_model, jax.random.key(0))
    values = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    return np.asarray(jax.jit(normalise, static_argnums=1)(values, model.pixels))


def _probes() -> list[Item]:
    """A text, and an image with one."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    return [Item("probe"), Item("<|image_1|>\nprobe", (Media("probe.png", stream.getvalue()),))]

"""LLaVA folders beside transformers' processors, and the comparison of their rows."""

import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    ProcessorMixin,
)

from tests.backbones.images import encoded, noise
from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from unime_jax.backbones import Backbone, Processing, open_backbone
from unime_jax.backbones.llava import anyres
from unime_jax.backbones.llava.rows import LlavaPreprocessor
from unime_jax.backbones.preprocessing.images import decode_images
from unime_jax.batch import Item, Media

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MARKED = "<|image_1|>\nRepresent the given image for classification\n"
NEXT_CANVASES = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
RAW, CHAT = Processing(prompt="raw"), Processing(prompt="chat")


@dataclasses.dataclass(frozen=True)
class Case:
    """A folder as we open it, and its processor in transformers."""

    folder: pathlib.Path
    backbone: Backbone
    processor: ProcessorMixin

    @property
    def preprocess(self) -> LlavaPreprocessor:
        return self.backbone.preprocess

    def __repr__(self) -> str:
        return f"Case({self.folder.name})"


def case(folder: pathlib.Path, processing: Processing | None = None) -> Case:
    backbone = open_backbone(str(folder), max_length=10_000, processing=processing)
    config = json.loads((folder / "config.json").read_text())
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if config["model_type"] == "llava_onevision":
        processor = LlavaOnevisionProcessor(
            image_processor=image_processor,
            tokenizer=tokenizer,
            video_processor=LlavaOnevisionVideoProcessor(),
            num_image_tokens=backbone.preprocess.side**2,
            vision_feature_select_strategy="full",
            vision_aspect_ratio=config["vision_aspect_ratio"],
        )
    else:
        processor = LlavaNextProcessor(
            image_processor=image_processor,
            tokenizer=tokenizer,
            patch_size=backbone.preprocess.patch,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    return Case(folder, backbone, processor)


def make_cases(folder: pathlib.Path) -> dict[str, Case]:
    """ "blending" has tiles of 30 pixels, no multiple of its patch, and shrinks its maps."""

    def inner(name):
        (folder / name).mkdir()
        return folder / name

    return {
        "onevision": case(write_folder(inner("onevision"))),
        "blending": case(write_folder(inner("blending"), tile=30, grid=6, max_tiles=2)),
        "next-raw": case(write_llava_next(inner("next-raw"), decoder="mistral")),
        "next-chat": case(write_llava_next(inner("next-chat"), decoder="mistral"), CHAT),
        "vicuna": case(
            write_llava_next(inner("vicuna"), tile=30, pinpoints=((30, 60), (60, 30), (60, 60))),
            CHAT,
        ),
    }


NAMES = ["onevision", "blending", "next-raw", "next-chat", "vicuna"]


def picture(width: int = 40, height: int = 23) -> Item:
    return Item(MARKED, (Media("a.png", encoded(noise(width, height))),))


def several(*sizes: tuple[int, int], text: str = MARKED) -> Item:
    media = (Media(f"{i}.png", encoded(noise(*size, seed=i))) for i, size in enumerate(sizes))
    return Item(text, tuple(media))


def tiles_of(preprocess: LlavaPreprocessor, image: Image.Image, images: int) -> int:
    if images > 1 and not preprocess.tiles_of_many:
        return 1
    return anyres.count_tiles(
        image.height, image.width, pinpoints=preprocess.pinpoints, tile=preprocess.tile
    )


def check_row(case: Case, item: Item) -> None:
    """Ids, slots and patches of an item with images against transformers' processor."""
    preprocess, row = case.preprocess, case.preprocess(item)
    images = decode_images(item, None)
    inputs = case.processor(
        images=[images], text=[preprocess.prompt.rendered(item)], return_tensors="np"
    )
    assert row.tokens.tolist() == inputs["input_ids"][0].tolist()
    assert row.tokens.dtype == row.slot.dtype == row.positions.dtype == np.int32
    np.testing.assert_array_equal(row.positions[:, 0], np.arange(len(row.tokens)))
    is_image = row.tokens == preprocess.prompt.image_token_id
    np.testing.assert_array_equal((row.slot >= 0).all(axis=1), is_image)
    assert (row.slot[~is_image] == anyres.TEXT).all()
    # What the device computes from the bytes is what the processor gives.
    counts = [tiles_of(preprocess, image, len(images)) for image in images]
    every = inputs["pixel_values"]
    tiles = np.concatenate([own[:count] for own, count in zip(every, counts, strict=True)])
    assert not any(own[count:].any() for own, count in zip(every, counts, strict=True))
    side, patch = preprocess.side, preprocess.patch
    assert row.patches.dtype == np.uint8
    assert row.patches.shape == (len(tiles), side * side, 3 * patch * patch)
    assert row.slot.max() <= len(tiles) * side * side
    pixels = case.processor.image_processor
    mean, std = (np.repeat(x, patch**2) for x in (pixels.image_mean, pixels.image_std))
    normalised = (row.patches * pixels.rescale_factor - mean) / std
    for n in range(side * side):
        y, x = divmod(n, side)
        window = tiles[:, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
        np.testing.assert_allclose(normalised[:, n], window.reshape(len(tiles), -1), atol=1e-6)

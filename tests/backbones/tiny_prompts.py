"""Prompts of tiny folders in every style, and items for them."""

import json

from transformers import AutoTokenizer

from unime_jax.backbones.preprocessing.open_prompts import open_prompt
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.batch import Item, Media

PROMPTS = [
    (family, style)
    for family in ("onevision", "mistral", "vicuna", "qwen2_vl")
    for style in ("chat", "verbatim", "raw")
]


def opened(folder, style, max_length=10_000) -> Prompt:
    config = json.loads((folder / "config.json").read_text())
    image_token_id = config.get("image_token_id") or config.get("image_token_index")
    return open_prompt(
        folder,
        AutoTokenizer.from_pretrained(folder),
        image_token_id=image_token_id,
        vocab_size=448,
        style=style,
        max_length=max_length,
    )


def item(text: str, images: int = 0) -> Item:
    """An item with so many images, which a prompt does not look into."""
    return Item(text, tuple(Media(f"{i}.png", b"bytes") for i in range(images)))

"""Facts of how a model reads its inputs, so that a check that fails says what has changed.

Four things make another vector of the same weights: the token that ends a sequence, the state that
is pooled, the size of images, and the words around a text.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unime_jax.backbones import Backbone
from unime_jax.batch import Item

Facts = Mapping[str, Any]  # of one input, for JSON
FINAL_NORM = {True: "after the final norm", False: "before the final norm"}


def facts(backbone: Backbone, item: Item) -> dict[str, Any]:
    """Facts of an item: its prompt, its last token, and what is seen of its images."""
    row = backbone.preprocess(item)
    tokens = np.asarray(row.tokens).tolist()
    pixels = None if row.patches is None else hashlib.blake2b(row.patches.tobytes(), digest_size=8)
    return {
        "prompt": backbone.preprocess.prompt.rendered(item),
        "end_token": tokens[-1] if tokens else None,
        "image_tokens": int(np.sum(np.max(row.slot, axis=1) >= 0)) if tokens else 0,
        "pixels": pixels and pixels.hexdigest(),
        "state": FINAL_NORM[backbone.processing.final_norm],
    }


def differing(before: Sequence[Facts], now: Sequence[Facts]) -> list[str]:
    """What differs between facts of the same inputs, a sentence each, by its first input."""
    sentences: dict[str, str] = {}
    for then, here in zip(before, now, strict=True):
        for name, keys in (
            ("end token", ["end_token"]),
            ("final norm", ["state"]),
            ("resize", ["image_tokens", "pixels"]),
            ("prompt", ["prompt"]),
        ):
            for key in keys:
                if then[key] != here[key]:
                    said = f"{name}: {key} is {here[key]!r}, and was {then[key]!r}"
                    sentences.setdefault(name, said)
    return list(sentences.values())

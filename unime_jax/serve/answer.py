"""The answer to an embedding request, in OpenAI's form."""

import base64 as base64_codec
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from unime_jax.batch import Row


def body(
    model: str,
    vectors: Float32[np.ndarray, "n D"],
    tokens: int,
    warnings: Sequence[str],
    *,
    base64: bool,
) -> bytes:
    """JSON of all embeddings; `warnings` are left out where there are none, as of OpenAI."""
    encoded: list[Any] = vectors.tolist()
    if base64:
        little = vectors.astype("<f4")
        encoded = [base64_codec.b64encode(vector.tobytes()).decode() for vector in little]
    values: dict[str, Any] = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": embedding}
            for index, embedding in enumerate(encoded)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    if warnings:
        values["warnings"] = list(warnings)
    return json.dumps(values, separators=(",", ":")).encode()


def warnings_of(fields: Sequence[str], rows: Sequence[Row], max_length: int) -> list[str]:
    """Sentences on what of an item is not in its embedding."""
    warnings = []
    for field, row in zip(fields, rows, strict=True):
        if row.truncated:
            warnings.append(
                f"{field}: {row.truncated} tokens or more were cut off, at max_length ="
                f" {max_length}"
            )
        if row.unmatched_markers:
            warnings.append(f"{field}: it has {row.unmatched_markers} image markers without image")
    return warnings

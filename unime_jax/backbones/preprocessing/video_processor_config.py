"""Settings of a folder's video processor: precedence of its files, and copies in exports.

transformers 5 reads `video_processor` in processor_config.json, then
video_preprocessor_config.json, and where neither is there it takes the image processor's settings.
Here those never count for clips: no model was trained with frames as large as its largest images.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from unime_jax.backbones.io import json_files
from unime_jax.backbones.preprocessing.image_processor_config import PROCESSOR_FILE

FILE = "video_preprocessor_config.json"
NESTED = "video_processor"  # its key in PROCESSOR_FILE
TYPE = "video_processor_type"


def read(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    """The file that takes precedence, and its settings; none where there is no file.

    Raises:
      ValueError: it is no JSON object.
    """
    nested = json_files.read(folder / PROCESSOR_FILE).get(NESTED)
    if not isinstance(nested, dict | None):
        raise ValueError(f"{folder / PROCESSOR_FILE}: {NESTED} is {nested!r}; it must be an object")
    if nested is not None:
        return folder / PROCESSOR_FILE, nested
    return folder / FILE, json_files.read(folder / FILE)


def write(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Writes an export's settings, so that every version of transformers reads the same."""
    if not settings:
        return
    json_files.write(folder / FILE, dict(settings))
    content = json_files.read(folder / PROCESSOR_FILE)
    if content.get(NESTED) is not None:
        json_files.write(folder / PROCESSOR_FILE, content | {NESTED: dict(settings)})

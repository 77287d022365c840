"""JSON files of Hugging Face folders, each an object."""

import json
from collections.abc import Mapping
from typing import Any

from unime_jax import files


def read(file: files.Path) -> dict[str, Any]:
    """A file's content; {} where there is none.

    Raises:
      ValueError: it is not a JSON object.
    """
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; it must be a JSON object")
    return content


def write(file: files.Path, content: Mapping[str, Any]) -> None:
    """Replaces the file."""
    files.write_whole(file, json.dumps(content, indent=2) + "\n")
